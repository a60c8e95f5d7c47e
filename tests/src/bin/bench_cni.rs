//! How long ADD and DEL take, against the chain of Go plugins of a stock node: flannel's own plugin,
//! which runs `bridge`, which runs `host-local`; and with one host port against these and `portmap`.
//! The time of a chain is that of the processes that a runtime starts.
//!
//! Both are run in turns, in one sandbox, each for its own bridge, on namespaces made beforehand.
//! The deletion of a veth pair by `ip` is measured with them: no DEL can be faster than the kernel.
//!
//! Then 250 pods are attached 16 at a time by either, and 1,000 to one bridge one after the other:
//! by the plugin, and by `ip -batch` with the same links, to see how much of it is the kernel's.
//!
//! `bench_cni [N] [PART]`, by default 200 attachments of each kind; the parts are `one`, `port`,
//! `burst` and `crowd`, by default all of them.

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flannel_tests::namespace::Namespace;
use flannel_tests::runtime::{self, Verb};
use flannel_tests::statistics::{Samples, machine};
use flannel_tests::{pod, program, sandbox};
use serde_json::{Value, json};

const GO_PLUGINS: &str = "/usr/lib/cni";
/// The newest that flannel's own plugin in Debian knows.
const VERSION: &str = "0.4.0";
/// Flannel's own plugin, which Debian had until bullseye.
const GO_FLANNEL: &str = "bullseye/usr/lib/cni/flannel";

/// Attachments that exist at the same time, of each kind.
const BATCH: usize = 20;

/// Attachments of a burst, and how many are made at the same time.
const BURST: usize = 250;
const WIDTH: usize = 16;
/// Attachments on one bridge.
const CROWD: usize = 1000;

fn main() -> ExitCode {
    let wanted = std::env::args().nth(1).map(|n| n.parse::<usize>());
    let part = std::env::args().nth(2);
    let is_part = part.as_deref().is_none_or(|part| PARTS.contains(&part));
    let (Ok(count), true) = (wanted.unwrap_or(Ok(200)), is_part) else {
        println!("usage: bench_cni [N] [{}]", PARTS.join("|"));
        return ExitCode::from(2);
    };
    sandbox::main_in_sandbox(|| measure(count, part.as_deref()))
}

const PARTS: [&str; 4] = ["one", "port", "burst", "crowd"];

/// One of the plugins that are compared.
struct Contestant {
    label: &'static str,
    /// Programs with their configurations, in the order of ADD.
    chain: Vec<(PathBuf, Value)>,
    pods: Vec<Namespace>,
    add: Samples,
    del: Samples,
}

fn measure(count: usize, part: Option<&str>) {
    let wanted = |name| part.is_none_or(|part| part == name);
    let go = Path::new(GO_PLUGINS);
    for plugin in ["bridge", "host-local", "portmap"] {
        let path = go.join(plugin);
        assert!(path.exists(), "{}", program::missing(&path.to_string_lossy()));
    }
    furnish();
    let (flannel, native) = (program::flannel(), runtime::stock_configuration(VERSION));
    let go_flannel = program::find(GO_FLANNEL);
    let go_flannel = go_flannel.unwrap_or_else(|| panic!("{}", program::missing(GO_FLANNEL)));
    let chain = (go_flannel, go_configuration());
    let plugin = (flannel, native);
    if wanted("one") {
        let ours = Contestant::new("flannel", vec![plugin.clone()]);
        let theirs = Contestant::new("flannel > bridge > host-local (Go)", vec![chain.clone()]);
        compare("an attachment", [ours, theirs], count);
    }
    if wanted("port") {
        let with_ports = (plugin.0.clone(), with_port(plugin.1.clone()));
        let ours = Contestant::new("flannel", vec![with_ports]);
        let portmap = json!({ "cniVersion": VERSION, "name": "go", "type": "portmap" });
        let chain = vec![chain.clone(), (go.join("portmap"), with_port(portmap))];
        let theirs = Contestant::new("the same + portmap (Go)", chain);
        compare("an attachment with one host port", [ours, theirs], count);
    }
    if wanted("burst") {
        bursts(&plugin, &chain);
    }
    if wanted("crowd") {
        println!("{CROWD} attachments to one bridge; {}", machine());
        crowd("flannel", |pod, _| run(Verb::Add, pod, &plugin).1, |pods| detach_all(pods, &plugin));
        crowd("the same links by ip -batch", link_by_hand, unlink_all);
    }
}

type Plugin = (PathBuf, Value);

