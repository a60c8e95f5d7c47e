//! The plugin is killed at every one of its system calls. One more call must remove all of it.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]
#![expect(clippy::print_stdout, reason = "the test harness captures it")]

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use flannel_tests::fault::{End, run_killed_at, started_by};
use flannel_tests::namespace::Namespace;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::{program, runtime};
use serde_json::{Value, json};

const LIST: &str = include_str!("../../config/10-flannel-native.conflist");

/// What containerd would send, with everything that leaves something behind.
fn configuration() -> Value {
    let list: Value = serde_json::from_str(LIST).unwrap();
    let mut conf = list["plugins"][0].clone();
    conf["name"] = list["name"].clone();
    conf["cniVersion"] = json!("1.1.0");
    conf["delegate"]["ipMasq"] = json!(true);
    conf["runtimeConfig"] = json!({"portMappings": [
        {"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""},
        {"HostPort": 5353, "ContainerPort": 53, "Protocol": "udp", "HostIP": ""},
    ], "bandwidth": {
        "IngressRate": 8_000_000, "IngressBurst": 80_000,
        "EgressRate": 8_000_000, "EgressBurst": 80_000,
    }});
    conf
}

fn plugin(verb: &str, container: &str) -> Command {
    let mut command = Command::new(program::flannel());
    command
        .env_clear()
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", container)
        .env("CNI_NETNS", "/run/netns/pod")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/opt/cni/bin");
    command
}

fn call(verb: &str, container: &str, conf: &Value) {
    let mut command = plugin(verb, container);
    let output = runtime::feed(&mut command, &conf.to_string());
    assert!(output.status.success(), "{}", program::describe(&command, &output));
}

fn detach(container: &str) {
    call("DEL", container, &configuration());
}

fn collect(container: &str) {
    let mut conf = configuration();
    conf["cni.dev/valid-attachments"] = json!([]);
    call("GC", container, &conf);
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

fn furnish() {
    fs::create_dir_all("/run/flannel").unwrap();
    let lease = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.2.1/24\n\
                 FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    fs::write("/run/flannel/subnet.env", lease).unwrap();
}

/// Runs `verb` to each of its system calls, each time from a fresh start, and then what shall
/// `clean` up.
fn killed_everywhere(verb: &str, clean: fn(&str)) {
    furnish();
    let pod = Namespace::create("pod");
    let conf = configuration();
    for count in 0.. {
        let container = format!("c{count}");
        if verb == "DEL" {
            call("ADD", &container, &conf);
        }
        let end = run_killed_at(&mut plugin(verb, &container), &conf.to_string(), count);
        clean(&container);
        assert_eq!(remains(), "", "{verb} killed at system call {count}");
        if end != End::Killed {
            assert_eq!(end, End::Exited(0));
            assert!(count > 100, "only {count} system calls");
            println!("{verb} was killed at each of its {count} system calls");
            break;
        }
    }
    drop(pod);
}

#[test]
fn whatever_a_killed_add_left_is_removed_by_del() {
    sandboxed(|| killed_everywhere("ADD", detach));
}

#[test]
fn whatever_a_killed_add_left_is_removed_by_gc() {
    sandboxed(|| killed_everywhere("ADD", collect));
}

#[test]
fn whatever_a_killed_del_left_is_removed_by_del() {
    sandboxed(|| killed_everywhere("DEL", detach));
}

#[test]
fn whatever_a_killed_del_left_is_removed_by_gc() {
    sandboxed(|| killed_everywhere("DEL", collect));
}

/// What the Go plugins need dozens of processes for.
#[test]
fn one_process_serves_a_pod_with_everything() {
    sandboxed(|| {
        furnish();
        let pod = Namespace::create("pod");
        let mut conf = configuration();
        let count =
            |verb: &str, conf: &Value| started_by(&mut plugin(verb, "one"), &conf.to_string());
        assert_eq!(count("STATUS", &conf), 0);
        assert_eq!(count("ADD", &conf), 0);
        assert!(remains().contains("bwp"), "{}", remains());
        assert_eq!(count("DEL", &conf), 0);
        call("ADD", "one", &conf);
        conf["cni.dev/valid-attachments"] = json!([]);
        assert_eq!(count("GC", &conf), 0);
        assert_eq!(remains(), "");
        // The count is of something.
        let mut shell = program::installed("sh");
        assert_eq!(started_by(shell.args(["-c", "true; /bin/true; /bin/true; true"]), ""), 4);
        drop(pod);
    });
}
