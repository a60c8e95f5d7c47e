//! Rules that let an attachment send nothing under another Ethernet address than its own.
//!
//! They stand where the Go plugin `bridge` puts its own and look as those do, so that either can remove
//! what the other made. Pure.

use fabric::link_name::LinkName;
use fabric::mac::MacAddr;
use fabric::packet_filter::{
    Chain, Family, Hook, Match, Ownership, Rule, Ruleset, Table, TableId, Verdict,
};

use crate::invocation::Attachment;

/// Longer comments are refused by the kernel (`NFT_USERDATA_MAXLEN`, less what frames them).
const COMMENT_BYTES: usize = 128;

/// What the comments of all these rules start with.
const COMMENT: &str = "macspoofchk-";
/// What the names of all these chains start with.
const CHAIN: &str = "cni-br-iface-";

/// Returns the rules for what comes in by `veth` from an attachment with this address.
pub fn rules(attachment: &Attachment, veth: LinkName, mac: MacAddr) -> Ruleset {
    let comment = comment(attachment);
    let [own, checks] = chains(attachment);
    let rule =
        |matches: Vec<Match>, verdict| Rule { matches, verdict, comment: Some(comment.clone()) };
    let chain = |name: &str, hook, rules| Chain { name: name.to_owned(), hook, rules };
    let entry = rule(vec![Match::InputInterface(veth)], Verdict::Jump(own.clone()));
    let jump = rule(Vec::new(), Verdict::Jump(checks.clone()));
    let checked =
        vec![rule(vec![Match::EtherSource(mac)], Verdict::Return), rule(Vec::new(), Verdict::Drop)];
    let chains = vec![
        chain("PREROUTING", Some(Hook::FilterPrerouting), vec![entry]),
        chain(&own, None, vec![jump]),
        chain(&checks, None, checked),
    ];
    Ruleset { tables: vec![table(comment.clone(), chains)] }
}

/// Returns the table that has rules of attachments, to look through.
pub fn tables() -> Ruleset {
    Ruleset { tables: vec![table(String::new(), Vec::new())] }
}

/// The chains of an attachment: what leads to its checks, and these.
pub fn chains(attachment: &Attachment) -> [String; 2] {
    let Attachment { container, if_name, .. } = attachment;
    let own = format!("{CHAIN}{container}-{if_name}");
    let checks = format!("{own}-mac");
    [own, checks]
}

/// The comment on an attachment's rules.
pub fn comment(attachment: &Attachment) -> String {
    let Attachment { container, if_name, .. } = attachment;
    let mut comment = format!("{COMMENT}{container}-{if_name}");
    comment.truncate(comment.floor_char_boundary(COMMENT_BYTES));
    comment
}

/// Whether a chain is one of the attachment whose rules have this comment.
pub fn is_chain_of(name: &str, comment: &str) -> bool {
    let attachment = comment.strip_prefix(COMMENT);
    let chain = name.strip_prefix(CHAIN).map(|name| name.strip_suffix("-mac").unwrap_or(name));
    attachment.is_some() && attachment == chain
}

fn table(mark: String, chains: Vec<Chain>) -> Table {
    Table {
        id: TableId { family: Family::Bridge, name: "nat".to_owned() },
        ownership: Ownership::Marked(mark),
        comment: None,
        chains,
    }
}

#[cfg(test)]
mod tests {
    use fabric::packet_filter::{Observed, diff};

    use super::*;

    #[test]
    fn the_rules_are_those_of_the_go_plugin() {
        let attachment = Attachment::named("cbr0", "one", "eth0");
        let mac = "02:00:00:00:00:01".parse().unwrap();
        let rules = rules(&attachment, "veth1".parse().unwrap(), mac);
        let expected = "\
add table bridge nat
add chain bridge nat PREROUTING { type filter hook prerouting priority raw; policy accept; }
add chain bridge nat cni-br-iface-one-eth0
add chain bridge nat cni-br-iface-one-eth0-mac
add rule bridge nat PREROUTING iifname \"veth1\" jump cni-br-iface-one-eth0 comment \"macspoofchk-one-eth0\"
add rule bridge nat cni-br-iface-one-eth0 jump cni-br-iface-one-eth0-mac comment \"macspoofchk-one-eth0\"
add rule bridge nat cni-br-iface-one-eth0-mac ether saddr 02:00:00:00:00:01 return comment \"macspoofchk-one-eth0\"
add rule bridge nat cni-br-iface-one-eth0-mac drop comment \"macspoofchk-one-eth0\"
";
        assert_eq!(diff(&rules, &Observed::default()).to_string(), expected);
    }
}
