//! How long flanneld takes to program many peers, against `ip -batch` and `bridge -batch` with the
//! same objects.
//!
//! Measured from the start of the process until the subnet file is there, which is written when the
//! kernel has everything; on fresh namespaces, in turns with the batches.
//!
//! `bench_peers [PEERS [ROUNDS]]`, by default 4000 peers and 5 rounds.

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use flannel_tests::cluster::{ETCD_PREFIX, LeaseStore};
use flannel_tests::daemon::Daemon;
use flannel_tests::etcd::Etcd;
use flannel_tests::node::Node;
use flannel_tests::statistics::{Samples, machine};
use flannel_tests::underlay::Underlay;
use flannel_tests::{program, sandbox};

const NETWORK: &str = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#;

/// Peers that fit the scheme by which their subnets are numbered.
const PEERS_MAX: u32 = 60_000;

fn main() -> ExitCode {
    let argument = |place, default: u32| {
        std::env::args().nth(place).map_or(Some(default), |text| text.parse().ok())
    };
    match (argument(1, 4000), argument(2, 5)) {
        (Some(peers @ 1..=PEERS_MAX), Some(rounds @ 1..)) => {
            sandbox::main_in_sandbox(|| measure(peers, rounds))
        }
        _ => {
            println!("usage: bench_peers [PEERS [ROUNDS]]");
            ExitCode::from(2)
        }
    }
}

/// A node that holds a lease.
struct Peer {
    base: Ipv4Addr,
    address: Ipv4Addr,
    mac: String,
}

impl Peer {
    fn new(number: u32) -> Self {
        let [_, _, high, low] = number.to_be_bytes();
        Self {
            base: Ipv4Addr::from_bits((10 << 24) + (1 << 16) + (number << 8)),
            // The network for benchmarks of network devices (RFC 2544).
            address: Ipv4Addr::from_bits((198 << 24) + (18 << 16) + number),
            mac: format!("02:00:00:00:{high:02x}:{low:02x}"),
        }
    }

    fn lease(&self) -> (String, String) {
        let Self { base, address, mac } = self;
        let value = format!(
            r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        );
        (format!("{base}-24"), value)
    }
}

fn measure(count: u32, rounds: u32) {
    let underlay = Underlay::create();
    let peers: Vec<_> = (0..count).map(Peer::new).collect();
    let leases: BTreeMap<_, _> = peers.iter().map(Peer::lease).collect();
    let directory = in_directory(&leases);
    let etcd = in_etcd(&underlay, &leases);
    let batches = Batches::write(&peers);

    println!("{count} peers, {rounds} rounds; {}", machine());
    let (mut from_directory, mut from_etcd, mut by_batch) =
        <(Samples, Samples, Samples)>::default();
    for round in 0..rounds {
        let node = |place: u32| {
            let number = u8::try_from(1 + (round * 3 + place) % 200).unwrap_or(1);
            Node::create(&underlay, number)
        };
        let measured = [
            (&mut by_batch, batches.load(&node(0))),
            (&mut from_directory, start_flanneld(&node(1), &directory, count)),
            (&mut from_etcd, start_flanneld(&node(2), &etcd, count)),
        ];
        for (samples, time) in measured {
            print!("  {:8.1} ms", time.as_secs_f64() * 1e3);
            samples.push(time);
        }
        println!("   (batch, directory, etcd; round {})", round + 1);
    }
    println!();
    println!("  {:<28}{by_batch}", "ip -batch, bridge -batch");
    for (label, samples) in
        [("flanneld, directory", &from_directory), ("flanneld, etcd", &from_etcd)]
    {
        println!("  {label:<28}{samples}   {:.2} of the batches", samples.ratio_to(&by_batch));
    }
    println!("\n{}", machine());
}

fn in_directory(leases: &BTreeMap<String, String>) -> LeaseStore {
    let path = Path::new("/run/leases");
    let store = LeaseStore::in_directory(path);
    store.configure(NETWORK);
    for (key, lease) in leases {
        fs::write(path.join("subnets").join(key), lease).expect("the sandbox is writable");
    }
    store
}

