//! Real container runtimes over our plugins: containerd by `ctr` and by the interface that kubelet
//! uses, and podman.
//!
//! Each runs a web server in a pod, over flannel's own list and over the list of one plugin. The pod
//! and a port of the node that leads to it must be reached, and nothing may be left of it.
//! Container runtimes need root, so this does too.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use flannel_tests::containerd::{
    self, GREETING, SERVER, SOCKET, ctr, greeting, make_root_filesystem,
};
use flannel_tests::cri::{Cri, PodSandboxConfig, PodSandboxMetadata, PortMapping};
use flannel_tests::daemon::Daemon;
use flannel_tests::namespace::Namespace;
use flannel_tests::podman::Podman;
use flannel_tests::sandbox::sandboxed_as_root;
use flannel_tests::{program, wait};
use nix::mount::{MsFlags, mount};

/// The lists, by the name of the file in `config`.
const LISTS: [(&str, &str); 2] = [
    ("10-flannel.conflist", include_str!("../../config/10-flannel.conflist")),
    ("10-flannel-native.conflist", include_str!("../../config/10-flannel-native.conflist")),
];

const SUBNET_FILE: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.2.1/24\n\
                           FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// The port of the node that leads to the pod.
const PORT: u16 = 18080;

/// Makes this machine a node where our plugins are installed under all their names, and returns a
/// neighbour of it, for which its address is 192.168.9.1.
fn node() -> Namespace {
    mount_tmpfs("/opt");
    fs::create_dir_all("/opt/cni/bin").unwrap();
    program::run(Command::new(program::flannel()).args(["install", "/opt/cni/bin"]));
    fs::create_dir_all("/etc/cni/net.d").unwrap();
    fs::create_dir_all("/run/flannel").unwrap();
    fs::write("/run/flannel/subnet.env", SUBNET_FILE).unwrap();
    // Runtimes mount namespaces there, and `ip netns` would hide them.
    fs::create_dir_all("/run/netns").unwrap();
    let none: Option<&str> = None;
    mount(Some("/run/netns"), "/run/netns", none, MsFlags::MS_BIND, none).unwrap();
    mount(none, "/run/netns", none, MsFlags::MS_SHARED, none).unwrap();
    make_root_filesystem();
    let client = Namespace::create("client");
    client.ip("link add eth0 type veth peer name uplink netns 1");
    for command in ["address add 192.168.9.1/24 dev uplink", "link set uplink up"] {
        ip(command);
    }
    client.ip("address add 192.168.9.2/24 dev eth0");
    client.ip("link set eth0 up");
    client.ip("route add default via 192.168.9.1");
    client
}

fn mount_tmpfs(directory: &str) {
    let none: Option<&str> = None;
    mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), none).unwrap();
}

fn ip(arguments: &str) -> String {
    program::run(program::installed("ip").args(arguments.split_whitespace()))
}

/// What the server says at an address, if there is one.
fn get(address: &str) -> Option<String> {
    greeting(address.parse().unwrap())
}

fn assert_serves(client: &Namespace, pod: &str) {
    let reached = |what: &str, ask: &dyn Fn() -> Option<String>| {
        wait::until(what, || match ask() {
            Some(text) if text == GREETING => Ok(()),
            other => Err(format!("{other:?}")),
        });
    };
    reached("the pod answers the node", &|| get(&format!("{pod}:80")));
    reached("a port of the node leads to the pod", &|| {
        client.inside(|| get(&format!("192.168.9.1:{PORT}")))
    });
    reached("so it does for the node itself", &|| get(&format!("127.0.0.1:{PORT}")));
}

/// Everything that a pod could have left behind.
fn remains() -> String {
    let mut text = String::new();
    for directory in ["/var/lib/cni/flannel", "/var/lib/cni/networks/cbr0", "/var/lib/cni/results"]
    {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if !["lock", "last_reserved_ip.0", ".boot_id"].contains(&&*name) {
                let _ = writeln!(text, "{directory}/{name}");
            }
        }
    }
    let links = ip("-o link show type veth");
    let rules = program::run(program::installed("nft").args(["list", "ruleset"]));
    let links = links.lines().filter(|line| !line.contains("uplink"));
    let rules = rules.lines().filter(|line| line.contains("id: ") || line.contains("dnat"));
    for line in links.chain(rules) {
        let _ = writeln!(text, "{line}");
    }
    text
}

fn assert_nothing_is_left(list: &str) {
    wait::until(&format!("nothing is left of the pod over {list}"), || {
        let remains = remains();
        if remains.is_empty() { Ok(()) } else { Err(remains) }
    });
}

