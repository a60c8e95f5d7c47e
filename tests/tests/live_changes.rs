//! The network configuration changes while nodes run: pods do not notice.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests")]

use std::time::{Duration, Instant};

use flannel_tests::cluster::{Cluster, Store};
use flannel_tests::net_conf::{Stack, network_with};
use flannel_tests::node::Node;
use flannel_tests::pod;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::traffic::{Flow, ping};
use flannel_tests::wait;

/// The configuration with these options of the backend.
fn network(backend: &str) -> String {
    network_with(Stack::Ipv4, backend)
}

fn running(size: u8, store: Store, backend: &str) -> Cluster {
    Cluster::running_with(size, store, &network(backend))
}

/// Waits until every node shows what is wanted, and says how long that took.
fn on_every_node(cluster: &Cluster, what: &str, holds: impl Fn(&Node) -> Result<(), String>) {
    let start = Instant::now();
    for node in cluster.nodes() {
        wait::until(&format!("{what} on {}", node.name()), || holds(node));
    }
    println!("{what}: {:.0?}", start.elapsed());
}

fn shows(text: String, part: &str) -> Result<(), String> {
    if text.contains(part) { Ok(()) } else { Err(text) }
}

#[test]
fn options_of_vxlan_change_without_losing_a_packet_with_etcd() {
    sandboxed(|| options_of_vxlan_change(Store::Etcd));
}

#[test]
fn options_of_vxlan_change_without_losing_a_packet_with_a_directory_store() {
    sandboxed(|| options_of_vxlan_change(Store::Directory));
}

#[test]
fn options_of_vxlan_change_without_losing_a_packet_with_kubernetes() {
    sandboxed(|| options_of_vxlan_change(Store::Kube));
}

