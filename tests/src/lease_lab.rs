//! Fifty nodes with their leases on three members of etcd, and everything that can go wrong between
//! them, in an order that is drawn from a seed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cluster::{ETCD_PREFIX, STOCK_NETWORK};
use crate::daemon::Daemon;
use crate::etcd_cluster::{EtcdCluster, Release};
use crate::namespace::Namespace;
use crate::node::Node;
use crate::partition::{self, Direction};
use crate::underlay::Underlay;
use crate::{program, wait};

/// How many nodes there are.
pub const NODES: u8 = 50;

/// The host from which an operator looks on; nothing happens to it.
const OPERATOR: u8 = 250;

/// So many faults are there at a time.
const ONGOING_MAX: usize = 2;

/// A key of somebody else, whose writes make history.
const OTHER_KEY: &str = "/other";

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A member is killed.
    KillMember,
    /// A member stops, with its connections open.
    PauseMember,
    /// A member loses its network.
    DisconnectMember,
    /// Packets to and from a member are dropped.
    CutMember(Direction),
    /// The members forget their history, and clean up their files.
    Compact,
    /// Somebody deletes a lease.
    DeleteLease,
    /// An agent is killed, and starts again.
    KillAgent,
    /// An agent stops for a while.
    PauseAgent,
    /// Packets between an agent and the members are dropped.
    CutAgent(Direction),
    /// All members go back to an earlier moment.
    Restore,
    /// All members lose everything.
    Wipe,
}

/// Each of them comes once before any comes again.
const FAULTS: [Fault; 14] = [
    Fault::KillMember,
    Fault::PauseMember,
    Fault::DisconnectMember,
    Fault::CutMember(Direction::In),
    Fault::CutMember(Direction::Out),
    Fault::CutMember(Direction::Both),
    Fault::Compact,
    Fault::DeleteLease,
    Fault::KillAgent,
    Fault::PauseAgent,
    Fault::CutAgent(Direction::In),
    Fault::CutAgent(Direction::Both),
    Fault::Restore,
    Fault::Wipe,
];

/// What ends a fault.
#[derive(Debug)]
enum End {
    StartMember(usize),
    ContinueMember(usize),
    ReconnectMember(usize),
    ContinueAgent(usize),
    Heal(Namespace),
}

/// The nodes and the members.
#[derive(Debug)]
pub struct LeaseLab {
    nodes: Vec<Node>,
    flanneld: Vec<Daemon>,
    etcd: EtcdCluster,
    underlay: Underlay,
    operator: Namespace,
    /// Writes down what is written under the prefix.
    recorder: Daemon,
    records: String,
    random: u64,
    /// What is still to come of this round.
    to_come: Vec<Fault>,
    ongoing: Vec<(Instant, End)>,
    struck: usize,
}

impl LeaseLab {
    /// Starts everything and waits until every node knows all others.
    pub fn running(release: Release, seed: u64) -> Self {
        let underlay = Underlay::create();
        let etcd = EtcdCluster::running(&underlay, release);
        let nodes: Vec<_> = (1..=NODES).map(|number| Node::create(&underlay, number)).collect();
        let operator = underlay.host("operator", OPERATOR);
        let recorder = record(&operator, Since::TheBeginning);
        let mut lab = Self {
            flanneld: Vec::new(),
            nodes,
            etcd,
            underlay,
            operator,
            recorder,
            records: String::new(),
            random: seed,
            to_come: Vec::new(),
            ongoing: Vec::new(),
            struck: 0,
        };
        lab.configure();
        lab.flanneld = lab.nodes.iter().map(flanneld).collect();
        lab.agree();
        lab
    }

    /// The nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// How many faults there were.
    pub fn struck(&self) -> usize {
        self.struck
    }

    /// The subnet of each node.
    ///
    /// # Panics
    /// If two nodes believe in the same one.
    pub fn subnets(&self) -> Vec<Option<String>> {
        let subnets: Vec<_> =
            self.nodes.iter().map(|node| node.subnet_file_value("FLANNEL_SUBNET")).collect();
        let distinct: BTreeSet<_> = subnets.iter().flatten().collect();
        assert_eq!(distinct.len(), subnets.iter().flatten().count(), "{subnets:?}");
        subnets
    }

    /// Begins one more fault if there is room for one, and waits a moment.
    ///
    /// # Panics
    /// If an agent ended.
    pub fn strike(&mut self) {
        self.end_those(|at| at <= Instant::now());
        if self.ongoing.len() < ONGOING_MAX {
            let fault = self.next_fault();
            self.begin(fault);
            self.struck += 1;
        }
        self.hold(Duration::from_millis(500));
    }

