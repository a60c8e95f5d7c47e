//! Everything for Kubernetes against what Kubernetes takes, and against what the programs take.

use std::process::Command;

use flannel_tests::cluster::{Cluster, Store};
use flannel_tests::program;
use flannel_tests::sandbox::sandboxed;
use serde_json::{Value, json};

use super::{chart, config, network_config, object, pod_spec, schema, texts, yaml};

/// A change of the values of the chart, and what it is.
type Change = (&'static str, fn(&mut Value));

/// Each of them turns something on, off or over in the templates.
const CHANGES: [Change; 12] = [
    ("as it is", |_| {}),
    ("dual stack", |values| values["podCidrv6"] = json!("fd00:10:244::/48")),
    ("IPv6 alone", |values| {
        values["podCidr"] = json!("");
        values["podCidrv6"] = json!("fd00:10:244::/48");
    }),
    ("vxlan with every option", |values| {
        let options = json!({
            "backendPort": 4789, "mtu": 1400, "vni": 7, "GBP": true, "learning": true,
            "directRouting": true, "macPrefix": "0E-2A", "enableNFTables": true,
        });
        set(values, options);
    }),
    ("host-gw", |values| set(values, json!({ "backend": "host-gw" }))),
    ("udp", |values| set(values, json!({ "backend": "udp", "backendPort": 8300 }))),
    ("no probes", |values| values["flannel"]["healthz"]["port"] = json!(0)),
    ("another port for probes", |values| values["flannel"]["healthz"]["port"] = json!(9090)),
    ("somebody else's CNI configuration", |values| {
        set(values, json!({ "skipCNIConfigInstallation": true }));
    }),
    ("other places and images", |values| {
        let changes = json!({
            "cniBinDir": "/usr/lib/cni", "cniConfDir": "/etc/cni", "cniPlugins": ["flannel", "bridge"],
            "image": { "repository": "example.org/a", "tag": "1", "pullPolicy": "Always" },
            "flannel_cni": { "image": { "repository": "example.org/b", "tag": "2" } },
        });
        set(values, changes);
        values["global"]["imagePullSecrets"] = json!([{ "name": "registry" }]);
    }),
    ("another pod", |values| {
        let changes = json!({
            "args": ["--ip-masq", "--kube-subnet-mgr", "--iface=eth0", "-v=2"],
            "env": [{ "name": "FLANNELD_PUBLIC_IP", "value": "198.51.100.1" }],
            "resources": { "limits": { "memory": "64Mi", "cpu": "1" } },
            "nodeSelector": { "kubernetes.io/arch": "amd64" },
            "tolerations": [{ "key": "a", "value": "b", "effect": "NoSchedule" }],
            "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": "10%" } },
        });
        set(values, changes);
    }),
    ("wireguard, which flanneld does not serve yet", |values| {
        let changes = json!({
            "backend": "wireguard", "backendPort": 51820, "backendPortv6": 51821, "psk": "x",
            "tunnelMode": "separate", "keepaliveInterval": 25,
        });
        set(values, changes);
    }),
];

fn set(values: &mut Value, changes: Value) {
    let Value::Object(changes) = changes else { panic!("{changes} is no object") };
    values["flannel"].as_object_mut().unwrap().extend(changes);
}

#[test]
fn kubernetes_takes_the_manifest_and_the_chart_with_any_values() {
    assert_valid("kube-flannel.yml", &yaml::parse(&config("kube-flannel.yml")));
    assert_valid("flannel's manifest", &yaml::parse(include_str!("flannel.yml")));
    for (what, change) in CHANGES {
        assert_valid(&format!("the chart, {what}"), &chart::render(change));
    }
}

fn assert_valid(what: &str, objects: &[Value]) {
    for object in objects {
        assert_eq!(schema::problems(object), [""; 0], "{what}: {object:#}");
    }
    let pod = pod_spec(objects);
    let names = |list: &Value| -> Vec<String> {
        let items = list.as_array().into_iter().flatten();
        items.map(|item| item["name"].as_str().unwrap().to_owned()).collect()
    };
    let volumes = names(&pod["volumes"]);
    let containers = [&pod["initContainers"], &pod["containers"]];
    let containers: Vec<_> = containers.into_iter().flat_map(|c| c.as_array().unwrap()).collect();
    let mounted: Vec<_> = containers.iter().flat_map(|c| names(&c["volumeMounts"])).collect();
    assert!(mounted.iter().all(|name| volumes.contains(name)), "{what}: {mounted:?}");
    assert!(volumes.iter().all(|name| mounted.contains(name)), "{what}: {volumes:?}");
}

#[test]
#[should_panic(expected = "network policies take a program of their own")]
fn the_chart_refuses_what_it_does_not_install() {
    chart::render(|values| values["netpol"]["enabled"] = json!(true));
}

#[test]
fn what_kubernetes_does_not_take_is_found() {
    let wrong = |change: fn(&mut Value)| {
        let mut set = object(&yaml::parse(&config("kube-flannel.yml")), "DaemonSet").clone();
        change(&mut set["spec"]["template"]["spec"]);
        schema::problems(&set)
    };
    let pod = "DaemonSet.spec.template.spec";
    let misspelt = wrong(|pod| pod["hostnetwork"] = json!(true));
    assert_eq!(misspelt, [format!("{pod} has no field hostnetwork")]);
    let text = wrong(|pod| pod["hostNetwork"] = json!("yes"));
    assert_eq!(text, [format!("{pod}.hostNetwork: \"yes\" is no \"boolean\"")]);
    let nameless = wrong(|pod| pod["containers"][0]["env"][0] = json!({ "value": "x" }));
    assert_eq!(nameless, [format!("{pod}.containers[0].env[0] lacks \"name\"")]);
    assert_eq!(schema::problems(&json!({ "kind": "Demonset" })), ["there is no kind \"Demonset\""]);
}

#[test]
fn flanneld_takes_what_the_chart_makes_of_its_values() {
    for (what, change) in CHANGES {
        let objects = chart::render(change);
        let container = &pod_spec(&objects)["containers"][0];
        // The version is only told when everything before it was understood.
        let mut command = Command::new(program::flanneld());
        program::run(command.args(texts(&container["args"])).arg("--version"));
        let args = texts(&container["args"]);
        let port = args.iter().find_map(|arg| arg.strip_prefix("--healthz-port="));
        let port = port.map(|port| port.parse::<u64>().unwrap());
        assert_eq!(container["ports"][0]["containerPort"].as_u64(), port, "{what}");
        for probe in ["livenessProbe", "readinessProbe"] {
            assert_eq!(container[probe]["httpGet"]["port"].as_u64(), port, "{what}");
        }
        for variable in container["env"].as_array().unwrap() {
            let name = variable["name"].as_str().unwrap();
            let known = ["NODE_NAME", "POD_NAME", "POD_NAMESPACE"].contains(&name);
            assert!(known || name.starts_with("FLANNELD_"), "{what}: {name}");
        }
    }
}

#[test]
fn flanneld_runs_with_every_network_that_the_chart_makes() {
    sandboxed(|| {
        let mut cluster = Cluster::unconfigured(1, Store::Directory);
        for (what, change) in CHANGES {
            let network = network_config(&chart::render(change));
            if network["Backend"]["Type"] == "wireguard" {
                continue;
            }
            eprintln!("{what}: {network}");
            cluster.store().configure(&network.to_string());
            cluster.start(1);
            cluster.wait_until_ready(1);
            cluster.stop(1);
        }
    });
}
