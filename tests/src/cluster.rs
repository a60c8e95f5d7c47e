//! A cluster: nodes on one underlay, a store for their leases, and flanneld on each of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;
use std::{env, fs};

use crate::daemon::Daemon;
use crate::etcd::Etcd;
use crate::kube_api::KubeApi;
use crate::node::Node;
use crate::rule_engine::RuleEngine;
use crate::traffic::{http_get, ping};
use crate::underlay::Underlay;
use crate::{program, wait};

/// The network configuration that is deployed when nobody wants anything else.
pub const STOCK_NETWORK: &str = include_str!("../../config/net-conf.json");

/// Where flanneld looks in etcd when it is not told otherwise.
pub const ETCD_PREFIX: &str = "/coreos.com/network";

/// Flags that every flanneld gets: masquerading, and a health port to see that it is ready.
const FLAGS: [&str; 3] = ["--ip-masq", "--healthz-ip=127.0.0.1", "--healthz-port=8081"];
const HEALTH: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8081);

/// The network configuration of a cluster whose leases are in Kubernetes.
const KUBE_CONFIG: &str = "/run/kube-net-conf.json";

/// Where a cluster keeps its leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// A directory that all nodes share.
    Directory,
    /// An etcd on a host of its own.
    Etcd,
    /// A Kubernetes API server on a host of its own, and somebody who assigns subnets.
    Kube,
}

impl Store {
    /// The store of tests that have no need of a certain one: a directory, or what the variable
    /// `TEST_STORE` names, `etcd` or `kube`.
    ///
    /// # Panics
    /// If it names something else.
    pub fn any() -> Self {
        match env::var("TEST_STORE").as_deref() {
            Err(_) | Ok("directory") => Self::Directory,
            Ok("etcd") => Self::Etcd,
            Ok("kube") => Self::Kube,
            Ok(other) => panic!("TEST_STORE={other}: want directory, etcd or kube"),
        }
    }
}

/// Nodes, their store and their flanneld processes.
#[derive(Debug)]
pub struct Cluster {
    flanneld: BTreeMap<u8, Daemon>,
    nodes: Vec<Node>,
    store: LeaseStore,
    underlay: Underlay,
}

/// The store as an administrator sees it.
#[derive(Debug)]
pub enum LeaseStore {
    /// The directory that `--lease-dir` names.
    Directory(PathBuf),
    /// The etcd that `--etcd-endpoints` names.
    Etcd(Etcd),
    /// The Kubernetes API that `--kube-api-url` names.
    Kube(KubeApi),
}

impl Cluster {
    /// Makes nodes `n1` to `n<size>` and a store that holds the stock network configuration.
    pub fn new(size: u8, store: Store) -> Self {
        let cluster = Self::unconfigured(size, store);
        cluster.store.configure(STOCK_NETWORK);
        cluster
    }

    /// Makes a cluster with flanneld running, and its rules in this engine.
    pub fn with_rules_in(engine: RuleEngine, size: u8, store: Store) -> Self {
        let mut cluster = Self::unconfigured(size, store);
        cluster.store.configure(&engine.network());
        cluster.nodes.iter().for_each(|node| engine.prepare(node.namespace()));
        cluster.start_all();
        cluster
    }

    /// Makes nodes and an empty store.
    pub fn unconfigured(size: u8, store: Store) -> Self {
        let underlay = Underlay::create();
        let store = match store {
            Store::Directory => LeaseStore::in_directory(Path::new("/run/leases")),
            Store::Etcd => LeaseStore::Etcd(Etcd::running(&underlay)),
            Store::Kube => LeaseStore::Kube(KubeApi::running(&underlay)),
        };
        Self::on(underlay, size, store)
    }

    /// Makes nodes on an underlay and store that are there already.
    pub fn on(underlay: Underlay, size: u8, store: LeaseStore) -> Self {
        let nodes: Vec<_> = (1..=size).map(|number| Node::create(&underlay, number)).collect();
        if let LeaseStore::Kube(api) = &store {
            for node in &nodes {
                api.add_node(node.name(), &[&format!("10.244.{}.0/24", node.number())]);
            }
        }
        Self { flanneld: BTreeMap::new(), nodes, store, underlay }
    }

    /// Makes a cluster with this network configuration, flanneld running on each node and every
    /// node knowing all others.
    pub fn running_with(size: u8, store: Store, network: &str) -> Self {
        let mut cluster = Self::unconfigured(size, store);
        cluster.store.configure(network);
        cluster.start_all();
        cluster
    }

