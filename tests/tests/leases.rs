//! Who holds which subnet, and for how long.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeSet;

use flannel_tests::cluster::{Cluster, ETCD_PREFIX, STOCK_NETWORK, Store};
use flannel_tests::pod;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::traffic::ping;
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
    cluster.wait_for_peers();
    for (from, to) in pod::pairs(&pods) {
        ping(from.namespace(), to.address()).unwrap();
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
