//! The interface between nodes changes while flanneld runs, and what depends on it follows.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests")]

use std::time::{Duration, Instant};

use flannel_tests::cluster::{Cluster, Store};
use flannel_tests::net_conf::{Stack, network};
use flannel_tests::pod;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::traffic::Flow;
use flannel_tests::wait;

/// A second is promised; a machine that runs other tests at the same time takes longer.
const HEALING_TIME_MAX: Duration = Duration::from_secs(20);

#[test]
fn device_and_subnet_file_follow_the_mtu_of_the_underlay_without_losing_a_packet() {
    sandboxed(|| mtu_is_followed("vxlan", 50));
}

#[test]
fn subnet_file_follows_the_mtu_of_the_underlay_without_losing_a_packet_with_host_gw() {
    sandboxed(|| mtu_is_followed("host-gw", 0));
}

fn mtu_is_followed(backend: &str, overhead: u32) {
    let cluster = Cluster::running_with(2, Store::any(), &network(Stack::Ipv4, backend));
    let pods = pod::attach_to_each(cluster.nodes(), 1);
    let (from, to) = (&pods[0], &pods[1]);
    let flow = Flow::start(from.namespace(), to.namespace(), to.address(), 1000).unwrap();
    let node = cluster.node(1);
    for underlay in [1400, 1500] {
        cluster.underlay().set_mtu(node.namespace(), underlay);
        let (start, pods) = (Instant::now(), underlay - overhead);
        wait::until("device and subnet file have the new MTU", || {
            let device = node.ip("link show type vxlan");
            let file = node.subnet_file_value("FLANNEL_MTU");
            let device_follows = backend != "vxlan" || device.contains(&format!("mtu {pods} "));
            let follow = device_follows && file.as_deref() == Some(&pods.to_string());
            if follow { Ok(()) } else { Err(format!("{device}, {file:?}")) }
        });
        let time = start.elapsed();
        println!("MTU {underlay} followed in {time:.0?}");
        assert!(time < HEALING_TIME_MAX, "{time:?}");
    }
    let report = flow.finish().unwrap();
    println!("{report}");
    assert_eq!(report.lost(), 0, "{report}");
}

#[test]
fn new_address_of_the_underlay_is_published_under_the_same_key_with_vxlan() {
    sandboxed(|| new_address_is_published("vxlan"));
}

#[test]
fn new_address_of_the_underlay_is_published_under_the_same_key_with_host_gw() {
    sandboxed(|| new_address_is_published("host-gw"));
}

fn new_address_is_published(backend: &str) {
    let cluster = Cluster::running_with(2, Store::Etcd, &network(Stack::Ipv4, backend));
    let pods = pod::attach_to_each(cluster.nodes(), 1);
    let keys: Vec<_> = cluster.store().leases().into_keys().collect();
    let (from, to) = (&pods[0], &pods[1]);
    let flow = Flow::start(from.namespace(), to.namespace(), to.address(), 1000).unwrap();
    let node = cluster.node(2);
    let default = node.ip("route show default");
    // As DHCP does it: with its address, the interface loses its routes.
    node.ip(&format!("address delete {}/24 dev eth0", node.address()));
    node.ip("address add 198.51.100.102/24 dev eth0");
    node.ip(&format!("route add {default}"));
    let start = Instant::now();
    let peer = cluster.node(1);
    wait::until("the peer sends to the new address", || {
        let entries = match backend {
            "vxlan" => peer.bridge("fdb show dev flannel.1"),
            _ => peer.ip("route show proto 199"),
        };
        if entries.contains("198.51.100.102") { Ok(()) } else { Err(entries) }
    });
    let time = start.elapsed();
    println!("followed in {time:.0?}");
    assert!(time < HEALING_TIME_MAX, "{time:?}");
    let count = flow.received();
    wait::until_true("the flow goes on", || flow.received() > count + 100);
    println!("{}", flow.finish().unwrap());
    assert_eq!(cluster.store().leases().into_keys().collect::<Vec<_>>(), keys);
}
