//! What takes a real Kubernetes: a node of kube-apiserver, kube-controller-manager and kubelet with
//! containerd, and flanneld with the rights, the tokens and the lists of the deployed manifest.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use flannel_tests::cluster::STOCK_NETWORK;
use flannel_tests::containerd::{self, GREETING, IMAGE, greeting};
use flannel_tests::daemon::Daemon;
use flannel_tests::kube_api::{KubeApi, PREFIX, real, tokens};
use flannel_tests::node::Node;
use flannel_tests::pod::Pod;
use flannel_tests::sandbox::{sandboxed, sandboxed_as_root};
use flannel_tests::traffic::{ping, wait_until_reached};
use flannel_tests::underlay::{GATEWAY, Underlay};
use flannel_tests::{program, wait, yaml};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};

const MANIFEST: &str = include_str!("../../config/kube-flannel.yml");
const CONFLIST: &str = "/etc/cni/net.d/10-flannel.conflist";
const PODS: &str = "/api/v1/namespaces/default/pods";
/// The token of the agents.
const TOKEN: &str = "/run/agent-token";
/// The port of the node that leads to the pod.
const PORT: u16 = 18080;

#[test]
fn a_node_becomes_ready_and_its_pod_is_reached_and_leaves_no_trace() {
    sandboxed_as_root(|| {
        make_room();
        let underlay = Underlay::create();
        let api = KubeApi::running(&underlay);
        let other = Node::create(&underlay, 2);
        api.add_node("n2", &[]);
        make_this_machine_node_1(&underlay);
        write_kubeconfig("/run/administrator", &api, "token: administrator");
        let _manager = controller_manager();
        let _containerd = containerd::start(true);
        containerd::import_image();
        let _kubelet = kubelet();
        wait_until_only_a_network_lacks(&api);

        let cni_conf = apply_manifest(&api);
        fs::write("/run/cni-conf.json", cni_conf).unwrap();
        prepare_agents(&api);
        let mut here = Command::new(program::flanneld());
        here.env_clear().env("PATH", program::search_path());
        let install = format!("--cni-conf-install={CONFLIST}");
        here.args([&install, "--cni-conf=/run/cni-conf.json"]);
        let _here = flanneld("n1", &mut here);
        let _there = flanneld("n2", &mut other.command(program::flanneld()));
        wait_until_ready(&api);
        wait::until_true("the other node has its subnet", || other.subnet_file().is_some());

        let address = run_web_server(&api);
        answers("the pod answers its node", format!("{address}:80"));
        answers("a port of the node leads to it", format!("{}:{PORT}", Underlay::address(1)));
        let peer = Pod::attach(&other, "peer");
        wait_until_reached(peer.namespace(), address);

        api.administer("DELETE", &format!("{PODS}/web?gracePeriodSeconds=0"), None);
        wait::until("nothing is left of it", || {
            let left = what_is_left();
            if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
        });
    });
}

fn wait_until_only_a_network_lacks(api: &KubeApi) {
    wait::until("the node has a subnet, and lacks a network", || {
        let node = api.node("n1").ok_or("there is no node")?;
        let ready = condition(&node, "Ready");
        let has_subnet = node["spec"]["podCIDR"].is_string();
        let says = ready["message"].as_str().unwrap_or_default();
        let lacks = says.contains("cni") && ready["status"] == "False";
        if has_subnet && lacks { Ok(()) } else { Err(node["status"].to_string()) }
    });
}

fn wait_until_ready(api: &KubeApi) {
    wait::until("the node is ready", || {
        let node = api.node("n1").unwrap_or_default();
        let is = |kind: &str| condition(&node, kind)["status"].clone();
        let states = (is("Ready"), is("NetworkUnavailable"));
        if states == (json!("True"), json!("False")) {
            return Ok(());
        }
        Err(format!("{states:?} {}", condition(&node, "Ready")))
    });
}

