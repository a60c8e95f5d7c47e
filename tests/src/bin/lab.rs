//! A pod network of three nodes to look at: the program behind `make demo`.
//!
//! It builds nodes in a sandbox of its own, runs the real programs on them, attaches pods and
//! lets every pod ping every other.
//! What runs outside of the sandbox only waits for it: when either ends, the kernel removes the
//! other with every namespace, mount and process in it.
//!
//! `STORE=etcd` keeps the leases in an etcd instead of a directory, `STORE=kube` in a small
//! Kubernetes API; `KEEP=1` leaves a shell.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal")]

use std::env;
use std::io::{IsTerminal as _, PipeReader, Read as _, Write as _, stdin, stdout};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use flannel_tests::cluster::{Cluster, LeaseStore, Store};
use flannel_tests::node::Node;
use flannel_tests::pod::{self, Pod};
use flannel_tests::{daemon, program, sandbox, traffic};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

const NODES: u8 = 3;
const PODS_PER_NODE: u8 = 2;

fn main() -> ExitCode {
    let wanted = match Wanted::from_environment() {
        Ok(wanted) => wanted,
        Err(reason) => {
            eprintln!("lab: {reason}");
            return ExitCode::from(2);
        }
    };
    if env::args_os().nth(1).is_some_and(|argument| argument == INSIDE) {
        return inside(&wanted);
    }
    if let Some(program) = wanted.programs().into_iter().find(|name| program::find(name).is_none())
    {
        eprintln!("lab: {}", program::missing(program));
        return ExitCode::FAILURE;
    }
    outside()
}

/// The argument of the copy of this program that runs in the sandbox.
const INSIDE: &str = "--inside";

/// What the environment asks for.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    store: Store,
    keep: bool,
}

impl Wanted {
    fn from_environment() -> Result<Self, String> {
        let text = |name| env::var(name).unwrap_or_default();
        let store = match text("STORE").as_str() {
            "" | "directory" => Store::Directory,
            "etcd" => Store::Etcd,
            "kube" => Store::Kube,
            other => return Err(format!("STORE={other}: must be directory, etcd or kube")),
        };
        Ok(Self { store, keep: !matches!(text("KEEP").as_str(), "" | "0" | "no") })
    }

    fn programs(self) -> Vec<&'static str> {
        match self.store {
            Store::Directory | Store::Kube => vec!["ip"],
            Store::Etcd => vec!["ip", "etcd", "etcdctl"],
        }
    }
}

/// What ends the wait of the process outside.
enum Event {
    Ended(std::io::Result<ExitStatus>),
    Stopped(Signal),
}

fn stop_signals() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect()
}

/// Starts the sandbox and waits for it, or for a signal.
fn outside() -> ExitCode {
    let signals = stop_signals();
    // Blocked, so that the thread below takes them.
    if let Err(refused) = signals.thread_block() {
        eprintln!("lab: signals cannot be blocked: {refused}");
        return ExitCode::FAILURE;
    }
    let (mut child, alive) = match start_inside() {
        Ok(started) => started,
        Err(refused) => {
            eprintln!("lab: {}", sandbox::explain(&refused));
            return ExitCode::FAILURE;
        }
    };
    let pid = child.id();
    let (events, next) = channel();
    let stopped = events.clone();
    thread::spawn(move || wait_for_signal(&signals, &stopped));
    thread::spawn(move || events.send(Event::Ended(child.wait())));
    let event = next.recv();
    if let Ok(Event::Stopped(_)) = event {
        // Its first process dies with it, and with that one everything in the sandbox.
        let pid = Pid::from_raw(i32::try_from(pid).unwrap_or(0));
        let _ = kill(pid, Signal::SIGKILL);
        let _ = next.recv();
    }
    wait_until_empty(alive);
    match event {
        Ok(Event::Ended(Ok(status))) => match (status.code(), status.signal()) {
            (Some(0), _) => {
                println!("The sandbox is gone; nothing is left of it.");
                ExitCode::SUCCESS
            }
            (Some(code), _) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
            // The terminal sends Ctrl-C to both of us; whoever notices first.
            (None, Some(libc::SIGINT)) => interrupted(Signal::SIGINT),
            (None, signal) => {
                eprintln!("lab: the sandbox was ended by signal {}", signal.unwrap_or(0));
                ExitCode::FAILURE
            }
        },
        Ok(Event::Ended(Err(e))) => {
            eprintln!("lab: {e}");
            ExitCode::FAILURE
        }
        Ok(Event::Stopped(signal)) => interrupted(signal),
        Err(_) => ExitCode::FAILURE,
    }
}

