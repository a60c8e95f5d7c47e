//! The plugins `firewall` and `tuning` behind the one that attached a pod.

use flannel_tests::namespace::Namespace;
use flannel_tests::sandbox::sandboxed;
use serde_json::{Value, json};

use super::*;

mod firewalld;

fn run(plugin: Plugin, command: &str, id: &str, conf: &Value) -> Result<Value, Value> {
    call_plugin(plugin, "eth0", command, id, &format!("/run/netns/{id}"), conf)
}

fn conf(plugin: Plugin, previous: &Value, more: Value) -> Value {
    let mut conf = json!({"cniVersion": "1.1.0", "name": "cbr0", "type": plugin.as_str()});
    conf["prevResult"] = previous.clone();
    for (key, value) in more.as_object().unwrap() {
        conf[key] = value.clone();
    }
    conf
}

fn filter_rules() -> String {
    sh("iptables-save -t filter")
}

/// Rules about a pod, not those that pods share.
fn rules_of_pods() -> usize {
    filter_rules().lines().filter(|line| line.contains("10.1.2.")).count()
}

/// A machine behind the node, at 198.51.100.2.
fn world(pod: &Container) {
    sh("ip link add out type veth peer name world");
    sh("ip netns add world");
    sh("ip link set world netns world");
    sh("ip address add 198.51.100.1/24 dev out");
    sh("ip link set out up");
    for command in [
        "ip -n world address add 198.51.100.2/24 dev world",
        "ip -n world link set world up",
        "ip -n world route add 10.1.0.0/16 via 198.51.100.1",
    ] {
        sh(command);
    }
    Namespace::existing("world").wait_until_operational("world");
    pod.sh("ip route replace default via 10.1.2.1");
}

#[test]
fn firewall_lets_pods_through_a_node_that_drops() {
    sandboxed(|| {
        node();
        let one = Container::new("one");
        let attached = one.add(&stock()).unwrap();
        sh("iptables -P FORWARD DROP");
        world(&one);
        assert!(!one.reaches("198.51.100.2"));

        let firewall = conf(Plugin::Firewall, &attached, json!({}));
        let result = run(Plugin::Firewall, "ADD", "one", &firewall).unwrap();
        assert_eq!(result, attached);
        one.ping("198.51.100.2");
        run(Plugin::Firewall, "CHECK", "one", &firewall).unwrap();
        let rules = filter_rules();
        for expected in [
            "-A FORWARD -m comment --comment \"CNI firewall plugin rules\" -j CNI-FORWARD\n",
            "-A CNI-FORWARD -m comment --comment \"CNI firewall plugin admin overrides\" -j CNI-ADMIN\n\
             -A CNI-FORWARD -d 10.1.2.2/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -A CNI-FORWARD -s 10.1.2.2/32 -j ACCEPT\n",
        ] {
            assert!(rules.contains(expected), "{rules}");
        }
        sh("iptables -D CNI-FORWARD -s 10.1.2.2/32 -j ACCEPT");
        let gone = run(Plugin::Firewall, "CHECK", "one", &firewall).unwrap_err();
        let details = "iptables -t filter -A CNI-FORWARD -s 10.1.2.2/32 -j ACCEPT\n";
        assert_eq!((&gone["code"], &gone["details"]), (&json!(102), &json!(details)));

        // Without the result, what was kept counts.
        let bare = conf(Plugin::Firewall, &Value::Null, json!({}));
        run(Plugin::Firewall, "DEL", "one", &bare).unwrap();
        assert_eq!(rules_of_pods(), 0);
        run(Plugin::Firewall, "DEL", "one", &bare).unwrap();
        assert_eq!(fs::read_dir("/var/lib/cni/firewall").unwrap().count(), 0);
        assert!(!one.reaches("198.51.100.2"));
    });
}

#[test]
fn firewall_keeps_bridges_from_each_other() {
    sandboxed(|| {
        node();
        let (one, two) = (Container::new("one"), Container::new("two"));
        let mut second = stock_with(&[("bridge", json!("cni1"))]);
        let file = SUBNET_FILE.replace("10.1.2.1/24", "10.1.3.1/24");
        fs::write("/run/second.env", file).unwrap();
        second["name"] = json!("cbr1");
        second["subnetFile"] = json!("/run/second.env");
        let results = [one.add(&stock()).unwrap(), two.add(&second).unwrap()];
        one.ping("10.1.3.2");
        for (id, result) in ["one", "two"].into_iter().zip(&results) {
            let same_bridge = json!({"ingressPolicy": "same-bridge"});
            let firewall = conf(Plugin::Firewall, result, same_bridge);
            run(Plugin::Firewall, "ADD", id, &firewall).unwrap();
            run(Plugin::Firewall, "CHECK", id, &firewall).unwrap();
        }
        assert!(!one.reaches("10.1.3.2"), "{}", filter_rules());
        one.ping("10.1.2.1");
    });
}

#[test]
fn rules_of_pods_that_are_gone_are_collected() {
    sandboxed(|| {
        node();
        let result = Container::new("one").add(&stock()).unwrap();
        let mut firewall = conf(Plugin::Firewall, &result, json!({}));
        run(Plugin::Firewall, "ADD", "one", &firewall).unwrap();
        run(Plugin::Firewall, "GC", "one", &firewall).unwrap();
        let listed = json!([{"containerID": "one", "ifname": "eth0"}]);
        firewall["cni.dev/valid-attachments"] = listed;
        run(Plugin::Firewall, "GC", "one", &firewall).unwrap();
        assert_eq!(rules_of_pods(), 2);
        firewall["name"] = json!("other");
        firewall["cni.dev/valid-attachments"] = json!([]);
        run(Plugin::Firewall, "GC", "one", &firewall).unwrap();
        assert_eq!(rules_of_pods(), 2, "of another network");
        firewall["name"] = json!("cbr0");
        run(Plugin::Firewall, "GC", "one", &firewall).unwrap();
        assert_eq!(rules_of_pods(), 0);
    });
}

