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
        assert!(!one.reaches("10.1.2.3"));
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

/// Whether the kernel knows VLANs on bridges. `tests/other-kernel.sh` runs tests on one that does.
fn kernel_has_vlans() -> bool {
    sh("ip link add probe type bridge");
    let mut filter = Command::new("ip");
    filter.args(["link", "set", "probe", "type", "bridge", "vlan_filtering", "1"]);
    let has = filter.output().unwrap().status.success();
    sh("ip link del probe");
    has
}

/// What a kernel without VLANs says to an ADD that needs them.
fn assert_refused_and_undone(added: Result<Value, Value>) {
    let failure = added.unwrap_err();
    assert_eq!(failure["code"], 101);
    let text = failure["msg"].as_str().unwrap();
    assert!(text.contains("type bridge vlan_filtering 1"), "{text}");
    assert!(!Path::new("/sys/class/net/cni0.100").exists(), "{}", sh("ip -o link"));
    assert_eq!(remains(), "");
}

/// The VLANs of the host's end, as `bridge` prints them: `100 PVID Egress Untagged`.
fn vlans_of_port(result: &Value) -> Vec<String> {
    let veth = result["interfaces"][1]["name"].as_str().unwrap();
    let lines = sh(&format!("bridge vlan show dev {veth}"));
    let vlans = lines.lines().skip(1).map(|line| line.trim_start_matches(veth).trim().to_owned());
    vlans.filter(|vlan| !vlan.is_empty()).collect()
}

/// Where the kernel has no VLANs on bridges, that is told; everywhere else they work.
#[test]
fn vlans_are_kept_apart_or_refused_with_everything_undone() {
    sandboxed(|| {
        node();
        let [one, two, three] = ["one", "two", "three"].map(Container::new);
        let vlan = |vid: u16| stock_with(&[("vlan", json!(vid))]);
        if !kernel_has_vlans() {
            return assert_refused_and_undone(one.add(&vlan(100)));
        }
        let result = one.add(&vlan(100)).unwrap();
        assert_eq!(result["interfaces"][3]["name"], "cni0.100");
        assert_eq!(vlans_of_port(&result), ["100 PVID Egress Untagged"]);
        two.add(&vlan(100)).unwrap();
        one.ping("10.1.2.1");
        one.ping("10.1.2.3");
        one.check(&vlan(100), &result).unwrap();
        run("ADD", &three, &switch(&[("vlan", json!(200))])).unwrap();
        three.sh("ip address add 10.1.2.200/24 dev eth0");
        assert!(!three.reaches("10.1.2.2"));
        let veth = result["interfaces"][1]["name"].as_str().unwrap();
        sh(&format!("bridge vlan del dev {veth} vid 100"));
        let changed = one.check(&vlan(100), &result).unwrap_err();
        let expected = format!("bridge vlan add vid 100 dev {veth} pvid untagged\n");
        assert_eq!(changed["details"], expected);
        one.del(&vlan(100)).unwrap();
        two.ping("10.1.2.1");
        two.del(&vlan(100)).unwrap();
        run("DEL", &three, &switch(&[])).unwrap();
        // The gateway of the VLAN is for all its pods, as the bridge is, and stays like that.
        assert!(sh("ip -o link").contains("cni0.100@"));
    });
}

#[test]
fn trunks_carry_what_is_named_or_are_refused_with_everything_undone() {
    sandboxed(|| {
        let [trunk, tagged, one, kept] = ["trunk", "tagged", "one", "kept"].map(Container::new);
        let ids = json!([{"minID": 100, "maxID": 101}, {"id": 200}]);
        let conf = switch(&[("vlanTrunk", ids.clone())]);
        if !kernel_has_vlans() {
            return assert_refused_and_undone(run("ADD", &trunk, &conf));
        }
        let result = run("ADD", &trunk, &conf).unwrap();
        assert_eq!(vlans_of_port(&result), ["1 PVID Egress Untagged", "100", "101", "200"]);
        let conf = switch(&[("vlanTrunk", ids), ("vlan", json!(50))]);
        let result = run("ADD", &tagged, &conf).unwrap();
        assert_eq!(vlans_of_port(&result), ["50 PVID Egress Untagged", "100", "101", "200"]);
        let conf = switch(&[("vlan", json!(200)), ("preserveDefaultVlan", json!(true))]);
        let result = run("ADD", &kept, &conf).unwrap();
        assert_eq!(vlans_of_port(&result), ["1 Egress Untagged", "200 PVID Egress Untagged"]);

        // What the trunk sends with a tag arrives without it where that is the only VLAN.
        run("ADD", &one, &switch(&[("vlan", json!(100))])).unwrap();
        one.sh("ip address add 10.9.0.2/24 dev eth0");
        trunk.sh("ip link add link eth0 name eth0.100 type vlan id 100");
        trunk.sh("ip link set eth0.100 up");
        trunk.sh("ip address add 10.9.0.1/24 dev eth0.100");
        trunk.ping("10.9.0.2");
        tagged.sh("ip address add 10.9.0.3/24 dev eth0");
        assert!(!tagged.reaches("10.9.0.2"));
        for container in [&trunk, &tagged, &one, &kept] {
            run("DEL", container, &switch(&[])).unwrap();
        }
        assert_eq!(remains(), "");
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
        one.sh("ip link set eth0 address 02:00:00:00:00:77");
        assert!(!one.reaches("10.1.2.1"));
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
