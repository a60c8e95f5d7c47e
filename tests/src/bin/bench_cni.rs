//! How long ADD and DEL take, against the Go plugins `bridge` and `host-local` of Debian with the
//! configuration that the stock list makes for them.
//!
//! Both are run in turns, in one sandbox, each for its own bridge, on namespaces made beforehand.
//! The deletion of a veth pair by `ip` is measured with them: no DEL can be faster than the kernel.
//!
//! `bench_cni [N]`, by default 200 attachments of each kind.

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use flannel_tests::namespace::Namespace;
use flannel_tests::runtime::{self, Verb};
use flannel_tests::statistics::{Samples, machine};
use flannel_tests::{pod, program, sandbox};
use serde_json::{Value, json};

const GO_PLUGINS: &str = "/usr/lib/cni";
const VERSION: &str = "1.0.0";

/// Attachments that exist at the same time, of each kind.
const BATCH: usize = 20;

fn main() -> ExitCode {
    let wanted = std::env::args().nth(1).map(|n| n.parse::<usize>());
    let Ok(count) = wanted.unwrap_or(Ok(200)) else {
        println!("usage: bench_cni [N]");
        return ExitCode::from(2);
    };
    sandbox::main_in_sandbox(|| measure(count))
}

/// One of the plugins that are compared.
struct Contestant {
    label: &'static str,
    program: PathBuf,
    configuration: Value,
    pods: Vec<Namespace>,
    add: Samples,
    del: Samples,
}

fn measure(count: usize) {
    let go = Path::new(GO_PLUGINS);
    for plugin in ["bridge", "host-local"] {
        let path = go.join(plugin);
        assert!(path.exists(), "{}", program::missing(&path.to_string_lossy()));
    }
    furnish();
    let mut contestants = [
        Contestant::new("flannel", program::flannel(), runtime::stock_configuration(VERSION)),
        Contestant::new("bridge + host-local (Go)", go.join("bridge"), go_configuration()),
    ];
    let kernel_pods = pods("kernel");
    let mut kernel_delete = Samples::default();

    println!("{count} attachments of each kind, {BATCH} at a time; {}", machine());
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
            println!("  {:<28}{samples}", contestant.label);
        }
        println!("  {:<28}1/{:.1}", "ratio of the medians", go.1.ratio_to(ours.1));
    }
    println!("  {:<28}{kernel_delete}", "ip link delete, to compare");
    println!("\n{}", machine());
}

impl Contestant {
    fn new(label: &'static str, program: PathBuf, configuration: Value) -> Self {
        let pods = pods(configuration["name"].as_str().unwrap_or_default());
        let (add, del) = Default::default();
        Self { label, program, configuration, pods, add, del }
    }

    fn attach(&mut self, number: usize) {
        let time = self.call(Verb::Add, number);
        self.add.push(time);
    }

    fn detach(&mut self, number: usize) {
        let time = self.call(Verb::Del, number);
        self.del.push(time);
    }

    /// From the start of the process until its end is noticed.
    fn call(&self, verb: Verb, number: usize) -> Duration {
        let pod = &self.pods[number];
        let attachment = pod::attachment(pod.name(), pod.path());
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .env("CNI_COMMAND", verb.name())
            .env("CNI_CONTAINERID", &attachment.container_id)
            .env("CNI_NETNS", &attachment.netns)
            .env("CNI_IFNAME", &attachment.ifname)
            .env("CNI_PATH", GO_PLUGINS)
            .env("PATH", program::search_path());
        let stdin = self.configuration.to_string();
        let start = Instant::now();
        let output = runtime::feed(&mut command, &stdin);
        let time = start.elapsed();
        assert!(output.status.success(), "{}", program::describe(&command, &output));
        time
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
    let lease = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
                 FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    fs::write("/run/flannel/subnet.env", lease).expect("the sandbox is writable");
}

/// What the stock list makes of a lease, with another subnet and bridge.
fn go_configuration() -> Value {
    json!({
        "cniVersion": VERSION,
        "name": "go",
        "type": "bridge",
        "bridge": "cni1",
        "hairpinMode": true,
        "isGateway": true,
        "isDefaultGateway": true,
        "ipMasq": false,
        "mtu": 1450,
        "ipam": {
            "type": "host-local",
            "ranges": [[{ "subnet": "10.244.2.0/24" }]],
            "routes": [{ "dst": "10.244.0.0/16" }],
        },
    })
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
