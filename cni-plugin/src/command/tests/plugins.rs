//! The plugins that a list can name beside flannel, each as a process of its own would be.

use std::fs;

use flannel_tests::sandbox::sandboxed;
use serde_json::{Value, json};

use super::*;

fn run(plugin: Plugin, command: &str, id: &str, conf: &Value) -> Result<Value, Value> {
    call_plugin(plugin, "eth0", command, id, &format!("/run/netns/{id}"), conf)
}

fn bridge_conf() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": "cbr0",
        "type": "bridge",
        "bridge": "br0",
        "isGateway": true,
        "ipam": {"type": "host-local", "subnet": "10.7.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]},
    })
}

#[test]
fn bridge_needs_no_flannel() {
    sandboxed(|| {
        let (one, two) = (Container::new("one"), Container::new("two"));
        let result = run(Plugin::Bridge, "ADD", "one", &bridge_conf()).unwrap();
        assert_eq!(result["interfaces"][0]["name"], "br0");
        assert_eq!(
            result["ips"],
            json!([{"interface": 2, "address": "10.7.0.2/24", "gateway": "10.7.0.1"}])
        );
        assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0"}]));
        run(Plugin::Bridge, "ADD", "two", &bridge_conf()).unwrap();
        one.ping("10.7.0.3");
        two.ping("10.7.0.1");
        let mut check = bridge_conf();
        check["prevResult"] = result;
        run(Plugin::Bridge, "CHECK", "one", &check).unwrap();
        let again = run(Plugin::Bridge, "ADD", "one", &bridge_conf()).unwrap_err();
        assert_eq!(again["code"], 103);
        for id in ["one", "two", "one"] {
            run(Plugin::Bridge, "DEL", id, &bridge_conf()).unwrap();
        }
        assert_eq!(remains(), "");
        assert!(!fs::exists("/var/lib/cni/flannel").unwrap());
    });
}

#[test]
fn bridge_without_addresses_only_switches() {
    sandboxed(|| {
        let (one, two) = (Container::new("one"), Container::new("two"));
        let conf = json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "bridge"});
        let result = run(Plugin::Bridge, "ADD", "one", &conf).unwrap();
        run(Plugin::Bridge, "ADD", "two", &conf).unwrap();
        assert_eq!(result.get("ips"), None);
        for (index, (link, text)) in
            [("cni0", sh("ip -o link show cni0")), ("eth0", one.sh("ip -o link show eth0"))]
                .into_iter()
                .zip([0, 2])
                .map(|(link, index)| (index, link))
        {
            let mac = result["interfaces"][index]["mac"].as_str().unwrap();
            assert!(text.contains(mac), "{link}: {text} should have {mac}");
        }
        one.sh("ip address add 10.7.0.2/24 dev eth0");
        two.sh("ip address add 10.7.0.3/24 dev eth0");
        one.ping("10.7.0.3");
        let mut check = conf.clone();
        check["prevResult"] = result;
        run(Plugin::Bridge, "CHECK", "one", &check).unwrap();
        let mut old = conf.clone();
        old["cniVersion"] = json!("0.2.0");
        Container::new("old");
        let error = run(Plugin::Bridge, "ADD", "old", &old).unwrap_err();
        assert_eq!(code_and_text(&error), (999, "cannot convert: no valid IP addresses"));
        for id in ["one", "two", "old"] {
            run(Plugin::Bridge, "DEL", id, &conf).unwrap();
        }
        assert_eq!(remains(), "");
    });
}

#[test]
fn addresses_of_both_kinds_can_be_asked_for() {
    sandboxed(|| {
        let one = Container::new("one");
        let mut conf = bridge_conf();
        conf["args"] = json!({"cni": {"ips": ["10.7.0.77"]}});
        conf["runtimeConfig"] = json!({"mac": "02:00:00:00:00:77"});
        let result = run(Plugin::Bridge, "ADD", "one", &conf).unwrap();
        assert_eq!(address(&result), "10.7.0.77");
        assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:00:77");
        assert!(one.sh("ip -o link show eth0").contains("02:00:00:00:00:77"));
        run(Plugin::Bridge, "DEL", "one", &conf).unwrap();
        assert_eq!(remains(), "");
    });
}

