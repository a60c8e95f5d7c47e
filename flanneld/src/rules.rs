//! The packet filter rules of a node, whichever engine they go into: what pods send out of the
//! cluster gets the node's address, and forwarding from and to pods is accepted. Pure.

pub(crate) mod engine;
mod iptables;
mod nftables;
pub(crate) mod notification;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fabric::packet_filter::iptables::IpVersion;
use fabric::packet_filter::{Match, Rule, Verdict};
use ipnetwork::IpNetwork;

/// kube-proxy marks what it will masquerade itself.
const KUBE_PROXY_MARK: u32 = 0x4000;

/// What is wanted of the rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RuleOptions {
    /// The IP versions whose packets are masqueraded when they leave the cluster.
    pub(crate) masquerade: Vec<IpVersion>,
    /// What pods send there keeps its source.
    pub(crate) masquerade_except: Vec<IpNetwork>,
    /// Let masquerading pick random source ports.
    pub(crate) random_fully: bool,
    /// Accept forwarding from and to pods.
    pub(crate) forward: bool,
}

/// The rules of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeRules {
    pub(crate) v4: FamilyRules,
    pub(crate) v6: FamilyRules,
}

/// The rules for packets of one IP version, in the order in which packets meet them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FamilyRules {
    /// For what the node forwards.
    forward: Vec<Rule>,
    /// For what leaves the node, where it may be given another source.
    postrouting: Vec<Rule>,
}

/// Returns the rules for a node that has these subnets of these networks, at most one of each IP
/// version.
pub(crate) fn desired(
    options: &RuleOptions,
    subnets: impl IntoIterator<Item = (IpNetwork, IpNetwork)>,
) -> NodeRules {
    let mut rules = NodeRules::default();
    for (network, subnet) in subnets {
        let (version, family) = match network {
            IpNetwork::V4(_) => (IpVersion::V4, &mut rules.v4),
            IpNetwork::V6(_) => (IpVersion::V6, &mut rules.v6),
        };
        if options.forward {
            family.forward = forward(network);
        }
        if options.masquerade.contains(&version) {
            family.postrouting = postrouting(options, network, subnet);
        }
    }
    rules
}

impl NodeRules {
    fn families(&self) -> [(IpVersion, &FamilyRules); 2] {
        [(IpVersion::V4, &self.v4), (IpVersion::V6, &self.v6)]
    }
}

impl FamilyRules {
    fn is_empty(&self) -> bool {
        self.forward.is_empty() && self.postrouting.is_empty()
    }
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
