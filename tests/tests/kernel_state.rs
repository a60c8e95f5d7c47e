//! What flanneld leaves in kernel, store and subnet file, to the letter.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::os::unix::fs::PermissionsExt as _;

use flannel_tests::cluster::{Cluster, ETCD_PREFIX, Store};
use flannel_tests::net_conf::{Stack, network_with};
use flannel_tests::node::Node;
use flannel_tests::program;
use flannel_tests::rule_engine::RuleEngine;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::underlay::GATEWAY;
use flannel_tests::wait;

/// A day, in seconds.
const LEASE_TTL_SECS: i64 = 86_400;

/// What a node publishes.
struct Published {
    /// `10.244.7.0`
    base: String,
    mac: String,
    address: String,
}

fn published(node: &Node) -> Published {
    let subnet = node.subnet_file_value("FLANNEL_SUBNET").unwrap();
    let base = subnet.replace(".1/24", ".0");
    let device = node.ip("-oneline link show flannel.1");
    let mac = device.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    Published { base, mac, address: node.address().to_string() }
}

fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<_> = text.lines().map(|line| line.trim().to_owned()).collect();
    lines.sort();
    lines
}

fn sorted_lines(lines: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut lines: Vec<_> = lines.into_iter().collect();
    lines.sort();
    lines
}

#[test]
fn each_node_has_one_neighbour_fdb_entry_and_route_per_peer_and_no_others() {
    sandboxed(|| {
        let cluster = Cluster::running(3, Store::Etcd);
        for node in cluster.nodes() {
            let others = cluster.nodes().iter().filter(|other| other.number() != node.number());
            let peers: Vec<_> = others.map(published).collect();

            let wanted =
                peers.iter().map(|peer| format!("{} lladdr {} PERMANENT", peer.base, peer.mac));
            assert_eq!(sorted(&node.ip("neighbour show dev flannel.1")), sorted_lines(wanted));

            let wanted =
                peers.iter().map(|p| format!("{} dst {} self permanent", p.mac, p.address));
            assert_eq!(sorted(&node.bridge("fdb show dev flannel.1")), sorted_lines(wanted));

            let mut wanted = vec![
                format!("default via {GATEWAY} dev eth0"),
                format!("198.51.100.0/24 dev eth0 proto kernel scope link src {}", node.address()),
            ];
            wanted.extend(
                peers.iter().map(|peer| {
                    format!("{0}/24 via {0} dev flannel.1 proto 199 onlink", peer.base)
                }),
            );
            assert_eq!(sorted(&node.ip("route show")), sorted_lines(wanted));
        }
    });
}

#[test]
fn device_is_what_upstream_makes_and_has_the_base_of_the_subnet_as_its_address() {
    sandboxed(|| {
        let cluster = Cluster::running(1, Store::Etcd);
        let node = cluster.node(1);
        let link = node.ip("-d link show flannel.1");
        println!("{link}");
        let lines: Vec<_> = link.lines().map(str::trim).collect();
        assert!(lines[0].contains("<BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 "), "{link}");
        // No queue: neither a length nor a discipline.
        assert!(lines[0].contains(" qdisc noqueue ") && !lines[0].contains("qlen"), "{link}");
        let mac = lines[1].split(' ').nth(1).unwrap();
        let first = u8::from_str_radix(&mac[..2], 16).unwrap();
        assert_eq!(first & 0b11, 0b10, "unicast, locally administered: {mac}");
        let vxlan: String = lines[2..].join(" ");
        let wanted = format!(
            "vxlan id 1 local {} dev eth0 srcport 0 0 dstport 8472 nolearning ttl auto ageing 300 \
             udpcsum noudp6zerocsumtx noudp6zerocsumrx",
            node.address()
        );
        assert!(vxlan.starts_with(&wanted), "{vxlan}\nwanted: {wanted}");

        let addresses = node.ip("-4 -oneline address show dev flannel.1");
        let addresses: Vec<_> = addresses.lines().collect();
        assert_eq!(addresses.len(), 1, "{addresses:?}");
        let wanted = format!("inet {}/32 scope global flannel.1", published(node).base);
        assert!(addresses[0].contains(&wanted), "{addresses:?}\nwanted: {wanted}");
    });
}

