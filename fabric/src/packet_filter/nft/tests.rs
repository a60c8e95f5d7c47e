//! The engine against the kernel, with the `nft` program as the judge.

mod ports;

use std::io::Write;
use std::process::{Command, Stdio};

use flannel_tests::sandbox::sandboxed;

use super::Nft;
use crate::packet_filter::examples::{agent, attachment, chain, emptied, net, rule};
use crate::packet_filter::{
    Chain, Change, Error, Family, Match, Observed, Operation, Ownership, PacketFilter, Rule,
    Ruleset, Table, TableId, Verdict, diff, ensure,
};

const AGENT_LISTING: &str = "\
table ip flannel-ipv4 {
	comment \"rules for flannel-ipv4\"
	chain forward {
		type filter hook forward priority filter; policy accept;
		ip saddr 10.244.0.0/16 accept comment \"flanneld forward\"
		ip daddr 10.244.0.0/16 accept comment \"flanneld forward\"
	}

	chain postrtg {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00004000 == 0x00004000 return comment \"flanneld masq\"
		ip saddr 10.244.3.0/24 ip daddr 10.244.0.0/16 return comment \"flanneld masq\"
		ip saddr 10.244.0.0/16 ip daddr 10.244.3.0/24 return comment \"flanneld masq\"
		ip saddr != 10.244.0.0/16 ip daddr 10.244.3.0/24 return comment \"flanneld masq\"
		ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random comment \"flanneld masq\"
		ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 masquerade fully-random comment \"flanneld masq\"
	}
}
table ip6 flannel-ipv6 {
	comment \"rules for flannel-ipv6\"
	chain forward {
		type filter hook forward priority filter; policy accept;
		ip6 saddr fd00:10:244::/56 accept comment \"flanneld forward\"
		ip6 daddr fd00:10:244::/56 accept comment \"flanneld forward\"
	}

	chain postrtg {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00004000 == 0x00004000 return comment \"flanneld masq\"
		ip6 saddr fd00:10:244:3::/64 ip6 daddr fd00:10:244::/56 return comment \"flanneld masq\"
		ip6 saddr fd00:10:244::/56 ip6 daddr fd00:10:244:3::/64 return comment \"flanneld masq\"
		ip6 saddr != fd00:10:244::/56 ip6 daddr fd00:10:244:3::/64 return comment \"flanneld masq\"
		ip6 saddr fd00:10:244::/56 ip6 daddr != ff00::/8 masquerade fully-random comment \"flanneld masq\"
		ip6 saddr != fd00:10:244::/56 ip6 daddr fd00:10:244::/56 masquerade fully-random comment \"flanneld masq\"
	}
}
";

const ATTACHMENT_LISTING: &str = "\
table inet cni_plugins_masquerade {
	comment \"Masquerading for plugins from github.com/containernetworking/plugins\"
	chain masq_checks {
		ip saddr 10.244.3.5 ip daddr != 10.244.3.0/24 masquerade comment \"aa-1, net: cbr0, if: eth0, id: 5\"
		ip6 saddr fd00:10:244:3::5 ip6 daddr != fd00:10:244:3::/64 masquerade comment \"aa-1, net: cbr0, if: eth0, id: 5\"
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip daddr 224.0.0.0/4 return
		ip6 daddr ff00::/8 return
		goto masq_checks
	}
}
";

#[test]
fn agent_rules_are_listed_as_desired_and_stay() {
    sandboxed(|| {
        let mut filter = Nft::open().unwrap();
        assert!(!ensure(&mut filter, &agent()).unwrap().is_empty());
        assert_eq!(listing(), AGENT_LISTING);
        assert_eq!(ensure(&mut filter, &agent()).unwrap().to_string(), "");
    });
}

#[test]
fn attachment_rules_are_listed_as_desired_and_stay() {
    sandboxed(|| {
        let mut filter = Nft::open().unwrap();
        assert!(!ensure(&mut filter, &attachment("aa-1", 5)).unwrap().is_empty());
        assert_eq!(listing(), ATTACHMENT_LISTING);
        assert_eq!(ensure(&mut filter, &attachment("aa-1", 5)).unwrap().to_string(), "");
    });
}

#[test]
fn rules_loaded_by_nft_are_recognised() {
    sandboxed(|| {
        nft(AGENT_LISTING);
        nft(ATTACHMENT_LISTING);
        assert_settled(&agent());
        assert_settled(&attachment("aa-1", 5));
    });
}