    /// Makes a cluster with flanneld running on each node and every node knowing all others.
    pub fn running(size: u8, store: Store) -> Self {
        let mut cluster = Self::new(size, store);
        cluster.start_all();
        cluster
    }

    /// Starts flanneld on each node and waits until every node knows all others.
    pub fn start_all(&mut self) {
        let numbers: Vec<_> = self.nodes.iter().map(Node::number).collect();
        for number in &numbers {
            self.start(*number);
        }
        for number in &numbers {
            self.wait_until_ready(*number);
        }
        self.wait_for_peers();
    }

    /// Starts flanneld on a node, without waiting for anything.
    pub fn start(&mut self, number: u8) {
        self.start_with(number, &[]);
    }

    /// Starts flanneld with further flags, without waiting for anything.
    pub fn start_with(&mut self, number: u8, flags: &[&str]) {
        let mut command = self.flanneld_command(number);
        let name = format!("flanneld-{}", self.node(number).name());
        self.flanneld.insert(number, Daemon::start(&name, command.args(flags)));
    }

    /// The command that flanneld is started with on a node.
    pub fn flanneld_command(&self, number: u8) -> Command {
        let mut command = self.node(number).command(program::flanneld());
        command.args(self.store.flags()).args(FLAGS).env("NODE_NAME", self.node(number).name());
        command
    }

    /// Waits until flanneld on a node says that it is ready, which it is once it has programmed
    /// the kernel and written the subnet file.
    ///
    /// # Panics
    /// If it ends instead.
    #[track_caller]
    pub fn wait_until_ready(&mut self, number: u8) {
        let node = self.node(number).clone();
        wait::until(&format!("flanneld on {} is ready", node.name()), || {
            let flanneld = self.flanneld(number);
            if let Some(status) = flanneld.status() {
                panic!("flanneld on {} ended ({status}): {}", node.name(), flanneld.log());
            }
            match http_get(node.namespace(), HEALTH, "/readyz") {
                Ok((200, _)) if node.subnet_file().is_some() => Ok(()),
                Ok((200, _)) => Err("it is, but there is no subnet file".to_owned()),
                Ok((status, body)) => Err(format!("{status} {body}")),
                Err(e) => Err(format!("no answer: {e}")),
            }
        });
    }

    /// Waits until every node whose flanneld runs has a route to every other subnet of the store,
    /// or reaches its node where flanneld itself carries the packets.
    pub fn wait_for_peers(&self) {
        for number in self.flanneld.keys() {
            let node = self.node(*number);
            wait::until(&format!("{} has routes to all peers", node.name()), || {
                let leases = self.store.leases();
                let (own, _) = self.store.lease_of(node).ok_or("it has no lease")?;
                let routes = node.ip("route show") + &node.ip("-6 route show");
                let missing: Vec<_> = leases
                    .keys()
                    .filter(|key| **key != own)
                    .flat_map(|key| subnets(key))
                    .filter(|subnet| !routes.lines().any(|route| route.starts_with(&**subnet)))
                    .filter(|subnet| !routes.contains(" dev flannel0") || !reaches(node, subnet))
                    .collect();
                if missing.is_empty() { Ok(()) } else { Err(format!("none to {missing:?}")) }
            });
        }
    }

    /// Stops flanneld on a node with SIGTERM; returns how it ended and how long that took.
    pub fn stop(&mut self, number: u8) -> (ExitStatus, Duration) {
        let ended = self.flanneld(number).terminate();
        self.flanneld.remove(&number);
        ended
    }

    /// Ends flanneld on a node with SIGKILL.
    pub fn kill(&mut self, number: u8) {
        self.flanneld(number).kill();
        self.flanneld.remove(&number);
    }

    /// The running flanneld of a node.
    ///
    /// # Panics
    /// If it was not started.
    pub fn flanneld(&mut self, number: u8) -> &mut Daemon {
        self.flanneld.get_mut(&number).expect("flanneld was started on this node")
    }

    /// The node with this number, counted from 1.
    pub fn node(&self, number: u8) -> &Node {
        &self.nodes[usize::from(number) - 1]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The store.
    pub fn store(&self) -> &LeaseStore {
        &self.store
    }

    /// The store, to start or stop it.
    pub fn store_mut(&mut self) -> &mut LeaseStore {
        &mut self.store
    }

    /// The network between the nodes.
    pub fn underlay(&self) -> &Underlay {
        &self.underlay
    }
}

impl LeaseStore {
    /// A directory for leases, made where it is not there yet.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn in_directory(path: &Path) -> Self {
        fs::create_dir_all(path.join("subnets")).expect("the sandbox is writable");
        Self::Directory(path.to_owned())
    }

