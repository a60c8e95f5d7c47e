//! The plugin is killed at every one of its system calls. One more call must remove all of it.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]
#![expect(clippy::print_stdout, reason = "the test harness captures it")]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use flannel_tests::fault::{End, run_killed_at, started_by};
use flannel_tests::namespace::Namespace;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::{program, runtime};
use serde_json::{Value, json};

const LIST: &str = include_str!("../../config/10-flannel-native.conflist");

/// What is killed: a plugin by one of its names, with what a runtime would send it.
struct Case {
    plugin: &'static str,
    conf: Value,
    /// What must be surpassed for the case to be about anything.
    calls_min: usize,
}

/// The list of one plugin as containerd sends it, with everything that leaves something behind.
fn everything() -> Case {
    let list: Value = serde_json::from_str(LIST).unwrap();
    let mut conf = list["plugins"][0].clone();
    conf["name"] = list["name"].clone();
    conf["cniVersion"] = json!("1.1.0");
    conf["delegate"]["ipMasq"] = json!(true);
    conf["runtimeConfig"] = json!({"portMappings": port_mappings(), "bandwidth": {
        "IngressRate": 8_000_000, "IngressBurst": 80_000,
        "EgressRate": 8_000_000, "EgressBurst": 80_000,
    }});
    Case { plugin: "flannel", conf, calls_min: 100 }
}

fn port_mappings() -> Value {
    json!([
        {"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""},
        {"HostPort": 5353, "ContainerPort": 53, "Protocol": "udp", "HostIP": ""},
    ])
}

/// `bridge` by its own name, with addresses from `host-local`.
fn bridge() -> Case {
    let conf = json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "bridge", "isDefaultGateway": true,
        "ipMasq": true, "macspoofchk": true,
        "ipam": {"type": "host-local", "subnet": "10.1.2.0/24"},
    });
    Case { plugin: "bridge", conf, calls_min: 100 }
}

/// `portmap` by its own name, behind any plugin that gave the pod an address.
fn portmap() -> Case {
    for command in ["link add cni0 type bridge", "address add 10.1.2.1/24 dev cni0"] {
        program::run(program::installed("ip").args(command.split(' ')));
    }
    let conf = json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "portmap",
        "runtimeConfig": {"portMappings": port_mappings()},
        "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.5/24"}]},
    });
    Case { plugin: "portmap", conf, calls_min: 20 }
}

impl Case {
    fn command(&self, verb: &str, container: &str) -> Command {
        let mut command = Command::new(program::flannel());
        command
            .arg0(self.plugin)
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", "/run/netns/pod")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/opt/cni/bin");
        command
    }

    /// What a runtime sends for GC that knows of no container.
    fn collecting(&self) -> Value {
        let mut conf = self.conf.clone();
        conf["cni.dev/valid-attachments"] = json!([]);
        conf
    }

    fn call(&self, verb: &str, container: &str) {
        let conf = if verb == "GC" { self.collecting() } else { self.conf.clone() };
        let mut command = self.command(verb, container);
        let output = runtime::feed(&mut command, &conf.to_string());
        assert!(output.status.success(), "{}", program::describe(&command, &output));
    }
}

/// Everything that an attachment could have left behind, but for hints without an owner.
fn remains() -> String {
    let mut text = String::new();
    for directory in ["/var/lib/cni/flannel", "/var/lib/cni/networks/cbr0"] {
        for entry in fs::read_dir(directory).into_iter().flatten() {
            let name = entry.unwrap().file_name();
            if !["lock", "last_reserved_ip.0", ".boot_id"].iter().any(|hint| name == *hint) {
                let _ = writeln!(text, "{directory}/{}", name.display());
            }
        }
    }
    let run = |program: &str, arguments: &str| {
        program::run(program::installed(program).args(arguments.split_whitespace()))
    };
    let links = run("ip", "-o link") + &run("ip", "-n pod -o link");
    let rules = run("nft", "list ruleset");
    let links =
        links.lines().filter(|line| ["veth", "eth0", "bwp"].iter().any(|name| line.contains(name)));
    let rules = rules.lines().filter(|line| line.contains("id: "));
    for line in links.chain(rules) {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// A lease, and a pod that is named so.
fn furnish() {
    fs::create_dir_all("/run/flannel").unwrap();
    let lease = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.2.1/24\n\
                 FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    fs::write("/run/flannel/subnet.env", lease).unwrap();
    Namespace::create("pod");
}

/// Kills the first of each pair of verbs at each of its system calls, each time from a fresh start,
/// and then calls the second once.
fn killed_everywhere(case: fn() -> Case, verbs: &[(&str, &str)]) {
    furnish();
    let case = case();
    for (killed, cleaning) in verbs {
        for count in 0.. {
            let container = format!("c{count}");
            if *killed == "DEL" {
                case.call("ADD", &container);
                assert_ne!(remains(), "");
            }
            let mut command = case.command(killed, &container);
            let end = run_killed_at(&mut command, &case.conf.to_string(), count);
            case.call(cleaning, &container);
            let what = format!("{killed} of {}", case.plugin);
            assert_eq!(remains(), "", "{what} killed at system call {count}");
            if end != End::Killed {
                assert_eq!(end, End::Exited(0));
                assert!(count > case.calls_min, "only {count} system calls");
                println!("{what} was killed at each of its {count} system calls");
                break;
            }
        }
    }
}

#[test]
fn whatever_a_killed_add_left_is_removed_by_del() {
    sandboxed(|| killed_everywhere(everything, &[("ADD", "DEL")]));
}

#[test]
fn whatever_a_killed_add_left_is_removed_by_gc() {
    sandboxed(|| killed_everywhere(everything, &[("ADD", "GC")]));
}

#[test]
fn whatever_a_killed_del_left_is_removed_by_del() {
    sandboxed(|| killed_everywhere(everything, &[("DEL", "DEL")]));
}

#[test]
fn whatever_a_killed_del_left_is_removed_by_gc() {
    sandboxed(|| killed_everywhere(everything, &[("DEL", "GC")]));
}

#[test]
fn whatever_a_killed_bridge_left_is_removed_by_del() {
    sandboxed(|| killed_everywhere(bridge, &[("ADD", "DEL"), ("DEL", "DEL")]));
}

#[test]
fn whatever_a_killed_bridge_left_is_removed_by_gc() {
    sandboxed(|| killed_everywhere(bridge, &[("ADD", "GC"), ("DEL", "GC")]));
}

#[test]
fn whatever_a_killed_portmap_left_is_removed() {
    let verbs = [("ADD", "DEL"), ("ADD", "GC"), ("DEL", "DEL"), ("DEL", "GC")];
    sandboxed(|| killed_everywhere(portmap, &verbs));
}

/// What the Go plugins need dozens of processes for.
#[test]
fn one_process_serves_a_pod_with_everything() {
    sandboxed(|| {
        furnish();
        let case = everything();
        let count = |verb: &str, conf: &Value| {
            started_by(&mut case.command(verb, "one"), &conf.to_string())
        };
        assert_eq!(count("STATUS", &case.conf), 0);
        assert_eq!(count("ADD", &case.conf), 0);
        assert!(remains().contains("bwp"), "{}", remains());
        assert_eq!(count("DEL", &case.conf), 0);
        case.call("ADD", "one");
        assert_eq!(count("GC", &case.collecting()), 0);
        assert_eq!(remains(), "");
        // The count is of something.
        let mut shell = program::installed("sh");
        assert_eq!(started_by(shell.args(["-c", "true; /bin/true; /bin/true; true"]), ""), 4);
    });
}