/// Returns the address of its pod.
fn run_web_server(api: &KubeApi) -> Ipv4Addr {
    api.administer("POST", PODS, Some(&web_server()));
    wait::until("the pod runs", || {
        let status = api.administer("GET", &format!("{PODS}/web"), None)["status"].clone();
        let address = status["podIP"].as_str().filter(|_| status["phase"] == "Running");
        address.and_then(|text| text.parse().ok()).ok_or_else(|| status.to_string())
    })
}

fn answers(what: &str, address: String) {
    let address: SocketAddr = address.parse().unwrap();
    wait::until(what, || match greeting(address) {
        Some(text) if text == GREETING => Ok(()),
        other => Err(format!("{address}: {other:?}")),
    });
}

/// The links, addresses and rules of pods.
fn what_is_left() -> Vec<String> {
    let links =
        program::run(program::installed("ip").args(["-o", "link", "show", "master", "cni0"]));
    let files = fs::read_dir("/var/lib/cni/networks/cbr0").unwrap().flatten();
    let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
    let addresses = names.filter(|name| name.starts_with("10.244."));
    let rules = program::run(program::installed("nft").args(["list", "ruleset"]));
    let port = PORT.to_string();
    let rules = rules.lines().filter(|rule| rule.contains(&port)).map(str::to_owned);
    links.lines().map(str::to_owned).chain(addresses).chain(rules).collect()
}

#[test]
fn a_token_that_expired_is_replaced_by_the_one_that_kubelet_writes() {
    sandboxed(|| {
        let underlay = Underlay::create();
        let api = KubeApi::running(&underlay);
        let nodes = [1, 2].map(|number| Node::create(&underlay, number));
        for node in &nodes {
            api.add_node(node.name(), &[&format!("10.244.{}.0/24", node.number())]);
        }
        apply_manifest(&api);
        prepare_agents(&api);
        let agents = nodes
            .each_ref()
            .map(|node| flanneld(node.name(), &mut node.command(program::flanneld())));
        wait::until_true("both nodes have their subnets", || {
            nodes.iter().all(|node| node.subnet_file().is_some())
        });
        let public_ip = || api.annotations("n1", PREFIX).contains_key("public-ip");
        wait::until_true("n1 says where it is", public_ip);
        let pods = nodes.each_ref().map(|node| Pod::attach(node, &format!("pod-{}", node.name())));
        let passes = || ping(pods[0].namespace(), pods[1].address());
        wait::until("packets pass", || passes().map_err(|error| error.to_string()));

        fs::write(TOKEN, tokens::expired(&agent_token(&api))).unwrap();
        api.annotate("n1", &format!("{PREFIX}public-ip"), None);
        wait::until("the agent is refused, and says why", || {
            let log = agents[0].log();
            let refused = log.contains("401 Unauthorized") && log.contains("is the token still");
            if refused { Ok(()) } else { Err(log) }
        });
        assert!(!public_ip());
        passes().unwrap();
        fs::write(TOKEN, agent_token(&api)).unwrap();
        wait::until_true("it says again where it is", public_ip);
    });
}

/// Makes room for what kubelet and containerd write.
fn make_room() {
    let none: Option<&str> = None;
    for directory in ["/opt", "/var/log"] {
        mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    }
    for directory in ["/opt/cni/bin", "/etc/cni/net.d", "/var/lib/kubelet", "/run/netns"] {
        fs::create_dir_all(directory).unwrap();
    }
    // Runtimes mount namespaces there, and `ip netns` would hide them.
    mount(Some("/run/netns"), "/run/netns", none, MsFlags::MS_BIND, none).unwrap();
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none).unwrap();
}

/// Joins the network of the sandbox itself to the underlay, and installs the plugin.
fn make_this_machine_node_1(underlay: &Underlay) {
    let ip = |arguments: &str| {
        program::run(program::installed("ip").args(arguments.split_whitespace()));
    };
    underlay.plug("n1", "eth0", "1");
    ip(&format!("address add {}/24 dev eth0", Underlay::address(1)));
    ip("link set eth0 up");
    ip(&format!("route add default via {GATEWAY}"));
    program::run(Command::new(program::flannel()).args(["install", "/opt/cni/bin"]));
    containerd::make_root_filesystem();
}

