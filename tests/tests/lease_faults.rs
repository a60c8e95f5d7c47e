//! Leases on a real store while everything around them fails.
//!
//! `LEASE_FAULT_SECS=3600 cargo test -p flannel-tests --test lease_faults survive` goes on for an
//! hour, and `LEASE_FAULT_SEED=n` draws the faults in another order.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use flannel_tests::cluster::{Cluster, ETCD_PREFIX, STOCK_NETWORK, Store};
use flannel_tests::etcd_cluster::Release;
use flannel_tests::lease_lab::{LeaseLab, NODES};
use flannel_tests::pod::Pod;
use flannel_tests::sandbox::{sandboxed, sandboxed_for};
use flannel_tests::traffic::Flow;
use flannel_tests::wait;

/// Exactly fifty subnets.
const FIFTY: &str = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.1.0","SubnetMax":"10.244.50.0","Backend":{"Type":"vxlan"}}"#;

/// What starting fifty nodes, and coming to an agreement, may take besides.
const SETTLING: Duration = Duration::from_secs(500);

#[test]
fn fifty_nodes_that_boot_at_once_get_fifty_subnets_and_nobody_exits() {
    sandboxed(|| fifty_boot_at_once(STOCK_NETWORK));
}

#[test]
fn fifty_nodes_that_boot_at_once_share_out_exactly_fifty_subnets() {
    sandboxed(|| fifty_boot_at_once(FIFTY));
}

fn fifty_boot_at_once(network: &str) {
    let mut cluster = Cluster::unconfigured(NODES, Store::Etcd);
    cluster.store().configure(network);
    let start = Instant::now();
    (1..=NODES).for_each(|number| cluster.start(number));
    (1..=NODES).for_each(|number| cluster.wait_until_ready(number));
    println!("{NODES} nodes were ready after {:?}", start.elapsed());
    let subnets: BTreeSet<_> =
        cluster.nodes().iter().map(|n| n.subnet_file_value("FLANNEL_SUBNET").unwrap()).collect();
    assert_eq!(subnets.len(), usize::from(NODES));
    assert_eq!(cluster.store().leases().len(), usize::from(NODES));
}

#[test]
fn two_nodes_with_one_address_never_share_a_lease() {
    sandboxed(|| {
        let mut cluster = Cluster::new(2, Store::Etcd);
        let flags = ["--iface=eth0", "--public-ip=203.0.113.7"];
        cluster.start_with(1, &flags);
        cluster.wait_until_ready(1);
        let lease = cluster.store().leases();
        assert_eq!(lease.len(), 1);
        cluster.start_with(2, &flags);
        wait::until("the second node says what is wrong", || {
            let log = cluster.flanneld(2).log();
            if log.contains("another living node has the public address") {
                Ok(())
            } else {
                Err(log)
            }
        });
        assert_eq!(cluster.store().leases(), lease);
        assert_eq!(cluster.node(2).subnet_file(), None);
        cluster.kill(1);
        cluster.wait_until_ready(2);
        let succeeded = cluster.store().leases();
        assert_eq!(succeeded.keys().collect::<Vec<_>>(), lease.keys().collect::<Vec<_>>());
        assert_ne!(succeeded, lease);
    });
}

#[test]
fn key_that_somebody_else_wrote_is_taken_back_once_its_writer_is_gone() {
    sandboxed(|| {
        let mut cluster = Cluster::running(2, Store::Etcd);
        let (key, lease) = cluster.store().lease_of(cluster.node(1)).unwrap();
        let mac = lease.split(r#""VtepMAC":""#).nth(1).unwrap().split('"').next().unwrap();
        let foreign = lease.replace(mac, "02:00:00:00:00:99");
        let etcd = cluster.store().etcd();
        let keys = BTreeMap::from([(format!("{ETCD_PREFIX}/subnets/{key}"), foreign)]);
        etcd.put_all(&keys, 86_400);
        wait::until("the node says so", || {
            let log = cluster.flanneld(1).log();
            if log.contains("written by somebody else") { Ok(()) } else { Err(log) }
        });
        wait::until("the key is as it was", || match cluster.store().lease_of(cluster.node(1)) {
            Some((_, now)) if now == lease => Ok(()),
            other => Err(format!("{other:?}")),
        });
        cluster.wait_for_peers();
    });
}

#[test]
fn leases_and_traffic_survive_whatever_happens_to_three_members_of_etcd_3_4() {
    sandboxed_for(span() + SETTLING, || leases_and_traffic_survive(Release::V3_4, "3.4.", 1));
}

#[test]
fn leases_and_traffic_survive_whatever_happens_to_three_members_of_etcd_3_5() {
    sandboxed_for(span() + SETTLING, || leases_and_traffic_survive(Release::V3_5, "3.5.", 2));
}

fn leases_and_traffic_survive(release: Release, version: &str, seed: u64) {
    let seed = number("LEASE_FAULT_SEED").unwrap_or(seed);
    let is = release.version();
    assert!(is.starts_with(version), "etcd is {is}");
    println!("faults for {:?} with etcd {is} and seed {seed}", span());
    let mut lab = LeaseLab::running(release, seed);
    let before = lab.subnets();
    let pods = [Pod::attach(&lab.nodes()[0], "p1"), Pod::attach(&lab.nodes()[1], "p2")];
    let (from, to) = (pods[0].namespace(), pods[1].namespace());
    let flow = Flow::start(from, to, pods[1].address(), 200).unwrap();
    let start = Instant::now();
    while start.elapsed() < span() {
        lab.strike();
        assert_eq!(lab.subnets(), before, "nobody's subnet changes");
    }
    lab.calm();
    let healed = Instant::now();
    lab.agree();
    println!("{} faults; agreement {:?} after the last", lab.struck(), healed.elapsed());
    assert_eq!(lab.subnets(), before, "nobody's subnet has changed");
    let report = flow.finish().unwrap();
    let written = lab.check_what_was_written();
    println!("{report:?}; {written} leases were written");
    assert!(written > lab.nodes().len(), "it was looked on: {written}");
    assert_eq!(report.lost(), 0, "{report:?}");
}

fn span() -> Duration {
    Duration::from_secs(number("LEASE_FAULT_SECS").unwrap_or(90))
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}
