//! The rules of both programs, for tests.

use ipnetwork::IpNetwork;

use super::Match::{Destination, Mark, Source};
use super::{Chain, Family, Hook, Match, Ownership, Rule, Ruleset, Table, TableId, Verdict};

pub(super) const MASQUERADE: Verdict = Verdict::Masquerade { fully_random: true };

pub(super) fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

pub(super) fn rule(matches: &[Match], verdict: Verdict, comment: Option<&str>) -> Rule {
    Rule { matches: matches.to_vec(), verdict, comment: comment.map(str::to_owned) }
}

pub(super) fn chain(name: &str, hook: Option<Hook>, rules: Vec<Rule>) -> Chain {
    Chain { name: name.to_owned(), hook, rules }
}

/// The agent's table for one family.
pub(super) fn agent_table(
    (family, name): (Family, &str),
    (cluster, subnet, multicast): (&str, &str, &str),
) -> Table {
    let (c, p, m) = (net(cluster), net(subnet), net(multicast));
    let forward = [Source(c, true), Destination(c, true)];
    let masq = |a, b, verdict| rule(&[a, b], verdict, Some("flanneld masq"));
    let postrouting = vec![
        rule(&[Mark(0x4000)], Verdict::Return, Some("flanneld masq")),
        masq(Source(p, true), Destination(c, true), Verdict::Return),
        masq(Source(c, true), Destination(p, true), Verdict::Return),
        masq(Source(c, false), Destination(p, true), Verdict::Return),
        masq(Source(c, true), Destination(m, false), MASQUERADE),
        masq(Source(c, false), Destination(c, true), MASQUERADE),
    ];
    Table {
        id: TableId { family, name: name.to_owned() },
        ownership: Ownership::Whole,
        comment: Some(format!("rules for {name}")),
        chains: vec![
            chain(
                "forward",
                Some(Hook::FilterForward),
                forward.map(|m| rule(&[m], Verdict::Accept, Some("flanneld forward"))).to_vec(),
            ),
            chain("postrtg", Some(Hook::NatPostrouting), postrouting),
        ],
    }
}

/// What the agent desires.
pub(super) fn agent() -> Ruleset {
    let v4 = ("10.244.0.0/16", "10.244.3.0/24", "224.0.0.0/4");
    let v6 = ("fd00:10:244::/56", "fd00:10:244:3::/64", "ff00::/8");
    Ruleset {
        tables: vec![
            agent_table((Family::Ip, "flannel-ipv4"), v4),
            agent_table((Family::Ip6, "flannel-ipv6"), v6),
        ],
    }
}

/// What the plugin desires for an attachment with addresses of the given host number.
pub(super) fn attachment(mark: &str, host: u8) -> Ruleset {
    let plain = |matches: &[Match], verdict| rule(matches, verdict, None);
    let comment = format!("{mark}, net: cbr0, if: eth0, id: {host}");
    let masquerade = |address: String, subnet: &str| {
        let matches = [Source(net(&address), true), Destination(net(subnet), false)];
        rule(&matches, Verdict::Masquerade { fully_random: false }, Some(&comment))
    };
    let masq_checks = vec![
        masquerade(format!("10.244.3.{host}"), "10.244.3.0/24"),
        masquerade(format!("fd00:10:244:3::{host:x}"), "fd00:10:244:3::/64"),
    ];
    let postrouting = vec![
        plain(&[Destination(net("224.0.0.0/4"), true)], Verdict::Return),
        plain(&[Destination(net("ff00::/8"), true)], Verdict::Return),
        plain(&[], Verdict::Goto("masq_checks".to_owned())),
    ];
    Ruleset {
        tables: vec![Table {
            id: TableId { family: Family::Inet, name: "cni_plugins_masquerade".to_owned() },
            ownership: Ownership::Marked(mark.to_owned()),
            comment: Some(
                "Masquerading for plugins from github.com/containernetworking/plugins".to_owned(),
            ),
            chains: vec![
                chain("masq_checks", None, masq_checks),
                chain("postrouting", Some(Hook::NatPostrouting), postrouting),
            ],
        }],
    }
}

/// The same ruleset without any rules and chains.
pub(super) fn emptied(mut ruleset: Ruleset) -> Ruleset {
    ruleset.tables.iter_mut().for_each(|table| table.chains.clear());
    ruleset
}