#[test]
fn change_loaded_by_nft_as_text_is_recognised() {
    sandboxed(|| {
        for desired in [agent(), attachment("aa-1", 5)] {
            let observed = Nft::open().unwrap().observe(&desired).unwrap();
            nft(&diff(&desired, &observed).to_string());
            assert_settled(&desired);
        }
    });
}

#[test]
fn every_kind_of_match_is_read_as_nft_writes_it() {
    sandboxed(|| {
        let (desired_v4, desired_v6) = (every_match(&V4_NETWORKS), every_match(&V6_NETWORKS));
        for (family, rules) in [
            (Family::Ip, desired_v4.clone()),
            (Family::Ip6, desired_v6.clone()),
            (Family::Inet, [desired_v4, desired_v6].concat()),
        ] {
            let desired =
                Ruleset { tables: vec![table(family, vec![chain("checks", None, rules)])] };
            nft(&diff(&desired, &Observed::default()).to_string());
            assert_settled(&desired);
            let ours = listing();
            nft("flush ruleset");
            ensure(&mut Nft::open().unwrap(), &desired).unwrap();
            assert_eq!(listing(), ours);
            assert_settled(&desired);
            nft("flush ruleset");
        }
    });
}

const V4_NETWORKS: [&str; 5] =
    ["0.0.0.0/0", "128.0.0.0/1", "10.0.0.0/8", "10.4.0.0/15", "10.1.2.3/32"];
const V6_NETWORKS: [&str; 6] =
    ["::/0", "fc00::/7", "fd00::/8", "fd00:0:0:2::/63", "fd00::1:0/127", "fd00::1/128"];

fn every_match(networks: &[&str]) -> Vec<Rule> {
    let pairs = networks.iter().flat_map(|text| {
        [true, false].map(|equal| {
            [Match::Destination(net(text), equal), Match::Mark(1), Match::Source(net(text), equal)]
        })
    });
    pairs.map(|matches| rule(&matches, Verdict::Accept, Some("a match"))).collect()
}

#[test]
fn rules_that_we_have_no_words_for_are_foreign() {
    sandboxed(|| {
        let rules = [
            "ip saddr 10.0.0.0/8 counter accept comment \"counted\"",
            "ip saddr 10.0.0.1-10.0.0.9 accept",
            "ip saddr { 10.0.0.1, 10.0.0.2 } accept",
            "ip saddr & 255.0.255.0 == 10.0.1.0 accept",
            "ip protocol tcp accept",
            "meta nfproto ipv4 accept",
            "meta mark 0x4000 return",
            "meta mark & 0x4000 != 0x4000 return",
            "ct state established accept",
            "counter",
            "tcp sport 80 accept",
            "tcp dport != 80 accept",
            "iifname \"veth*\" accept",
            "fib saddr type local accept",
            "dnat ip to 10.0.0.1",
            "masquerade random",
            "meta l4proto tcp masquerade to :1024-2048",
            "meta mark set 1",
            "meta mark set meta mark | 1",
        ];
        nft("add table inet t; add chain inet t c; add chain inet t other");
        for rule in rules {
            nft(&format!("add rule inet t c {rule}"));
        }
        let desired = Ruleset { tables: vec![table(Family::Inet, Vec::new())] };
        let observed = Nft::open().unwrap().observe(&desired).unwrap();
        let observed = &observed.tables[&desired.tables[0].id].chains["c"].rules;
        assert_eq!(observed.len(), rules.len());
        for (observed, text) in observed.iter().zip(rules) {
            assert_eq!(observed.rule, None, "{text}");
        }
        assert_eq!(observed[0].comment.as_deref(), Some("counted"));
    });
}

#[test]
fn flushed_or_changed_table_is_repaired() {
    sandboxed(|| {
        let mut filter = Nft::open().unwrap();
        ensure(&mut filter, &agent()).unwrap();
        for damage in [
            "flush ruleset",
            "flush chain ip flannel-ipv4 postrtg",
            "insert rule ip flannel-ipv4 forward drop",
            "add rule ip6 flannel-ipv6 postrtg counter",
            "add chain ip flannel-ipv4 empty",
            "add set ip flannel-ipv4 s { type ipv4_addr; }",
            "add chain ip flannel-ipv4 forward { policy drop; }",
            "add table ip flannel-ipv4 { flags dormant; }",
        ] {
            nft(damage);
            assert!(!ensure(&mut filter, &agent()).unwrap().is_empty(), "{damage}");
            let tables =
                agent().tables.iter().map(|table| listing_of(&table.id)).collect::<String>();
            assert_eq!(tables, AGENT_LISTING, "{damage}");
            assert_settled(&agent());
        }
    });
}