#[test]
fn host_local_hands_out_addresses_for_others() {
    sandboxed(|| {
        fs::write("/run/resolv.conf", "nameserver 10.0.0.53\nsearch a.example\n").unwrap();
        let conf = |version: &str| {
            json!({
                "cniVersion": version,
                "name": "cbr0",
                // The configuration is that of the plugin that delegates.
                "type": "macvlan",
                "ipam": {
                    "type": "host-local",
                    "ranges": [
                        [{"subnet": "10.7.0.0/30"}, {"subnet": "10.7.1.0/29", "rangeStart": "10.7.1.4"}],
                        [{"subnet": "fd07::/64"}],
                    ],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "resolvConf": "/run/resolv.conf",
                },
            })
        };
        let expected = json!({
            "cniVersion": "0.2.0",
            "ip4": {"ip": "10.7.0.2/30", "gateway": "10.7.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
            "ip6": {"ip": "fd07::2/64", "gateway": "fd07::1"},
            "dns": {"nameservers": ["10.0.0.53"], "search": ["a.example"]},
        });
        assert_eq!(run(Plugin::HostLocal, "ADD", "one", &conf("0.2.0")).unwrap(), expected);
        let two = run(Plugin::HostLocal, "ADD", "two", &conf("1.0.0")).unwrap();
        let expected = json!([
            {"address": "10.7.1.4/29", "gateway": "10.7.1.1"},
            {"address": "fd07::3/64", "gateway": "fd07::1"},
        ]);
        assert_eq!(two["ips"], expected);
        run(Plugin::HostLocal, "CHECK", "two", &conf("1.0.0")).unwrap();
        run(Plugin::HostLocal, "DEL", "one", &conf("0.2.0")).unwrap();
        run(Plugin::HostLocal, "DEL", "two", &conf("1.0.0")).unwrap();
        let gone = run(Plugin::HostLocal, "CHECK", "two", &conf("1.0.0")).unwrap_err();
        let expected = "host-local: Failed to find address added by container two";
        assert_eq!(code_and_text(&gone), (102, expected));
        assert_eq!(remains().replace("last_reserved_ip.1", ""), "/var/lib/cni/networks/cbr0/\n");
    });
}

#[test]
fn host_local_gives_back_whatever_the_configuration_says() {
    sandboxed(|| {
        let conf = json!({"cniVersion": "1.0.0", "name": "cbr0",
                          "ipam": {"type": "host-local", "subnet": "10.7.0.0/24"}});
        run(Plugin::HostLocal, "ADD", "one", &conf).unwrap();
        let broken = json!({"cniVersion": "1.0.0", "name": "cbr0",
                            "ipam": {"type": "host-local", "subnet": "10.7.0.1/32"}});
        run(Plugin::HostLocal, "ADD", "two", &broken).unwrap_err();
        run(Plugin::HostLocal, "DEL", "one", &broken).unwrap();
        assert_eq!(remains(), "");
    });
}

#[test]
fn static_gives_what_the_configuration_names() {
    sandboxed(|| {
        let conf = |version: &str| {
            json!({
                "cniVersion": version,
                "name": "cbr0",
                "type": "macvlan",
                "ipam": {
                    "type": "static",
                    "addresses": [{"address": "10.7.0.9/24", "Gateway": "10.7.0.1"}],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dns": {"nameservers": ["10.0.0.53"]},
                },
            })
        };
        let result = run(Plugin::Static, "ADD", "one", &conf("1.1.0")).unwrap();
        let ips = json!([{"address": "10.7.0.9/24", "gateway": "10.7.0.1"}]);
        let expected = json!({"cniVersion": "1.1.0", "ips": ips, "routes": [{"dst": "0.0.0.0/0"}],
                              "dns": {"nameservers": ["10.0.0.53"]}});
        assert_eq!(result, expected);
        let mut check = conf("1.1.0");
        check["prevResult"] = result;
        run(Plugin::Static, "CHECK", "one", &check).unwrap();
        check["prevResult"]["ips"][0]["address"] = json!("10.7.0.8/24");
        let other = run(Plugin::Static, "CHECK", "one", &check).unwrap_err();
        let text = "static: Failed to find address added by container one";
        assert_eq!(code_and_text(&other), (102, text));
        run(Plugin::Static, "STATUS", "one", &conf("1.1.0")).unwrap();
        run(Plugin::Static, "DEL", "one", &conf("0.1.0")).unwrap();
        run(Plugin::Static, "ADD", "one", &conf("0.2.0")).unwrap();

        let mut bridge = bridge_conf();
        bridge["ipam"] = conf("1.1.0")["ipam"].clone();
        let one = Container::new("one");
        run(Plugin::Bridge, "ADD", "one", &bridge).unwrap();
        one.ping("10.7.0.1");
        run(Plugin::Bridge, "DEL", "one", &bridge).unwrap();
        assert_eq!(remains(), "");
    });
}

#[test]
fn loopback_speaks_every_version() {
    sandboxed(|| {
        let one = Container::new("one");
        let (v4, v6) = ("127.0.0.1/8", "::1/128");
        let conf = |version: &str| json!({"cniVersion": version, "name": "cni-loopback"});
        let is_up = || one.sh("ip -o link show lo").contains("LOOPBACK,UP");
        assert!(!is_up());
        for version in ["", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let result = run(Plugin::Loopback, "ADD", "one", &conf(version)).unwrap();
            assert!(is_up());
            match version {
                "" | "0.1.0" | "0.2.0" => {
                    assert_eq!(result["ip4"], json!({"ip": v4}));
                    assert_eq!(result["ip6"], json!({"ip": v6}));
                }
                "0.3.0" | "0.3.1" | "0.4.0" => assert_eq!(
                    result["ips"],
                    json!([{"version": "4", "interface": 0, "address": v4},
                           {"version": "6", "interface": 0, "address": v6}])
                ),
                _ => assert_eq!(
                    result["interfaces"],
                    json!([{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": one.netns}])
                ),
            }
            run(Plugin::Loopback, "DEL", "one", &conf(version)).unwrap();
            assert!(!is_up());
        }
        call_plugin(Plugin::Loopback, "lo", "DEL", "one", "", &conf("0.4.0")).unwrap();
        let down = run(Plugin::Loopback, "CHECK", "one", &conf("0.4.0")).unwrap_err();
        assert_eq!(code_and_text(&down), (102, "loopback interface is down"));
        one.sh("ip address add 10.9.9.9/32 dev lo");
        let foreign = run(Plugin::Loopback, "ADD", "one", &conf("0.4.0")).unwrap_err();
        let expected = "loopback interface found with non-loopback address \"10.9.9.9/32\"";
        assert_eq!(code_and_text(&foreign), (103, expected));
    });
}
