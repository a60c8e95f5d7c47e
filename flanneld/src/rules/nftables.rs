//! The rules as tables of our own in nftables, named as flannel names them.

use fabric::packet_filter::{self, Chain, Hook, Ownership, Rule, Ruleset, Table, TableId};

use super::{FamilyRules, NodeRules};
use crate::family::Family;

/// Returns both tables; one without rules shall not exist.
pub(super) fn ruleset(rules: &NodeRules) -> Ruleset {
    let nothing = FamilyRules::default();
    let table = |family| table(family, rules.get(family).unwrap_or(&nothing));
    Ruleset { tables: Family::ALL.map(table).into() }
}

fn table(family: Family, rules: &FamilyRules) -> Table {
    let (family, name) = match family {
        Family::V4 => (packet_filter::Family::Ip, "flannel-ipv4"),
        Family::V6 => (packet_filter::Family::Ip6, "flannel-ipv6"),
    };
    let chains = [
        ("forward", Hook::FilterForward, &rules.forward),
        ("postrtg", Hook::NatPostrouting, &rules.postrouting),
        ("output", Hook::FilterOutput, &rules.output),
    ];
    let chains = chains.into_iter().filter(|(_, _, rules)| !rules.is_empty());
    Table {
        id: TableId { family, name: name.to_owned() },
        ownership: Ownership::Whole,
        comment: Some(format!("rules for {name}")),
        chains: chains.map(|(name, hook, rules)| chain(name, hook, rules)).collect(),
    }
}

/// In a table of our own nobody asks whose a rule is.
fn chain(name: &str, hook: Hook, rules: &[Rule]) -> Chain {
    let plain = |rule: &Rule| Rule { comment: None, ..rule.clone() };
    Chain { name: name.to_owned(), hook: Some(hook), rules: rules.iter().map(plain).collect() }
}