#[test]
fn table_with_nothing_desired_is_removed() {
    sandboxed(|| {
        let mut filter = Nft::open().unwrap();
        ensure(&mut filter, &agent()).unwrap();
        let change = ensure(&mut filter, &emptied(agent())).unwrap();
        assert_eq!(
            change.to_string(),
            "delete table ip flannel-ipv4\ndelete table ip6 flannel-ipv6\n"
        );
        assert_eq!(listing(), "");
        assert_settled(&emptied(agent()));
    });
}

#[test]
fn attachments_and_foreign_rules_do_not_disturb_each_other() {
    sandboxed(|| {
        let mut filter = Nft::open().unwrap();
        ensure(&mut filter, &attachment("aa-1", 5)).unwrap();
        nft(
            "insert rule inet cni_plugins_masquerade postrouting ip daddr 192.0.2.1 counter return",
        );
        nft("add rule inet cni_plugins_masquerade masq_checks ip saddr 192.0.2.0/24 accept");
        nft("add chain inet cni_plugins_masquerade another");
        let before = listing();
        let change = ensure(&mut filter, &attachment("bb-2", 6)).unwrap();
        assert_eq!(change.operations.len(), 2);
        assert_settled(&attachment("aa-1", 5));
        assert_settled(&attachment("bb-2", 6));
        ensure(&mut filter, &emptied(attachment("bb-2", 6))).unwrap();
        assert_eq!(listing(), before);
        assert_settled(&attachment("aa-1", 5));
    });
}

#[test]
fn teardown_where_nothing_was_made_changes_nothing() {
    sandboxed(|| {
        assert_settled(&emptied(attachment("aa-1", 5)));
        assert_eq!(listing(), "");
    });
}

#[test]
fn missing_shared_rule_comes_before_its_successor() {
    sandboxed(|| {
        let desired = attachment("aa-1", 5);
        let mut filter = Nft::open().unwrap();
        let chain = "inet cni_plugins_masquerade postrouting";
        ensure(&mut filter, &desired).unwrap();
        let damage = format!("flush chain {chain}; add rule {chain} goto masq_checks");
        nft(&damage);
        ensure(&mut filter, &desired).unwrap();
        assert_eq!(listing(), ATTACHMENT_LISTING);
        nft(&damage);
        nft(&diff(&desired, &filter.observe(&desired).unwrap()).to_string());
        assert_eq!(listing(), ATTACHMENT_LISTING);
    });
}

#[test]
fn failed_change_leaves_everything_and_names_the_operation() {
    sandboxed(|| {
        let mut filter = Nft::open().unwrap();
        ensure(&mut filter, &agent()).unwrap();
        let table = || TableId { family: Family::Ip, name: "flannel-ipv4".to_owned() };
        let goto = rule(&[], Verdict::Goto("nowhere".to_owned()), None);
        let (chain, before) = ("forward".to_owned(), None);
        let operations = vec![
            Operation::DeleteTable { table: table() },
            Operation::AddTable { table: table(), comment: None },
            Operation::AddChain { table: table(), chain: chain.clone(), hook: None },
            Operation::AddRule { table: table(), chain, before, rule: goto },
            Operation::DeleteRule { table: table(), chain: "forward".to_owned(), handle: 99 },
        ];
        let error = filter.apply(&Change { generation: 0, operations }).unwrap_err();
        assert_eq!(error.to_string(), "add rule ip flannel-ipv4 forward goto nowhere");
        let Error::Refused { errno, .. } = &error else { panic!("{error:?}") };
        assert_eq!(errno.raw_os_error(), Some(libc::ENOENT));
        assert_eq!(listing(), AGENT_LISTING);
        assert_settled(&agent());
    });
}