#[test]
fn lease_in_etcd_is_the_json_that_upstream_writes_and_lasts_a_day() {
    sandboxed(|| {
        let cluster = Cluster::running(2, Store::Etcd);
        let etcd = cluster.store().etcd();
        let prefix = format!("{ETCD_PREFIX}/subnets");
        let entries = etcd.list(&prefix);
        assert_eq!(entries.len(), 2, "{entries:?}");
        for node in cluster.nodes() {
            let Published { base, mac, address } = published(node);
            let entry = &entries[&format!("{prefix}/{base}-24")];
            let wanted = format!(
                r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
            );
            assert_eq!(entry.value, wanted);
            let (granted, left) = etcd.lease_ttl_secs(entry.lease);
            assert_eq!(granted, LEASE_TTL_SECS);
            assert!(left > LEASE_TTL_SECS - 600, "{left}");
        }
        // Nothing else: neither another key nor a changed configuration.
        assert_eq!(etcd.list(ETCD_PREFIX).len(), 3);
    });
}

#[test]
fn lease_in_the_directory_has_the_same_name_and_json() {
    sandboxed(|| {
        let cluster = Cluster::running(1, Store::Directory);
        let Published { base, mac, address } = published(cluster.node(1));
        let leases = cluster.store().leases();
        let lease = &leases[&format!("{base}-24")];
        let wanted = format!(
            r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        );
        assert_eq!(lease.trim_end(), wanted);
    });
}

#[test]
fn subnet_file_is_the_one_that_upstream_writes() {
    sandboxed(|| {
        let mut cluster = Cluster::running(1, Store::Directory);
        let file = |ipmasq: bool, base: &str| {
            let gateway = format!("{}.1", base.rsplit_once('.').unwrap().0);
            format!(
                "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={gateway}/24\n\
                 FLANNEL_MTU=1450\nFLANNEL_IPMASQ={ipmasq}\n"
            )
        };
        let base = published(cluster.node(1)).base;
        assert_eq!(cluster.node(1).subnet_file().unwrap(), file(true, &base));

        let path = cluster.node(1).directory("/run/flannel/subnet.env");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o644);
        let names = std::fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(names, 1, "no temporary file is left");

        cluster.stop(1);
        cluster.start_with(1, &["--ip-masq=false"]);
        cluster.wait_until_ready(1);
        assert_eq!(cluster.node(1).subnet_file().unwrap(), file(false, &base));
    });
}

#[test]
fn packet_filter_holds_upstreams_rules_and_nothing_else() {
    sandboxed(|| {
        let cluster = Cluster::with_rules_in(RuleEngine::Nftables, 1, Store::any());
        let node = cluster.node(1);
        let pods = format!("{}/24", published(node).base);
        let ruleset = program::run(node.namespace().command("nft").args(["list", "ruleset"]));
        let wanted = format!(
            "table ip flannel-ipv4 {{
                comment \"rules for flannel-ipv4\"

                chain forward {{
                    type filter hook forward priority filter; policy accept;
                    ip saddr 10.244.0.0/16 accept
                    ip daddr 10.244.0.0/16 accept
                }}

                chain postrtg {{
                    type nat hook postrouting priority srcnat; policy accept;
                    meta mark & 0x00004000 == 0x00004000 return
                    ip saddr {pods} ip daddr 10.244.0.0/16 return
                    ip saddr 10.244.0.0/16 ip daddr {pods} return
                    ip saddr != 10.244.0.0/16 ip daddr {pods} return
                    ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
                    ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 masquerade fully-random
                }}

                chain output {{
                    type filter hook output priority raw; policy accept;
                    udp dport 8472 meta mark set meta mark & 0xffffbfff
                }}
            }}"
        );
        let lines = |text: &str| -> Vec<String> {
            let trimmed = text.lines().map(|line| line.trim().to_owned());
            trimmed.filter(|line| !line.is_empty()).collect()
        };
        assert_eq!(lines(&ruleset), lines(&wanted), "{ruleset}");
    });
}

#[test]
fn iptables_in_nf_tables_hold_upstreams_rules_and_nothing_else() {
    sandboxed(|| iptables_hold_upstreams_rules_and_nothing_else(RuleEngine::IptablesNft, "nft"));
}

#[test]
fn iptables_in_the_older_tables_hold_upstreams_rules_and_nothing_else() {
    let legacy = RuleEngine::IptablesLegacy;
    sandboxed(move || iptables_hold_upstreams_rules_and_nothing_else(legacy, "legacy"));
}

