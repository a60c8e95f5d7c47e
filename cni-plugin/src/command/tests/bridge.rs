//! What a bridge can be told beside the stock list.

use std::path::Path;

use flannel_tests::sandbox::sandboxed;
use serde_json::{Value, json};

use super::*;

/// A bridge that only switches, with `changes` made to it.
fn switch(changes: &[(&str, Value)]) -> Value {
    let mut conf = json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "bridge"});
    for (key, value) in changes {
        conf[*key] = value.clone();
    }
    conf
}

fn run(command: &str, container: &Container, conf: &Value) -> Result<Value, Value> {
    call_plugin(Plugin::Bridge, "eth0", command, &container.id, &container.netns, conf)
}

#[test]
fn isolated_pods_reach_the_node_and_not_each_other() {
    sandboxed(|| {
        node();
        let isolated = stock_with(&[("portIsolation", json!(true))]);
        let containers = ["one", "two", "three"].map(Container::new);
        let [one, two, three] = &containers;
        let result = one.add(&isolated).unwrap();
        two.add(&isolated).unwrap();
        three.add(&stock()).unwrap();
        one.ping("10.1.2.1");
        one.ping("10.1.2.4");
        let reaches = Command::new("ip")
            .args(["netns", "exec", "one", "ping", "-c", "1", "-W", "1", "10.1.2.3"])
            .output();
        assert!(!reaches.unwrap().status.success());
        one.check(&isolated, &result).unwrap();
        sh("bridge link set dev veth50419296 isolated off");
        let failure = one.check(&isolated, &result).unwrap_err();
        assert_eq!(failure["details"], "bridge link set dev veth50419296 isolated on\n");
    });
}

#[test]
fn a_bridge_takes_in_everything_if_wanted() {
    sandboxed(|| {
        let one = Container::new("one");
        let conf = switch(&[("promiscMode", json!(true))]);
        let result = run("ADD", &one, &conf).unwrap();
        assert!(sh("ip -d link show cni0").contains("promiscuity 1"));
        let mut check = conf.clone();
        check["prevResult"] = result;
        run("CHECK", &one, &check).unwrap();
        sh("ip link set cni0 promisc off");
        let failure = run("CHECK", &one, &check).unwrap_err();
        assert_eq!(failure["details"], "ip link set cni0 promisc on\n");
        run("DEL", &one, &conf).unwrap();
        assert_eq!(remains(), "");
    });
}

#[test]
fn an_interface_may_stay_down() {
    sandboxed(|| {
        let one = Container::new("one");
        let conf = switch(&[("disableContainerInterface", json!(true))]);
        let result = run("ADD", &one, &conf).unwrap();
        assert_eq!(result["interfaces"][2]["name"], "eth0");
        assert!(!one.sh("ip -o link show eth0").contains("UP"));
        run("DEL", &one, &conf).unwrap();
        assert_eq!(remains(), "");
    });
}

/// Where the kernel has no VLANs on bridges, that is told; everywhere else they work.
#[test]
fn vlans_are_kept_apart_or_refused_with_everything_undone() {
    sandboxed(|| {
        node();
        sh("ip link add probe type bridge");
        let filtering = Command::new("ip")
            .args(["link", "set", "probe", "type", "bridge", "vlan_filtering", "1"])
            .output();
        let is_supported = filtering.unwrap().status.success();
        sh("ip link del probe");
        let containers = ["one", "two", "three"].map(Container::new);
        let [one, two, three] = &containers;
        let vlan = |vid: u16| stock_with(&[("vlan", json!(vid))]);
        let added = one.add(&vlan(100));
        if !is_supported {
            let failure = added.unwrap_err();
            assert_eq!(failure["code"], 101);
            let text = failure["msg"].as_str().unwrap();
            assert!(text.contains("type bridge vlan_filtering 1"), "{text}");
            assert!(!Path::new("/sys/class/net/cni0.100").exists(), "{}", sh("ip -o link"));
            assert_eq!(remains(), "");
            return;
        }
        let result = added.unwrap();
        assert_eq!(result["interfaces"][3]["name"], "cni0.100");
        two.add(&vlan(100)).unwrap();
        one.ping("10.1.2.1");
        one.ping("10.1.2.3");
        one.check(&vlan(100), &result).unwrap();
        three.add(&switch(&[])).unwrap_err();
        run("ADD", three, &switch(&[("vlan", json!(200))])).unwrap();
        three.sh("ip address add 10.1.2.200/24 dev eth0");
        let reaches = Command::new("ip")
            .args(["netns", "exec", "three", "ping", "-c", "1", "-W", "1", "10.1.2.2"])
            .output();
        assert!(!reaches.unwrap().status.success());
        one.del(&vlan(100)).unwrap();
        two.ping("10.1.2.1");
    });
}

#[test]
fn a_duplicate_address_is_found_if_wanted() {
    sandboxed(|| {
        let v6 = "FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:2::1/64\n";
        write_subnet_file(&format!("{SUBNET_FILE}{v6}"));
        let (one, two) = (Container::new("one"), Container::new("two"));
        let conf = stock_with(&[("enabledad", json!(true))]);
        one.add(&conf).unwrap();
        let addresses = one.sh("ip -6 -o address show dev eth0 scope global");
        assert!(addresses.contains("fd00:0:0:2::2/64") && !addresses.contains("tentative"));
        assert!(!addresses.contains("nodad"), "{addresses}");
        // Somebody has taken the next address without asking.
        one.sh("ip -6 address add fd00:0:0:2::3/64 dev eth0 nodad");
        let failure = two.add(&conf).unwrap_err();
        let expected = "link eth0 has address fd00:0:0:2::3 in DADFAILED state";
        assert_eq!(code_and_text(&failure), (101, expected));
        two.del(&conf).unwrap();
    });
}

#[test]
fn a_pod_cannot_pretend_to_be_another() {
    sandboxed(|| {
        node();
        let conf = stock_with(&[("macspoofchk", json!(true))]);
        let (one, two) = (Container::new("one"), Container::new("two"));
        let result = one.add(&conf).unwrap();
        two.add(&conf).unwrap();
        one.ping("10.1.2.1");
        one.check(&conf, &result).unwrap();
        let reaches = || {
            let ping = ["netns", "exec", "one", "ping", "-c", "1", "-W", "1", "10.1.2.1"];
            Command::new("ip").args(ping).output().unwrap().status.success()
        };
        one.sh("ip link set eth0 address 02:00:00:00:00:77");
        assert!(!reaches());
        one.sh("ip link set eth0 address 0a:58:0a:01:02:02");
        one.ping("10.1.2.1");
        one.del(&conf).unwrap();
        let rules = sh("nft list table bridge nat");
        assert!(!rules.contains("-one-") && rules.contains("-two-"), "{rules}");
        // Only the rules are left of it.
        sh("ip netns exec two ip link del eth0");
        let mut gc = conf.clone();
        gc["cni.dev/valid-attachments"] = json!([]);
        call("GC", "", "", &gc).unwrap();
        let rules = sh("nft list table bridge nat");
        assert!(!rules.contains("cni-br-iface"), "{rules}");
        assert_eq!(remains(), "");
    });
}
