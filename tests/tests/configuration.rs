//! What is deployed is understood, and what cannot be served is refused with one line.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests")]

use std::fs;
use std::path::Path;

use flannel_tests::cluster::{Cluster, LeaseStore, STOCK_NETWORK, Store};
use flannel_tests::daemon::Daemon;
use flannel_tests::program;
use flannel_tests::runtime::{self, STOCK_LIST};
use flannel_tests::sandbox::sandboxed;
use flannel_tests::wait;
use serde_json::{Value, json};

/// How files with samples end; what else is in `config`, the test `manifests` reads.
const ENDINGS: [&str; 2] = ["json", "conflist"];

fn samples() -> Vec<(String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config");
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    entries
        .map(|path| (name(&path), path))
        .filter(|(name, _)| ENDINGS.iter().any(|ending| name.ends_with(&format!(".{ending}"))))
        .map(|(name, path)| (name, fs::read_to_string(path).unwrap()))
        .collect()
}

#[test]
fn every_sample_is_json_and_has_what_its_readers_need() {
    let samples = samples();
    assert!(samples.len() > 5, "{samples:?}");
    assert!(!samples.is_empty());
    for (name, text) in samples {
        let parsed: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        if name.starts_with("net-conf") {
            let networks = [&parsed["Network"], &parsed["IPv6Network"]];
            assert!(networks.iter().any(|network| network.is_string()), "{name}");
            assert!(parsed["Backend"]["Type"].is_string(), "{name}");
        } else {
            assert!(name.ends_with(".conflist"), "nothing checks {name}");
            assert!(parsed["name"].is_string() && parsed["plugins"].is_array(), "{name}");
        }
    }
}

#[test]
fn stock_list_is_upstreams() {
    let list: Value = serde_json::from_str(STOCK_LIST).unwrap();
    assert_eq!(list["name"], "cbr0");
    assert_eq!(list["cniVersion"], "0.3.1");
    // The plugins behind ours need not know newer versions.
    assert_eq!(list["cniVersions"], Value::Null);
    let flannel = json!({
        "type": "flannel",
        "delegate": { "hairpinMode": true, "isDefaultGateway": true },
    });
    let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    assert_eq!(list["plugins"], json!([flannel, portmap]));
    assert_eq!(runtime::stock_configuration("0.3.1")["name"], "cbr0");
}

#[test]
fn every_sample_is_served() {
    let mut samples = samples();
    samples.retain(|(name, _)| name.starts_with("net-conf"));
    assert!(samples.len() > 5, "{samples:?}");
    sandboxed(|| {
        let cluster = Cluster::unconfigured(1, Store::Directory);
        samples.iter().for_each(|(name, text)| serves(&cluster, name, text));
    });
}

fn serves(cluster: &Cluster, name: &str, network: &str) {
    let node = cluster.node(1);
    cluster.store().configure(network);
    let mut flanneld = Daemon::start(name, &mut cluster.flanneld_command(1));
    let subnet_file = wait::until(&format!("{name} is served"), || {
        assert_eq!(flanneld.status(), None, "{name}: {}", flanneld.log());
        node.subnet_file().ok_or_else(|| flanneld.log())
    });
    let parsed: Value = serde_json::from_str(network).unwrap();
    for (key, variable, len) in [("", "", 24), ("IPv6", "IPV6_", 64)] {
        if let Some(network) = parsed[format!("{key}Network")].as_str() {
            let wanted = format!("FLANNEL_{variable}NETWORK={network}\nFLANNEL_{variable}SUBNET=");
            let (_, rest) = subnet_file.split_once(&wanted).unwrap_or_else(|| {
                panic!("{name}: {subnet_file}");
            });
            let len = parsed[format!("{key}SubnetLen")].as_u64().unwrap_or(len);
            assert!(rest.lines().next().unwrap().ends_with(&format!("/{len}")), "{subnet_file}");
        }
    }
    flanneld.terminate();
    forget(cluster);
}

/// Makes the node as it was before flanneld ran on it.
fn forget(cluster: &Cluster) {
    let node = cluster.node(1);
    for link in node.ip("-brief link show type vxlan").lines() {
        node.ip(&format!("link delete {}", link.split(' ').next().unwrap()));
    }
    program::run(node.namespace().command("nft").args(["flush", "ruleset"]));
    fs::remove_file(node.directory("/run/flannel/subnet.env")).unwrap();
    for key in cluster.store().leases().keys() {
        cluster.store().delete(&format!("subnets/{key}"));
    }
}

/// Starts flanneld with a configuration that is in order but asks for what there is not: it says
/// so in one line with all of `words` in it, and ends with status 1 and without a trace.
fn refuses(cluster: &Cluster, network: &str, words: &[&str]) {
    cluster.store().configure(network);
    let mut flanneld = Daemon::start("refusing", &mut cluster.flanneld_command(1));
    let status = flanneld.wait();
    assert_eq!(status.code(), Some(1), "{network}: {}", flanneld.log());
    let log = flanneld.log();
    let line = log.lines().last().unwrap();
    println!("{network}\n  {line}");
    assert!(words.iter().all(|word| line.contains(word)), "{words:?} are not in: {line}");
    assert_says_nothing_twice(line);
    assert_nothing_was_made(cluster);
}