fn iptables_hold_upstreams_rules_and_nothing_else(engine: RuleEngine, variant: &str) {
    let cluster = Cluster::with_rules_in(engine, 1, Store::any());
    let node = cluster.node(1);
    let pods = format!("{}/24", published(node).base);
    let (masq, forward) =
        ("-m comment --comment \"flanneld masq\"", "-m comment --comment \"flanneld forward\"");
    let filter = format!(
        "\
-A FORWARD {forward} -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.244.0.0/16 {forward} -j ACCEPT
-A FLANNEL-FWD -d 10.244.0.0/16 {forward} -j ACCEPT
"
    );
    let nat = format!(
        "\
-A POSTROUTING {masq} -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {masq} -j RETURN
-A FLANNEL-POSTRTG -s {pods} -d 10.244.0.0/16 {masq} -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 -d {pods} {masq} -j RETURN
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d {pods} {masq} -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 {masq} -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.0.0/16 {masq} -j MASQUERADE --random-fully
"
    );
    for (table, wanted) in [("filter", filter), ("nat", nat)] {
        let mut save = node.namespace().command(&format!("iptables-{variant}-save"));
        let saved = program::run(save.args(["-t", table]));
        let rules = saved.lines().filter(|line| line.starts_with("-A"));
        let rules: String = rules.map(|line| format!("{line}\n")).collect();
        assert_eq!(rules, wanted, "{engine:?}");
    }
    for other in RuleEngine::ALL.into_iter().filter(|other| *other != engine) {
        assert_eq!(other.listing(node.namespace()), "", "{engine:?}");
    }
}

#[test]
fn without_masquerading_there_are_only_forward_rules() {
    sandboxed(|| {
        let mut cluster = Cluster::new(1, Store::any());
        for engine in [RuleEngine::Nftables, RuleEngine::IptablesNft] {
            cluster.store().configure(&engine.network());
            let listing =
                |cluster: &Cluster| engine.listing(cluster.node(1).namespace()).to_lowercase();
            cluster.start_with(1, &["--ip-masq=false"]);
            cluster.wait_until_ready(1);
            let rules = listing(&cluster);
            assert!(rules.contains("10.244.0.0/16"), "{rules}");
            assert!(!rules.contains("masq"), "{rules}");

            cluster.stop(1);
            cluster.start_with(1, &["--ip-masq=false", "--iptables-forward-rules=false"]);
            cluster.wait_until_ready(1);
            assert_eq!(listing(&cluster), "");
            cluster.stop(1);
        }
    });
}

#[test]
fn checksums_stay_switched_off_when_the_device_is_made_anew() {
    sandboxed(|| {
        let network = network_with(Stack::Dual, r#""Type":"vxlan","TxChecksum":"off""#);
        let cluster = Cluster::running_with(1, Store::any(), &network);
        let node = cluster.node(1);
        for device in ["flannel.1", "flannel-v6.1"] {
            let off = || {
                let mut ethtool = node.installed("ethtool");
                let features = program::outcome(ethtool.args(["-k", device]));
                let features = String::from_utf8_lossy(&features.stdout).into_owned();
                let off = features.contains("tx-checksum-ip-generic: off");
                if off { Ok(()) } else { Err(features) }
            };
            off().unwrap();
            node.ip(&format!("link delete {device}"));
            wait::until("the new device has them off", off);
            program::run(node.installed("ethtool").args(["-K", device, "tx", "on"]));
            node.ip(&format!("address flush dev {device}"));
            wait::until("they are switched off again with the next comparison", off);
        }
    });
}

#[test]
fn options_of_the_backend_reach_the_device_and_the_lease() {
    sandboxed(|| {
        let mut cluster = Cluster::unconfigured(1, Store::any());
        let options = include_str!("../../config/net-conf-vxlan-options.json");
        cluster.store().configure(options);
        cluster.start_all();
        let node = cluster.node(1);
        let link = node.ip("-d link show flannel.4096");
        assert!(link.contains(" mtu 1350 "), "{link}");
        assert!(link.contains("vxlan id 4096 "), "{link}");
        assert!(link.contains(" dstport 4789 "), "{link}");
        let (_, lease) = cluster.store().lease_of(node).unwrap();
        assert!(lease.contains(r#""VNI":4096"#), "{lease}");
        assert_eq!(node.subnet_file_value("FLANNEL_MTU").unwrap(), "1350");
    });
}
