//! What is in `config` for Kubernetes and systemd, against the real programs.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use flannel_tests::cluster::{Cluster, Store};
use flannel_tests::daemon::Daemon;
use flannel_tests::kube_api::rules::rules_of;
use flannel_tests::node::Node;
use flannel_tests::pod::{self, Pod};
use flannel_tests::sandbox::sandboxed;
use flannel_tests::traffic::{http_get, ping};
use flannel_tests::{program, wait, yaml};
use serde_json::{Value, json};

mod chart;
mod containers;
mod schema;
mod validity;

fn config(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config").join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn object<'a>(manifest: &'a [Value], kind: &str) -> &'a Value {
    manifest.iter().find(|object| object["kind"] == kind).unwrap()
}

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items.map(|item| item.as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_manifest_runs_as_it_stands() {
    sandboxed(|| every_node_runs(&yaml::parse(&config("kube-flannel.yml"))));
}

#[test]
fn the_chart_runs_with_its_own_values() {
    sandboxed(|| every_node_runs(&chart::render(|_| {})));
}

#[test]
fn the_chart_says_what_its_values_say() {
    let network = |change: fn(&mut Value)| network_config(&chart::render(change));
    let stock = json!({
        "Network": "10.244.0.0/16", "EnableNFTables": false, "Backend": { "Type": "vxlan" },
    });
    assert_eq!(network(|_| {}), stock);
    let options = network(|values| {
        values["podCidr"] = json!("");
        values["podCidrv6"] = json!("fd00:10:244::/48");
        let flannel = &mut values["flannel"];
        flannel["mtu"] = json!(1400);
        flannel["vni"] = json!(7);
        flannel["backendPort"] = json!(4789);
        flannel["directRouting"] = json!(true);
    });
    let expected = json!({
        "EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:10:244::/48",
        "EnableNFTables": false,
        "Backend": {
            "Type": "vxlan", "MTU": 1400, "VNI": 7, "Port": 4789, "DirectRouting": true,
        },
    });
    assert_eq!(options, expected);
    // A text stays a text: without quotes the configuration would be no JSON.
    let wireguard = network(|values| {
        let flannel = &mut values["flannel"];
        flannel["backend"] = json!("wireguard");
        flannel["tunnelMode"] = json!("separate");
        flannel["backendPort"] = json!(51820);
    });
    let backend = json!({ "Type": "wireguard", "Mode": "separate", "ListenPort": 51820 });
    assert_eq!(wireguard["Backend"], backend);
}

#[test]
fn nothing_that_is_deployed_needs_a_shell() {
    for manifest in [yaml::parse(&config("kube-flannel.yml")), chart::render(|_| {})] {
        let pod = pod_spec(&manifest);
        let containers = ["initContainers", "containers"].map(|kind| pod[kind].as_array().unwrap());
        for container in containers.into_iter().flatten() {
            let words = [&container["command"], &container["args"]].map(texts).concat();
            let is_shell =
                |word: &String| ["sh", "bash", "-c"].contains(&word.rsplit('/').next().unwrap());
            assert!(!words.iter().any(is_shell), "{words:?}");
        }
        // The backend whose options are commands for one.
        assert_ne!(network_config(&manifest)["Backend"]["Type"], "extension");
    }
}

#[test]
fn the_chart_leaves_out_what_is_not_wanted() {
    let manifest = chart::render(|values| {
        values["flannel"]["skipCNIConfigInstallation"] = json!(true);
        values["flannel"]["healthz"]["port"] = json!(0);
        values["flannel"]["cniPlugins"] = json!(["flannel", "loopback"]);
        values["flannel"]["updateStrategy"] = json!({ "type": "OnDelete" });
    });
    let spec = &object(&manifest, "DaemonSet")["spec"];
    assert_eq!(spec["updateStrategy"], json!({ "type": "OnDelete" }));
    let pod = &spec["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(texts(&container["args"]), ["--ip-masq", "--kube-subnet-mgr"]);
    assert!(container["readinessProbe"].is_null() && container["ports"].is_null());
    assert_eq!(texts(&pod["initContainers"][0]["command"])[4], "flannel,loopback");
    let volumes = pod["volumes"].as_array().unwrap();
    assert!(volumes.iter().all(|volume| volume["name"] != "cni"), "{volumes:?}");
}

#[test]
fn the_chart_and_the_manifest_ask_for_the_same() {
    let (chart, manifest) = (chart::render(|_| {}), yaml::parse(&config("kube-flannel.yml")));
    assert_eq!(rules_of(&chart), rules_of(&manifest));
    let container = |objects: &[Value]| {
        object(objects, "DaemonSet")["spec"]["template"]["spec"]["containers"][0].clone()
    };
    assert_eq!(container(&chart)["securityContext"], container(&manifest)["securityContext"]);
    assert_eq!(texts(&container(&chart)["args"]), texts(&container(&manifest)["args"]));
}

#[test]
fn the_base_for_overlays_names_what_is_there() {
    let base = &yaml::parse(&config("kustomization.yaml"))[0];
    assert_eq!(texts(&base["resources"]), ["kube-flannel.yml"]);
    let mut fields: Vec<_> = base.as_object().unwrap().keys().collect();
    fields.sort_unstable();
    assert_eq!(fields, ["apiVersion", "images", "kind", "resources"]);
    let image = base["images"][0]["name"].as_str().unwrap();
    assert!(config("kube-flannel.yml").contains(&format!("image: {image}:")));
}

#[test]
fn the_unit_starts_flanneld_with_flags_that_it_has() {
    let unit = config("flanneld.service");
    let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let flags = command.strip_prefix("/usr/local/bin/flanneld ").unwrap().split(' ');
    // The version is only told when everything before it was understood.
    program::run(Command::new(program::flanneld()).args(flags).arg("--version"));
    for line in ["Type=notify", "FileDescriptorStoreMax=32", "Restart=always"] {
        assert!(unit.lines().any(|other| other == line), "{line}");
    }
}

/// Does for two nodes what Kubernetes does with the manifest: the configuration and the variables of
/// the environment come from it, and so do permissions, arguments and probes.
fn every_node_runs(manifest: &[Value]) {
    let cluster = Cluster::new(2, Store::Kube);
    let api = cluster.store().kube();
    api.allow_only(rules_of(manifest));
    let daemons: Vec<_> = [1, 2].map(|number| start(&cluster, number, manifest)).into();
    let pods: Vec<_> = [1, 2].map(|number| attach(&cluster, number)).into();
    for (from, to) in pod::pairs(&pods) {
        ping(from.namespace(), to.address()).unwrap();
    }
    drop(daemons);
}

fn start(cluster: &Cluster, number: u8, manifest: &[Value]) -> Daemon {
    let spec = pod_spec(manifest);
    let node = cluster.node(number);
    write_config(node, manifest);
    for container in spec["initContainers"].as_array().unwrap() {
        run_init_container(cluster, number, container);
    }
    let container = &spec["containers"][0];
    assert_eq!(texts(&container["command"]), ["/opt/bin/flanneld"]);
    let mut command = in_container(cluster, number);
    let url = cluster.store().kube().url();
    command.args(texts(&container["args"])).arg(format!("--kube-api-url={url}"));
    command.envs(variables(node, container));
    assert_eq!(node.read("/etc/cni/net.d/10-flannel.conflist"), None);
    let daemon = Daemon::start(&format!("flanneld-{}", node.name()), &mut command);
    for probe in ["readinessProbe", "livenessProbe"] {
        let get = &container[probe]["httpGet"];
        let port = u16::try_from(get["port"].as_u64().unwrap()).unwrap();
        let path = get["path"].as_str().unwrap().to_owned();
        wait::until(&format!("{probe} of {}", node.name()), || {
            match http_get(node.namespace(), (node.address(), port).into(), &path) {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?}; {}", daemon.log())),
            }
        });
    }
    wait::until_true("the runtime is told", || {
        node.read("/etc/cni/net.d/10-flannel.conflist").is_some()
    });
    daemon
}

fn pod_spec(manifest: &[Value]) -> &Value {
    &object(manifest, "DaemonSet")["spec"]["template"]["spec"]
}

/// The network configuration of the ConfigMap.
fn network_config(manifest: &[Value]) -> Value {
    let text = object(manifest, "ConfigMap")["data"]["net-conf.json"].as_str().unwrap();
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e} in {text}"))
}