    /// The flags that point flanneld here.
    pub fn flags(&self) -> Vec<String> {
        match self {
            Self::Directory(path) => vec![format!("--lease-dir={}", path.display())],
            Self::Etcd(_) => vec![format!("--etcd-endpoints={}", Etcd::endpoint())],
            Self::Kube(api) => vec![
                "--kube-subnet-mgr".to_owned(),
                format!("--kube-api-url={}", api.url()),
                format!("--net-config-path={KUBE_CONFIG}"),
            ],
        }
    }

    /// Stores the network configuration, as an administrator does before anything else.
    pub fn configure(&self, network: &str) {
        match self {
            Self::Kube(api) => {
                api.assign_by(network);
                fs::write(KUBE_CONFIG, network).expect("the sandbox is writable");
            }
            Self::Directory(_) | Self::Etcd(_) => self.put("config", network),
        }
    }

    /// The leases: JSON by key, such as `10.244.1.0-24`.
    pub fn leases(&self) -> BTreeMap<String, String> {
        match self {
            Self::Directory(path) => fs::read_dir(path.join("subnets"))
                .into_iter()
                .flatten()
                .flatten()
                .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
                .filter_map(|entry| {
                    let key = entry.file_name().to_string_lossy().into_owned();
                    Some((key, fs::read_to_string(entry.path()).ok()?))
                })
                .collect(),
            Self::Etcd(etcd) => {
                let prefix = format!("{ETCD_PREFIX}/subnets/");
                let strip = |key: String| key.replacen(&prefix, "", 1);
                etcd.list(&prefix).into_iter().map(|(k, entry)| (strip(k), entry.value)).collect()
            }
            Self::Kube(api) => api.leases(),
        }
    }

    /// The lease of this node, with its public address: key and JSON.
    pub fn lease_of(&self, node: &Node) -> Option<(String, String)> {
        let address = format!("\"PublicIP\":\"{}\"", node.address());
        let address6 = format!("\"PublicIP\":\"0.0.0.0\",\"PublicIPv6\":\"{}\"", node.address6());
        let is_its = |lease: &String| lease.contains(&address) || lease.contains(&address6);
        self.leases().into_iter().find(|(_, lease)| is_its(lease))
    }

    /// Writes a key below the prefix behind the nodes' backs.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn put(&self, key: &str, value: &str) {
        match self {
            Self::Directory(path) => {
                // In one step, as with etcd: a reader sees the old value or the new one.
                let new = path.join(".new");
                fs::write(&new, value).expect("the directory is ours");
                fs::rename(&new, path.join(key)).expect("the directory is ours");
            }
            Self::Etcd(etcd) => etcd.put(&format!("{ETCD_PREFIX}/{key}"), value),
            Self::Kube(api) => api.put_lease(key, value),
        }
    }

    /// Deletes a key below the prefix; true if it was there.
    pub fn delete(&self, key: &str) -> bool {
        match self {
            Self::Directory(path) => fs::remove_file(path.join(key)).is_ok(),
            Self::Etcd(etcd) => etcd.delete(&format!("{ETCD_PREFIX}/{key}")),
            Self::Kube(api) => api.delete_lease(key),
        }
    }

    /// The etcd.
    ///
    /// # Panics
    /// If the store is another one.
    pub fn etcd(&self) -> &Etcd {
        match self {
            Self::Etcd(etcd) => etcd,
            other => panic!("the store is {other:?}"),
        }
    }

    /// The etcd, to start or stop it.
    ///
    /// # Panics
    /// If the store is another one.
    pub fn etcd_mut(&mut self) -> &mut Etcd {
        match self {
            Self::Etcd(etcd) => etcd,
            other => panic!("the store is {other:?}"),
        }
    }

    /// The Kubernetes API.
    ///
    /// # Panics
    /// If the store is another one.
    pub fn kube(&self) -> &KubeApi {
        match self {
            Self::Kube(api) => api,
            other => panic!("the store is {other:?}"),
        }
    }
}

/// Whether the node of a subnet, whose device has the first address, answers.
fn reaches(node: &Node, subnet: &str) -> bool {
    let first = subnet.split('/').next().and_then(|address| address.parse::<IpAddr>().ok());
    first.is_some_and(|address| ping(node.namespace(), address).is_ok())
}

/// The subnets of a key, such as `10.244.1.0/24`; IPv4 is left out where the key has none.
pub fn subnets(key: &str) -> Vec<String> {
    let parts = key.split('&').filter(|part| *part != "0.0.0.0-0");
    parts.map(|part| part.replace('-', "/")).collect()
}
