//! What ADD makes, and when it refuses to.

use std::fs;
use std::path::Path;
use std::thread;

use flannel_tests::sandbox::sandboxed;
use flannel_tests::wait;
use serde_json::{Value, json};

use super::*;

#[test]
fn a_pod_is_attached_and_detached() {
    sandboxed(|| {
        node();
        let (one, two) = (Container::new("one"), Container::new("two"));
        let result = one.add(&stock()).unwrap();
        let mac = |link: &str| {
            let links: Value =
                serde_json::from_str(&sh(&format!("ip -j link show {link}"))).unwrap();
            links[0]["address"].clone()
        };
        let expected = json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "cni0", "mac": "0a:58:0a:01:02:01"},
                {"name": "veth50419296", "mac": mac("veth50419296")},
                {"name": "eth0", "mac": "0a:58:0a:01:02:02", "sandbox": "/run/netns/one"},
            ],
            "ips": [{"interface": 2, "address": "10.1.2.2/24", "gateway": "10.1.2.1"}],
            "routes": [{"dst": "10.1.0.0/16"}, {"dst": "0.0.0.0/0", "gw": "10.1.2.1"}],
        });
        assert_eq!(result, expected);
        assert_eq!(mac("cni0"), "0a:58:0a:01:02:01");
        let state = fs::read_to_string("/var/lib/cni/flannel/one").unwrap();
        let state: Value = serde_json::from_str(&state).unwrap();
        assert_eq!(state["ipam"]["ranges"], json!([[{"subnet": "10.1.2.0/24"}]]));

        two.add(&stock()).unwrap();
        one.ping("10.1.2.1");
        one.ping("10.1.2.3");
        two.ping("10.1.2.2");
        assert!(sh("bridge -d link show dev veth50419296").contains("hairpin on"));
        let expected = "10.1.0.0/16 via 10.1.2.1 dev eth0 proto 199 \n\
                            10.1.2.0/24 dev eth0 proto kernel scope link src 10.1.2.2 \n";
        let routes = one.sh("ip route");
        assert!(routes.starts_with("default via 10.1.2.1 dev eth0 proto 199"), "{routes}");
        assert!(routes.ends_with(expected), "{routes}");
        assert_eq!(fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(), "1\n");

        one.check(&stock(), &result).unwrap();
        one.del(&stock()).unwrap();
        assert!(!one.sh("ip -o link").contains("eth0"));
        one.del(&stock()).unwrap();
        two.del(&stock()).unwrap();
        assert_eq!(remains(), "");
        assert!(sh("ip -o address show cni0").contains("10.1.2.1/24"), "the bridge is shared");
    });
}

#[test]
fn only_a_pod_with_ipv6_addresses_speaks_ipv6() {
    sandboxed(|| {
        node();
        let one = Container::new("one");
        one.add(&stock()).unwrap();
        assert_eq!(one.sh("ip -6 address show dev eth0"), "");
        let link: Value = serde_json::from_str(&one.sh("ip -s -j link show eth0")).unwrap();
        assert_eq!(link[0]["stats64"]["tx"]["packets"], 0, "each port would get a copy");
        assert_eq!(one.sh("sysctl -n net.ipv4.conf.eth0.arp_notify"), "1\n");

        let ipv6 = "FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00::1/64\n";
        write_subnet_file(&format!("{SUBNET_FILE}{ipv6}"));
        let two = Container::new("two");
        two.add(&stock()).unwrap();
        let addresses = two.sh("ip -6 address show dev eth0");
        assert!(addresses.contains("inet6 fd00::2/64"), "{addresses}");
        assert!(addresses.contains("inet6 fe80::"), "{addresses}");
        two.ping("fd00::1");
        for port in sh("ip -o link show master cni0").lines() {
            let port = port.split([':', '@']).nth(1).unwrap().trim();
            assert_eq!(sh(&format!("ip -6 address show dev {port}")), "", "{port} is a port");
        }
    });
}

#[test]
fn a_nodes_first_pod_with_ipv6_is_reached_at_once() {
    sandboxed(|| {
        node();
        let ipv6 = "FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00::1/64\n";
        write_subnet_file(&format!("{SUBNET_FILE}{ipv6}"));
        let one = Container::new("one");
        one.add(&stock()).unwrap();
        // Neighbours are asked for from it. The kernel takes a moment to find that it may be used.
        wait::until("the bridge has a link-local address that is not tentative", || {
            let addresses = sh("ip -6 address show dev cni0");
            let is_usable = addresses.contains("inet6 fe80::") && !addresses.contains("tentative");
            if is_usable { Ok(()) } else { Err(addresses) }
        });
        // A neighbour solicitation (RFC 4861, section 4.3) would have had to wait for an answer.
        let counters = fs::read_to_string("/proc/net/dev_snmp6/cni0").unwrap();
        assert!(!counters.contains("Icmp6OutType135"), "nobody else can have it: {counters}");
    });
}

