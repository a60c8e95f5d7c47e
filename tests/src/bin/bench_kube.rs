//! What a large cluster in Kubernetes costs a node: time until every peer is programmed, memory, the
//! processor while kubelets report, and how soon a change of one node reaches the kernel.
//!
//! The API server is the small one of the tests, in this process; nodes have the size that they have
//! with some dozens of images, 10 kB. Kubelets write their status every five minutes if nothing
//! changes (Kubernetes documentation, "Nodes: Heartbeats").
//!
//! `bench_kube [NODES [SECONDS]]`, by default 5000 nodes and a minute of heartbeats.

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::{ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use flannel_tests::cluster::{Cluster, LeaseStore};
use flannel_tests::kube_api::{KubeApi, PREFIX};
use flannel_tests::node::Node;
use flannel_tests::statistics::{Samples, machine};
use flannel_tests::underlay::Underlay;
use flannel_tests::usage::{Memory, cpu_time};
use flannel_tests::{sandbox, wait};
use serde_json::json;

const NETWORK: &str = r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#;
/// Nodes that fit the scheme by which their subnets are numbered.
const NODES_MAX: u32 = 60_000;
const IMAGES: usize = 40;
/// How often a kubelet writes the status of its node.
const HEARTBEAT: Duration = Duration::from_secs(300);
const CHANGES: u32 = 60;
const PAUSE: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    let argument = |place, default: u32| {
        std::env::args().nth(place).map_or(Some(default), |text| text.parse().ok())
    };
    match (argument(1, 5000), argument(2, 60)) {
        (Some(nodes @ 1..=NODES_MAX), Some(seconds @ 1..)) => {
            sandbox::main_in_sandbox(|| measure(nodes, Duration::from_secs(seconds.into())))
        }
        _ => {
            println!("usage: bench_kube [NODES [SECONDS]]");
            ExitCode::from(2)
        }
    }
}

fn measure(count: u32, steady: Duration) {
    let underlay = Underlay::create();
    let api = KubeApi::running(&underlay);
    for number in 0..count {
        add_peer(&api, number);
    }
    let mut cluster = Cluster::on(underlay, 1, LeaseStore::Kube(api));
    cluster.store().configure(NETWORK);
    println!("{count} nodes; {}", machine());

    let start = Instant::now();
    cluster.start(1);
    cluster.wait_until_ready(1);
    wait::until("every peer is programmed", || {
        let peers = u32::try_from(cluster.node(1).ip("route show dev flannel.1").lines().count());
        if peers == Ok(count) { Ok(()) } else { Err(format!("{peers:?}")) }
    });
    println!("  {:<44}{:8.0} ms", "start until every peer is programmed", ms(start.elapsed()));
    let agent = cluster.flanneld(1).pid();
    let memory = |label: &str| {
        let Memory { resident, peak, .. } = Memory::of(agent);
        println!("  {:<44}{:8.1} MiB, {:.1} at most", label, mib(resident), mib(peak));
    };
    memory("memory after the start");

    let before = cpu_time(agent);
    let events = heartbeats(&cluster, count, steady);
    let spent = cpu_time(agent).saturating_sub(before);
    let hour = spent.as_secs_f64() * 3600.0 / steady.as_secs_f64();
    let label = format!("{events} heartbeats in {} s", steady.as_secs());
    println!("  {label:<44}{:8.0} ms of processor, {hour:.1} s in an hour", ms(spent));
    memory("memory after that");

    println!("  {:<44}{}", "change of a node until the kernel has it", changes(&cluster, count));
    memory("memory in the end");
    println!("{}", machine());
}

fn add_peer(api: &KubeApi, number: u32) {
    let [_, _, high, low] = number.to_be_bytes();
    let subnet = Ipv4Addr::from_bits((10 << 24) + (1 << 16) + (number << 8));
    // The network for benchmarks of network devices (RFC 2544).
    let address = Ipv4Addr::from_bits((198 << 24) + (18 << 16) + number);
    let name = name(number);
    api.add_large_node(&name, &[&format!("{subnet}/24")], IMAGES);
    let data = format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:{high:02x}:{low:02x}"}}"#);
    api.edit(&name, |node| {
        let annotations = &mut node["metadata"]["annotations"];
        annotations[format!("{PREFIX}backend-data")] = data.clone().into();
        annotations[format!("{PREFIX}backend-type")] = "vxlan".into();
        annotations[format!("{PREFIX}kube-subnet-manager")] = "true".into();
        annotations[format!("{PREFIX}public-ip")] = address.to_string().into();
    });
}

fn name(number: u32) -> String {
    format!("peer-{number}")
}

/// Lets all kubelets write the status of their nodes, evenly spread; returns how often.
fn heartbeats(cluster: &Cluster, nodes: u32, steady: Duration) -> u32 {
    let (start, pause) = (Instant::now(), HEARTBEAT / nodes);
    let mut count = 0;
    while start.elapsed() < steady {
        cluster.store().kube().edit(&name(count % nodes), |node| {
            node["status"]["conditions"][0]["lastHeartbeatTime"] = json!(count.to_string());
        });
        count += 1;
        park_timeout((pause * count).saturating_sub(start.elapsed()));
    }
    count
}

/// From the change of a node's address in the API until the kernel sends its packets there.
fn changes(cluster: &Cluster, nodes: u32) -> Samples {
    let told = fdb_changes(cluster.node(1));
    let mut samples = Samples::default();
    for change in 0..CHANGES {
        park_timeout(PAUSE);
        let address = Ipv4Addr::from_bits((198 << 24) + (19 << 16) + (100 << 8) + change);
        let annotation = format!("{PREFIX}public-ip");
        let node = name(change * 7 % nodes);
        let start = Instant::now();
        cluster.store().kube().annotate(&node, &annotation, Some(&address.to_string()));
        let wanted = format!(" dst {address} ");
        loop {
            let (at, line) =
                told.recv_timeout(wait::PATIENCE).expect("the kernel tells of changes");
            if line.contains(&wanted) && !line.starts_with("Deleted") {
                samples.push(at.saturating_duration_since(start));
                break;
            }
        }
    }
    samples
}

/// What the kernel tells of forwarding entries, and when.
fn fdb_changes(node: &Node) -> Receiver<(Instant, String)> {
    let mut command = node.installed("bridge");
    let monitor = command.args(["monitor", "fdb"]).stdout(Stdio::piped()).spawn();
    let mut monitor = monitor.expect("bridge is installed");
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let output = monitor.stdout.take().expect("it is a pipe");
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if tell.send((Instant::now(), line)).is_err() {
                break;
            }
        }
        // It listens as long as the sandbox is there.
        let _ended = monitor.wait();
    });
    // The monitor listens when it tells of a change; until then it is given some.
    wait::until("the monitor listens", || {
        node.bridge("fdb replace 02:00:00:ff:ff:ff dev flannel.1 dst 198.51.100.99");
        node.bridge("fdb delete 02:00:00:ff:ff:ff dev flannel.1");
        told.recv_timeout(PAUSE).map(drop).map_err(|error| error.to_string())
    });
    told
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn mib(kibibytes: u64) -> f64 {
    f64::from(u32::try_from(kibibytes).unwrap_or(u32::MAX)) / 1024.0
}