/// Attaches many at the same time with either plugin.
fn bursts(ours: &Plugin, go: &Plugin) {
    println!("{BURST} attachments, {WIDTH} at a time; {}", machine());
    let mut rates = Vec::new();
    for (label, plugin) in [("flannel", ours), ("flannel > bridge > host-local (Go)", go)] {
        let pods: Vec<_> =
            (0..BURST).map(|number| Namespace::create(&format!("burst-{number}"))).collect();
        let next = AtomicUsize::new(0);
        let start = Instant::now();
        let worker = || {
            let mut times = Vec::new();
            while let Some(pod) = pods.get(next.fetch_add(1, Ordering::Relaxed)) {
                times.push(run(Verb::Add, pod, plugin).1);
            }
            times
        };
        let times: Vec<Duration> = thread::scope(|scope| {
            let workers: Vec<_> = (0..WIDTH).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().flat_map(|one| one.join().expect("it does not panic")).collect()
        });
        let rate = BURST as f64 / start.elapsed().as_secs_f64();
        let mut samples = Samples::default();
        times.into_iter().for_each(|time| samples.push(time));
        let late = samples.percentile(100).saturating_sub(samples.median());
        println!("  {label:<36}{samples}");
        println!("  {:<36}{rate:.0} per second, the last {late:.1?} after the median", "");
        rates.push(rate);
        detach_all(&pods, plugin);
    }
    println!("  {:<36}{:.1}\n", "ratio of the rates", rates[0] / rates[1]);
}

/// Attaches ever more to one bridge.
fn crowd(
    label: &str,
    attach: impl Fn(&Namespace, usize) -> Duration,
    detach_all: impl FnOnce(&[Namespace]),
) {
    const ENDS: usize = 20;
    let (mut first, mut last) = (Samples::default(), Samples::default());
    let mut pods = Vec::new();
    for number in 0..CROWD {
        let pod = Namespace::create(&format!("crowd-{number}"));
        let time = attach(&pod, number);
        // The first of all makes the bridge.
        match number {
            1..=ENDS => first.push(time),
            _ if number >= CROWD - ENDS => last.push(time),
            _ => {}
        }
        pods.push(pod);
    }
    println!("  {label}\n  {:<36}{first}\n  {:<36}{last}", "the first", "the last");
    println!("  {:<36}{:.2}\n", "ratio of the medians", last.ratio_to(&first));
    detach_all(&pods);
}

/// Makes with `ip` what an attachment is made of: no less can be had from the kernel.
fn link_by_hand(pod: &Namespace, number: usize) -> Duration {
    if number == 0 {
        let bridge = "link add by-hand type bridge\nlink set by-hand up\n\
                      address add 10.245.0.1/20 dev by-hand\n";
        ip_batch(program::installed("ip"), bridge);
    }
    let (queue, name) = ("numtxqueues 1 numrxqueues 1", pod.name());
    let outside = format!(
        "link add hand{number} master by-hand {queue} type veth peer name eth0 netns {name} {queue}\n\
         link set hand{number} alias {name} addrgenmode none type bridge_slave hairpin on\n\
         link set hand{number} up\n"
    );
    let [high, low] = u16::try_from(number + 2).expect("a bridge has 1,024 ports").to_be_bytes();
    let inside = format!(
        "link set eth0 addrgenmode none\naddress add 10.245.{high}.{low}/20 dev eth0\n\
         link set eth0 up\nroute add default via 10.245.0.1\n"
    );
    let start = Instant::now();
    ip_batch(program::installed("ip"), &outside);
    // With `-n`, `ip` would copy the mounts of all namespaces first.
    ip_batch(pod.command("ip"), &inside);
    start.elapsed()
}

fn ip_batch(mut ip: Command, commands: &str) {
    ip.args(["-batch", "-"]);
    let output = runtime::feed(&mut ip, commands);
    assert!(output.status.success(), "{}", program::describe(&ip, &output));
}

fn unlink_all(pods: &[Namespace]) {
    pods.iter().for_each(Namespace::delete);
    ip_batch(program::installed("ip"), "link delete by-hand\n");
}

fn detach_all(pods: &[Namespace], plugin: &Plugin) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..WIDTH {
            scope.spawn(|| {
                while let Some(pod) = pods.get(next.fetch_add(1, Ordering::Relaxed)) {
                    run(Verb::Del, pod, plugin);
                    pod.delete();
                }
            });
        }
    });
}

fn run(verb: Verb, pod: &Namespace, (program, configuration): &Plugin) -> (Output, Duration) {
    let attachment = pod::attachment(pod.name(), pod.path());
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("CNI_COMMAND", verb.name())
        .env("CNI_CONTAINERID", &attachment.container_id)
        .env("CNI_NETNS", &attachment.netns)
        .env("CNI_IFNAME", &attachment.ifname)
        .env("CNI_PATH", GO_PLUGINS)
        .env("PATH", program::search_path());
    let stdin = configuration.to_string();
    let start = Instant::now();
    let output = runtime::feed(&mut command, &stdin);
    let time = start.elapsed();
    assert!(output.status.success(), "{}", program::describe(&command, &output));
    (output, time)
}