    /// Ends all faults.
    pub fn calm(&mut self) {
        self.end_those(|_at| true);
    }

    fn draw(&mut self, bound: usize) -> usize {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(self.random >> 33).expect("31 bits fit") % bound
    }

    fn next_fault(&mut self) -> Fault {
        if self.to_come.is_empty() {
            self.to_come = FAULTS.into();
        }
        let place = self.draw(self.to_come.len());
        self.to_come.swap_remove(place)
    }

    fn begin(&mut self, fault: Fault) {
        let member = self.draw(self.etcd.size());
        let agent = self.draw(self.nodes.len());
        let span = Duration::from_millis(500 + 1000 * self.draw(8) as u64);
        let end = match fault {
            Fault::KillMember => {
                self.etcd.kill(member);
                End::StartMember(member)
            }
            Fault::PauseMember => {
                self.etcd.signal(member, Signal::SIGSTOP);
                End::ContinueMember(member)
            }
            Fault::DisconnectMember => {
                self.underlay.disconnect(self.etcd.host(member));
                End::ReconnectMember(member)
            }
            Fault::CutMember(direction) => {
                return self.cut(self.etcd.host(member).clone(), direction, span);
            }
            Fault::CutAgent(direction) => {
                return self.cut(self.nodes[agent].namespace().clone(), direction, span);
            }
            Fault::PauseAgent => {
                self.flanneld[agent].signal(Signal::SIGSTOP);
                End::ContinueAgent(agent)
            }
            Fault::KillAgent => {
                self.flanneld[agent].kill();
                return self.flanneld[agent] = flanneld(&self.nodes[agent]);
            }
            Fault::Compact => return self.compact(member),
            Fault::DeleteLease => return self.delete_a_lease(agent),
            Fault::Restore => return self.restore(),
            Fault::Wipe => return self.lose_everything(),
        };
        self.ongoing.push((Instant::now() + span, end));
    }

    fn cut(&mut self, host: Namespace, direction: Direction, span: Duration) {
        let is_cut = |(_, end): &(Instant, End)| matches!(end, End::Heal(cut) if *cut == host);
        if self.ongoing.iter().any(is_cut) {
            return;
        }
        partition::cut(&host, direction);
        self.ongoing.push((Instant::now() + span, End::Heal(host)));
    }

    fn end_those(&mut self, is_due: impl Fn(Instant) -> bool) {
        let due = self.ongoing.extract_if(.., |(at, _)| is_due(*at));
        for (_, end) in due.collect::<Vec<_>>() {
            match end {
                End::StartMember(member) => self.etcd.start(member),
                End::ContinueMember(member) => self.etcd.signal(member, Signal::SIGCONT),
                End::ReconnectMember(member) => self.underlay.reconnect(self.etcd.host(member)),
                End::ContinueAgent(agent) => self.flanneld[agent].signal(Signal::SIGCONT),
                End::Heal(host) => partition::heal(&host),
            }
        }
    }

    /// Time in which no agent may end.
    fn hold(&mut self, span: Duration) {
        let start = Instant::now();
        while start.elapsed() < span {
            for flanneld in &mut self.flanneld {
                assert_eq!(flanneld.status(), None, "{}", flanneld.log());
            }
            park_timeout(Duration::from_millis(100));
        }
        if self.recorder.status().is_some() {
            self.record_anew(Since::Now);
        }
    }

    fn compact(&self, member: usize) {
        let Some(put) = self.etcd.etcdctl(member, &["put", OTHER_KEY, "x", "-w", "json"]) else {
            return;
        };
        let answer: Value = serde_json::from_str(&put).expect("etcdctl writes JSON");
        let revision = answer["header"]["revision"].to_string();
        // A member without a quorum refuses; that is a fault as good as another.
        let _refused = self.etcd.etcdctl(member, &["compact", &revision]);
        let _refused = self.etcd.etcdctl(member, &["defrag"]);
    }

    fn delete_a_lease(&self, agent: usize) {
        let Some(subnet) = self.nodes[agent].subnet_file_value("FLANNEL_SUBNET") else { return };
        let key = format!("{ETCD_PREFIX}/subnets/{}", key_of(&subnet));
        // Whoever answers; nobody may.
        let mut members = 0..self.etcd.size();
        let _deleted = members.find_map(|member| self.etcd.etcdctl(member, &["del", &key]));
    }

