//! Host ports in nftables.
//!
//! The rules stand in the tables of the Go plugin's nftables back end. Only what is sent to an
//! address of the node itself is looked at, so that a port mapping never takes what is for others.
//! Rules for one address of the node come before those for all of them.

use std::net::{IpAddr, Ipv4Addr};

use fabric::link_name::LinkName;
use fabric::packet_filter::{
    Chain, Family, Hook, Match, Ownership, Rule, Ruleset, Table, TableId, Verdict,
};
use ipnetwork::IpNetwork;

use super::{Conditions, Mapping, Masquerade, PortMap};
use crate::invocation::Attachment;
use crate::masquerade;

/// Returns the rules for an attachment with these addresses, of which the first of each family
/// counts, and which is reached by `link`.
pub fn rules(
    attachment: &Attachment,
    map: &PortMap,
    conditions: &Conditions<Match>,
    pod: &[IpAddr],
    link: LinkName,
) -> Ruleset {
    let of_family = |is_v4: bool| pod.iter().copied().find(|ip| ip.is_ipv4() == is_v4);
    let tables = [(Family::Ip, true), (Family::Ip6, false)].map(|(family, is_v4)| {
        let chains = of_family(is_v4).map(|pod| chains(attachment, map, conditions, pod, link));
        table(family, masquerade::mark(attachment), chains.unwrap_or_default())
    });
    Ruleset { tables: tables.into() }
}

/// Returns the tables that have rules of attachments, to look through.
pub fn tables() -> Ruleset {
    let table = |family| table(family, String::new(), Vec::new());
    Ruleset { tables: vec![table(Family::Ip), table(Family::Ip6)] }
}

fn table(family: Family, mark: String, chains: Vec<Chain>) -> Table {
    Table {
        id: TableId { family, name: "cni_hostport".to_owned() },
        ownership: Ownership::Marked(mark),
        comment: Some("CNI portmap plugin".to_owned()),
        chains,
    }
}

fn chains(
    attachment: &Attachment,
    map: &PortMap,
    conditions: &Conditions<Match>,
    pod: IpAddr,
    link: LinkName,
) -> Vec<Chain> {
    let chain = |name: &str, hook, rules| Chain { name: name.to_owned(), hook, rules };
    let jump = |matches, to: &str| plain(matches, Verdict::Jump(to.to_owned()));
    let (one, all): (Vec<_>, Vec<_>) = map
        .mappings
        .iter()
        .filter(|mapping| mapping.host_ip.is_none_or(|ip| ip.is_ipv4() == pod.is_ipv4()))
        .partition(|mapping| mapping.host_ip.is_some_and(|ip| !ip.is_unspecified()));
    let translations = |mappings: Vec<&Mapping>| -> Vec<Rule> {
        let conditions = conditions.of(pod);
        mappings.iter().map(|one| translation(attachment, one, conditions, pod)).collect()
    };
    let (one, all) = (translations(one), translations(all));
    if one.is_empty() && all.is_empty() {
        return Vec::new();
    }
    let local = || vec![jump(vec![Match::LocalDestination], "hostports_all")];
    let both = vec![jump(Vec::new(), "hostip_hostports"), jump(Vec::new(), "hostports")];
    let mut chains = vec![
        chain("hostip_hostports", None, one),
        chain("hostports", None, all),
        chain("hostports_all", None, both),
        chain("prerouting", Some(Hook::NatPrerouting), local()),
        chain("output", Some(Hook::NatOutput), local()),
    ];
    let masqueraded = masqueraded(attachment, map.masquerade, pod);
    if !masqueraded.is_empty() {
        chains.push(chain("masquerading", Some(Hook::NatPostrouting), masqueraded));
        if pod.is_ipv4() {
            chains.push(chain("martians", Some(Hook::FilterPrerouting), martians(link)));
        }
    }
    chains
}

fn translation(
    attachment: &Attachment,
    mapping: &Mapping,
    conditions: &[Match],
    pod: IpAddr,
) -> Rule {
    let host_ip = mapping.host_ip.filter(|ip| !ip.is_unspecified());
    let host_ip = host_ip.map(|ip| Match::Destination(IpNetwork::from(ip), true));
    let port = Match::DestinationPort(mapping.transport, mapping.host_port);
    let to = (pod, mapping.container_port).into();
    Rule {
        matches: conditions.iter().copied().chain(host_ip).chain([port]).collect(),
        verdict: Verdict::DestinationNat(to),
        comment: Some(masquerade::comment(attachment)),
    }
}

fn masqueraded(attachment: &Attachment, masquerade: Masquerade, pod: IpAddr) -> Vec<Rule> {
    let sources = match masquerade {
        Masquerade::Nobody => Vec::new(),
        Masquerade::Hairpin if pod.is_ipv4() => {
            vec![IpNetwork::from(pod), IpNetwork::from(IpAddr::V4(Ipv4Addr::LOCALHOST))]
        }
        Masquerade::Hairpin => vec![IpNetwork::from(pod)],
        Masquerade::All => vec![everybody(pod.is_ipv4())],
    };
    let rule = |source| Rule {
        matches: vec![Match::Source(source, true), Match::Destination(IpNetwork::from(pod), true)],
        verdict: Verdict::Masquerade { fully_random: false },
        comment: Some(masquerade::comment(attachment)),
    };
    sources.into_iter().map(rule).collect()
}

fn everybody(is_v4: bool) -> IpNetwork {
    let any = if is_v4 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    IpNetwork::new(any, 0).expect("zero is a prefix length")
}

/// Where the node's loopback addresses lead somewhere, the kernel does not keep others from using
/// them any more (`route_localnet` of its `networking/ip-sysctl`).
fn martians(link: LinkName) -> Vec<Rule> {
    let loopback = || "127.0.0.0/8".parse().expect("a network");
    let from_link = |condition| plain(vec![Match::InputInterface(link), condition], Verdict::Drop);
    vec![
        from_link(Match::Destination(loopback(), true)),
        from_link(Match::Source(loopback(), true)),
    ]
}

fn plain(matches: Vec<Match>, verdict: Verdict) -> Rule {
    Rule { matches, verdict, comment: None }
}
