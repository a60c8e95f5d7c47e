//! Pods on different nodes over plain routes.

use flannel_tests::cluster::{Cluster, Store};
use flannel_tests::pod;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::traffic::{ping, tcp_stream};
use flannel_tests::underlay::GATEWAY;
use flannel_tests::wait;

const NETWORK: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#;

/// What each TCP stream carries.
const STREAM_LEN: usize = 1 << 20;

fn running(size: u8, store: Store) -> Cluster {
    Cluster::running_with(size, store, NETWORK)
}

#[test]
fn pods_reach_each_other_without_a_tunnel() {
    sandboxed(|| {
        let cluster = running(3, Store::Etcd);
        let pods = pod::attach_to_each(cluster.nodes(), 2);
        for (from, to) in pod::pairs(&pods) {
            let names = format!("{} to {}", from.name(), to.name());
            ping(from.namespace(), to.address()).unwrap_or_else(|e| panic!("{names}: {e}"));
            tcp_stream(from.namespace(), to.namespace(), to.address(), STREAM_LEN)
                .unwrap_or_else(|e| panic!("{names}: {e}"));
        }
        for node in cluster.nodes() {
            let links = node.ip("link show");
            assert!(!links.contains("flannel"), "{links}");
            let (_, lease) = cluster.store().lease_of(node).expect("the node has a lease");
            let address = node.address();
            let expected =
                format!(r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"host-gw"}}"#);
            assert_eq!(lease, expected);
            assert_eq!(node.subnet_file_value("FLANNEL_MTU").as_deref(), Some("1500"));
        }
    });
}

#[test]
fn routes_come_back_and_those_of_vanished_nodes_go() {
    sandboxed(|| {
        let mut cluster = running(3, Store::any());
        // Its routes stay, and it cannot take its lease again when that is deleted.
        cluster.kill(2);
        let node = cluster.node(1);
        let route_to = |number: u8| {
            let (key, _) = cluster.store().lease_of(cluster.node(number)).expect("a lease");
            (format!("{} via {}", key.replace('-', "/"), cluster.node(number).address()), key)
        };
        let (to_second, second) = route_to(2);
        let (to_third, _) = route_to(3);
        for route in [&to_second, &to_third] {
            let destination = route.split(' ').next().unwrap_or_default();
            node.ip(&format!("route delete {destination}"));
            wait::until_true("the route is back", || {
                node.ip("route show").contains(route.as_str())
            });
        }
        node.ip("link set eth0 down");
        node.ip("link set eth0 up");
        wait::until_true("all routes are back after a flap", || {
            let routes = node.ip("route show");
            routes.contains(&to_second) && routes.contains(&to_third)
        });
        assert!(cluster.store().delete(&format!("subnets/{second}")));
        wait::until_true("the route of the lease that was deleted is gone", || {
            !node.ip("route show").contains(&to_second)
        });
    });
}

#[test]
fn peer_behind_a_router_is_left_out_and_named_until_it_is_on_the_network() {
    sandboxed(|| {
        let mut cluster = running(3, Store::any());
        let subnet_of = |cluster: &Cluster, number: u8| {
            let (key, _) = cluster.store().lease_of(cluster.node(number)).expect("a lease");
            key.replace('-', "/")
        };
        let (far, near) = (subnet_of(&cluster, 2), subnet_of(&cluster, 3));
        let (node, peer) = (cluster.node(1).clone(), cluster.node(2).address());
        let exception = format!("{peer}/32 via {GATEWAY} dev eth0");
        node.ip(&format!("route add {exception}"));
        wait::until("the route to the peer goes", || {
            let routes = node.ip("route show proto 199");
            if routes.contains(&far) { Err(routes) } else { Ok(()) }
        });
        assert!(node.ip("route show proto 199").contains(&near), "the other peer stays");
        let log = cluster.flanneld(1).log();
        let reason = format!("its public address {peer} is behind a router");
        assert!(log.contains("a peer is left out") && log.contains(&reason), "{log}");
        node.ip(&format!("route delete {exception}"));
        wait::until("the route is back", || {
            let routes = node.ip("route show proto 199");
            if routes.contains(&far) { Ok(()) } else { Err(routes) }
        });
        let log = cluster.flanneld(1).log();
        assert!(!log.contains("the kernel refused"), "{log}");
    });
}

#[test]
fn routes_of_flannel_are_taken_over_and_foreign_ones_left_alone() {
    sandboxed(|| {
        let mut cluster = Cluster::unconfigured(2, Store::any());
        cluster.store().configure(NETWORK);
        cluster.start(2);
        cluster.wait_until_ready(2);
        let (key, _) = cluster.store().lease_of(cluster.node(2)).expect("a lease");
        let (subnet, gateway) = (key.replace('-', "/"), cluster.node(2).address());
        let node = cluster.node(1);
        node.ip(&format!("route add {subnet} via {gateway} dev eth0"));
        node.ip("route add 10.244.250.0/24 via 198.51.100.77 dev eth0");
        node.ip("route add 172.30.0.0/16 via 198.51.100.77 dev eth0");
        cluster.start(1);
        cluster.wait_until_ready(1);
        let routes = cluster.node(1).ip("route show");
        let ours = format!("{subnet} via {gateway} dev eth0 proto 199");
        assert_eq!(routes.matches(&subnet).count(), 1, "{routes}");
        assert!(routes.contains(&ours), "{routes}");
        assert!(routes.contains("10.244.250.0/24 via 198.51.100.77"), "{routes}");
        assert!(routes.contains("172.30.0.0/16 via 198.51.100.77"), "{routes}");
    });
}