#[test]
fn more_errors_than_fit_the_buffer_leave_the_first() {
    sandboxed(|| {
        let mut filter = Nft::open().unwrap();
        ensure(&mut filter, &agent()).unwrap();
        let table = &agent().tables[0].id;
        let delete = |handle| {
            let (table, chain) = (table.clone(), "forward".to_owned());
            Operation::DeleteRule { table, chain, handle }
        };
        let change = Change { generation: 0, operations: (1001..3000).map(delete).collect() };
        let error = filter.apply(&change).unwrap_err();
        assert_eq!(error.to_string(), "delete rule ip flannel-ipv4 forward handle 1001");
        assert!(ensure(&mut filter, &agent()).unwrap().is_empty());
    });
}

#[test]
fn chain_with_another_hook_is_refused() {
    sandboxed(|| {
        nft("add table inet cni_plugins_masquerade");
        nft("add chain inet cni_plugins_masquerade postrouting");
        let before = listing();
        let error = ensure(&mut Nft::open().unwrap(), &attachment("aa-1", 5)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "add chain inet cni_plugins_masquerade postrouting \
             { type nat hook postrouting priority srcnat; policy accept; }"
        );
        assert!(!error.is_transient());
        assert_eq!(listing(), before);
    });
}

#[test]
fn change_of_another_generation_is_stale() {
    sandboxed(|| {
        let mut filter = Nft::open().unwrap();
        let change = diff(&agent(), &filter.observe(&agent()).unwrap());
        nft("add table ip somebody");
        let error = filter.apply(&change).unwrap_err();
        assert!(matches!(error, Error::Stale), "{error:?}");
        assert!(error.is_transient());
        assert_eq!(listing(), "table ip somebody {\n}\n");
        ensure(&mut filter, &agent()).unwrap();
        assert_settled(&agent());
    });
}

#[test]
fn concurrent_attachments_share_without_duplicates() {
    sandboxed(|| {
        let hosts = 10..30;
        std::thread::scope(|scope| {
            for host in hosts.clone() {
                scope.spawn(move || {
                    let mut filter = Nft::open().unwrap();
                    ensure(&mut filter, &attachment(&format!("{host}-"), host)).unwrap();
                });
            }
        });
        assert_eq!(listing().matches("goto masq_checks").count(), 1);
        assert_eq!(listing().matches("masquerade comment").count(), 2 * hosts.len());
        hosts.for_each(|host| assert_settled(&attachment(&format!("{host}-"), host)));
    });
}

#[test]
fn more_operations_than_acknowledgements_fit_the_buffer() {
    sandboxed(|| {
        let mut filter = Nft::open().unwrap();
        let mut desired = agent();
        let rules = (0..=255).map(|host| attachment("aa-1", host).tables.remove(0).chains);
        desired.tables.truncate(1);
        desired.tables[0].id.family = Family::Inet;
        desired.tables[0].chains =
            vec![chain("many", None, rules.flat_map(|mut c| c.remove(0).rules).collect())];
        assert_eq!(ensure(&mut filter, &desired).unwrap().operations.len(), 514);
        assert_settled(&desired);
    });
}

#[test]
fn long_comment_is_an_error() {
    sandboxed(|| {
        let mut desired = agent();
        desired.tables[0].comment = Some("x".repeat(255));
        let error = ensure(&mut Nft::open().unwrap(), &desired).unwrap_err();
        assert!(matches!(error, Error::CommentTooLong { .. }), "{error:?}");
        assert_eq!(listing(), "");
    });
}

fn table(family: Family, chains: Vec<Chain>) -> Table {
    let id = TableId { family, name: "t".to_owned() };
    Table { id, ownership: Ownership::Whole, comment: None, chains }
}

#[track_caller]
fn assert_settled(desired: &Ruleset) {
    let mut filter = Nft::open().unwrap();
    let change = diff(desired, &filter.observe(desired).unwrap());
    assert!(change.is_empty(), "to do: {change}");
}

/// The whole ruleset as `nft` lists it.
fn listing() -> String {
    list(&["ruleset"])
}

/// A table as `nft` lists it; their order in the whole ruleset depends on their age.
fn listing_of(table: &TableId) -> String {
    list(&["table", &table.family.to_string(), &table.name])
}

fn list(what: &[&str]) -> String {
    let output = Command::new("nft").arg("list").args(what).output().expect("nft is installed");
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// Has the `nft` program carry out `commands`.
#[track_caller]
fn nft(commands: &str) {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("nft is installed");
    nft.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success(), "{commands}");
}
