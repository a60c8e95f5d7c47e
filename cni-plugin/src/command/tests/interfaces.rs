//! The plugins that make an interface without a bridge: `ptp` and `macvlan`.

use flannel_tests::namespace::Namespace;
use flannel_tests::sandbox::sandboxed;
use serde_json::{Value, json};

use super::*;

fn run(plugin: Plugin, command: &str, id: &str, conf: &Value) -> Result<Value, Value> {
    call_plugin(plugin, "eth0", command, id, &format!("/run/netns/{id}"), conf)
}

fn check(plugin: Plugin, id: &str, conf: &Value, result: &Value) -> Result<Value, Value> {
    let mut conf = conf.clone();
    conf["prevResult"] = result.clone();
    run(plugin, "CHECK", id, &conf)
}

fn conf(plugin: Plugin, more: Value) -> Value {
    let mut conf = json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": plugin.as_str(),
        "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}],
                 "ranges": [[{"subnet": "10.7.0.0/24"}], [{"subnet": "fd07::/64"}]]},
    });
    for (key, value) in more.as_object().unwrap() {
        conf[key] = value.clone();
    }
    conf
}

fn reserved() -> usize {
    let directory = fs::read_dir("/var/lib/cni/networks/cbr0").unwrap();
    let names = directory.map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_str().unwrap().parse::<std::net::IpAddr>().is_ok()).count()
}

#[test]
fn ptp_connects_pods_without_a_bridge() {
    sandboxed(|| {
        let conf = conf(Plugin::Ptp, json!({"ipMasq": true, "mtu": 1400}));
        let (one, two) = (Container::new("one"), Container::new("two"));
        let result = run(Plugin::Ptp, "ADD", "one", &conf).unwrap();
        let names: Vec<_> =
            (0..2).map(|n| result["interfaces"][n]["name"].as_str().unwrap()).collect();
        assert!(names[0].starts_with("veth") && names[1] == "eth0", "{result}");
        assert_eq!(
            result["ips"],
            json!([{"interface": 1, "address": "10.7.0.2/24", "gateway": "10.7.0.1"},
                   {"interface": 1, "address": "fd07::2/64", "gateway": "fd07::1"}])
        );
        run(Plugin::Ptp, "ADD", "two", &conf).unwrap();
        one.ping("10.7.0.1");
        one.ping("10.7.0.3");
        two.ping("fd07::2");
        assert_eq!(sh("ip -o link").matches("veth").count(), 2);
        assert!(!sh("ip -o link").contains("bridge"));
        let routes = one.sh("ip route");
        let expected = "default via 10.7.0.1 dev eth0 proto 199 \n\
                        10.7.0.0/24 via 10.7.0.1 dev eth0 proto 199 src 10.7.0.2 \n\
                        10.7.0.1 dev eth0 proto 199 scope link src 10.7.0.2 \n";
        assert_eq!(routes, expected);
        assert_eq!(rules().lines().count(), 4);

        check(Plugin::Ptp, "one", &conf, &result).unwrap();
        sh("ip route del 10.7.0.2/32");
        let gone = check(Plugin::Ptp, "one", &conf, &result).unwrap_err();
        let details = format!("ip route add 10.7.0.2/32 dev {} proto 199\n", names[0]);
        assert_eq!(gone["details"], details);

        run(Plugin::Ptp, "DEL", "one", &conf).unwrap();
        sh("ip netns del two");
        call_plugin(Plugin::Ptp, "eth0", "DEL", "two", "", &conf).unwrap();
        call_plugin(Plugin::Ptp, "eth0", "DEL", "two", "", &conf).unwrap();
        assert_eq!((reserved(), rules()), (0, String::new()));
        assert!(!sh("ip -o link").contains("veth"));
    });
}

#[test]
fn a_ptp_that_fails_leaves_nothing() {
    sandboxed(|| {
        let one = Container::new("one");
        let add = |conf: &Value| run(Plugin::Ptp, "ADD", "one", conf).unwrap_err();
        let without_gateway =
            json!({"ipam": {"type": "static", "addresses": [{"address": "10.7.0.2/24"}]}});
        let failure = add(&conf(Plugin::Ptp, without_gateway));
        assert_eq!(code_and_text(&failure), (7, "the address 10.7.0.2/24 has no gateway"));
        let failure = add(&conf(Plugin::Ptp, json!({"ipam": {}})));
        assert_eq!(code_and_text(&failure), (7, "no plugin name provided"));
        // A gateway that the kernel takes for no unicast address.
        let mut broken = conf(Plugin::Ptp, json!({}));
        broken["ipam"]["routes"] = json!([{"dst": "10.9.0.0/16", "gw": "10.99.0.1"}]);
        let failure = add(&broken);
        assert_eq!(failure["code"], 101, "{failure}");
        assert_eq!(reserved(), 0);
        assert!(!sh("ip -o link").contains("veth"));
        assert!(!one.sh("ip -o link").contains("eth0"));
        run(Plugin::Ptp, "STATUS", "one", &conf(Plugin::Ptp, json!({}))).unwrap();
    });
}

