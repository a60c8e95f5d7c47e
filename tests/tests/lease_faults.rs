//! Leases on a real store while everything around them fails.
//!
//! `LEASE_FAULT_SECS=3600 cargo test -p flannel-tests --test lease_faults` goes on for an hour, and
//! `LEASE_FAULT_SEED=n` draws the faults in another order.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use flannel_tests::cluster::{Cluster, ETCD_PREFIX, STOCK_NETWORK, Store};
use flannel_tests::daemon::Daemon;
use flannel_tests::etcd_cluster::EtcdCluster;
use flannel_tests::node::Node;
use flannel_tests::pod::Pod;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::traffic::Flow;
use flannel_tests::underlay::Underlay;
use flannel_tests::{program, wait};
use nix::sys::signal::Signal;

/// Exactly fifty subnets.
const FIFTY: &str = r#"{"Network":"10.244.0.0/16","SubnetMin":"10.244.1.0","SubnetMax":"10.244.50.0","Backend":{"Type":"vxlan"}}"#;
const NODES: u8 = 50;

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
fn leases_and_traffic_survive_whatever_happens_to_three_members() {
    sandboxed(|| {
        let span = number("LEASE_FAULT_SECS").unwrap_or(60);
        let seed = number("LEASE_FAULT_SEED").unwrap_or(1);
        println!("faults for {span} s with seed {seed}");
        let mut lab = Lab::new(seed);
        let before = lab.subnets();
        let pods = [Pod::attach(&lab.nodes[0], "p1"), Pod::attach(&lab.nodes[1], "p2")];
        let (from, to) = (pods[0].namespace(), pods[1].namespace());
        let flow = Flow::start(from, to, pods[1].address(), 200).unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(span) {
            lab.strike();
            assert_eq!(lab.subnets(), before, "nobody's subnet changes");
        }
        lab.lose_everything();
        lab.agree();
        assert_eq!(lab.subnets(), before, "a store that lost everything gets it back");
        let report = flow.finish().unwrap();
        assert_eq!(report.lost(), 0, "{report:?}");
    });
}

/// Fifty nodes and three members.
struct Lab {
    nodes: Vec<Node>,
    flanneld: Vec<Daemon>,
    etcd: EtcdCluster,
    underlay: Underlay,
    random: u64,
}

impl Lab {
    fn new(seed: u64) -> Self {
        let underlay = Underlay::create();
        let etcd = EtcdCluster::running(&underlay);
        let nodes: Vec<_> = (1..=NODES).map(|number| Node::create(&underlay, number)).collect();
        let mut lab = Self { nodes, flanneld: Vec::new(), etcd, underlay, random: seed };
        lab.configure();
        lab.flanneld = lab.nodes.iter().map(flanneld).collect();
        lab.agree();
        lab
    }

    fn configure(&self) {
        let config = format!("{ETCD_PREFIX}/config");
        wait::until("the configuration is stored", || {
            let stored = self.etcd.etcdctl(0, &["put", &config, STOCK_NETWORK]);
            stored.ok_or_else(|| "etcd refuses".to_owned())
        });
    }

    fn draw(&mut self, bound: usize) -> usize {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(self.random >> 33).unwrap() % bound
    }

    fn subnets(&self) -> Vec<Option<String>> {
        let subnets: Vec<_> =
            self.nodes.iter().map(|node| node.subnet_file_value("FLANNEL_SUBNET")).collect();
        let distinct: BTreeSet<_> = subnets.iter().flatten().collect();
        assert_eq!(distinct.len(), subnets.iter().flatten().count(), "{subnets:?}");
        subnets
    }

    /// One fault, and its end.
    fn strike(&mut self) {
        let (kind, member) = (self.draw(7), self.draw(3));
        let pause = Duration::from_millis(500 + 1000 * self.draw(8) as u64);
        match kind {
            0 => {
                self.etcd.kill(member);
                self.hold(pause);
                self.etcd.start(member);
            }
            1 => {
                self.etcd.signal(member, Signal::SIGSTOP);
                self.hold(pause);
                self.etcd.signal(member, Signal::SIGCONT);
            }
            2 => {
                self.underlay.disconnect(self.etcd.host(member));
                self.hold(pause);
                self.underlay.reconnect(self.etcd.host(member));
            }
            3 => self.compact(member),
            4 => self.delete_a_lease(member),
            5 => {
                let node = self.draw(self.nodes.len());
                self.flanneld[node].kill();
                self.flanneld[node] = flanneld(&self.nodes[node]);
            }
            _ => {
                let node = self.draw(self.nodes.len());
                self.flanneld[node].signal(Signal::SIGSTOP);
                self.hold(pause);
                self.flanneld[node].signal(Signal::SIGCONT);
            }
        }
        self.hold(Duration::from_millis(500));
    }

    /// Time in which no node may end.
    fn hold(&mut self, span: Duration) {
        let start = Instant::now();
        while start.elapsed() < span {
            for flanneld in &mut self.flanneld {
                assert_eq!(flanneld.status(), None, "{}", flanneld.log());
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }

    fn compact(&self, member: usize) {
        let Some(put) = self.etcd.etcdctl(member, &["put", "/other", "x", "-w", "json"]) else {
            return;
        };
        let answer: serde_json::Value = serde_json::from_str(&put).unwrap();
        let revision = answer["header"]["revision"].to_string();
        // A member without a quorum refuses; that is a fault as good as another.
        let _refused = self.etcd.etcdctl(member, &["compact", &revision]);
        let _refused = self.etcd.etcdctl(member, &["defrag"]);
    }

    fn delete_a_lease(&mut self, member: usize) {
        let node = self.draw(self.nodes.len());
        let Some(subnet) = self.nodes[node].subnet_file_value("FLANNEL_SUBNET") else { return };
        let key = subnet.replace(".1/24", ".0-24");
        let _refused = self.etcd.etcdctl(member, &["del", &format!("{ETCD_PREFIX}/subnets/{key}")]);
    }

    fn lose_everything(&mut self) {
        self.etcd.lose_everything();
        self.configure();
    }

    /// Waits until the store has exactly the leases that the nodes have, and all know all.
    fn agree(&mut self) {
        let prefix = format!("{ETCD_PREFIX}/subnets/");
        wait::until("store and nodes agree", || {
            let keys = self.etcd.etcdctl(0, &["get", "--prefix", "--keys-only", &prefix]);
            let keys = keys.ok_or("etcd does not answer")?;
            let held: BTreeSet<_> =
                keys.lines().filter_map(|key| key.strip_prefix(&prefix)).collect();
            let subnets = self.subnets();
            let known: BTreeSet<_> = subnets.iter().flatten().collect();
            let known: BTreeSet<_> =
                known.iter().map(|subnet| subnet.replace(".1/24", ".0-24")).collect();
            let same = held.iter().copied().eq(known.iter().map(String::as_str));
            if same && held.len() == self.nodes.len() {
                Ok(())
            } else {
                Err(format!("{} keys, {} subnets", held.len(), known.len()))
            }
        });
        for node in &self.nodes {
            wait::until(&format!("{} has a route to every other node", node.name()), || {
                let routes = node.ip("route show dev flannel.1").lines().count();
                let wanted = self.nodes.len() - 1;
                if routes == wanted { Ok(()) } else { Err(format!("{routes} of {wanted}")) }
            });
        }
    }
}

fn flanneld(node: &Node) -> Daemon {
    let mut command = node.command(program::flanneld());
    command.arg(format!("--etcd-endpoints={}", EtcdCluster::endpoints()));
    Daemon::start(&format!("flanneld-{}", node.name()), &mut command)
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}
