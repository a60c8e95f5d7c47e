//! Who holds which subnet, and for how long.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeSet;

use flannel_tests::cluster::{Cluster, ETCD_PREFIX, STOCK_NETWORK, Store};
use flannel_tests::pod::{self, Pod};
use flannel_tests::sandbox::sandboxed;
use flannel_tests::traffic::{ping, wait_until_reached};
use flannel_tests::wait;

/// Room for three subnets of four addresses.
const TIGHT_NETWORK: &str = r#"{"Network":"10.244.0.0/28","Backend":{"Type":"vxlan"}}"#;

#[test]
fn nodes_that_start_at_the_same_time_share_out_the_last_subnets_of_etcd() {
    sandboxed(|| nodes_that_start_together_never_share_a_subnet(Store::Etcd));
}

#[test]
fn nodes_that_start_at_the_same_time_share_out_the_last_subnets_of_a_directory() {
    sandboxed(|| nodes_that_start_together_never_share_a_subnet(Store::Directory));
}

fn nodes_that_start_together_never_share_a_subnet(store: Store) {
    let mut cluster = Cluster::unconfigured(3, store);
    cluster.store().configure(TIGHT_NETWORK);
    cluster.start_all();
    let subnets: BTreeSet<_> =
        cluster.nodes().iter().map(|n| n.subnet_file_value("FLANNEL_SUBNET").unwrap()).collect();
    let wanted = ["10.244.0.5/30", "10.244.0.9/30", "10.244.0.13/30"].map(str::to_owned);
    assert_eq!(subnets, wanted.into());
    assert_eq!(cluster.store().leases().len(), 3);
}

#[test]
fn lease_that_is_deleted_under_a_running_node_is_taken_again_with_etcd() {
    sandboxed(|| own_lease_that_is_deleted_comes_back(Store::Etcd));
}

#[test]
fn lease_that_is_deleted_under_a_running_node_is_taken_again_with_a_directory_store() {
    sandboxed(|| own_lease_that_is_deleted_comes_back(Store::Directory));
}

fn own_lease_that_is_deleted_comes_back(store: Store) {
    let cluster = Cluster::running(2, store);
    let pods = pod::attach_to_each(cluster.nodes(), 1);
    let before = cluster.store().leases();
    let (key, _) = cluster.store().lease_of(cluster.node(1)).unwrap();
    assert!(cluster.store().delete(&format!("subnets/{key}")));
    wait::until("both leases are there", || {
        let now = cluster.store().leases();
        if now == before { Ok(()) } else { Err(format!("{now:?}")) }
    });
    // The other node may only now hear that the lease was away, and that it is there again.
    for (from, to) in pod::pairs(&pods) {
        wait_until_reached(from.namespace(), to.address());
    }
}