/// Starts the copy in the sandbox, with a pipe that ends when the last process in there has.
fn start_inside() -> std::io::Result<(Child, PipeReader)> {
    let (alive, held) = std::io::pipe()?;
    fcntl(&held, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok((sandbox::sandbox_command("/proc/self/exe").arg(INSIDE).spawn()?, alive))
}

/// Nobody writes to the pipe; every process in the sandbox holds its other end.
fn wait_until_empty(mut alive: PipeReader) {
    let _ = alive.read(&mut [0]);
}

fn wait_for_signal(signals: &SigSet, stopped: &Sender<Event>) {
    if let Ok(signal) = signals.wait() {
        let _ = stopped.send(Event::Stopped(signal));
    }
}

fn interrupted(signal: Signal) -> ExitCode {
    eprintln!("\nlab: interrupted; everything it made is gone");
    ExitCode::from(128 + u8::try_from(signal as i32).unwrap_or(0))
}

/// Builds the cluster, shows it and tries it out.
fn inside(wanted: &Wanted) -> ExitCode {
    std::panic::set_hook(Box::new(sandbox::print_and_exit));
    // Inherited blocked; what runs in here must see them. This process itself is the first of
    // its namespace and dies with the one outside.
    stop_signals().thread_unblock().expect("a mask can always be changed");
    if let Err(refused) = sandbox::enter() {
        eprintln!("lab: {}", sandbox::explain(&refused));
        return ExitCode::FAILURE;
    }
    let start = Instant::now();
    let mut cluster = build(wanted.store);
    for node in cluster.nodes() {
        show(node, cluster.store());
    }
    let pods = attach(cluster.nodes());
    let failures = try_every_pair(&pods);
    println!("\nBuilt, tried and shown in {:.1} s.", start.elapsed().as_secs_f64());
    if wanted.keep {
        leave_shell(&cluster, &pods);
    } else {
        println!("To look inside: make demo KEEP=1, then for example: ip netns exec n1 ip route");
    }
    let numbers: Vec<_> = cluster.nodes().iter().map(Node::number).collect();
    for number in numbers {
        cluster.stop(number);
    }
    if failures == 0 {
        println!("Every pod reached every other.");
        return ExitCode::SUCCESS;
    }
    println!("{failures} pairs of pods could not reach each other.");
    print!("{}", daemon::all_logs());
    ExitCode::FAILURE
}

fn build(store: Store) -> Cluster {
    let label = match store {
        Store::Directory => "a directory for leases",
        Store::Etcd => "an etcd for leases",
        Store::Kube => "a small Kubernetes API",
    };
    let underlay = "an underlay, 198.51.100.0/24";
    let step = Step::begin(&format!("{NODES} nodes, {underlay}, {label}"));
    let mut cluster = Cluster::new(NODES, store);
    step.end();
    let step = Step::begin("flanneld on each node");
    cluster.start_all();
    step.end();
    cluster
}

/// Prints what flanneld made of a node.
fn show(node: &Node, store: &LeaseStore) {
    println!("\n{} at {}", node.name(), node.address());
    let (key, lease) = store.lease_of(node).unwrap_or_default();
    println!("  lease   {key}  {lease}");
    let device = node.ip("-d link show flannel.1");
    let mtu = device.split_whitespace().skip_while(|word| *word != "mtu").nth(1).unwrap_or("?");
    let vxlan = device.lines().find(|line| line.trim_start().starts_with("vxlan"));
    let vxlan = vxlan.and_then(|line| line.split(" nolearning").next()).unwrap_or("missing").trim();
    println!("  device  flannel.1 mtu {mtu}, {vxlan}");
    for route in node.ip("route show").lines().filter(|route| route.contains("flannel.1")) {
        println!("  peer    {}", route.trim());
    }
}

fn attach(nodes: &[Node]) -> Vec<Pod> {
    println!();
    let step = Step::begin(&format!("{PODS_PER_NODE} pods on each node, through the CNI plugin"));
    let pods = pod::attach_to_each(nodes, PODS_PER_NODE);
    step.end();
    pods
}

/// Lets every pod ping every other, prints a table, and returns how many could not.
fn try_every_pair(pods: &[Pod]) -> usize {
    println!("\nRound trips in milliseconds, from the pods on the left to those above:\n");
    print!("{:>22}", "");
    for to in pods {
        print!("{:>9}", to.name());
    }
    println!();
    let mut failures = Vec::new();
    for from in pods {
        print!("{:>7} {:<14}", from.name(), from.address());
        for to in pods {
            if from.name() == to.name() {
                print!("{:>9}", "-");
                continue;
            }
            match round_trip(from, to) {
                Ok(time) => print!("{:>9.3}", time.as_secs_f64() * 1e3),
                Err(e) => {
                    print!("{:>9}", "FAIL");
                    failures.push(format!("{} to {}: {e}", from.name(), to.name()));
                }
            }
            let _ = stdout().flush();
        }
        println!();
    }
    for failure in &failures {
        println!("{failure}");
    }
    failures.len()
}

/// The best of three: the first also pays for resolving the neighbour.
fn round_trip(from: &Pod, to: &Pod) -> std::io::Result<Duration> {
    let mut best = traffic::ping(from.namespace(), to.address())?;
    for _ in 1..3 {
        best = best.min(traffic::ping(from.namespace(), to.address())?);
    }
    Ok(best)
}

fn leave_shell(cluster: &Cluster, pods: &[Pod]) {
    let nodes = cluster.nodes();
    let store = match cluster.store() {
        LeaseStore::Directory(path) => format!("ls {}/subnets", path.display()),
        LeaseStore::Etcd(_) => "ip netns exec etcd etcdctl get --prefix /coreos.com".to_owned(),
        LeaseStore::Kube(api) => format!("ip netns exec n1 curl {}/api/v1/nodes", api.url()),
    };
    let subnet_file = nodes[0].directory("/run/flannel/subnet.env");
    let (near, far) = (&pods[0], &pods[pods.len() - 1]);
    println!(
        "
This shell is inside the sandbox; leave it with exit and everything is removed. Try:

  ip netns                                         nodes, pods and what joins them
  ip netns exec n1 ip -d link show flannel.1
  ip netns exec n1 bridge fdb show dev flannel.1
  ip netns exec {near} ping {address}
  ip -n n1 link delete flannel.1                   and look again: it comes back
  tail -f /run/log/flanneld-n1.log
  cat {subnet_file}
  {store}
",
        near = near.name(),
        address = far.address(),
        subnet_file = subnet_file.display(),
    );
    let shell = env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
    let mut command = Command::new(&shell);
    command.env("PATH", program::search_path()).env("ETCDCTL_API", "3");
    if stdin().is_terminal() {
        command.env("debian_chroot", "flannel lab");
    }
    if let Err(e) = command.status() {
        println!("{}: {e}", shell.to_string_lossy());
    }
}

/// One line of progress.
struct Step {
    start: Instant,
}

impl Step {
    fn begin(label: &str) -> Self {
        print!("{label} ... ");
        let _ = stdout().flush();
        Self { start: Instant::now() }
    }

    fn end(self) {
        println!("{:.1} s", self.start.elapsed().as_secs_f64());
    }
}