/// Writes what the agents find in the file systems of their pods.
fn prepare_agents(api: &KubeApi) {
    fs::write("/run/net-conf.json", STOCK_NETWORK).unwrap();
    fs::write(TOKEN, agent_token(api)).unwrap();
    write_kubeconfig("/run/agent", api, &format!("tokenFile: {TOKEN}"));
}

fn agent_token(api: &KubeApi) -> String {
    tokens::issue(api, "kube-flannel", "flannel")
}

fn write_kubeconfig(path: &str, api: &KubeApi, user: &str) {
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: '{}', certificate-authority: /run/kube-ca.pem}}}}]\n\
         users: [{{name: u, user: {{{user}}}}}]\n",
        api.real_url()
    );
    fs::write(path, text).unwrap();
}

fn kubernetes(name: &str) -> Command {
    let path = real::program(name).expect("KUBERNETES says where the programs are");
    program::installed(&path.to_string_lossy())
}

fn controller_manager() -> Daemon {
    let mut command = kubernetes("kube-controller-manager");
    command
        .args(["--kubeconfig=/run/administrator", "--leader-elect=false", "--port=0"])
        .args(["--allocate-node-cidrs=true", "--cluster-cidr=10.244.0.0/16"])
        .args(["--controllers=nodeipam,nodelifecycle", "--cert-dir=/run/manager"])
        .arg(format!("--service-account-private-key-file={}", real::SIGNING_KEY));
    Daemon::start("kube-controller-manager", &mut command)
}

fn kubelet() -> Daemon {
    let config = json!({
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "cgroupDriver": "cgroupfs",
        "failSwapOn": false,
        "enforceNodeAllocatable": [],
        "cgroupsPerQOS": false,
        "oomScoreAdj": 0,
        "evictionHard": { "nodefs.available": "1%", "imagefs.available": "1%" },
    });
    fs::write("/run/kubelet.json", config.to_string()).unwrap();
    let mut command = kubernetes("kubelet");
    command
        .args(["--kubeconfig=/run/administrator", "--config=/run/kubelet.json"])
        .args(["--hostname-override=n1", "--root-dir=/run/kubelet", "--cert-dir=/run/kubelet/pki"])
        .args(["--container-runtime=remote", &format!("--node-ip={}", Underlay::address(1))])
        .arg(format!("--container-runtime-endpoint=unix://{}", containerd::SOCKET));
    Daemon::start("kubelet", &mut command)
}

fn flanneld(node: &str, command: &mut Command) -> Daemon {
    command
        .args(["--kube-subnet-mgr", "--kubeconfig-file=/run/agent", "--ip-masq"])
        .arg("--net-config-path=/run/net-conf.json")
        .env("NODE_NAME", node);
    Daemon::start(&format!("flanneld-{node}"), command)
}

/// Creates everything in the manifest, and returns its list of plugins.
fn apply_manifest(api: &KubeApi) -> String {
    let manifest = yaml::parse(MANIFEST);
    for object in &manifest {
        let kind = object["kind"].as_str().unwrap().to_lowercase();
        let version = object["apiVersion"].as_str().unwrap();
        let root = if version == "v1" { "/api".to_owned() } else { "/apis".to_owned() };
        let namespace = object["metadata"]["namespace"].as_str();
        let namespace = namespace.map(|name| format!("/namespaces/{name}")).unwrap_or_default();
        let path = format!("{root}/{version}{namespace}/{kind}s");
        api.administer("POST", &path, Some(object));
    }
    let config = manifest.iter().find(|object| object["kind"] == "ConfigMap").unwrap();
    config["data"]["cni-conf.json"].as_str().unwrap().to_owned()
}

fn web_server() -> Value {
    json!({
        "metadata": { "name": "web" },
        "spec": {
            "nodeName": "n1",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "web", "image": IMAGE, "imagePullPolicy": "Never",
                "command": containerd::SERVER,
                "ports": [{ "containerPort": 80, "hostPort": PORT }],
            }],
        },
    })
}

fn condition(node: &Value, kind: &str) -> Value {
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    let mut found = conditions.filter(|condition| condition["type"] == kind);
    found.next().cloned().unwrap_or_default()
}
