//! Every backend in every store, with IPv4, IPv6 and both, and with the rules in each engine.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests")]

use std::net::IpAddr;

use flannel_tests::cluster::{Cluster, Store};
use flannel_tests::namespace::Namespace;
use flannel_tests::net_conf::{Stack, network_in};
use flannel_tests::pod::{self, Pod};
use flannel_tests::rule_engine::RuleEngine;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::traffic::{ping, source_seen_by, tcp_stream};
use flannel_tests::underlay::Underlay;
use flannel_tests::wait;

/// What each TCP stream carries.
const STREAM_LEN: usize = 1 << 20;

/// Names a test for each combination.
macro_rules! combinations {
    ($($name:ident: $backend:literal, $stack:ident, $store:ident;)*) => {
        $(
            #[test]
            fn $name() {
                sandboxed(|| serves($backend, Stack::$stack, Store::$store));
            }
        )*
    };
}

combinations! {
    ipv4_over_vxlan_and_etcd: "vxlan", Ipv4, Etcd;
    ipv4_over_vxlan_and_a_directory: "vxlan", Ipv4, Directory;
    ipv4_over_vxlan_and_kubernetes: "vxlan", Ipv4, Kube;
    ipv4_over_plain_routes_and_etcd: "host-gw", Ipv4, Etcd;
    ipv4_over_plain_routes_and_a_directory: "host-gw", Ipv4, Directory;
    ipv4_over_plain_routes_and_kubernetes: "host-gw", Ipv4, Kube;
    ipv4_over_udp_and_etcd: "udp", Ipv4, Etcd;
    ipv4_over_udp_and_a_directory: "udp", Ipv4, Directory;
    ipv4_over_udp_and_kubernetes: "udp", Ipv4, Kube;
    dual_stack_over_vxlan_and_etcd: "vxlan", Dual, Etcd;
    dual_stack_over_vxlan_and_a_directory: "vxlan", Dual, Directory;
    dual_stack_over_vxlan_and_kubernetes: "vxlan", Dual, Kube;
    dual_stack_over_plain_routes_and_etcd: "host-gw", Dual, Etcd;
    dual_stack_over_plain_routes_and_a_directory: "host-gw", Dual, Directory;
    dual_stack_over_plain_routes_and_kubernetes: "host-gw", Dual, Kube;
    dual_stack_over_udp_and_etcd: "udp", Dual, Etcd;
    dual_stack_over_udp_and_a_directory: "udp", Dual, Directory;
    dual_stack_over_udp_and_kubernetes: "udp", Dual, Kube;
    ipv6_alone_over_vxlan_and_etcd: "vxlan", Ipv6, Etcd;
    ipv6_alone_over_vxlan_and_a_directory: "vxlan", Ipv6, Directory;
    ipv6_alone_over_vxlan_and_kubernetes: "vxlan", Ipv6, Kube;
    ipv6_alone_over_plain_routes_and_etcd: "host-gw", Ipv6, Etcd;
    ipv6_alone_over_plain_routes_and_a_directory: "host-gw", Ipv6, Directory;
    ipv6_alone_over_plain_routes_and_kubernetes: "host-gw", Ipv6, Kube;
    ipv6_alone_over_udp_and_etcd: "udp", Ipv6, Etcd;
    ipv6_alone_over_udp_and_a_directory: "udp", Ipv6, Directory;
    ipv6_alone_over_udp_and_kubernetes: "udp", Ipv6, Kube;
}

/// Pods reach each other, nodes and the world, as what they are or as their node: first with the
/// rules in iptables, then, without a restart, in nftables.
fn serves(backend: &str, stack: Stack, store: Store) {
    let iptables = match store {
        Store::Etcd => RuleEngine::IptablesLegacy,
        Store::Directory | Store::Kube => RuleEngine::IptablesNft,
    };
    let mut cluster = Cluster::unconfigured(2, store);
    cluster.nodes().iter().for_each(|node| iptables.prepare(node.namespace()));
    cluster.store().configure(&network_in(iptables, stack, backend));
    cluster.start_all();
    let pods = pod::attach_to_each(cluster.nodes(), 2);
    assert!(pods.iter().all(|pod| pod.addresses().count() == stack.families()), "{pods:?}");
    for (from, to) in pod::pairs(&pods) {
        every_address_is_reached(from, to);
    }
    let outside = cluster.underlay().host("outside", 200);
    rules_serve(&cluster, &pods, &outside);

    cluster.store().configure(&network_in(RuleEngine::Nftables, stack, backend));
    for node in cluster.nodes() {
        wait::until("the rules are in nftables", || {
            let [here, there] =
                [RuleEngine::Nftables, iptables].map(|engine| engine.listing(node.namespace()));
            if !here.is_empty() && there.is_empty() { Ok(()) } else { Err(here + &there) }
        });
    }
    rules_serve(&cluster, &pods, &outside);
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

/// What depends on the rules: nodes reach all pods, pods are seen by each other as what they are,
/// and by the world as their node.
fn rules_serve(cluster: &Cluster, pods: &[Pod], outside: &Namespace) {
    for (node, pod) in cluster.nodes().iter().flat_map(|node| pods.iter().map(move |p| (node, p))) {
        for ip in pod.addresses() {
            ping(node.namespace(), ip).unwrap();
        }
    }
    let (first, last) = (&pods[0], &pods[pods.len() - 1]);
    for ip in last.addresses() {
        let seen = source_seen_by(first.namespace(), last.namespace(), ip).unwrap();
        assert!(first.addresses().any(|own| own == seen), "{seen}");
    }
    for pod in pods {
        let node = pod.node();
        for ip in pod.addresses() {
            let (to, from): (IpAddr, IpAddr) = match ip {
                IpAddr::V4(_) => (Underlay::address(200).into(), node.address().into()),
                IpAddr::V6(_) => (Underlay::address6(200).into(), node.address6().into()),
            };
            assert_eq!(source_seen_by(pod.namespace(), outside, to).unwrap(), from, "{ip}");
        }
    }
}