/// A link for others to be on, with a neighbour behind it.
fn parent() {
    sh("ip link add up0 type veth peer name world");
    sh("ip netns add world");
    sh("ip link set world netns world");
    sh("ip link set up0 up");
    sh("ip -n world address add 10.7.0.1/24 dev world");
    sh("ip -n world link set world up");
    Namespace::existing("world").wait_until_operational("world");
}

#[test]
fn macvlan_puts_pods_on_a_link_of_the_node() {
    sandboxed(|| {
        parent();
        let with_master = conf(Plugin::Macvlan, json!({"master": "up0", "mtu": 1400}));
        let (one, two) = (Container::new("one"), Container::new("two"));
        let result = run(Plugin::Macvlan, "ADD", "one", &with_master).unwrap();
        run(Plugin::Macvlan, "ADD", "two", &with_master).unwrap();
        let mac = result["interfaces"][0]["mac"].as_str().unwrap();
        assert!(one.sh("ip -d link show eth0").contains("macvlan mode bridge"));
        assert!(one.sh("ip link show eth0").contains(mac));
        assert_eq!(result["ips"][0]["interface"], 0);
        one.ping("10.7.0.1");
        one.ping("10.7.0.3");
        assert!(!sh("ip -o link").contains("eth0"), "nothing of it is on the node");

        check(Plugin::Macvlan, "one", &with_master, &result).unwrap();
        let other_mode = conf(Plugin::Macvlan, json!({"master": "up0", "mode": "vepa"}));
        let difference = check(Plugin::Macvlan, "one", &other_mode, &result).unwrap_err();
        assert_eq!(difference["code"], 102, "{difference}");
        one.sh("ip address del 10.7.0.2/24 dev eth0");
        let difference = check(Plugin::Macvlan, "one", &with_master, &result).unwrap_err();
        let details = difference["details"].as_str().unwrap();
        assert!(details.contains("ip address replace 10.7.0.2/24 dev eth0"), "{details}");

        run(Plugin::Macvlan, "DEL", "one", &with_master).unwrap();
        assert!(!one.sh("ip -o link").contains("eth0"));
        call_plugin(Plugin::Macvlan, "eth0", "DEL", "two", "", &with_master).unwrap();
        two.sh("ip link show eth0");
        assert_eq!(reserved(), 0);
    });
}

#[test]
fn macvlan_finds_its_link_by_the_default_route_or_in_the_sandbox() {
    sandboxed(|| {
        parent();
        let one = Container::new("one");
        let bare = json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "macvlan",
                          "runtimeConfig": {"Mac": "02:00:00:00:00:09"}});
        let failure = run(Plugin::Macvlan, "ADD", "one", &bare).unwrap_err();
        assert_eq!(code_and_text(&failure), (7, "no default route interface found"));
        let failure = run(Plugin::Macvlan, "STATUS", "one", &bare).unwrap_err();
        assert_eq!(failure["code"], 7);
        sh("ip address add 10.7.0.200/24 dev up0");
        sh("ip route add default via 10.7.0.1");
        run(Plugin::Macvlan, "STATUS", "one", &bare).unwrap();
        let result = run(Plugin::Macvlan, "ADD", "one", &bare).unwrap();
        assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:09");
        assert!(one.sh("ip link show eth0").contains("UP"));
        check(Plugin::Macvlan, "one", &bare, &result).unwrap();

        let mut inner = bare.clone();
        inner["linkInContainer"] = json!(true);
        inner["master"] = json!("eth0");
        inner["mode"] = json!("private");
        inner["runtimeConfig"] = json!({});
        let call = |command: &str| {
            call_plugin(Plugin::Macvlan, "net1", command, "one", &one.netns, &inner)
        };
        // The kernel puts it on the link that eth0 is on.
        call("ADD").unwrap();
        assert!(one.sh("ip -d link show net1").contains("macvlan mode private"));
        call("DEL").unwrap();
        let mut too_large = bare.clone();
        too_large["mtu"] = json!(9000);
        let failure = call_plugin(Plugin::Macvlan, "net1", "ADD", "one", &one.netns, &too_large);
        let expected = "invalid MTU 9000, must be [0, master MTU(1500)]";
        assert_eq!(code_and_text(&failure.unwrap_err()), (7, expected));
        let mut old = bare.clone();
        old["cniVersion"] = json!("0.2.0");
        let failure = call_plugin(Plugin::Macvlan, "net1", "ADD", "one", &one.netns, &old);
        assert_eq!(failure.unwrap_err()["code"], 999);
    });
}