fn use_list(name: &str, text: &str) {
    for (other, _) in LISTS {
        let _only_one_is_there = fs::remove_file(Path::new("/etc/cni/net.d").join(other));
    }
    fs::write(Path::new("/etc/cni/net.d").join(name), text).unwrap();
}

/// The address of the only pod of the network.
fn only_address() -> Option<String> {
    let entries = fs::read_dir("/var/lib/cni/networks/cbr0").into_iter().flatten().flatten();
    let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.find(|name| name.starts_with("10.1.2."))
}

/// `ctr` attaches without host ports, and detaches without saying where the pod was.
#[test]
fn ctr_runs_a_pod_and_leaves_no_trace_of_it() {
    sandboxed_as_root(|| {
        let _client = node();
        let _containerd = containerd::start(false);
        for (list, text) in LISTS {
            use_list(list, text);
            let run = ["run", "--rm", "--cni", "--rootfs", "/run/rootfs", "pod"];
            let mut command = ctr(&run);
            let mut pod = Daemon::start("ctr", command.args(SERVER));
            wait::until(&format!("the pod answers over {list}"), || {
                let text = only_address().and_then(|address| get(&format!("{address}:80")));
                if text.as_deref() == Some(GREETING) { Ok(()) } else { Err(pod.log()) }
            });
            program::run(&mut ctr(&["task", "kill", "--signal", "KILL", "pod"]));
            pod.wait();
            assert_nothing_is_left(list);
        }
    });
}

fn assert_asks_for_status(cri: &Cri) {
    fs::rename("/run/flannel/subnet.env", "/run/flannel/away").unwrap();
    wait::until("containerd tells what is missing", || match cri.ready() {
        Err(text) if text.contains("subnet.env") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    fs::rename("/run/flannel/away", "/run/flannel/subnet.env").unwrap();
    wait::until("containerd can run pods again", || cri.ready());
}

#[test]
fn containerd_runs_pods_for_kubelet_and_leaves_no_trace_of_them() {
    sandboxed_as_root(|| {
        let client = node();
        use_list(LISTS[0].0, LISTS[0].1);
        let _containerd = containerd::start(true);
        containerd::import_image();
        let cri = Cri::at(Path::new(SOCKET));
        for (list, text) in LISTS {
            use_list(list, text);
            wait::until(&format!("containerd can run pods over {list}"), || cri.ready());
            if containerd::asks_for_status() && text.contains("1.1.0") {
                assert_asks_for_status(&cri);
            }
            let metadata = PodSandboxMetadata {
                name: "pod".to_owned(),
                uid: "uid".to_owned(),
                namespace: "default".to_owned(),
            };
            let rate = ("kubernetes.io/ingress-bandwidth".to_owned(), "100M".to_owned());
            let pod = cri.run_pod(PodSandboxConfig {
                metadata: Some(metadata),
                hostname: "pod".to_owned(),
                log_directory: "/run/log".to_owned(),
                port_mappings: vec![PortMapping { container_port: 80, host_port: PORT.into() }],
                annotations: HashMap::from([rate]),
            });
            let pod = pod.unwrap_or_else(|error| panic!("over {list}: {error}"));
            let address = cri.address(&pod).unwrap();
            assert!(address.starts_with("10.1.2."), "{address}");
            assert_serves(&client, &address);
            let limits = program::run(program::installed("tc").args(["qdisc", "show"]));
            // Only the list of one plugin asks for them.
            assert_eq!(limits.contains("tbf"), text.contains("bandwidth"), "{limits}");
            cri.remove_pod(&pod).unwrap();
            assert_nothing_is_left(list);
        }
    });
}

#[test]
fn podman_runs_a_pod_and_leaves_no_trace_of_it() {
    sandboxed_as_root(|| {
        let client = node();
        let podman = Podman::new("/opt/cni/bin");
        let archive = ["-C", "/run/rootfs", "-cf", "/run/rootfs.tar", "."];
        program::run(program::installed("tar").args(archive));
        podman.run(&["import", "/run/rootfs.tar", "localhost/pod:test"]);
        for (list, text) in LISTS {
            use_list(list, text);
            let port = format!("{PORT}:80");
            let run = ["run", "--detach", "--name", "pod", "--network", "cbr0", "--publish", &port];
            podman.run(&[&run[..], &["localhost/pod:test"], &SERVER].concat());
            assert_serves(&client, &only_address().unwrap());
            podman.run(&["rm", "--force", "--time", "0", "pod"]);
            assert_nothing_is_left(list);
        }
    });
}