    fn lose_everything(&mut self) {
        self.calm();
        self.etcd.lose_everything();
        self.record_anew(Since::TheBeginning);
        self.configure();
    }

    /// Goes back to an earlier moment, since which leases were written.
    fn restore(&mut self) {
        let snapshot = Path::new("/run/snapshot");
        self.calm();
        self.etcd.wait_until_healthy();
        wait::until("the snapshot is saved", || {
            // Being there would be an error for etcdctl.
            let _none = fs::remove_file(snapshot);
            let saved = self.etcd.etcdctl(0, &["snapshot", "save", &snapshot.to_string_lossy()]);
            saved.ok_or_else(|| "etcd refuses".to_owned())
        });
        for agent in 0..5 {
            self.delete_a_lease(agent * 7);
            self.hold(Duration::from_millis(300));
        }
        self.etcd.restore(snapshot);
        self.record_anew(Since::Now);
    }

    fn configure(&self) {
        let config = format!("{ETCD_PREFIX}/config");
        wait::until("the configuration is stored", || {
            let stored = self.etcd.etcdctl(0, &["put", &config, STOCK_NETWORK]);
            stored.ok_or_else(|| "etcd refuses".to_owned())
        });
    }

    /// Waits until the store has exactly the leases that the nodes have, and all know all.
    ///
    /// # Panics
    /// If that does not happen.
    pub fn agree(&mut self) {
        let prefix = format!("{ETCD_PREFIX}/subnets/");
        wait::until("store and nodes agree", || {
            let keys = self.etcd.etcdctl(0, &["get", "--prefix", "--keys-only", &prefix]);
            let keys = keys.ok_or("etcd does not answer")?;
            let held: BTreeSet<_> =
                keys.lines().filter_map(|key| key.strip_prefix(&prefix)).collect();
            let subnets = self.subnets();
            let known: BTreeSet<_> =
                subnets.iter().flatten().map(|subnet| key_of(subnet)).collect();
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

    /// How many leases were written; each must be that of the node which holds the subnet.
    ///
    /// # Panics
    /// If somebody wrote a key that is not its own, wherever, or something that is no lease.
    pub fn check_what_was_written(&mut self) -> usize {
        self.record_anew(Since::Now);
        let prefix = format!("{ETCD_PREFIX}/subnets/");
        let mut holders = BTreeSet::new();
        for node in &self.nodes {
            if let Some(subnet) = node.subnet_file_value("FLANNEL_SUBNET") {
                holders
                    .insert((format!("{prefix}{}", key_of(&subnet)), node.address().to_string()));
            }
        }
        let mut lines = self.records.lines();
        let mut written = 0;
        while let Some(line) = lines.next() {
            if line != "PUT" {
                continue;
            }
            // What was written when the recorder ended may be missing.
            let (Some(key), Some(value)) = (lines.next(), lines.next()) else { break };
            if Self::is_ours(key) {
                continue;
            }
            let lease: Value = serde_json::from_str(value).expect("a lease is JSON");
            let address = lease["PublicIP"].as_str().expect("every lease has an address");
            assert!(holders.contains(&(key.to_owned(), address.to_owned())), "{key} = {value}");
            written += 1;
        }
        written
    }

    /// Whether only this fixture writes the key.
    fn is_ours(key: &str) -> bool {
        key == OTHER_KEY || key == format!("{ETCD_PREFIX}/config")
    }

    /// A recorder ends when the history that it follows does.
    fn record_anew(&mut self, since: Since) {
        self.records += &self.recorder.log();
        self.records.push('\n');
        self.recorder = record(&self.operator, since);
    }
}

/// What a recorder writes down first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    TheBeginning,
    Now,
}

fn record(operator: &Namespace, since: Since) -> Daemon {
    let mut etcdctl = operator.command("etcdctl");
    etcdctl.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", EtcdCluster::endpoints());
    etcdctl.args(["watch", "--prefix", ""]);
    if since == Since::TheBeginning {
        etcdctl.arg("--rev=1");
    }
    Daemon::start("recorder", &mut etcdctl)
}

fn flanneld(node: &Node) -> Daemon {
    let mut command = node.command(program::flanneld());
    command.arg(format!("--etcd-endpoints={}", EtcdCluster::endpoints()));
    Daemon::start(&format!("flanneld-{}", node.name()), &mut command)
}

/// The key of a subnet as the subnet file has it: with the address of the bridge.
fn key_of(subnet: &str) -> String {
    subnet.replace(".1/24", ".0-24")
}