#[test]
fn an_address_that_comes_back_is_reachable_at_once() {
    sandboxed(|| {
        write_subnet_file(&SUBNET_FILE.replace("10.1.2.1/24", "10.1.2.1/30"));
        for id in ["one", "two"] {
            let container = Container::new(id);
            assert_eq!(address(&container.add(&stock()).unwrap()), "10.1.2.2");
            sh("ping -c 1 -W 1 10.1.2.2");
            container.del(&stock()).unwrap();
        }
    });
}

#[test]
fn an_attachment_is_not_made_twice_and_the_first_stays() {
    sandboxed(|| {
        node();
        let one = Container::new("one");
        let result = one.add(&stock()).unwrap();
        let before = remains();
        let again = one.add(&stock()).unwrap_err();
        assert_eq!(
            code_and_text(&again),
            (103, "interface \"eth0\" already exists in the sandbox")
        );
        sh("ip netns add elsewhere");
        let elsewhere = call("ADD", "one", "/run/netns/elsewhere", &stock()).unwrap_err();
        let expected = "failed to allocate for range 0: 10.1.2.2 has been allocated to one, \
                            duplicate allocation is not allowed";
        assert_eq!(code_and_text(&elsewhere), (103, expected));
        assert_eq!(remains(), before);
        one.check(&stock(), &result).unwrap();
        one.ping("10.1.2.1");
    });
}

#[test]
fn an_interface_that_is_there_is_not_touched() {
    sandboxed(|| {
        node();
        let one = Container::new("one");
        one.sh("ip link add eth0 type bridge");
        one.add(&stock()).unwrap_err();
        assert!(!Path::new("/sys/class/net/cni0").exists());
        one.del(&stock()).unwrap();
        assert!(one.sh("ip -o link show eth0").contains("eth0"));
        assert_eq!(remains(), "");
    });
}

#[test]
fn a_wrong_namespace_is_told_before_anything_is_touched() {
    sandboxed(|| {
        node();
        sh("ip link add eth0 type veth peer name eth1");
        fs::write("/run/file", "").unwrap();
        let own = "plugin's netns and netns from CNI_NETNS should not be the same";
        let table = [
            ("/proc/self/ns/net", own),
            ("/run/none", "failed to open netns \"/run/none\""),
            ("/run/file", "failed to open netns \"/run/file\": /run/file is not"),
        ];
        for (netns, expected) in table {
            let mut conf = stock();
            conf["prevResult"] = json!({});
            for command in ["ADD", "CHECK"] {
                let failure = call(command, "one", netns, &conf).unwrap_err();
                let (code, text) = code_and_text(&failure);
                assert_eq!(code, 8, "{text}");
                assert!(text.starts_with(expected), "{text}");
            }
        }
        let failure = call("DEL", "one", "/proc/self/ns/net", &stock()).unwrap_err();
        assert_eq!(code_and_text(&failure), (8, own));
        for gone in ["", "/run/none", "/run/file"] {
            call("DEL", "one", gone, &stock()).unwrap();
        }
        sh("ip link show eth0");
        assert!(!Path::new("/var/lib/cni").exists());
    });
}

#[test]
fn without_a_subnet_there_is_no_attachment_yet() {
    sandboxed(|| {
        let one = Container::new("one");
        let failure = one.add(&stock()).unwrap_err();
        let (code, text) = code_and_text(&failure);
        assert_eq!(code, 11);
        let start = "failed to load flannel 'subnet.env' file: open /run/flannel/subnet.env: ";
        assert!(text.starts_with(start), "{text}");
        assert!(text.ends_with(". Check the flannel pod log for this node."), "{text}");
        assert_eq!(call("STATUS", "", "", &stock()).unwrap_err()["code"], 50);
        write_subnet_file(SUBNET_FILE);
        assert_eq!(call("STATUS", "", "", &stock()), Ok(Value::Null));
        write_subnet_file(&SUBNET_FILE.replace("FLANNEL_MTU", "MTU"));
        let failure = one.add(&stock()).unwrap_err();
        assert_eq!(failure["code"], 11);
        assert!(failure["msg"].as_str().unwrap().contains("is missing FLANNEL_MTU"), "{failure}");
        assert_eq!(remains(), "");
    });
}