#[test]
fn key_without_an_etcd_lease_reserves_its_subnet_for_its_address() {
    sandboxed(|| {
        let mut cluster = Cluster::new(2, Store::Etcd);
        let address = cluster.node(1).address();
        let reservation = format!(r#"{{"PublicIP":"{address}","PublicIPv6":null}}"#);
        cluster.store().put("subnets/10.244.200.0-24", &reservation);
        cluster.start_all();
        let subnet = cluster.node(1).subnet_file_value("FLANNEL_SUBNET").unwrap();
        assert_eq!(subnet, "10.244.200.1/24");
        let entries = cluster.store().etcd().list(&format!("{ETCD_PREFIX}/subnets/"));
        let entry = &entries[&format!("{ETCD_PREFIX}/subnets/10.244.200.0-24")];
        assert_eq!(entry.lease, 0, "a reservation stays one");
        assert!(entry.value.contains("VtepMAC"), "{}", entry.value);
        assert_eq!(entries.len(), 2);
    });
}

#[test]
fn node_moves_when_the_network_has_moved() {
    sandboxed(|| {
        let mut cluster = Cluster::running(2, Store::Etcd);
        for number in [1, 2] {
            cluster.stop(number);
        }
        cluster.store().configure(&STOCK_NETWORK.replace("10.244.", "10.99."));
        cluster.start_all();
        for node in cluster.nodes() {
            let subnet = node.subnet_file_value("FLANNEL_SUBNET").unwrap();
            assert!(subnet.starts_with("10.99."), "{subnet}");
            let addresses = node.ip("-4 -oneline address show dev flannel.1");
            // One of this network; others are somebody else's, as upstream sees it.
            let ours = addresses.lines().filter(|line| line.contains("inet 10.99."));
            assert_eq!(ours.count(), 1, "{addresses}");
            let left = node.ip("route show") + &node.ip("neighbour show dev flannel.1");
            assert!(!left.contains("10.244."), "{left}");
        }
        let leases = cluster.store().leases();
        assert_eq!(leases.len(), 2, "{leases:?}");
        assert!(leases.keys().all(|key| key.starts_with("10.99.")), "{leases:?}");
        let pods = pod::attach_to_each(cluster.nodes(), 1);
        ping(pods[0].namespace(), pods[1].address()).unwrap();
    });
}

#[test]
fn pods_of_a_subnet_that_was_given_away_are_named() {
    sandboxed(|| {
        let mut cluster = Cluster::running(2, Store::Etcd);
        let pods = pod::attach_to_each(cluster.nodes(), 1);
        let before = cluster.node(1).subnet_file_value("FLANNEL_SUBNET").unwrap();
        let (key, _) = cluster.store().lease_of(cluster.node(1)).unwrap();
        let other = r#"{"PublicIP":"203.0.113.9","PublicIPv6":null}"#;
        cluster.store().put(&format!("subnets/{key}"), other);
        wait::until("the node has another subnet", || {
            match cluster.node(1).subnet_file_value("FLANNEL_SUBNET") {
                Some(subnet) if subnet != before => Ok(()),
                _ => Err(cluster.flanneld(1).log()),
            }
        });
        let log = cluster.flanneld(1).log();
        let line = log.lines().find(|line| line.contains("another subnet")).unwrap();
        assert!(line.contains(&pods[0].address().to_string()), "{line}");
        assert_eq!(cluster.store().leases()[&key], other, "it belongs to somebody else");
        // As with the Go plugin, the bridge has the old address until somebody takes it away.
        cluster.node(1).ip("link delete cni0");
        let pod = Pod::attach(cluster.node(1), "later");
        wait_until_reached(pods[1].namespace(), pod.address());
    });
}

/// The length of subnets changes while nodes start: some decide by the old one, some by the new.
#[test]
fn nodes_that_want_subnets_of_different_lengths_never_overlap() {
    sandboxed(|| {
        let network = |len: u8| {
            format!(
                r#"{{"Network":"10.244.0.0/25","SubnetLen":{len},"Backend":{{"Type":"vxlan"}}}}"#
            )
        };
        let mut cluster = Cluster::unconfigured(6, Store::Etcd);
        cluster.store().configure(&network(29));
        (1..=3).for_each(|number| cluster.start(number));
        wait::until_true("somebody has a lease", || !cluster.store().leases().is_empty());
        cluster.store().configure(&network(28));
        (4..=6).for_each(|number| cluster.start(number));
        // Three of 16 addresses and three of 8 fit in whatever order they come.
        (1..=6).for_each(|number| cluster.wait_until_ready(number));
        cluster.wait_for_peers();
        let leases = cluster.store().leases();
        assert_eq!(leases.len(), 6, "{leases:?}");
        let mut ranges: Vec<_> = leases.keys().map(|key| range(key)).collect();
        ranges.sort_unstable();
        for (one, other) in ranges.iter().zip(&ranges[1..]) {
            assert!(one.1 < other.0, "{leases:?}");
        }
    });
}

/// The first and the last number that a key such as `10.244.0.16-28` stands for.
fn range(key: &str) -> (u32, u32) {
    let (address, length) = key.split_once('-').unwrap();
    let first = u32::from(address.parse::<std::net::Ipv4Addr>().unwrap());
    (first, first + (1 << (32 - length.parse::<u32>().unwrap())) - 1)
}
