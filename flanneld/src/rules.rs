//! The packet filter rules of a node, whichever engine they go into: what pods send out of the
//! cluster gets the node's address, forwarding from and to pods is accepted, and nobody masquerades
//! the packets of a tunnel. Pure.

pub(crate) mod engine;
mod iptables;
mod nftables;
pub(crate) mod notification;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fabric::packet_filter::{Match, Rule, Transport, Verdict};
use ipnetwork::IpNetwork;

use crate::family::{Family, PerFamily};
use crate::lease::LeaseKey;

/// kube-proxy marks what it will masquerade itself.
const KUBE_PROXY_MARK: u32 = 0x4000;

/// What is wanted of the rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RuleOptions {
    /// The families whose packets are masqueraded when they leave the cluster.
    pub(crate) masquerade: Vec<Family>,
    /// What pods send there keeps its source.
    pub(crate) masquerade_except: Vec<IpNetwork>,
    /// Let masquerading pick random source ports.
    pub(crate) random_fully: bool,
    /// Accept forwarding from and to pods.
    pub(crate) forward: bool,
}

/// The rules of a node, for each family that has any.
pub(crate) type NodeRules = PerFamily<FamilyRules>;

/// The rules for packets of one family, in the order in which packets meet them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FamilyRules {
    /// For what the node forwards.
    forward: Vec<Rule>,
    /// For what leaves the node, where it may be given another source.
    postrouting: Vec<Rule>,
    /// For what the node itself sends.
    output: Vec<Rule>,
}

/// Returns the rules for a node that has these subnets of these networks, and whose kernel sends to
/// these UDP ports what it wraps.
pub(crate) fn desired(
    options: &RuleOptions,
    networks: &PerFamily<IpNetwork>,
    subnets: &LeaseKey,
    tunnels: &PerFamily<u16>,
) -> NodeRules {
    PerFamily::from_fn(|family| {
        let (network, subnet) = (*networks.get(family)?, subnets.subnet(family)?);
        let masquerade = options.masquerade.contains(&family);
        let mut rules = FamilyRules {
            forward: if options.forward { forward(network) } else { Vec::new() },
            postrouting: if masquerade {
                postrouting(options, network, subnet)
            } else {
                Vec::new()
            },
            output: Vec::new(),
        };
        if rules == FamilyRules::default() {
            return None;
        }
        rules.output.extend(tunnels.get(family).map(|port| outer(*port)));
        Some(rules)
    })
}

fn forward(network: IpNetwork) -> Vec<Rule> {
    let accept = |condition| Rule {
        matches: vec![condition],
        verdict: Verdict::Accept,
        comment: Some("flanneld forward".to_owned()),
    };
    vec![accept(Match::Source(network, true)), accept(Match::Destination(network, true))]
}

fn postrouting(options: &RuleOptions, network: IpNetwork, subnet: IpNetwork) -> Vec<Rule> {
    let keep = |matches: &[Match]| masquerading(matches, Verdict::Return);
    let masquerade = |matches: &[Match]| {
        masquerading(matches, Verdict::Masquerade { fully_random: options.random_fully })
    };
    let (from, to) = (Match::Source, Match::Destination);
    let excepted = options.masquerade_except.iter().copied();
    let excepted = excepted.filter(|except| except.is_ipv4() == network.is_ipv4());
    let mut rules = vec![
        keep(&[Match::Mark(KUBE_PROXY_MARK)]),
        keep(&[from(subnet, true), to(network, true)]),
        keep(&[from(network, true), to(subnet, true)]),
        // What comes to our pods from outside keeps its source, so that they see their client.
        keep(&[from(network, false), to(subnet, true)]),
    ];
    rules.extend(excepted.map(|except| keep(&[from(network, true), to(except, true)])));
    rules.extend([
        masquerade(&[from(network, true), to(multicast(network), false)]),
        masquerade(&[from(network, false), to(network, true)]),
    ]);
    rules
}

/// What is sent through a tunnel of the kernel keeps its mark when it is wrapped. Whoever masquerades
/// what is marked, as kube-proxy does, would do so twice: the packet inside, and the one around it.
fn outer(port: u16) -> Rule {
    Rule {
        matches: vec![Match::DestinationPort(Transport::Udp, port)],
        verdict: Verdict::ClearMark(KUBE_PROXY_MARK),
        comment: Some("flanneld tunnel".to_owned()),
    }
}

fn masquerading(matches: &[Match], verdict: Verdict) -> Rule {
    Rule { matches: matches.to_vec(), verdict, comment: Some("flanneld masq".to_owned()) }
}

fn multicast(network: IpNetwork) -> IpNetwork {
    let (ip, prefix) = match network {
        IpNetwork::V4(_) => (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
        IpNetwork::V6(_) => (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
    };
    IpNetwork::new(ip, prefix).expect("the prefix is valid")
}

#[cfg(test)]
mod tests;
