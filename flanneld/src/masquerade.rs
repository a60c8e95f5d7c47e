//! The packet filter rules of a node: what pods send out of the cluster gets the node's address,
//! and forwarding from and to pods is accepted. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fabric::packet_filter::{
    self, Chain, Hook, Match, Ownership, Rule, Ruleset, Table, TableId, Verdict,
};
use ipnetwork::IpNetwork;

use crate::family::{Family, PerFamily};
use crate::lease::LeaseKey;

/// kube-proxy marks what it will masquerade itself.
const KUBE_PROXY_MARK: u32 = 0x4000;

/// What is wanted of the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RuleOptions {
    /// Masquerade what leaves the cluster.
    pub(crate) masquerade: bool,
    /// Let masquerading pick random source ports.
    pub(crate) random_fully: bool,
    /// Accept forwarding from and to pods.
    pub(crate) forward: bool,
}

/// Returns the rules for a node with these subnets, one table for each family. That of a family
/// without a network shall not be there.
pub(crate) fn desired(
    options: RuleOptions,
    networks: &PerFamily<IpNetwork>,
    subnets: &LeaseKey,
) -> Ruleset {
    let table = |family| {
        let (nft_family, name) = match family {
            Family::V4 => (packet_filter::Family::Ip, "flannel-ipv4"),
            Family::V6 => (packet_filter::Family::Ip6, "flannel-ipv6"),
        };
        let both = networks.get(family).copied().zip(subnets.subnet(family));
        Table {
            id: TableId { family: nft_family, name: name.to_owned() },
            ownership: Ownership::Whole,
            comment: Some(format!("rules for {name}")),
            chains: both
                .map_or_else(Vec::new, |(network, subnet)| chains(options, network, subnet)),
        }
    };
    Ruleset { tables: Family::ALL.into_iter().map(table).collect() }
}

/// The chains for a node with `subnet` in `network`.
fn chains(options: RuleOptions, network: IpNetwork, subnet: IpNetwork) -> Vec<Chain> {
    let mut chains = Vec::new();
    if options.forward {
        chains.push(forward(network));
    }
    if options.masquerade {
        chains.push(postrouting(options.random_fully, network, subnet));
    }
    chains
}

fn forward(network: IpNetwork) -> Chain {
    let rules = vec![
        rule([Match::Source(network, true)], Verdict::Accept),
        rule([Match::Destination(network, true)], Verdict::Accept),
    ];
    Chain { name: "forward".to_owned(), hook: Some(Hook::FilterForward), rules }
}

fn postrouting(fully_random: bool, network: IpNetwork, subnet: IpNetwork) -> Chain {
    let masquerade = Verdict::Masquerade { fully_random };
    let rules = vec![
        rule([Match::Mark(KUBE_PROXY_MARK)], Verdict::Return),
        rule([Match::Source(subnet, true), Match::Destination(network, true)], Verdict::Return),
        rule([Match::Source(network, true), Match::Destination(subnet, true)], Verdict::Return),
        // What comes to our pods from outside keeps its source, so that they see their client.
        rule([Match::Source(network, false), Match::Destination(subnet, true)], Verdict::Return),
        rule(
            [Match::Source(network, true), Match::Destination(multicast(network), false)],
            masquerade.clone(),
        ),
        rule([Match::Source(network, false), Match::Destination(network, true)], masquerade),
    ];
    Chain { name: "postrtg".to_owned(), hook: Some(Hook::NatPostrouting), rules }
}

fn rule<const N: usize>(matches: [Match; N], verdict: Verdict) -> Rule {
    Rule { matches: matches.to_vec(), verdict, comment: None }
}

fn multicast(network: IpNetwork) -> IpNetwork {
    let (ip, prefix) = match network {
        IpNetwork::V4(_) => (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
        IpNetwork::V6(_) => (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
    };
    IpNetwork::new(ip, prefix).expect("the prefix is valid")
}
