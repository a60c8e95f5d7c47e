//! With `DirectRouting`, peers on the network of a node need no tunnel; which these are changes.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::time::Instant;

use flannel_tests::cluster::{Cluster, Store};
use flannel_tests::namespace::Namespace;
use flannel_tests::node::Node;
use flannel_tests::pod;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::traffic::{Flow, ping};
use flannel_tests::underlay::GATEWAY;
use flannel_tests::wait;

const NETWORK: &str =
    r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;

fn running(size: u8) -> Cluster {
    let mut cluster = Cluster::unconfigured(size, Store::any());
    cluster.store().configure(NETWORK);
    cluster.start_all();
    cluster
}

/// The subnet of a node, and what another node has for it.
fn subnet_of(cluster: &Cluster, node: &Node) -> String {
    cluster.store().lease_of(node).unwrap().0.replace('-', "/")
}

fn entries(node: &Node) -> [String; 2] {
    [node.bridge("fdb show dev flannel.1"), node.ip("neighbour show dev flannel.1")]
}

fn assert_direct(node: &Node, subnet: &str, peer: &Node) {
    wait::until("the peer is reached directly", || {
        let (route, entries) = (node.ip(&format!("route show {subnet}")), entries(node));
        let direct = format!("via {} dev eth0 proto 199", peer.address());
        let found = route.contains(&direct) && entries.iter().all(String::is_empty);
        if found { Ok(()) } else { Err(format!("{route}{entries:?}")) }
    });
}

fn assert_tunnelled(node: &Node, subnet: &str) {
    wait::until("the peer is reached through the tunnel", || {
        let (route, entries) = (node.ip(&format!("route show {subnet}")), entries(node));
        let found = route.contains("dev flannel.1 proto 199 onlink")
            && entries.iter().all(|table| table.lines().count() == 1);
        if found { Ok(()) } else { Err(format!("{route}{entries:?}")) }
    });
}

#[test]
fn peer_moves_between_tunnel_and_route_without_losing_a_packet() {
    sandboxed(|| {
        let cluster = running(2);
        let pods = pod::attach_to_each(cluster.nodes(), 1);
        let (node, peer) = (cluster.node(1), cluster.node(2));
        let subnet = subnet_of(&cluster, peer);
        assert_direct(node, &subnet, peer);
        // The gateway is a router, so that packets arrive either way.
        let forward = || fs::write("/proc/sys/net/ipv4/ip_forward", "1");
        Namespace::existing("underlay").inside(forward).unwrap();
        let (from, to) = (&pods[0], &pods[1]);
        let flow = Flow::start(from.namespace(), to.namespace(), to.address(), 1000).unwrap();
        let exception = format!("{}/32 via {GATEWAY} dev eth0", peer.address());
        for _ in 0..5 {
            node.ip(&format!("route add {exception}"));
            let start = Instant::now();
            assert_tunnelled(node, &subnet);
            let tunnelled = start.elapsed();
            node.ip(&format!("route delete {exception}"));
            let start = Instant::now();
            assert_direct(node, &subnet, peer);
            println!("tunnelled in {tunnelled:.0?}, direct in {:.0?}", start.elapsed());
        }
        let report = flow.finish().unwrap();
        println!("{report}");
        assert_eq!(report.lost(), 0, "{report}");
    });
}

#[test]
fn peer_that_goes_away_leaves_nothing_whatever_the_routes_were_when_it_came() {
    sandboxed(|| {
        let mut cluster = running(3);
        let (node, peer) = (cluster.node(1).clone(), cluster.node(2).clone());
        let (key, _) = cluster.store().lease_of(&peer).unwrap();
        let subnet = key.replace('-', "/");
        assert_direct(&node, &subnet, &peer);
        cluster.kill(2);
        // It came directly and goes as one behind a router.
        node.ip(&format!("route add {}/32 via {GATEWAY} dev eth0", peer.address()));
        assert_tunnelled(&node, &subnet);
        assert!(cluster.store().delete(&format!("subnets/{key}")));
        wait::until("nothing of the peer is left", || {
            let left = [node.ip(&format!("route show {subnet}")), entries(&node).concat()].concat();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
        let others = subnet_of(&cluster, cluster.node(3));
        assert_direct(&node, &others, cluster.node(3));
    });
}

#[test]
fn pods_reach_each_other_where_one_node_has_a_router_in_between() {
    sandboxed(|| {
        let cluster = running(3);
        let pods = pod::attach_to_each(cluster.nodes(), 1);
        let forward = || fs::write("/proc/sys/net/ipv4/ip_forward", "1");
        Namespace::existing("underlay").inside(forward).unwrap();
        let (node, peer) = (cluster.node(1), cluster.node(2));
        node.ip(&format!("route add {}/32 via {GATEWAY} dev eth0", peer.address()));
        assert_tunnelled(node, &subnet_of(&cluster, peer));
        assert_direct(peer, &subnet_of(&cluster, node), node);
        for (from, to) in pod::pairs(&pods) {
            ping(from.namespace(), to.address()).unwrap();
        }
    });
}
