//! Rules that give what leaves the subnet of an attachment the address of the node.
//!
//! They stand in the table that the Go plugins use too and look as theirs do, so that either program
//! can remove what the other one made. A rule is found by the hash in its comment.

pub mod iptables;

use fabric::packet_filter::{
    Chain, Family, Hook, Match, Ownership, Rule, Ruleset, Table, TableId, Verdict,
};
use ipnetwork::IpNetwork;
use sha2::{Digest, Sha512};

use crate::filter::{Engine, Rules};
use crate::invocation::{Attachment, Id};

/// Longer comments are refused by the kernel (`NFT_USERDATA_MAXLEN`, less what frames them).
const COMMENT_BYTES: usize = 128;

/// Returns the rules for an attachment with these addresses, each with the length of its subnet.
pub fn rules(attachment: &Attachment, engine: Engine, addresses: &[IpNetwork]) -> Rules {
    let addresses = addresses.iter().copied();
    match engine {
        Engine::Nftables => Rules::of_nftables(nftables(attachment, addresses)),
        Engine::Iptables => Rules::of_iptables(iptables::tables(attachment, addresses)),
    }
}

fn nftables(attachment: &Attachment, addresses: impl Iterator<Item = IpNetwork>) -> Ruleset {
    let comment = comment(attachment);
    let checks = addresses.map(|address| Rule {
        matches: vec![
            Match::Source(host(address), true),
            Match::Destination(subnet(address), false),
        ],
        verdict: Verdict::Masquerade { fully_random: false },
        comment: Some(comment.clone()),
    });
    let checks = Chain { name: CHECKS.to_owned(), hook: None, rules: checks.collect() };
    Ruleset { tables: vec![table(mark(attachment), vec![checks, postrouting()])] }
}

/// Returns the tables that have rules of attachments, to look through.
pub fn tables() -> Ruleset {
    Ruleset { tables: vec![table(String::new(), Vec::new())] }
}

const CHECKS: &str = "masq_checks";

fn table(mark: String, chains: Vec<Chain>) -> Table {
    Table {
        id: TableId { family: Family::Inet, name: "cni_plugins_masquerade".to_owned() },
        ownership: Ownership::Marked(mark),
        comment: Some(
            "Masquerading for plugins from github.com/containernetworking/plugins".into(),
        ),
        chains,
    }
}

fn postrouting() -> Chain {
    let multicast = |network: &str| Rule {
        matches: vec![Match::Destination(network.parse().expect("a network"), true)],
        verdict: Verdict::Return,
        comment: None,
    };
    let others =
        Rule { matches: Vec::new(), verdict: Verdict::Goto(CHECKS.to_owned()), comment: None };
    Chain {
        name: "postrouting".to_owned(),
        hook: Some(Hook::NatPostrouting),
        rules: vec![multicast("224.0.0.0/4"), multicast("ff00::/8"), others],
    }
}

/// What the comments of all rules of a network start with.
pub fn network_mark(network: &Id) -> String {
    format!("{}-", digest(network.as_str()))
}

/// What the comments of an attachment's rules start with: 16 digits for the network, 16 for the
/// interface of the container.
pub fn mark(attachment: &Attachment) -> String {
    let Attachment { network, container, if_name } = attachment;
    network_mark(network) + &digest(&format!("{if_name}:{container}"))
}

/// Returns the comment on an attachment's rules.
pub fn comment(attachment: &Attachment) -> String {
    let Attachment { network, container, if_name } = attachment;
    let mark = mark(attachment);
    let mut comment = format!("{mark}, net: {network}, if: {if_name}, id: {container}");
    comment.retain(|c| c != '"');
    comment.truncate(comment.floor_char_boundary(COMMENT_BYTES));
    comment
}

fn digest(text: &str) -> String {
    let hash = Sha512::digest(text.as_bytes());
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn host(address: IpNetwork) -> IpNetwork {
    IpNetwork::from(address.ip())
}

fn subnet(address: IpNetwork) -> IpNetwork {
    IpNetwork::new(address.network(), address.prefix()).expect("a prefix of this family")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_that_of_the_go_plugins() {
        assert_eq!(
            mark(&Attachment::named("unit-test", "one", "eth0")),
            "6fd94d501e58f0aa-287fc69eff0574a2"
        );
    }

    #[test]
    fn a_rule_says_whose_it_is() {
        let attachment = Attachment::named("unit-test", "one", "eth0");
        let expected = "6fd94d501e58f0aa-287fc69eff0574a2, net: unit-test, if: eth0, id: one";
        assert_eq!(comment(&attachment), expected);
        let long = Attachment { container: Id::new(&"a".repeat(100)).unwrap(), ..attachment };
        assert_eq!(comment(&long).len(), COMMENT_BYTES);
    }

    #[test]
    fn each_address_is_hidden_from_all_but_its_subnet() {
        let addresses = ["10.1.2.5/24", "fd00::5/64"].map(|ip| ip.parse().unwrap());
        let ruleset =
            nftables(&Attachment::named("unit-test", "one", "eth0"), addresses.into_iter());
        let [table] = ruleset.tables.as_slice() else { panic!("one table") };
        let [checks, postrouting] = table.chains.as_slice() else { panic!("two chains") };
        let matches: Vec<_> = checks.rules.iter().map(|rule| rule.matches.clone()).collect();
        let net = |text: &str| text.parse::<IpNetwork>().unwrap();
        let expected = [
            [
                Match::Source(net("10.1.2.5/32"), true),
                Match::Destination(net("10.1.2.0/24"), false),
            ],
            [Match::Source(net("fd00::5/128"), true), Match::Destination(net("fd00::/64"), false)],
        ];
        assert_eq!(matches, expected);
        assert_eq!(postrouting.rules.len(), 3);
    }
}
