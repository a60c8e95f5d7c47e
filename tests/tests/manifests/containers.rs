//! The pod of a DaemonSet in containers, as kubelet has it run: what is in them is the image, and
//! around them is what the manifest says. Containers need root, so this does too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use flannel_tests::cluster::{Cluster, Store};
use flannel_tests::daemon::Daemon;
use flannel_tests::kube_api::rules::rules_of;
use flannel_tests::node::Node;
use flannel_tests::pod::{self, Pod};
use flannel_tests::podman::Podman;
use flannel_tests::sandbox::sandboxed_as_root;
use flannel_tests::traffic::wait_until_reached;
use flannel_tests::{program, wait};
use serde_json::{Value, json};

use super::{attach, config, object, pod_spec, texts, variables, write_config, yaml};

#[test]
fn the_image_serves_flannels_manifest_and_ours() {
    sandboxed_as_root(|| {
        let podman = Podman::new("/run");
        podman.load(&program::image());
        let flannels = yaml::parse(include_str!("flannel.yml"));
        let manifests =
            [with_install_conf(&flannels), flannels, yaml::parse(&config("kube-flannel.yml"))];
        let cluster = Cluster::new(3, Store::Kube);
        cluster.store().kube().allow_only(rules_of(&manifests[0]));
        let nodes = cluster.nodes().iter().zip(&manifests);
        let daemons: Vec<_> =
            nodes.map(|(node, manifest)| start(&podman, &cluster, node, manifest)).collect();
        let pods: Vec<Pod> = cluster
            .nodes()
            .iter()
            .zip(&daemons)
            .map(|(node, daemon)| {
                wait::until(&format!("pods can be started on {}", node.name()), || {
                    let list = node.read("/etc/cni/net.d/10-flannel.conflist");
                    node.subnet_file().and(list).map(|_| ()).ok_or_else(|| daemon.log())
                });
                assert_plugin_is_installed(node);
                attach(&cluster, node.number())
            })
            .collect();
        for (from, to) in pod::pairs(&pods) {
            wait_until_reached(from.namespace(), to.address());
        }
    });
}

/// The manifest with the program that flannel's image has for what it used `cp` for.
fn with_install_conf(manifest: &[Value]) -> Vec<Value> {
    let mut manifest = manifest.to_vec();
    let set = manifest.iter_mut().find(|object| object["kind"] == "DaemonSet").unwrap();
    let container = &mut set["spec"]["template"]["spec"]["initContainers"][1];
    container["command"] = json!(["/opt/bin/install-conf"]);
    container["args"].as_array_mut().unwrap().remove(0);
    manifest
}

/// Starts the pod on a node: its init containers one after the other, and then the container.
fn start(podman: &Podman, cluster: &Cluster, node: &Node, manifest: &[Value]) -> Daemon {
    write_config(node, manifest);
    let spec = pod_spec(manifest);
    for container in spec["initContainers"].as_array().unwrap() {
        let mut command = command(podman, node, spec, container);
        program::run(command.args(texts(&container["args"])));
    }
    let api = cluster.store().kube();
    let container = &spec["containers"][0];
    let name = object(manifest, "DaemonSet")["metadata"]["name"].as_str().unwrap();
    api.add_pod("kube-flannel", &format!("{name}-{}", node.number()), node.name());
    let mut command = command(podman, node, spec, container);
    command.args(texts(&container["args"])).arg(format!("--kube-api-url={}", api.url()));
    Daemon::start(&format!("container-{}", node.name()), &mut command)
}

/// The command that runs a container, without its arguments.
fn command(podman: &Podman, node: &Node, pod: &Value, container: &Value) -> Command {
    assert_eq!(pod["hostNetwork"], true);
    let mut command = podman.command(&["run", "--rm"]);
    command.arg(format!("--network=ns:{}", node.namespace().path().display()));
    command.arg(format!("--entrypoint={}", container["command"]));
    for (name, value) in variables(node, container) {
        command.arg(format!("--env={name}={value}"));
    }
    let security = &container["securityContext"];
    if security["readOnlyRootFilesystem"] == true {
        command.args(["--read-only", "--read-only-tmpfs=false"]);
    }
    if security["allowPrivilegeEscalation"] == false {
        command.arg("--security-opt=no-new-privileges");
    }
    for (list, option) in [("drop", "--cap-drop"), ("add", "--cap-add")] {
        for capability in texts(&security["capabilities"][list]) {
            command.arg(format!("{option}={capability}"));
        }
    }
    for mount in container["volumeMounts"].as_array().unwrap() {
        let volumes = pod["volumes"].as_array().unwrap();
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).unwrap();
        let (from, to) = (on_node(node, volume), mount["mountPath"].as_str().unwrap());
        let mode = if mount["readOnly"] == true { ":ro" } else { "" };
        command.arg(format!("--volume={}:{to}{mode}", from.display()));
    }
    command.arg(container["image"].as_str().unwrap());
    command
}

/// Where the sandbox has a volume of a node; what is not there yet is made.
fn on_node(node: &Node, volume: &Value) -> PathBuf {
    let Some(path) = volume["hostPath"]["path"].as_str() else {
        assert_eq!(volume["configMap"]["name"], "kube-flannel-cfg");
        return node.directory("/etc/kube-flannel");
    };
    let path = Path::new("/run/nodes").join(node.name()).join(path.trim_start_matches('/'));
    if volume["hostPath"]["type"] == "FileOrCreate" {
        fs::write(&path, "").unwrap();
    } else {
        fs::create_dir_all(&path).unwrap();
    }
    path
}

/// What an init container has put there runs.
fn assert_plugin_is_installed(node: &Node) {
    let plugin = Path::new("/run/nodes").join(node.name()).join("opt/cni/bin/flannel");
    let answer = program::run(Command::new(&plugin).env("CNI_COMMAND", "VERSION"));
    assert!(answer.contains("supportedVersions"), "{answer}");
}
