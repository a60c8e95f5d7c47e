//! A node is given back as it was: everything of ours goes, and nothing else does.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::process::Output;

use flannel_tests::cluster::{Cluster, Store};
use flannel_tests::namespace::Namespace;
use flannel_tests::node::Node;
use flannel_tests::pod::Pod;
use flannel_tests::program;
use flannel_tests::rule_engine::RuleEngine;
use flannel_tests::runtime::STOCK_LIST;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::snapshot;
use flannel_tests::traffic::ping;
use flannel_tests::wait;

fn run(node: &Namespace, command: &str) -> String {
    let (program, arguments) = command.split_once(' ').unwrap();
    program::run(node.command(program).args(arguments.split(' ')))
}

fn cleanup(node: &Node, arguments: &[&str]) -> Output {
    program::outcome(node.command(program::flanneld()).arg("cleanup").args(arguments))
}

fn uninstall(node: &Node, arguments: &[&str]) -> Output {
    program::outcome(node.command(program::flannel()).arg("uninstall").args(arguments))
}

#[track_caller]
fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn refusal(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What looks like ours and is not.
fn plant(node: &Namespace) {
    for command in [
        "link add flannel.77 type bridge",
        "link add flannel.net type vxlan id 78 dstport 8478 dev eth0",
        "link set flannel.77 up",
        "address add 203.0.113.1/24 dev flannel.77",
        "route add 10.244.177.0/24 via 198.51.100.99 dev eth0",
        "route add 10.244.178.0/24 via 203.0.113.2 dev flannel.77",
        "route add 198.51.100.77 dev flannel.77 proto 199",
    ] {
        node.ip(command);
    }
    for iptables in ["iptables-nft", "iptables-legacy"] {
        run(node, &format!("{iptables} -t nat -N FLANNELISH"));
        run(node, &format!("{iptables} -t nat -A POSTROUTING -j FLANNELISH"));
        run(node, &format!("{iptables} -A FORWARD -s 203.0.113.9 -j DROP"));
    }
    run(node, "iptables-nft -A FORWARD -s 203.0.113.10 -j DROP");
    // Its tables and built-in chains stay once they were used.
    run(node, "iptables-nft -t raw -A OUTPUT -s 203.0.113.11 -j DROP");
    run(node, "ip6tables-nft -t nat -N FLANNELISH");
    run(node, "ip6tables-nft -A FORWARD -s 2001:db8::9 -j DROP");
    run(node, "nft add table ip flannel-ipv44");
}

fn everything(node: &Node) -> String {
    let legacy = |table: &str| run(node.namespace(), &format!("iptables-legacy-save -t {table}"));
    let rules = legacy("nat") + &legacy("filter") + &legacy("raw");
    let rules = rules.lines().filter(|line| !line.starts_with(['#', ':']));
    let rules: String = rules.map(|line| format!("{line}\n")).collect();
    snapshot::of(node).unwrap() + &rules + &node.ip("-6 route show")
}

#[test]
fn a_node_is_given_back_as_it_was() {
    sandboxed(|| given_back(RuleEngine::IptablesNft, "vxlan"));
}

#[test]
fn a_node_without_devices_is_given_back_as_it_was() {
    sandboxed(|| given_back(RuleEngine::Nftables, "host-gw"));
}

#[test]
fn a_node_with_a_tun_device_is_given_back_as_it_was() {
    sandboxed(|| given_back(RuleEngine::IptablesLegacy, "udp"));
}

fn given_back(engine: RuleEngine, backend: &str) {
    let mut cluster = Cluster::unconfigured(2, Store::any());
    cluster.store().configure(&engine.network().replace("vxlan", backend));
    let node = cluster.node(1).clone();
    plant(node.namespace());
    if engine == RuleEngine::IptablesLegacy {
        run(node.namespace(), "iptables-legacy -t mangle -N KUBE-IPTABLES-HINT");
    }
    let before = everything(&node);
    cluster.start_with(1, &["--ip-blackhole-route"]);
    cluster.start(2);
    cluster.wait_until_ready(1);
    cluster.wait_until_ready(2);
    cluster.wait_for_peers();
    assert!(refusal(&cleanup(&node, &[])).contains("flanneld runs here"));
    cluster.stop(1);
    if backend == "udp" {
        // The kernel takes its time to note that nobody holds the device.
        wait::until_true("flannel0 is of nobody", || node.ip("route show").contains("linkdown"));
    }
    let made = everything(&node);
    assert_ne!(snapshot::difference(&before, &made), "");

    let plan = text(&cleanup(&node, &["--dry-run"]));
    assert_eq!(snapshot::difference(&made, &everything(&node)), "");
    assert!(plan.contains("rm /run/flannel/subnet.env"), "{plan}");
    assert_eq!(text(&cleanup(&node, &[])), plan);
    assert_eq!(snapshot::difference(&before, &everything(&node)), "");
    assert_eq!(text(&cleanup(&node, &[])), "");
}

#[test]
fn pods_keep_their_network_until_they_are_gone_or_it_is_forced() {
    const BIN: &str = "/run/cni-bin";
    sandboxed(|| {
        let mut cluster = Cluster::running(2, Store::any());
        let node = cluster.node(1).clone();
        fs::create_dir(BIN).unwrap();
        program::run(node.command(program::flannel()).args(["install", BIN]));
        fs::write(format!("{BIN}/dhcp"), "of others").unwrap();
        let lists = node.directory("/etc/cni/net.d");
        fs::write(lists.join("10-flannel.conflist"), STOCK_LIST).unwrap();
        fs::write(lists.join("20-other.conflist"), "{}").unwrap();
        let (gone, pod) = (Pod::attach(&node, "gone"), Pod::attach(&node, "pod"));
        let remote = Pod::attach(cluster.node(2), "remote");
        let is_connected = || ping(pod.namespace(), remote.address()).is_ok();
        cluster.stop(1);

        assert!(refusal(&cleanup(&node, &[])).contains("2 pods of this node"));
        assert!(refusal(&uninstall(&node, &[BIN])).contains("2 pods are attached"));
        gone.detach();
        assert!(refusal(&uninstall(&node, &[BIN])).contains("1 pods are attached"));
        let plan = text(&uninstall(&node, &[BIN, "--dry-run"]));
        assert!(is_connected(), "somebody took a look only");

        // Somebody else's link keeps the bridge.
        node.ip("link add of-others master cni0 type veth");
        assert!(!text(&uninstall(&node, &[BIN, "--dry-run"])).contains("ip link del cni0"));
        node.ip("link del of-others");
        assert!(plan.contains("ip link del cni0"), "{plan}");
        assert_eq!(text(&uninstall(&node, &[BIN, "--force"])), plan);
        let links = node.ip("link show");
        assert!(!links.contains("cni0") && !links.contains("veth"), "{links}");
        let entries = |directory: &std::path::Path| -> Vec<_> {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
        };
        assert_eq!(entries(BIN.as_ref()), ["dhcp"]);
        assert_eq!(entries(&lists), ["20-other.conflist"]);
        assert_eq!(entries(&node.directory("/var/lib/cni/networks")), [""; 0]);
        text(&uninstall(&node, &[BIN]));
        text(&cleanup(&node, &[]));
        assert!(!node.ip("link show").contains("flannel"));
    });
}
