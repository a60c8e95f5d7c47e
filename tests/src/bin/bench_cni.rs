//! How long ADD and DEL take, against the Go plugins `bridge` and `host-local` of Debian with the
//! configuration that the stock list makes for them, and with one host port against these and
//! `portmap`. The time of a chain is that of its processes.
//!
//! Both are run in turns, in one sandbox, each for its own bridge, on namespaces made beforehand.
//! The deletion of a veth pair by `ip` is measured with them: no DEL can be faster than the kernel.
//!
//! `bench_cni [N]`, by default 200 attachments of each kind.

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
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
    /// Programs with their configurations, in the order of ADD.
    chain: Vec<(PathBuf, Value)>,
    pods: Vec<Namespace>,
    add: Samples,
    del: Samples,
}

fn measure(count: usize) {
    let go = Path::new(GO_PLUGINS);
    for plugin in ["bridge", "host-local", "portmap"] {
        let path = go.join(plugin);
        assert!(path.exists(), "{}", program::missing(&path.to_string_lossy()));
    }
    furnish();
    let (flannel, native) = (program::flannel(), runtime::stock_configuration(VERSION));
    let ours = Contestant::new("flannel", vec![(flannel.clone(), native.clone())]);
    let bridge = (go.join("bridge"), go_configuration());
    let theirs = Contestant::new("bridge + host-local (Go)", vec![bridge.clone()]);
    compare("an attachment", [ours, theirs], count);

    let ours = Contestant::new("flannel", vec![(flannel, with_port(native))]);
    let portmap = json!({ "cniVersion": VERSION, "name": "go", "type": "portmap" });
    let chain = vec![bridge, (go.join("portmap"), with_port(portmap))];
    let theirs = Contestant::new("the same + portmap (Go)", chain);
    compare("an attachment with one host port", [ours, theirs], count);
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
            println!("  {:<28}{samples}", contestant.label);
        }
        println!("  {:<28}1/{:.1}", "ratio of the medians", go.1.ratio_to(ours.1));
    }
    println!("  {:<28}{kernel_delete}", "ip link delete, to compare");
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
        let pod = &self.pods[number];
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
        let mut configuration = configuration.clone();
        if let Some(port) = configuration.pointer_mut("/runtimeConfig/portMappings/0/hostPort") {
            *port = json!(20_000 + number);
        }
        if !previous.is_null() {
            configuration["prevResult"] = previous.clone();
        }
        let stdin = configuration.to_string();
        let start = Instant::now();
        let output = runtime::feed(&mut command, &stdin);
        let time = start.elapsed();
        assert!(output.status.success(), "{}", program::describe(&command, &output));
        (output, time)
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