#[test]
fn tuning_changes_and_restores() {
    sandboxed(|| {
        node();
        let one = Container::new("one");
        let attached = one.add(&stock()).unwrap();
        Namespace::existing("one").wait_until_operational("eth0");
        let before = one.sh("ip -o link show eth0");
        let changes = json!({
            "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.ip_default_ttl": "77"},
            "mtu": 1400, "promisc": true, "allmulti": true, "txQLen": 500,
            "runtimeConfig": {"Mac": "02:00:00:00:00:09"},
        });
        let tuning = conf(Plugin::Tuning, &attached, changes);
        let result = run(Plugin::Tuning, "ADD", "one", &tuning).unwrap();
        let mut expected = attached.clone();
        expected["interfaces"][2]["mac"] = json!("02:00:00:00:00:09");
        assert_eq!(result, expected);
        let changed = one.sh("ip -o link show eth0");
        for word in ["mtu 1400", "PROMISC", "ALLMULTI", "qlen 500", "02:00:00:00:00:09"] {
            assert!(changed.contains(word), "{changed}");
        }
        let parameter = |path: &str| one.sh(&format!("cat /proc/sys/net/{path}"));
        assert_eq!(parameter("ipv4/conf/eth0/arp_filter"), "1\n");
        assert_eq!(parameter("ipv4/ip_default_ttl"), "77\n");
        let file = "/run/cni/tuning/one_eth0.json";
        let kept: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        assert_eq!((&kept["mtu"], &kept["txQLen"]), (&json!(1450), &json!(1000)));

        run(Plugin::Tuning, "CHECK", "one", &tuning).unwrap();
        one.check(&stock(), &result).unwrap();
        one.sh("ip link set eth0 mtu 1399");
        let other = run(Plugin::Tuning, "CHECK", "one", &tuning).unwrap_err();
        assert_eq!(other["details"], "ip link set eth0 mtu 1400\n");

        let bare = conf(Plugin::Tuning, &Value::Null, json!({}));
        run(Plugin::Tuning, "DEL", "one", &bare).unwrap();
        let qdisc = |line: &str| line.replace("state UP", "");
        assert_eq!(qdisc(&one.sh("ip -o link show eth0")), qdisc(&before));
        run(Plugin::Tuning, "DEL", "one", &bare).unwrap();
        assert!(!std::path::Path::new(file).exists());

        // With the sandbox goes all that there is to restore.
        run(Plugin::Tuning, "ADD", "one", &tuning).unwrap();
        call_plugin(Plugin::Tuning, "eth0", "DEL", "one", "/run/netns/none", &bare).unwrap();
        assert!(!std::path::Path::new(file).exists());
    });
}

#[test]
fn tuning_is_collected_and_bounded() {
    sandboxed(|| {
        node();
        let one = Container::new("one");
        let attached = one.add(&stock()).unwrap();
        let add = |changes: Value| {
            run(Plugin::Tuning, "ADD", "one", &conf(Plugin::Tuning, &attached, changes))
        };
        add(json!({"mtu": 1400})).unwrap();
        let mut gc = conf(Plugin::Tuning, &Value::Null, json!({"cni.dev/valid-attachments": []}));
        gc["name"] = json!("other");
        run(Plugin::Tuning, "GC", "one", &gc).unwrap();
        assert_eq!(fs::read_dir("/run/cni/tuning").unwrap().count(), 1);
        gc["name"] = json!("cbr0");
        run(Plugin::Tuning, "GC", "one", &gc).unwrap();
        assert_eq!(fs::read_dir("/run/cni/tuning").unwrap().count(), 0);

        let failure = add(json!({"sysctl": {"kernel.hostname": "x"}})).unwrap_err();
        let expected = "invalid net sysctl key: \"kernel.hostname\"";
        assert_eq!(code_and_text(&failure), (7, expected));
        let failure = add(json!({"sysctl": {"net.core.none": "x"}})).unwrap_err();
        assert_eq!(failure["code"], 101, "{failure}");
        let failure = add(json!({"mtu": 65536})).unwrap_err();
        assert_eq!(failure["code"], 101, "{failure}");
        assert_eq!(fs::read_dir("/run/cni/tuning").unwrap().count(), 0);
        fs::create_dir_all("/etc/cni/tuning").unwrap();
        fs::write("/etc/cni/tuning/allowlist.conf", "ip_default_ttl$").unwrap();
        add(json!({"sysctl": {"net.ipv4.ip_default_ttl": "78"}})).unwrap();
        let failure = add(json!({"sysctl": {"net.ipv4.ip_forward": "1"}})).unwrap_err();
        assert_eq!(failure["code"], 7, "{failure}");
        let alone = conf(Plugin::Tuning, &Value::Null, json!({}));
        let failure = run(Plugin::Tuning, "ADD", "one", &alone).unwrap_err();
        assert_eq!(code_and_text(&failure), (7, "Required prevResult missing"));
    });
}
