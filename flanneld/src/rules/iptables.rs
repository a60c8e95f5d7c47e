//! The rules as chains of our own in the tables of iptables, with the names, jumps and comments of
//! flannel, so that either program finds the other's rules to be its own. Only those about tunnels,
//! in a table that flannel has nothing in, are ours alone.

use fabric::packet_filter;
use fabric::packet_filter::iptables::{Chain, Content, Place, Placed, Rule, Table, TableName};

use super::FamilyRules;

/// Returns what of the tables is ours; chains without rules shall not exist.
///
/// The jumps are appended: what the administrator accepts or drops comes first.
pub(super) fn tables(rules: &FamilyRules) -> Vec<Table> {
    vec![
        table(TableName::Filter, ("FORWARD", "FLANNEL-FWD"), "flanneld forward", &rules.forward),
        table(
            TableName::Nat,
            ("POSTROUTING", "FLANNEL-POSTRTG"),
            "flanneld masq",
            &rules.postrouting,
        ),
        table(TableName::Raw, ("OUTPUT", "FLANNEL-OUTPUT"), "flanneld tunnel", &rules.output),
    ]
}

fn table(
    name: TableName,
    (built_in, own): (&str, &str),
    comment: &str,
    rules: &[packet_filter::Rule],
) -> Table {
    let chain = |name: &str, content| Chain { name: name.to_owned(), content };
    if rules.is_empty() {
        return Table { name, chains: vec![chain(own, Content::Absent)] };
    }
    let jump = Rule::new(["-m", "comment", "--comment", comment, "-j", own]);
    let jump = Placed { rule: jump, place: Place::Last };
    let rules = rules.iter().map(Rule::from).collect();
    Table {
        name,
        chains: vec![
            chain(own, Content::Exactly(rules)),
            chain(built_in, Content::Among(vec![jump])),
        ],
    }
}
