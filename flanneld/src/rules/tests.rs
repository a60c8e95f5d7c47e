//! The rules in both engines and in every position of the switches, as the kernel gives them back:
//! `golden/iptables.txt` and `golden/nftables.txt`. `GOLDEN=write` writes them anew.

use std::fs;
use std::path::Path;
use std::process::Command;

use flannel_tests::program;
use flannel_tests::sandbox::sandboxed;

use super::engine::{Engine, RuleKeeper, missed_parameters};
use super::*;

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

/// What a dual-stack node desires.
fn dual(options: &RuleOptions) -> NodeRules {
    let networks =
        PerFamily { ipv4: Some(net("10.244.0.0/16")), ipv6: Some(net("fd00:10:244::/56")) };
    let subnets =
        PerFamily { ipv4: Some(net("10.244.3.0/24")), ipv6: Some(net("fd00:10:244:3::/64")) };
    let tunnels = PerFamily { ipv4: Some(8472), ipv6: Some(8472) };
    desired(options, &networks, &LeaseKey::new(subnets).unwrap(), &tunnels)
}

/// Every position of the switches that makes a difference, with its name.
fn positions() -> Vec<(&'static str, NodeRules)> {
    use Family::{V4, V6};
    let options = |masquerade: &[Family], forward| RuleOptions {
        masquerade: masquerade.to_vec(),
        masquerade_except: Vec::new(),
        random_fully: true,
        forward,
    };
    let plain = RuleOptions { random_fully: false, ..options(&[V4, V6], false) };
    let except = ["203.0.113.0/24", "10.0.0.1/32", "2001:db8::/32"].map(net).to_vec();
    let except = RuleOptions { masquerade_except: except, ..options(&[V4, V6], false) };
    let all = options(&[V4, V6], true);
    vec![
        ("nothing", dual(&options(&[], false))),
        ("forward", dual(&options(&[], true))),
        ("masquerade", dual(&options(&[V4, V6], false))),
        ("masquerade, IPv4 only", dual(&options(&[V4], false))),
        ("masquerade, IPv6 only", dual(&options(&[V6], false))),
        ("masquerade, ports kept", dual(&plain)),
        ("masquerade, with exceptions", dual(&except)),
        ("all, no IPv6 network", PerFamily { ipv6: None, ..dual(&all) }),
        ("all", dual(&all)),
    ]
}

/// Demands that `listing` is what it was, for each of the positions in turn.
fn compare_with_golden(name: &str, listing: impl Fn() -> String, engine: Engine) {
    let mut text = String::new();
    let mut keeper = RuleKeeper::default();
    for (position, rules) in positions() {
        keeper.make_true(engine, &rules).unwrap();
        let (_, failures) = keeper.clear_elsewhere(engine, &rules);
        assert!(failures.is_empty(), "{failures:?}");
        let (operations, tolerated) = keeper.make_true(engine, &rules).unwrap();
        assert_eq!((operations, tolerated.len()), (0, 0), "{position}");
        text += &format!("## {position}\n{}", listing());
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/rules/golden").join(name);
    if std::env::var_os("GOLDEN").is_some() {
        fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, fs::read_to_string(&path).unwrap());
}

fn nft_listing() -> String {
    program::run(Command::new("nft").args(["list", "ruleset"]))
}

/// What both programs of a variant save of chains and rules, without the kernel's own chains. Which
/// chain comes first differs between the variants.
fn iptables_listing(variant: &str) -> String {
    let save = |program: &str, table| {
        let mut command = Command::new(format!("{program}-{variant}-save"));
        let saved = program::run(command.args(["-t", table]));
        let is_ours = |line: &&str| line.starts_with("-A") || line.ends_with(" - [0:0]");
        saved.lines().filter(is_ours).map(|line| format!("{program} -t {table} {line}\n")).collect()
    };
    let programs = ["iptables", "ip6tables"].into_iter();
    let saved =
        programs.flat_map(|program| ["filter", "nat", "raw"].map(|table| save(program, table)));
    saved.collect::<Vec<String>>().concat()
}

/// Makes a variant the one in use, by a rule that is not ours.
fn plant(variant: &str) {
    let rule = ["-t", "mangle", "-A", "INPUT", "-p", "icmp", "-j", "ACCEPT"];
    program::run(Command::new(format!("iptables-{variant}")).args(rule));
}

#[test]
fn nftables_holds_what_is_desired() {
    sandboxed(|| compare_with_golden("nftables.txt", nft_listing, Engine::Nftables));
}

#[test]
fn iptables_holds_what_is_desired_in_nf_tables() {
    sandboxed(|| {
        plant("nft");
        compare_with_golden("iptables.txt", || iptables_listing("nft"), Engine::Iptables);
        assert_eq!(iptables_listing("legacy"), "");
    });
}

#[test]
fn iptables_holds_what_is_desired_in_the_older_tables() {
    sandboxed(|| {
        plant("legacy");
        compare_with_golden("iptables.txt", || iptables_listing("legacy"), Engine::Iptables);
        let nft = nft_listing();
        assert!(!nft.contains("FLANNEL"), "{nft}");
    });
}

#[test]
fn bridge_filter_is_missed_with_iptables_only_and_by_family() {
    let missed = |engine, exists: fn(&str) -> bool| missed_parameters(engine, Family::ALL, exists);
    let both = ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];
    assert_eq!(missed(Engine::Iptables, |_| false), both);
    assert_eq!(missed(Engine::Iptables, |name| name.ends_with("-iptables")), both[1..]);
    assert!(missed(Engine::Iptables, |_| true).is_empty());
    assert!(missed(Engine::Nftables, |_| false).is_empty());
}
