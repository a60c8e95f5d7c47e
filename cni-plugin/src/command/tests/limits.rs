//! The plugin `bandwidth`, behind another plugin and inside of flannel.

use flannel_tests::sandbox::sandboxed;
use serde_json::{Value, json};

use super::*;
use crate::bandwidth;
use crate::invocation::Attachment;

const IFB: &str = "bwp";

fn run(plugin: Plugin, command: &str, id: &str, conf: &Value) -> Result<Value, Value> {
    call_plugin(plugin, "eth0", command, id, &format!("/run/netns/{id}"), conf)
}

/// As containerd sends them.
fn limits() -> Value {
    json!({"bandwidth": {
        "IngressRate": 8_000_000, "IngressBurst": 80_000,
        "EgressRate": 16_000_000, "EgressBurst": 80_000,
    }})
}

fn chained(previous: &Value) -> Value {
    let mut conf = json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "bandwidth",
                          "runtimeConfig": limits()});
    conf["prevResult"] = previous.clone();
    conf
}

fn flannel_with_limits() -> Value {
    let mut conf = stock();
    conf["runtimeConfig"] = limits();
    conf
}

fn shapers() -> String {
    let lines = sh("tc qdisc show");
    let shapers = lines.lines().filter(|line| line.contains("tbf") || line.contains("ingress"));
    shapers.map(|line| format!("{line}\n")).collect()
}

fn ifbs() -> usize {
    sh("ip -o link").lines().filter(|line| line.contains(IFB)).count()
}

#[test]
fn bandwidth_is_chained_behind_any_plugin() {
    sandboxed(|| {
        node();
        let one = Container::new("one");
        let attached = one.add(&stock()).unwrap();
        let conf = chained(&attached);
        let result = run(Plugin::Bandwidth, "ADD", "one", &conf).unwrap();
        assert_eq!(result["interfaces"].as_array().unwrap().len(), 4);
        let ifb = result["interfaces"][3]["name"].as_str().unwrap();
        assert!(sh(&format!("ip link show {ifb}")).contains("mtu 1450"));
        let shapers = shapers();
        for expected in ["rate 8Mbit burst 10000b lat 25ms", "rate 16Mbit burst 10000b lat 25ms"] {
            assert!(shapers.contains(expected), "{shapers}");
        }
        one.ping("10.1.2.1");

        let mut check = chained(&result);
        run(Plugin::Bandwidth, "CHECK", "one", &check).unwrap();
        one.check(&stock(), &result).unwrap();
        sh(&format!("tc qdisc del dev {ifb} root"));
        let gone = run(Plugin::Bandwidth, "CHECK", "one", &check).unwrap_err();
        let details = gone["details"].as_str().unwrap();
        let expected = format!("tc qdisc replace dev {ifb} root handle 1: tbf");
        assert!(gone["code"] == 102 && details.starts_with(&expected), "{gone}");
        check["runtimeConfig"] = json!({});
        run(Plugin::Bandwidth, "CHECK", "one", &check).unwrap();

        run(Plugin::Bandwidth, "DEL", "one", &conf).unwrap();
        run(Plugin::Bandwidth, "DEL", "one", &chained(&Value::Null)).unwrap();
        assert_eq!(ifbs(), 0);
        one.del(&stock()).unwrap();
        assert_eq!(remains(), "");
    });
}

#[test]
fn limits_inside_of_flannel_need_no_other_process() {
    sandboxed(|| {
        node();
        let conf = flannel_with_limits();
        let (one, two) = (Container::new("one"), Container::new("two"));
        let result = one.add(&conf).unwrap();
        let other = two.add(&conf).unwrap();
        assert_eq!(result["interfaces"].as_array().unwrap().len(), 4);
        one.ping(address(&other));
        one.check(&conf, &result).unwrap();
        let ifb = result["interfaces"][3]["name"].as_str().unwrap();
        sh(&format!("ip link set {ifb} down"));
        let down = one.check(&conf, &result).unwrap_err();
        assert_eq!(down["details"], format!("ip link set {ifb} up\n"));
        one.del(&stock()).unwrap();
        assert_eq!(ifbs(), 1);
        assert_eq!(shapers().lines().count(), 3);
        two.del(&conf).unwrap();
        assert_eq!((ifbs(), shapers()), (0, String::new()));
        assert_eq!(remains(), "");
    });
}

