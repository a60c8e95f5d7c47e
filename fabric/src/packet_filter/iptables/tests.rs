//! The engine against the kernel, in both variants, with `iptables-save` as the judge.

use std::process::Command;

use flannel_tests::sandbox::sandboxed;

use super::*;

/// Every pair of programs of this machine: IP version and variant.
fn engines() -> impl Iterator<Item = Iptables> {
    let variants = [Variant::Nft, Variant::Legacy];
    let pairs = variants
        .into_iter()
        .flat_map(|variant| [IpVersion::V4, IpVersion::V6].map(|version| (version, variant)));
    pairs.map(|(version, variant)| {
        Iptables::find(version, variant).expect("the package iptables is installed")
    })
}

fn rules(text: &str) -> Vec<Rule> {
    text.lines().map(Rule::parse).collect()
}

fn last(text: &str) -> Content {
    let placed = |rule| Placed { rule, place: Place::Last };
    Content::Among(rules(text).into_iter().map(placed).collect())
}

fn chain(name: &str, content: Content) -> Chain {
    Chain { name: name.to_owned(), content }
}

/// The rules of both tables.
fn saved(engine: &Iptables) -> String {
    let tables = ["filter", "nat"].map(|t| program::run(&engine.save, &["-t", t], "").unwrap());
    let rules = tables.iter().flat_map(|text| text.lines()).filter(|line| line.starts_with("-A"));
    rules.map(|line| format!("{line}\n")).collect()
}

fn restore(engine: &Iptables, text: &str) {
    program::run(&engine.restore, &["--noflush"], text).unwrap();
}

const FILTER: &str = "\
-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD
-A FLANNEL-FWD -m mark --mark 0x4000/0x4000 -m comment --comment \"say \\\"a\\\"\" -j ACCEPT
";
const NAT: &str = "\
-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -p tcp -m tcp --dport 80 -m comment --comment x-1 -j MASQUERADE --random-fully
";

fn tables() -> [Table; 2] {
    let of = |text: &str, chain: &str| -> String {
        let prefix = format!("-A {chain} ");
        text.lines().filter_map(|line| line.strip_prefix(&prefix)).collect()
    };
    let table = |name, text: &str, own: &str, built_in: &str| Table {
        name,
        chains: vec![
            chain(own, Content::Exactly(rules(&of(text, own)))),
            chain(built_in, last(&of(text, built_in))),
        ],
    };
    [
        table(TableName::Filter, FILTER, "FLANNEL-FWD", "FORWARD"),
        table(TableName::Nat, NAT, "FLANNEL-POSTRTG", "POSTROUTING"),
    ]
}

fn removed() -> [Table; 2] {
    let table = |name, own: &str| Table { name, chains: vec![chain(own, Content::Absent)] };
    [table(TableName::Filter, "FLANNEL-FWD"), table(TableName::Nat, "FLANNEL-POSTRTG")]
}

#[test]
fn rules_are_kept_as_they_are_said_and_repaired() {
    sandboxed(|| {
        for engine in engines() {
            assert!(!engine.ensure(&tables()).unwrap().is_empty());
            assert_eq!(saved(&engine), format!("{FILTER}{NAT}"), "{engine:?}");
            assert_eq!(engine.ensure(&tables()).unwrap(), Change::default(), "{engine:?}");
            restore(&engine, "*nat\n-F POSTROUTING\n-A FLANNEL-POSTRTG -j RETURN\nCOMMIT\n");
            restore(&engine, "*filter\n-F FORWARD\n-F FLANNEL-FWD\n-X FLANNEL-FWD\nCOMMIT\n");
            assert_eq!(engine.ensure(&tables()).unwrap().tables.len(), 2);
            assert_eq!(saved(&engine), format!("{FILTER}{NAT}"), "{engine:?}");
            engine.ensure(&removed()).unwrap();
            assert_eq!(saved(&engine), "", "{engine:?}");
            assert_eq!(engine.ensure(&removed()).unwrap(), Change::default());
        }
    });
}

#[test]
fn rules_and_chains_of_others_stay() {
    let others = "\
-A FORWARD -i docker0 -j DROP
-A DOCKER -d 172.17.0.2/32 -m comment --comment \"it's\" -j FLANNEL-ISH
";
    sandboxed(|| {
        for engine in engines().filter(|engine| engine.version == IpVersion::V4) {
            restore(&engine, &format!("*filter\n-N DOCKER\n-N FLANNEL-ISH\n{others}COMMIT\n"));
            let before = saved(&engine);
            engine.ensure(&tables()).unwrap();
            assert_ne!(saved(&engine), before);
            engine.ensure(&removed()).unwrap();
            assert_eq!(saved(&engine), before);
        }
    });
}

#[test]
fn variant_in_use_is_the_one_with_more_rules() {
    sandboxed(|| {
        let mut port = 0;
        let mut add = |variant, count| {
            let lines = (port..port + count).map(|port| format!("-A INPUT -p {port} -j DROP\n"));
            let lines: String = lines.collect();
            port += count;
            let engine = Iptables::find(IpVersion::V4, variant).unwrap();
            restore(&engine, &format!("*filter\n{lines}COMMIT\n"));
        };
        let of_host = Variant::in_use().unwrap();
        assert_ne!(of_host, Variant::Host);
        add(Variant::Legacy, 1);
        assert_eq!(Variant::in_use().unwrap(), Variant::Legacy);
        add(Variant::Nft, 1);
        assert_eq!(Variant::in_use().unwrap(), of_host);
        add(Variant::Nft, 1);
        assert_eq!(Variant::in_use().unwrap(), Variant::Nft);
    });
}

#[test]
fn rules_that_only_nft_can_read_are_an_error() {
    sandboxed(|| {
        let engine = Iptables::find(IpVersion::V4, Variant::Nft).unwrap();
        engine.ensure(&tables()).unwrap();
        let add = |rule: &str| {
            let rule = format!("add rule ip nat POSTROUTING {rule} accept");
            assert!(Command::new("nft").args(rule.split(' ')).status().unwrap().success());
        };
        add("fib daddr type local");
        let error = engine.ensure(&tables()).unwrap_err();
        assert!(matches!(error, Error::Incompatible(TableName::Nat)), "{error:?}");
        add("meta cpu 1");
        assert!(engine.ensure(&tables()).is_err());
    });
}

#[test]
fn refusal_says_what_iptables_said() {
    sandboxed(|| {
        for engine in engines() {
            let content = last("-j NO-SUCH-TARGET");
            let table = Table { name: TableName::Filter, chains: vec![chain("FORWARD", content)] };
            let error = engine.ensure(&[table]).unwrap_err();
            assert!(error.to_string().contains("restore ended with exit status"), "{error}");
            assert!(!error.to_string().contains("--help"), "{error}");
        }
    });
}