#[test]
fn what_is_not_supported_is_refused_before_anything_is_touched() {
    sandboxed(|| {
        node();
        let one = Container::new("one");
        let mut conf = stock();
        conf["ipam"] = json!({"routes": [{"dst": "10.0.0.0/8", "scope": 254}]});
        let failure = one.add(&conf).unwrap_err();
        let expected = "unsupported field: ipam.routes[0].scope is 254";
        assert_eq!(code_and_text(&failure), (2, expected));
        assert!(!Path::new("/var/lib/cni").exists());
        assert!(!Path::new("/sys/class/net/cni0").exists());
    });
}

#[test]
fn a_full_subnet_is_told() {
    sandboxed(|| {
        write_subnet_file(&SUBNET_FILE.replace("10.1.2.1/24", "10.1.2.1/30"));
        let (one, two) = (Container::new("one"), Container::new("two"));
        one.add(&stock()).unwrap();
        let before = remains();
        let failure = two.add(&stock()).unwrap_err();
        let expected = "failed to allocate for range 0: \
                        no IP addresses available in range set: 10.1.2.1-10.1.2.2";
        assert_eq!(code_and_text(&failure), (100, expected));
        assert_eq!(remains(), before);
        one.del(&stock()).unwrap();
        two.add(&stock()).unwrap();
    });
}

#[test]
fn a_bridge_in_another_subnet_is_moved_unless_it_has_a_pod_there() {
    sandboxed(|| {
        let other = |subnet: &str| SUBNET_FILE.replace("10.1.2.1/24", subnet);
        let addresses = || sh("ip -o -4 address show cni0");
        node();
        sh("ip link add cni0 address 02:00:00:00:00:01 type bridge");
        sh("ip link set cni0 mtu 1400");
        sh("ip address add 10.9.9.1/24 dev cni0");
        let (one, two, three) =
            (Container::new("one"), Container::new("two"), Container::new("three"));
        one.add(&stock()).unwrap();
        assert!(addresses().contains("10.1.2.1/24") && !addresses().contains("10.9.9.1"));
        let link = sh("ip -o link show cni0");
        assert!(link.contains("02:00:00:00:00:01") && link.contains("mtu 1400"), "{link}");
        one.ping("10.1.2.1");

        write_subnet_file(&other("10.1.3.1/24"));
        let before = remains();
        let failure = two.add(&stock()).unwrap_err();
        let expected = "\"cni0\" already has an IP address different from 10.1.3.1/24: 10.1.2.1/24";
        assert_eq!(code_and_text(&failure), (103, expected));
        assert_eq!(remains(), before);
        let second = two.add(&stock_with(&[("forceAddress", json!(true))])).unwrap();
        assert!(!addresses().contains("10.1.2.1"), "{}", addresses());
        one.del(&stock()).unwrap();

        // Only pods of the new subnet are left, so the address of an old one is of no use.
        sh("ip address add 10.1.2.1/24 dev cni0");
        sh("ip address del 10.1.3.1/24 dev cni0");
        three.add(&stock()).unwrap();
        assert!(addresses().contains("10.1.3.1/24") && !addresses().contains("10.1.2.1"));
        three.ping(address(&second));

        // A port that is not ours may be anybody.
        sh("ip link add foreign type veth peer name peer0");
        sh("ip link set foreign master cni0");
        write_subnet_file(&other("10.1.4.1/24"));
        assert_eq!(Container::new("four").add(&stock()).unwrap_err()["code"], 103);
    });
}

#[test]
fn the_node_forgets_who_had_the_address_before() {
    sandboxed(|| {
        node();
        Container::new("zero").add(&stock()).unwrap();
        sh("ip neigh replace 10.1.2.3 lladdr 02:00:00:00:00:01 dev cni0 nud reachable");
        let one = Container::new("one");
        assert_eq!(address(&one.add(&stock()).unwrap()), "10.1.2.3");
        sh("ping -c 1 -W 1 10.1.2.3");
    });
}

#[test]
fn something_else_with_the_name_of_the_bridge_is_left_alone() {
    sandboxed(|| {
        node();
        sh("ip link add cni0 type veth peer name other");
        let one = Container::new("one");
        let failure = one.add(&stock()).unwrap_err();
        assert_eq!(code_and_text(&failure), (103, "\"cni0\" already exists but is not a bridge"));
        sh("ip link show other");
        one.add(&stock_with(&[("bridge", json!("pods"))])).unwrap();
        one.ping("10.1.2.1");
    });
}