/// Puts the files of the ConfigMap on a node.
fn write_config(node: &Node, manifest: &[Value]) {
    for (file, content) in object(manifest, "ConfigMap")["data"].as_object().unwrap() {
        let path = node.directory("/etc/kube-flannel").join(file);
        fs::write(path, content.as_str().unwrap()).unwrap();
    }
}

/// The variables of the environment of a container, in the pod that a node has of the DaemonSet.
fn variables(node: &Node, container: &Value) -> BTreeMap<String, String> {
    let pod = format!("kube-flannel-ds-{}", node.number());
    let fields = BTreeMap::from([
        ("spec.nodeName", node.name()),
        ("metadata.name", &pod),
        ("metadata.namespace", "kube-flannel"),
    ]);
    let variable = |variable: &Value| {
        let field = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
        let value = field.map_or_else(|| variable["value"].as_str().unwrap(), |f| fields[f]);
        (variable["name"].as_str().unwrap().to_owned(), value.to_owned())
    };
    container["env"].as_array().into_iter().flatten().map(variable).collect()
}

/// What the runtime does to a container without privileges: its kernel parameters can only be read.
fn in_container(cluster: &Cluster, number: u8) -> Command {
    const READ_ONLY: &str = "mount --bind /proc/sys /proc/sys && \
        mount -o remount,bind,ro /proc/sys && exec \"$0\" \"$@\"";
    let mut command = cluster.node(number).installed("sh");
    command.args(["-c", READ_ONLY]).arg(program::flanneld());
    command
}

/// Runs what a container runs, with the directory of the host that it mounts.
fn run_init_container(cluster: &Cluster, number: u8, container: &Value) {
    let command = texts(&container["command"]);
    assert_eq!(command[..3], ["/opt/bin/flannel", "install", "/opt/cni/bin"]);
    assert_eq!(container["volumeMounts"][0]["mountPath"], "/opt/cni/bin");
    let directory = format!("/run/cni-bin-{number}");
    fs::create_dir(&directory).unwrap();
    let mut install = cluster.node(number).command(program::flannel());
    program::run(install.arg("install").arg(&directory).args(&command[3..]));
    assert!(Path::new(&directory).join("flannel").is_file());
}

/// Attaches a pod with the configuration that the runtime finds.
fn attach(cluster: &Cluster, number: u8) -> Pod {
    let node = cluster.node(number);
    let list = node.read("/etc/cni/net.d/10-flannel.conflist").unwrap();
    let list: Value = serde_json::from_str(&list).unwrap();
    let mut configuration = list["plugins"][0].clone();
    configuration["name"] = list["name"].clone();
    configuration["cniVersion"] = list["cniVersion"].clone();
    Pod::try_attach(node, &format!("p{number}"), &configuration).unwrap()
}