#[test]
fn two_interfaces_of_a_pod_are_limited_each_for_itself() {
    sandboxed(|| {
        node();
        let one = Container::new("one");
        let conf = flannel_with_limits();
        one.add(&conf).unwrap();
        call_for("net1", "ADD", "one", &one.netns, &conf).unwrap();
        assert_eq!(ifbs(), 2);
        one.del(&conf).unwrap();
        assert_eq!(ifbs(), 1);
        call_for("net1", "DEL", "one", &one.netns, &conf).unwrap();
        assert_eq!(ifbs(), 0);
    });
}

#[test]
fn shapers_of_pods_that_are_gone_are_collected() {
    sandboxed(|| {
        node();
        let conf = flannel_with_limits();
        for id in ["one", "two"] {
            Container::new(id).add(&conf).unwrap();
        }
        for plugin in [Plugin::Bandwidth, Plugin::Flannel] {
            let mut gc = conf.clone();
            run(plugin, "GC", "one", &gc).unwrap();
            assert_eq!(ifbs(), 2, "no list, no collection");
            let valid = ["one", "two"].map(|id| json!({"containerID": id, "ifname": "eth0"}));
            gc["cni.dev/valid-attachments"] = valid.to_vec().into();
            run(plugin, "GC", "one", &gc).unwrap();
            assert_eq!(ifbs(), 2);
        }
        let mut gc = conf.clone();
        gc["cni.dev/valid-attachments"] = json!([{"containerID": "two", "ifname": "eth0"}]);
        run(Plugin::Bandwidth, "GC", "one", &gc).unwrap();
        assert_eq!(ifbs(), 1);
        gc["cni.dev/valid-attachments"] = json!([]);
        run(Plugin::Flannel, "GC", "one", &gc).unwrap();
        assert_eq!((ifbs(), remains()), (0, String::new()));
    });
}

#[test]
fn what_cannot_be_limited_is_told() {
    sandboxed(|| {
        node();
        let one = Container::new("one");
        let attached = one.add(&stock()).unwrap();
        let add = |conf: &Value| run(Plugin::Bandwidth, "ADD", "one", conf).unwrap_err();
        let failure = add(&chained(&Value::Null));
        assert_eq!(code_and_text(&failure), (7, "must be called as chained plugin"));
        let mut old = chained(&attached);
        old["cniVersion"] = json!("0.2.0");
        assert_eq!(code_and_text(&add(&old)), (1, "incompatible CNI versions"));
        let table = [
            (json!([]), "no interfaces provided"),
            (json!([{"name": "cni0"}]), "no veth peer of container interface found in host ns"),
        ];
        for (interfaces, expected) in table {
            let mut conf = chained(&attached);
            conf["prevResult"]["interfaces"] = interfaces;
            conf["prevResult"]["ips"] = json!([]);
            assert_eq!(code_and_text(&add(&conf)), (7, expected));
        }
        let ifb = bandwidth::ifb(&Attachment::named("cbr0", "one", "eth0"));
        sh(&format!("ip link add {ifb} type veth peer name other"));
        let failure = add(&chained(&attached));
        let expected =
            format!("\"{ifb}\" already exists but is not for what comes from this attachment");
        assert_eq!(code_and_text(&failure), (103, expected.as_str()));
        sh(&format!("ip link show {ifb}"));
        one.sh("ip link del eth0");
        one.sh("ip link add eth0 type bridge");
        let failure = add(&chained(&attached));
        assert_eq!(code_and_text(&failure), (7, "container interface eth0 has no veth peer"));
    });
}