fn in_etcd(underlay: &Underlay, leases: &BTreeMap<String, String>) -> LeaseStore {
    let etcd = Etcd::running(underlay);
    let keys = leases.iter();
    let keys = keys.map(|(key, lease)| (format!("{ETCD_PREFIX}/subnets/{key}"), lease.clone()));
    etcd.put_all(&keys.collect(), 86_400);
    let store = LeaseStore::Etcd(etcd);
    store.configure(NETWORK);
    store
}

/// Starts flanneld on a fresh node and returns the time until the subnet file is there.
fn start_flanneld(node: &Node, store: &LeaseStore, peers: u32) -> Duration {
    let mut command = node.command(program::flanneld());
    command.args(store.flags()).arg("--ip-masq");
    let file = node.directory("/run/flannel/subnet.env");
    let start = Instant::now();
    let mut flanneld = Daemon::start(&format!("flanneld-{}", node.name()), &mut command);
    while !file.exists() {
        assert!(start.elapsed() < Duration::from_secs(120), "no subnet file\n{}", flanneld.log());
        if let Some(status) = flanneld.status() {
            panic!("flanneld ended ({status})\n{}", flanneld.log());
        }
        park_timeout(Duration::from_millis(1));
    }
    let time = start.elapsed();
    assert_programmed(node, peers);
    flanneld.terminate();
    let (key, _) = store.lease_of(node).expect("flanneld has leased a subnet");
    store.delete(&format!("subnets/{key}"));
    node.ip("link delete flannel.1");
    time
}

fn assert_programmed(node: &Node, peers: u32) {
    let tables = [
        node.ip("route show dev flannel.1"),
        node.ip("neighbour show dev flannel.1"),
        node.bridge("fdb show dev flannel.1"),
    ];
    for table in tables {
        let count = u32::try_from(table.lines().count()).unwrap_or(u32::MAX);
        assert_eq!(count, peers, "entries on {}", node.name());
    }
}

/// The objects as command files.
struct Batches;

const LINKS_AND_NEIGHBOURS: &str = "/run/neighbours.batch";
const FDB: &str = "/run/fdb.batch";
const ROUTES: &str = "/run/routes.batch";

impl Batches {
    fn write(peers: &[Peer]) -> Self {
        let mut neighbours = String::new();
        let mut fdb = String::new();
        let mut routes = String::new();
        for Peer { base, address, mac } in peers {
            let _ = writeln!(
                neighbours,
                "neighbour replace {base} lladdr {mac} dev flannel.1 nud permanent"
            );
            let _ = writeln!(fdb, "fdb replace {mac} dev flannel.1 dst {address}");
            let _ = writeln!(
                routes,
                "route replace {base}/24 via {base} dev flannel.1 onlink proto 199"
            );
        }
        let files = [(LINKS_AND_NEIGHBOURS, neighbours), (FDB, fdb), (ROUTES, routes)];
        for (file, text) in files {
            fs::write(file, text).expect("the sandbox is writable");
        }
        Self
    }

    /// Loads them on a fresh node, in the order in which flanneld needs them.
    fn load(&self, node: &Node) -> Duration {
        let start = Instant::now();
        node.ip(&format!(
            "link add flannel.1 type vxlan id 1 dev eth0 local {} dstport 8472 nolearning",
            node.address()
        ));
        node.ip("address add 10.0.255.0/32 dev flannel.1");
        node.ip("link set flannel.1 up");
        for (program, file) in [("ip", LINKS_AND_NEIGHBOURS), ("bridge", FDB), ("ip", ROUTES)] {
            let mut command: Command = program::installed(program);
            program::run(command.args(["-n", node.name(), "-batch", file]));
        }
        let time = start.elapsed();
        let routes = node.ip("route show dev flannel.1");
        assert!(!routes.is_empty());
        node.ip("link delete flannel.1");
        time
    }
}