/// Starts flanneld with a configuration that nobody can serve: it says so in one line with all of
/// `words` in it, makes nothing, and takes up its work when the configuration has been mended.
fn waits(cluster: &Cluster, network: &str, words: &[&str]) {
    cluster.store().configure(network);
    let mut flanneld = Daemon::start("waiting", &mut cluster.flanneld_command(1));
    let line = wait::until(&format!("{words:?} in one line about {network}"), || {
        let log = flanneld.log();
        let line = log.lines().find(|line| words.iter().all(|word| line.contains(word)));
        line.map(str::to_owned).ok_or(log)
    });
    println!("{network}\n  {line}");
    assert_says_nothing_twice(&line);
    assert_eq!(flanneld.status(), None, "{}", flanneld.log());
    assert_nothing_was_made(cluster);
    cluster.store().configure(STOCK_NETWORK);
    wait::until("the mended configuration is served", || {
        cluster.node(1).subnet_file().map(drop).ok_or_else(|| flanneld.log())
    });
    flanneld.terminate();
    forget(cluster);
}

/// A chain of causes names each of them once.
fn assert_says_nothing_twice(line: &str) {
    let mut causes: Vec<_> =
        line.split([':', ';']).map(str::trim).filter(|c| c.len() > 3).collect();
    let count = causes.len();
    causes.sort_unstable();
    causes.dedup();
    assert_eq!(causes.len(), count, "something is said twice: {line}");
}

fn assert_nothing_was_made(cluster: &Cluster) {
    assert!(cluster.store().leases().is_empty(), "{:?}", cluster.store().leases());
    cluster.node(1).assert_untouched();
}

#[test]
fn broken_network_configuration_is_waited_for_with_one_line() {
    sandboxed(|| {
        let cluster = Cluster::unconfigured(1, Store::Directory);
        let cases: [(&str, &[&str]); 10] = [
            (r#"{"Network":"10.244.0.0/16""#, &["network configuration", "line 1"]),
            ("", &["network configuration"]),
            ("[]", &["network configuration"]),
            (r#"{"Network":"10.244.0.0"}"#, &["Network", "10.244.0.0"]),
            (r#"{"Network":"fd00:1::/48","Backend":{"Type":"vxlan"}}"#, &["Network"]),
            (r#"{"Backend":{"Type":"vxlan"}}"#, &["Network", "missing"]),
            (r#"{"Network":"10.244.0.0/29","Backend":{"Type":"vxlan"}}"#, &["10.244.0.0/29"]),
            (
                r#"{"Network":"10.244.0.0/16","SubnetLen":17,"Backend":{"Type":"vxlan"}}"#,
                &["SubnetLen", "17"],
            ),
            (
                r#"{"Network":"10.244.0.0/16","SubnetMin":"10.245.0.0","Backend":{"Type":"vxlan"}}"#,
                &["SubnetMin", "10.245.0.0"],
            ),
            (r#"{"Network":"10.244.0.0/16","Backend":{}}"#, &["Backend", "Type"]),
        ];
        for (network, words) in cases {
            waits(&cluster, network, words);
        }
    });
}

#[test]
fn backend_that_is_unknown_or_misconfigured_ends_the_start_with_one_line() {
    sandboxed(|| {
        let cluster = Cluster::unconfigured(1, Store::any());
        for (network, words) in [
            (r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlam"}}"#, &["vxlam"][..]),
            (r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":"1"}}"#, &["VNI"]),
            // It would run commands by a shell, which is not in the image.
            (
                r#"{"Network":"10.244.0.0/16","Backend":{"Type":"extension","SubnetAddCommand":"ip route add"}}"#,
                &["extension", "want vxlan"],
            ),
            (
                r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}"#,
                &["VNI", "16777216"],
            ),
            (
                r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","Port":70000}}"#,
                &["Port", "70000"],
            ),
        ] {
            refuses(&cluster, network, words);
        }
    });
}

#[test]
fn names_of_keys_match_in_any_case() {
    sandboxed(|| {
        let cluster = Cluster::unconfigured(1, Store::any());
        let network = r#"{"network":"10.244.0.0/16","backend":{"type":"VXLAN"}}"#;
        cluster.store().configure(network);
        let flanneld = Daemon::start("flanneld", &mut cluster.flanneld_command(1));
        wait::until("the subnet file is there", || {
            cluster.node(1).subnet_file().ok_or_else(|| flanneld.log())
        });
    });
}

#[test]
fn network_without_a_free_subnet_is_said_to_be_full_and_leaves_nothing() {
    sandboxed(|| {
        let cluster = Cluster::unconfigured(1, Store::Directory);
        let store = cluster.store();
        let LeaseStore::Directory(_) = store else { unreachable!() };
        store.configure(r#"{"Network":"10.244.0.0/28","Backend":{"Type":"vxlan"}}"#);
        for (number, base) in [(7, "10.244.0.4"), (8, "10.244.0.8"), (9, "10.244.0.12")] {
            let lease = format!(
                r#"{{"PublicIP":"198.51.100.{number}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:0{number}"}}}}"#
            );
            store.put(&format!("subnets/{base}-30"), &lease);
        }
        let flanneld = Daemon::start("flanneld", &mut cluster.flanneld_command(1));
        wait::until("flanneld says that the network is full", || {
            let log = flanneld.log();
            if log.contains("10.244.0.0/28") { Ok(()) } else { Err(log) }
        });
        println!("{}", flanneld.log());
        cluster.node(1).assert_untouched();
        assert_eq!(store.leases().len(), 3);
    });
}