fn options_of_vxlan_change(store: Store) {
    let cluster = running(2, store, r#""Type":"vxlan""#);
    let pods = pod::attach_to_each(cluster.nodes(), 1);
    let before = cluster.store().leases();
    let (from, to) = (&pods[0], &pods[1]);
    let flow = Flow::start(from.namespace(), to.namespace(), to.address(), 1000).unwrap();
    let link = |node: &Node| node.ip("-details link show flannel.1");

    cluster.store().configure(&network(r#""Type":"vxlan","MTU":1400"#));
    on_every_node(&cluster, "MTU", |node| {
        shows(link(node), "mtu 1350 ")?;
        shows(node.subnet_file().unwrap_or_default(), "FLANNEL_MTU=1350\n")
    });
    cluster.store().configure(&network(r#""Type":"vxlan","Learning":true"#));
    on_every_node(&cluster, "learning", |node| {
        let link = link(node);
        if link.contains("nolearning") { Err(link) } else { shows(link, "mtu 1450 ") }
    });
    cluster.store().configure(&network(r#""Type":"vxlan","DirectRouting":true"#));
    on_every_node(&cluster, "direct routing", |node| {
        shows(link(node), " nolearning ")?;
        shows(node.ip("route show proto 199"), "dev eth0")
    });
    cluster.store().configure(&network(r#""Type":"vxlan""#));
    on_every_node(&cluster, "tunnel", |node| {
        shows(node.ip("route show proto 199"), "dev flannel.1")
    });
    let report = flow.finish().unwrap();
    println!("{report}");
    assert_eq!(report.lost(), 0, "{report}");
    assert_eq!(cluster.store().leases(), before, "the leases say what they said");
}

#[test]
fn group_policy_is_switched_on_by_making_the_device_anew_and_pods_reach_each_other() {
    sandboxed(|| {
        let cluster = running(2, Store::any(), r#""Type":"vxlan""#);
        let pods = pod::attach_to_each(cluster.nodes(), 1);
        let before = cluster.store().leases();
        cluster.store().configure(&network(r#""Type":"vxlan","GBP":true"#));
        on_every_node(&cluster, "group policy", |node| {
            shows(node.namespace().try_ip("-details link show flannel.1")?, " gbp ")?;
            shows(node.ip("route show proto 199"), "dev flannel.1")
        });
        for (from, to) in pod::pairs(&pods) {
            ping(from.namespace(), to.address()).unwrap();
        }
        assert_eq!(cluster.store().leases(), before, "the device kept its Ethernet address");
    });
}

#[test]
fn wider_network_reaches_rules_and_subnet_file() {
    sandboxed(|| {
        let cluster = running(2, Store::any(), r#""Type":"vxlan""#);
        let wider = r#"{"Network":"10.240.0.0/12","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#;
        cluster.store().configure(wider);
        on_every_node(&cluster, "network", |node| {
            shows(node.subnet_file().unwrap_or_default(), "FLANNEL_NETWORK=10.240.0.0/12\n")
        });
    });
}

#[test]
fn cluster_changes_from_vxlan_to_host_gw_and_back_without_losing_a_packet() {
    sandboxed(|| {
        let cluster = running(3, Store::Etcd, r#""Type":"vxlan""#);
        let pods = pod::attach_to_each(cluster.nodes(), 1);
        let keys: Vec<_> = cluster.store().leases().into_keys().collect();
        let flows: Vec<_> = [(0, 1), (1, 2), (2, 0)]
            .map(|(from, to)| (&pods[from], &pods[to]))
            .into_iter()
            .map(|(from, to)| {
                Flow::start(from.namespace(), to.namespace(), to.address(), 500).unwrap()
            })
            .collect();
        for _ in 0..3 {
            cluster.store().configure(&network(r#""Type":"host-gw""#));
            on_every_node(&cluster, "host-gw", |node| {
                let links = node.ip("link show");
                if links.contains("flannel.1") {
                    return Err(links);
                }
                shows(node.subnet_file().unwrap_or_default(), "FLANNEL_MTU=1500\n")
            });
            cluster.store().configure(&network(r#""Type":"vxlan""#));
            on_every_node(&cluster, "vxlan", |node| {
                let routes = node.ip("route show proto 199");
                let tunnelled = routes.matches("dev flannel.1").count() == 2;
                if tunnelled { Ok(()) } else { Err(routes) }
            });
        }
        for flow in flows {
            let report = flow.finish().unwrap();
            println!("{report}");
            assert_eq!(report.lost(), 0, "{report}");
        }
        let leases = cluster.store().leases();
        assert!(leases.values().all(|lease| lease.contains(r#""BackendType":"vxlan""#)));
        assert_eq!(leases.into_keys().collect::<Vec<_>>(), keys, "every node kept its subnet");
    });
}

#[test]
fn another_identifier_or_port_of_the_tunnel_is_taken_by_every_node() {
    sandboxed(|| {
        let cluster = running(3, Store::Etcd, r#""Type":"vxlan""#);
        let pods = pod::attach_to_each(cluster.nodes(), 1);
        let keys: Vec<_> = cluster.store().leases().into_keys().collect();
        for (options, device, port) in [
            (r#""Type":"vxlan","VNI":7"#, "flannel.7", "dstport 8472"),
            (r#""Type":"vxlan","VNI":7,"Port":4789"#, "flannel.7", "dstport 4789"),
            (r#""Type":"vxlan""#, "flannel.1", "dstport 8472"),
        ] {
            cluster.store().configure(&network(options));
            on_every_node(&cluster, options, |node| {
                let links = node.ip("-details -oneline link show type vxlan");
                if links.lines().count() != 1 {
                    return Err(links);
                }
                shows(links.clone(), &format!(" {device}: "))?;
                shows(links, port)?;
                let routes = node.ip("route show proto 199");
                let all = routes.matches(&format!("dev {device} ")).count() == 2;
                if all { Ok(()) } else { Err(routes) }
            });
            for (from, to) in pod::pairs(&pods) {
                ping(from.namespace(), to.address()).unwrap();
            }
        }
        assert_eq!(cluster.store().leases().into_keys().collect::<Vec<_>>(), keys);
    });
}

#[test]
fn tunnel_goes_with_its_last_peer_although_the_node_restarted_in_the_middle_of_the_change() {
    sandboxed(|| {
        let mut cluster = running(2, Store::any(), r#""Type":"vxlan""#);
        let pods = pod::attach_to_each(cluster.nodes(), 1);
        // One that does not hear of the change.
        cluster.kill(2);
        cluster.store().configure(&network(r#""Type":"host-gw""#));
        let node = cluster.node(1).clone();
        wait::until("the node publishes its new backend", || {
            let (_, lease) = cluster.store().lease_of(&node).unwrap();
            shows(lease, r#""BackendType":"host-gw""#)
        });
        cluster.kill(1);
        cluster.start(1);
        cluster.wait_until_ready(1);
        let tunnels = node.ip("link show type vxlan");
        assert!(tunnels.contains("flannel.1"), "the other still sends through it: {tunnels}");
        ping(pods[1].namespace(), pods[0].address()).unwrap();
        cluster.start(2);
        on_every_node(&cluster, "no tunnel", |node| {
            let tunnels = node.ip("link show type vxlan");
            if tunnels.is_empty() { Ok(()) } else { Err(tunnels) }
        });
        ping(pods[0].namespace(), pods[1].address()).unwrap();
    });
}

#[test]
fn configuration_that_cannot_be_used_changes_nothing_and_is_told_once() {
    sandboxed(|| {
        let mut cluster = running(2, Store::Etcd, r#""Type":"vxlan""#);
        let pods = pod::attach_to_each(cluster.nodes(), 1);
        let routes = cluster.node(1).ip("route show");
        let refused = "is not used, the old one stays";
        let udp = network(r#""Type":"udp""#);
        let bad = network(r#""Type":"vxlan","VNI":-1"#);
        for (count, (config, reason)) in (1..).zip([
            ("{", "does not decode"),
            (bad.as_str(), "Backend.VNI -1 is out of range"),
            (udp.as_str(), "takes a restart"),
            (r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#, "another subnet"),
        ]) {
            cluster.store().configure(config);
            cluster.store().configure(config);
            let log = wait::until("the configuration is refused", || {
                let log = cluster.flanneld(1).log();
                if log.contains(reason) { Ok(log) } else { Err(log) }
            });
            assert_eq!(log.matches(refused).count(), count, "{log}");
        }
        let unchanged = || cluster.node(1).ip("route show") == routes;
        wait::while_true(Duration::from_millis(300), "nothing changes", unchanged);
        ping(pods[0].namespace(), pods[1].address()).unwrap();
        cluster.store().configure(&network(r#""Type":"vxlan","MTU":1400"#));
        on_every_node(&cluster, "a good one", |node| {
            shows(node.ip("link show flannel.1"), "mtu 1350 ")
        });
    });
}