fn compare(what: &str, mut contestants: [Contestant; 2], count: usize) {
    let kernel_pods = pods("kernel");
    let mut kernel_delete = Samples::default();
    println!("{what}: {count} of each kind, {BATCH} at a time; {}", machine());
    for batch in 0..count.div_ceil(BATCH) {
        for number in 0..BATCH {
            in_turns(&mut contestants, batch + number, |one| one.attach(number));
        }
        for (number, pod) in kernel_pods.iter().enumerate() {
            in_turns(&mut contestants, batch + number, |one| one.detach(number));
            kernel_delete.push(delete_pair(pod));
        }
    }

    let [ours, go] = &contestants;
    for (verb, ours, go) in
        [("ADD", (ours, &ours.add), (go, &go.add)), ("DEL", (ours, &ours.del), (go, &go.del))]
    {
        println!("\n{verb}");
        for (contestant, samples) in [ours, go] {
            println!("  {:<36}{samples}", contestant.label);
        }
        println!("  {:<36}1/{:.1}", "ratio of the medians", go.1.ratio_to(ours.1));
    }
    println!("  {:<36}{kernel_delete}", "ip link delete, to compare");
    println!("\n{}\n", machine());
    let all = contestants.iter().flat_map(|one| &one.pods).chain(&kernel_pods);
    all.for_each(Namespace::delete);
}

/// The port itself is set for each pod.
fn with_port(mut configuration: Value) -> Value {
    let port = json!({ "hostPort": 0, "containerPort": 80, "protocol": "tcp" });
    configuration["runtimeConfig"] = json!({ "portMappings": [port] });
    configuration
}

impl Contestant {
    fn new(label: &'static str, chain: Vec<(PathBuf, Value)>) -> Self {
        let pods = pods(chain[0].1["name"].as_str().unwrap_or_default());
        let (add, del) = Default::default();
        Self { label, chain, pods, add, del }
    }

    fn attach(&mut self, number: usize) {
        let mut time = Duration::ZERO;
        let mut result = Value::Null;
        for (program, configuration) in &self.chain {
            let (output, one) = self.call(Verb::Add, number, program, configuration, &result);
            result = serde_json::from_slice(&output.stdout).expect("ADD has a result");
            time += one;
        }
        self.add.push(time);
    }

    fn detach(&mut self, number: usize) {
        let calls = self.chain.iter().rev().map(|(program, configuration)| {
            self.call(Verb::Del, number, program, configuration, &Value::Null).1
        });
        let time = calls.sum();
        self.del.push(time);
    }

    /// From the start of the process until its end is noticed.
    fn call(
        &self,
        verb: Verb,
        number: usize,
        program: &Path,
        configuration: &Value,
        previous: &Value,
    ) -> (Output, Duration) {
        let mut configuration = configuration.clone();
        if let Some(port) = configuration.pointer_mut("/runtimeConfig/portMappings/0/hostPort") {
            *port = json!(20_000 + number);
        }
        if !previous.is_null() {
            configuration["prevResult"] = previous.clone();
        }
        run(verb, &self.pods[number], &(program.to_owned(), configuration))
    }
}

/// Each as often first as the other.
fn in_turns(contestants: &mut [Contestant; 2], turn: usize, action: impl Fn(&mut Contestant)) {
    let [one, other] = contestants;
    let order = if turn.is_multiple_of(2) { [one, other] } else { [other, one] };
    order.into_iter().for_each(action);
}

/// What the plugin expects of a node.
fn furnish() {
    for directory in ["/run/flannel", "/var/lib/cni"] {
        fs::create_dir_all(directory).expect("the sandbox is writable");
    }
    // A subnet with room for a thousand, for either.
    for (file, subnet) in [("subnet.env", "10.244.16.1/20"), ("go.env", "10.244.32.1/20")] {
        let lease = format!(
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={subnet}\nFLANNEL_MTU=1450\n\
             FLANNEL_IPMASQ=true\n"
        );
        let file = Path::new("/run/flannel").join(file);
        fs::write(file, lease).expect("the sandbox is writable");
    }
}

/// The stock list with another lease, bridge and directory.
fn go_configuration() -> Value {
    let mut configuration = runtime::stock_configuration(VERSION);
    configuration["name"] = json!("go");
    configuration["subnetFile"] = json!("/run/flannel/go.env");
    configuration["dataDir"] = json!("/run/flannel/go");
    configuration["delegate"]["bridge"] = json!("cni1");
    configuration
}

fn pods(owner: &str) -> Vec<Namespace> {
    (0..BATCH).map(|number| Namespace::create(&format!("{owner}-{number}"))).collect()
}

/// The time that `ip` needs to delete a pair with one end in a pod.
fn delete_pair(pod: &Namespace) -> Duration {
    pod.ip("link add eth0 type veth peer name kernel0 netns 1");
    let start = Instant::now();
    pod.ip("link delete eth0");
    start.elapsed()
}
