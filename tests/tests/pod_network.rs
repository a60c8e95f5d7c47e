//! Pods reach each other and the world, through the real programs, whatever carries the packets
//! between nodes.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::{fs, thread};

use flannel_tests::cluster::{Cluster, Store};
use flannel_tests::namespace::Namespace;
use flannel_tests::net_conf::{Stack, network};
use flannel_tests::pod::{self, Pod};
use flannel_tests::program;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::traffic::{ping, source_seen_by, tcp_stream};
use flannel_tests::underlay::Underlay;
use flannel_tests::wait;

/// What each TCP stream carries.
const STREAM_LEN: usize = 4 << 20;

/// What carries the packets, and what it leaves of an underlay of 1500.
struct Backend {
    name: &'static str,
    mtu: u16,
}

const VXLAN: Backend = Backend { name: "vxlan", mtu: 1450 };
const UDP: Backend = Backend { name: "udp", mtu: 1472 };

impl Backend {
    fn running(&self, size: u8, store: Store) -> Cluster {
        Cluster::running_with(size, store, &network(Stack::Ipv4, self.name))
    }
}

/// Makes each of these a test of every backend.
macro_rules! over_every_backend {
    ($($test:ident)*) => {
        over_every_backend! { vxlan: VXLAN, $($test)* }
        over_every_backend! { udp: UDP, $($test)* }
    };
    ($module:ident: $backend:ident, $($test:ident)*) => {
        mod $module {
            use super::{$backend, sandboxed};
            $(#[test] fn $test() { sandboxed(|| super::$test(&$backend)); })*
        }
    };
}

over_every_backend! {
    pods_on_three_nodes_reach_each_other_over_etcd
    pods_on_three_nodes_reach_each_other_with_a_directory_store
    pods_on_three_nodes_reach_each_other_with_kubernetes
    pods_see_each_other_under_their_own_addresses
    traffic_that_leaves_the_cluster_carries_the_address_of_the_node
    nodes_reach_pods_on_every_node
    full_sized_packets_pass_between_nodes_without_fragments
    pods_that_start_at_the_same_time_get_different_addresses_and_all_work
}

fn pods_on_three_nodes_reach_each_other_over_etcd(backend: &Backend) {
    every_pod_reaches_every_other(&backend.running(3, Store::Etcd));
}

fn pods_on_three_nodes_reach_each_other_with_a_directory_store(backend: &Backend) {
    every_pod_reaches_every_other(&backend.running(3, Store::Directory));
}

fn pods_on_three_nodes_reach_each_other_with_kubernetes(backend: &Backend) {
    every_pod_reaches_every_other(&backend.running(3, Store::Kube));
}

fn every_pod_reaches_every_other(cluster: &Cluster) {
    let pods = pod::attach_to_each(cluster.nodes(), 2);
    for (from, to) in pod::pairs(&pods) {
        let names = format!("{} to {}", from.name(), to.name());
        let round_trip = ping(from.namespace(), to.address())
            .unwrap_or_else(|e| panic!("ping from {names}: {e}"));
        let stream = tcp_stream(from.namespace(), to.namespace(), to.address(), STREAM_LEN)
            .unwrap_or_else(|e| panic!("TCP stream from {names}: {e}"));
        println!("{names}: ping {round_trip:.2?}, {STREAM_LEN} bytes of TCP in {stream:.1?}");
    }
}

fn pods_see_each_other_under_their_own_addresses(backend: &Backend) {
    let cluster = backend.running(2, Store::any());
    let pods = pod::attach_to_each(cluster.nodes(), 2);
    for (from, to) in pod::pairs(&pods) {
        let seen = source_seen_by(from.namespace(), to.namespace(), to.address()).unwrap();
        assert_eq!(seen, IpAddr::V4(from.address()), "{} to {}", from.name(), to.name());
    }
}

fn traffic_that_leaves_the_cluster_carries_the_address_of_the_node(backend: &Backend) {
    let cluster = backend.running(2, Store::any());
    let outside = cluster.underlay().host("outside", 200);
    let address = Underlay::address(200);
    for pod in pod::attach_to_each(cluster.nodes(), 1) {
        ping(pod.namespace(), address).unwrap();
        let seen = source_seen_by(pod.namespace(), &outside, address).unwrap();
        assert_eq!(seen, IpAddr::V4(pod.node().address()), "{}", pod.name());
        tcp_stream(pod.namespace(), &outside, address, STREAM_LEN).unwrap();
    }
}

#[test]
fn node_behind_a_nat_sends_from_the_address_of_its_interface() {
    sandboxed(|| {
        let mut cluster = Cluster::new(2, Store::any());
        // The gateway is the NAT, for what is sent to the public address.
        let gateway = Namespace::existing("underlay");
        gateway.inside(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1")).expect("it is ours");
        let (public, address) = ("203.0.113.2", cluster.node(2).address());
        let rules = format!(
            "table ip nat {{ chain pre {{ type nat hook prerouting priority -100; \
             ip daddr {public} dnat to {address}; }}; }}"
        );
        program::run(gateway.command("nft").arg(rules));
        cluster.start(1);
        cluster.start_with(2, &["--iface=eth0", &format!("--public-ip={public}")]);
        for number in [1, 2] {
            cluster.wait_until_ready(number);
        }
        let (nodes, local) = (cluster.nodes(), format!(" local {address} "));
        wait::until("the node sends to the public address of the other", || {
            let entries = nodes[0].bridge("fdb show dev flannel.1");
            if entries.contains(public) { Ok(()) } else { Err(entries) }
        });
        let device = nodes[1].ip("-details link show flannel.1");
        assert!(device.contains(&local), "{device}");
        let pods = pod::attach_to_each(nodes, 1);
        for (from, to) in pod::pairs(&pods) {
            tcp_stream(from.namespace(), to.namespace(), to.address(), STREAM_LEN)
                .unwrap_or_else(|e| panic!("{} to {}: {e}", from.name(), to.name()));
        }
    });
}

fn nodes_reach_pods_on_every_node(backend: &Backend) {
    let cluster = backend.running(2, Store::any());
    let pods = pod::attach_to_each(cluster.nodes(), 1);
    for node in cluster.nodes() {
        for pod in &pods {
            ping(node.namespace(), pod.address()).unwrap();
        }
    }
}

fn full_sized_packets_pass_between_nodes_without_fragments(backend: &Backend) {
    let cluster = backend.running(2, Store::any());
    let pods = pod::attach_to_each(cluster.nodes(), 1);
    for pod in &pods {
        let link = pod.namespace().ip("link show eth0");
        assert!(link.contains(&format!(" mtu {} ", backend.mtu)), "{link}");
    }
    // A TCP stream fills its packets; none of them may have needed a second one.
    let to = &pods[1];
    tcp_stream(pods[0].namespace(), to.namespace(), to.address(), STREAM_LEN).unwrap();
    for node in cluster.nodes() {
        let statistics = node
            .namespace()
            .inside(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
        let mut lines = statistics.lines().filter_map(|line| line.strip_prefix("Ip: "));
        let names = lines.next().unwrap().split(' ');
        let counters: Vec<_> = names.zip(lines.next().unwrap().split(' ')).collect();
        assert!(counters.contains(&("FragCreates", "0")), "{counters:?}");
    }
}

fn pods_that_start_at_the_same_time_get_different_addresses_and_all_work(backend: &Backend) {
    let cluster = backend.running(2, Store::any());
    let starting: Vec<_> = (1..=8)
        .map(|number| {
            let node = cluster.node(number % 2 + 1).clone();
            thread::spawn(move || Pod::attach(&node, &format!("p{number}")))
        })
        .collect();
    let pods: Vec<_> = starting.into_iter().map(|pod| pod.join().unwrap()).collect();
    let addresses: BTreeSet<_> = pods.iter().map(Pod::address).collect();
    assert_eq!(addresses.len(), pods.len());
    for (from, to) in pod::pairs(&pods) {
        ping(from.namespace(), to.address()).unwrap();
    }
    let stopping: Vec<_> =
        pods.into_iter().map(|pod| thread::spawn(move || pod.detach())).collect();
    for pod in stopping {
        pod.join().unwrap();
    }
    for node in cluster.nodes() {
        let veths = node.ip("link show type veth");
        assert_eq!(veths.lines().filter(|line| line.contains("cni0")).count(), 0, "{veths}");
    }
}