#[test]
fn what_others_put_on_the_bridge_and_into_the_sandbox_stays() {
    sandboxed(|| {
        node();
        let (one, two) = (Container::new("one"), Container::new("two"));
        one.add(&stock()).unwrap();
        sh("ip address add 10.9.9.1/24 dev cni0");
        sh("ip route add 10.8.0.0/16 dev cni0");
        two.sh("ip address add 10.7.7.7/32 dev lo");
        two.add(&stock()).unwrap();
        assert!(sh("ip -o address show cni0").contains("10.9.9.1/24"));
        assert!(sh("ip route").contains("10.8.0.0/16 dev cni0"));
        assert!(two.sh("ip -o address show lo").contains("10.7.7.7/32"));
    });
}

#[test]
fn both_families_are_attached() {
    sandboxed(|| {
        let v6 = "FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:2::1/64\n";
        write_subnet_file(&format!("{SUBNET_FILE}{v6}"));
        let (one, two) = (Container::new("one"), Container::new("two"));
        let result = one.add(&stock()).unwrap();
        two.add(&stock()).unwrap();
        assert_eq!(result["ips"][1]["address"], "fd00:0:0:2::2/64");
        one.ping("fd00:0:0:2::1");
        one.ping("fd00:0:0:2::3");
        one.ping("10.1.2.3");
        one.check(&stock(), &result).unwrap();
        one.del(&stock()).unwrap();
        two.del(&stock()).unwrap();
        let left = fs::read_dir("/var/lib/cni/networks/cbr0").unwrap();
        let left = left.filter(|entry| entry.as_ref().unwrap().file_name().len() > 4);
        assert_eq!(left.count(), 3, "only the hints");
    });
}

#[test]
fn many_are_attached_at_once() {
    const COUNT: usize = 24;
    sandboxed(|| {
        node();
        let containers: Vec<_> =
            (0..COUNT).map(|index| Container::new(&format!("c{index}"))).collect();
        let each = |work: fn(&Container) -> Result<Value, Value>| -> Vec<Value> {
            thread::scope(|scope| {
                let running: Vec<_> =
                    containers.iter().map(|one| scope.spawn(move || work(one))).collect();
                running.into_iter().map(|one| one.join().unwrap().unwrap()).collect()
            })
        };
        let results = each(|one| one.add(&stock()));
        let mut addresses: Vec<_> = results.iter().map(address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), COUNT);
        containers[0].ping(address(&results[COUNT - 1]));
        for (container, result) in containers.iter().zip(&results) {
            container.check(&stock(), result).unwrap();
        }
        each(|one| one.del(&stock()));
        assert_eq!(remains(), "");
    });
}

#[test]
fn results_have_the_version_that_was_asked_for() {
    sandboxed(|| {
        node();
        for version in ["", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let container = Container::new(&format!("v{version}"));
            let mut conf = stock();
            conf["cniVersion"] = json!(version);
            let result = container.add(&conf).unwrap();
            let expected = if version.is_empty() { "0.1.0" } else { version };
            assert_eq!(result["cniVersion"], expected);
            let old = matches!(expected, "0.1.0" | "0.2.0");
            let ip = if old { &result["ip4"]["ip"] } else { &result["ips"][0]["address"] };
            assert!(ip.as_str().unwrap().starts_with("10.1.2."), "{result}");
            container.del(&conf).unwrap();
        }
    });
}

#[test]
fn a_second_network_leaves_the_routes_of_the_first() {
    sandboxed(|| {
        node();
        let one = Container::new("one");
        let result = one.add(&stock()).unwrap();
        let file =
            SUBNET_FILE.replace("10.1.2.1/24", "10.5.2.1/24").replace("10.1.0.0", "10.5.0.0");
        fs::write("/run/second.env", file).unwrap();
        let mut second = stock_with(&[("bridge", json!("cni1"))]);
        second["name"] = json!("cbr1");
        second["subnetFile"] = json!("/run/second.env");
        call_for("net1", "ADD", "one", &one.netns, &second).unwrap();
        one.ping("10.5.2.1");
        let routes = one.sh("ip route");
        assert!(routes.starts_with("default via 10.1.2.1 dev eth0"), "{routes}");
        assert!(routes.contains("10.5.0.0/16 via 10.5.2.1 dev net1"), "{routes}");
        one.check(&stock(), &result).unwrap();
        one.del(&stock()).unwrap();
        one.ping("10.5.2.1");
        call_for("net1", "DEL", "one", &one.netns, &second).unwrap();
        assert_eq!(remains(), "");
        assert!(!one.sh("ip -o link").contains("net1"));
    });
}
