//! Dual-stack and IPv6-only clusters: every backend that carries IPv6, in every store.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests")]

use std::net::IpAddr;

use flannel_tests::cluster::{Cluster, Store};
use flannel_tests::pod::{self, Pod};
use flannel_tests::sandbox::sandboxed;
use flannel_tests::traffic::{ping, source_seen_by, tcp_stream};
use flannel_tests::underlay::Underlay;

/// What each TCP stream carries.
const STREAM_LEN: usize = 1 << 20;

/// The families of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stack {
    Dual,
    Ipv6,
}

fn network(backend: &str, stack: Stack) -> String {
    let ipv4 = match stack {
        Stack::Dual => r#""Network":"10.244.0.0/16""#,
        Stack::Ipv6 => r#""EnableIPv4":false"#,
    };
    format!(
        r#"{{{ipv4},"EnableIPv6":true,"IPv6Network":"2001:db8:42::/56","Backend":{{"Type":"{backend}"}}}}"#
    )
}

#[test]
fn dual_stack_over_vxlan_and_etcd() {
    sandboxed(|| serves("vxlan", Stack::Dual, Store::Etcd));
}

#[test]
fn dual_stack_over_vxlan_and_a_directory() {
    sandboxed(|| serves("vxlan", Stack::Dual, Store::Directory));
}

#[test]
fn dual_stack_over_plain_routes_and_etcd() {
    sandboxed(|| serves("host-gw", Stack::Dual, Store::Etcd));
}

#[test]
fn dual_stack_over_plain_routes_and_a_directory() {
    sandboxed(|| serves("host-gw", Stack::Dual, Store::Directory));
}

#[test]
fn dual_stack_over_udp_and_etcd() {
    sandboxed(|| serves("udp", Stack::Dual, Store::Etcd));
}

#[test]
fn ipv6_alone_over_udp_and_a_directory() {
    sandboxed(|| serves("udp", Stack::Ipv6, Store::Directory));
}

#[test]
fn ipv6_alone_over_vxlan_and_etcd() {
    sandboxed(|| serves("vxlan", Stack::Ipv6, Store::Etcd));
}

#[test]
fn ipv6_alone_over_plain_routes_and_a_directory() {
    sandboxed(|| serves("host-gw", Stack::Ipv6, Store::Directory));
}

#[test]
fn dual_stack_over_vxlan_and_kubernetes() {
    sandboxed(|| serves("vxlan", Stack::Dual, Store::Kube));
}

#[test]
fn dual_stack_over_udp_and_kubernetes() {
    sandboxed(|| serves("udp", Stack::Dual, Store::Kube));
}

#[test]
fn dual_stack_over_plain_routes_and_kubernetes() {
    sandboxed(|| serves("host-gw", Stack::Dual, Store::Kube));
}

#[test]
fn ipv6_alone_over_vxlan_and_kubernetes() {
    sandboxed(|| serves("vxlan", Stack::Ipv6, Store::Kube));
}

/// Pods reach each other, nodes and the world, as what they are or as their node.
fn serves(backend: &str, stack: Stack, store: Store) {
    let cluster = Cluster::running_with(2, store, &network(backend, stack));
    let pods = pod::attach_to_each(cluster.nodes(), 2);
    let families = if stack == Stack::Dual { 2 } else { 1 };
    assert!(pods.iter().all(|pod| pod.addresses().count() == families), "{pods:?}");
    for (from, to) in pod::pairs(&pods) {
        every_address_is_reached(from, to);
    }
    for (node, pod) in cluster.nodes().iter().flat_map(|node| pods.iter().map(move |p| (node, p))) {
        for ip in pod.addresses() {
            ping(node.namespace(), ip).unwrap();
        }
    }
    let outside = cluster.underlay().host("outside", 200);
    for pod in &pods {
        let node = pod.node();
        for ip in pod.addresses() {
            let (to, from): (IpAddr, IpAddr) = match ip {
                IpAddr::V4(_) => (Underlay::address(200).into(), node.address().into()),
                IpAddr::V6(_) => (Underlay::address6(200).into(), node.address6().into()),
            };
            assert_eq!(source_seen_by(pod.namespace(), &outside, to).unwrap(), from, "{ip}");
        }
    }
    pods.into_iter().for_each(Pod::detach);
}

fn every_address_is_reached(from: &Pod, to: &Pod) {
    for ip in to.addresses() {
        let names = format!("{} to {ip} of {}", from.name(), to.name());
        ping(from.namespace(), ip).unwrap_or_else(|e| panic!("ping from {names}: {e}"));
        let stream = tcp_stream(from.namespace(), to.namespace(), ip, STREAM_LEN)
            .unwrap_or_else(|e| panic!("TCP stream from {names}: {e}"));
        let seen = source_seen_by(from.namespace(), to.namespace(), ip).unwrap();
        assert!(from.addresses().any(|own| own == seen), "{names}: {seen}");
        println!("{names}: {STREAM_LEN} bytes of TCP in {stream:.1?}");
    }
}
