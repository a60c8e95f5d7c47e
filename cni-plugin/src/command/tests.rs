//! Whole calls against the kernel, each test on a machine of its own.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use fabric::netlink::{Scope, Socket, apply, observe};
use fabric::plan::{Plan, diff};
use flannel_tests::sandbox::sandboxed;
use serde_json::{Value, json};

use super::del;
use crate::attachment;
use crate::bridge::Bridge;
use crate::delegate;
use crate::invocation::{Attachment, Id};
use crate::ipam;
use crate::netconf::NetConf;
use crate::process::{self, Outcome};
use crate::result::Ip;

const SUBNET_FILE: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.2.1/24\n\
                           FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// A machine that an agent runs on.
fn node(test: impl FnOnce()) {
    write_subnet_file(SUBNET_FILE);
    test();
}

fn write_subnet_file(text: &str) {
    fs::create_dir_all("/run/flannel").unwrap();
    fs::write("/run/flannel/subnet.env", text).unwrap();
}

/// What the stock list asks for, in the newest version.
fn stock() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": "cbr0",
        "type": "flannel",
        "delegate": {"hairpinMode": true, "isDefaultGateway": true},
    })
}

fn stock_with(delegate: &[(&str, Value)]) -> Value {
    let mut conf = stock();
    for (key, value) in delegate {
        conf["delegate"][*key] = value.clone();
    }
    conf
}

/// Runs a program of the system and returns what it says.
fn sh(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    assert!(output.status.success(), "{command}: {}", text(output.stderr));
    text(output.stdout)
}

fn call(command: &str, container: &str, netns: &str, conf: &Value) -> Result<Value, Value> {
    let variable = |name: &str| {
        let value = match name {
            "CNI_COMMAND" => command,
            "CNI_CONTAINERID" => container,
            "CNI_NETNS" => netns,
            "CNI_IFNAME" => "eth0",
            "CNI_ARGS" => "IgnoreUnknown=1;K8S_POD_NAME=p",
            "CNI_PATH" => "/opt/cni/bin",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let parse = |text: &str| serde_json::from_str(text).unwrap_or(Value::Null);
    match process::run(variable, conf.to_string().as_bytes()) {
        Outcome::Success(document) => Ok(parse(&document)),
        Outcome::Failure(document) => Err(parse(&document)),
        Outcome::About(text) => panic!("{text}"),
    }
}

/// A container with its sandbox.
struct Container {
    id: String,
    netns: String,
}

impl Container {
    fn new(id: &str) -> Self {
        sh(&format!("ip netns add {id}"));
        Self { id: id.to_owned(), netns: format!("/run/netns/{id}") }
    }

    fn add(&self, conf: &Value) -> Result<Value, Value> {
        call("ADD", &self.id, &self.netns, conf)
    }

    fn del(&self, conf: &Value) -> Result<Value, Value> {
        call("DEL", &self.id, &self.netns, conf)
    }

    fn check(&self, conf: &Value, result: &Value) -> Result<Value, Value> {
        let mut conf = conf.clone();
        conf["prevResult"] = result.clone();
        call("CHECK", &self.id, &self.netns, &conf)
    }

    fn sh(&self, command: &str) -> String {
        sh(&format!("ip netns exec {} {command}", self.id))
    }

    fn ping(&self, address: &str) {
        self.sh(&format!("ping -c 1 -W 2 {address}"));
    }
}

/// Everything that an attachment could have left behind.
fn remains() -> String {
    let mut text = String::new();
    for line in sh("ip -o link").lines().filter(|line| line.contains("veth")) {
        let _ = writeln!(text, "{line}");
    }
    for directory in ["/var/lib/cni/flannel", "/var/lib/cni/networks/cbr0"] {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names.retain(|name| name != "lock" && name != "last_reserved_ip.0");
        for name in names {
            let _ = writeln!(text, "{directory}/{}", name.display());
        }
    }
    text + &rules()
}

fn rules() -> String {
    let rules = sh("nft list ruleset");
    rules.lines().filter(|line| line.contains("saddr")).map(|line| format!("{line}\n")).collect()
}

fn address(result: &Value) -> &str {
    let address = result["ips"][0]["address"].as_str().unwrap();
    address.split('/').next().unwrap()
}

fn code_and_text(failure: &Value) -> (u64, &str) {
    (failure["code"].as_u64().unwrap(), failure["msg"].as_str().unwrap())
}

#[test]
fn a_pod_is_attached_and_detached() {
    sandboxed(|| {
        node(|| {
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
        node(|| {
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
    });
}

#[test]
fn an_interface_that_is_there_is_not_touched() {
    sandboxed(|| {
        node(|| {
            let one = Container::new("one");
            one.sh("ip link add eth0 type bridge");
            one.add(&stock()).unwrap_err();
            assert!(!Path::new("/sys/class/net/cni0").exists());
            one.del(&stock()).unwrap();
            assert!(one.sh("ip -o link show eth0").contains("eth0"));
            assert_eq!(remains(), "");
        });
    });
}

#[test]
fn a_wrong_namespace_is_told_before_anything_is_touched() {
    sandboxed(|| {
        node(|| {
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
        node(|| {
            let one = Container::new("one");
            let failure = one.add(&stock_with(&[("vlan", json!(5))])).unwrap_err();
            assert_eq!(code_and_text(&failure), (2, "unsupported field: vlan is 5"));
            assert!(!Path::new("/var/lib/cni").exists());
            assert!(!Path::new("/sys/class/net/cni0").exists());
        });
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
fn a_bridge_in_another_subnet_is_told_or_moved() {
    sandboxed(|| {
        node(|| {
            sh("ip link add cni0 address 02:00:00:00:00:01 type bridge");
            sh("ip link set cni0 mtu 1400");
            sh("ip address add 10.9.9.1/24 dev cni0");
            let one = Container::new("one");
            let failure = one.add(&stock()).unwrap_err();
            let expected =
                "\"cni0\" already has an IP address different from 10.1.2.1/24: 10.9.9.1/24";
            assert_eq!(code_and_text(&failure), (103, expected));
            assert_eq!(remains(), "");
            one.add(&stock_with(&[("forceAddress", json!(true))])).unwrap();
            let addresses = sh("ip -o -4 address show cni0");
            assert!(addresses.contains("10.1.2.1/24") && !addresses.contains("10.9.9.1"));
            let link = sh("ip -o link show cni0");
            assert!(link.contains("02:00:00:00:00:01") && link.contains("mtu 1400"), "{link}");
            one.ping("10.1.2.1");
        });
    });
}

#[test]
fn something_else_with_the_name_of_the_bridge_is_left_alone() {
    sandboxed(|| {
        node(|| {
            sh("ip link add cni0 type veth peer name other");
            let one = Container::new("one");
            let failure = one.add(&stock()).unwrap_err();
            assert_eq!(
                code_and_text(&failure),
                (103, "\"cni0\" already exists but is not a bridge")
            );
            sh("ip link show other");
            one.add(&stock_with(&[("bridge", json!("pods"))])).unwrap();
            one.ping("10.1.2.1");
        });
    });
}

#[test]
fn what_others_put_on_the_bridge_and_into_the_sandbox_stays() {
    sandboxed(|| {
        node(|| {
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
    });
}

#[test]
fn nothing_but_the_identity_is_needed_to_detach() {
    sandboxed(|| {
        node(|| {
            let ways: [(&str, fn()); 5] = [
                ("lost", || fs::remove_file("/var/lib/cni/flannel/lost").unwrap()),
                ("empty", || fs::write("/var/lib/cni/flannel/empty", "").unwrap()),
                ("offline", || fs::remove_file("/run/flannel/subnet.env").unwrap()),
                ("unlinked", || drop(sh("ip link del cni0"))),
                ("alone", || ()),
            ];
            for (id, damage) in ways {
                write_subnet_file(SUBNET_FILE);
                let container = Container::new(id);
                container.add(&stock()).unwrap();
                damage();
                call("DEL", id, "", &stock()).unwrap();
                assert_eq!(remains(), "", "{id}");
            }
        });
    });
}

#[test]
fn a_pod_of_the_go_plugin_is_checked_and_detached() {
    sandboxed(|| {
        node(|| {
            let one = Container::new("one");
            let mut result = one.add(&stock()).unwrap();
            sh("ip link set veth50419296 down");
            sh("ip link set veth50419296 name veth0a1b2c3d alias x");
            sh("ip link set veth0a1b2c3d up");
            result["interfaces"][1]["name"] = json!("veth0a1b2c3d");
            one.check(&stock(), &result).unwrap();
            one.del(&stock()).unwrap();
            assert!(!one.sh("ip -o link").contains("eth0"));
            assert_eq!(remains(), "");
        });
    });
}

#[test]
fn check_tells_what_would_mend_it() {
    sandboxed(|| {
        node(|| {
            let one = Container::new("one");
            let conf = stock_with(&[("ipMasq", json!(true))]);
            let result = one.add(&conf).unwrap();
            one.check(&conf, &result).unwrap();
            let inside = "in /run/netns/one:\n";
            let table = [
                (
                    "bridge link set dev veth50419296 hairpin off",
                    "bridge link set dev veth50419296 hairpin on\n".to_owned(),
                ),
                (
                    "ip address del 10.1.2.1/24 dev cni0",
                    "ip address replace 10.1.2.1/24 dev cni0\n".to_owned(),
                ),
                (
                    "ip link set veth50419296 nomaster",
                    "ip link set veth50419296 master cni0\n\
                  bridge link set dev veth50419296 hairpin on\n"
                        .to_owned(),
                ),
                (
                    "ip -n one route del default",
                    format!("{inside}ip route add 0.0.0.0/0 via 10.1.2.1 dev eth0 proto 199\n"),
                ),
                (
                    "ip -n one link set eth0 address 02:00:00:00:00:01",
                    format!("{inside}ip link set eth0 address 0a:58:0a:01:02:02\n"),
                ),
                ("sysctl -w net.ipv4.ip_forward=0", "sysctl -w net/ipv4/ip_forward=1\n".to_owned()),
            ];
            for (damage, expected) in table {
                sh(damage);
                let failure = one.check(&conf, &result).unwrap_err();
                assert_eq!(code_and_text(&failure), (102, "the attachment is not as it was made"));
                assert_eq!(failure["details"], expected, "{damage}");
                for command in expected.lines().filter(|line| !line.starts_with("in ")) {
                    let in_sandbox = expected.starts_with(inside);
                    if in_sandbox {
                        one.sh(command)
                    } else {
                        sh(command)
                    };
                }
                one.check(&conf, &result).unwrap();
            }
            sh("nft flush chain inet cni_plugins_masquerade masq_checks");
            let failure = one.check(&conf, &result).unwrap_err();
            let details = failure["details"].as_str().unwrap();
            assert!(details.contains("ip saddr 10.1.2.2"), "{details}");
        });
    });
}

#[test]
fn check_bears_what_later_plugins_do() {
    sandboxed(|| {
        node(|| {
            let one = Container::new("one");
            let mut result = one.add(&stock()).unwrap();
            one.sh("ip address add 10.7.7.7/32 dev eth0");
            one.sh("ip route add 10.6.0.0/16 dev eth0");
            one.sh("ip route replace default via 10.1.2.9 dev eth0");
            one.sh("ip link set eth0 mtu 1300");
            one.sh("ip link set lo down");
            one.sh("ip link set eth0 address 02:00:00:00:00:01");
            result["interfaces"][2]["mac"] = json!("02:00:00:00:00:01");
            let interfaces = result["interfaces"].as_array_mut().unwrap();
            interfaces.push(json!({"name": "ifb0"}));
            one.check(&stock(), &result).unwrap();
        });
    });
}

#[test]
fn check_needs_the_result_and_the_reservation() {
    sandboxed(|| {
        node(|| {
            let one = Container::new("one");
            let result = one.add(&stock()).unwrap();
            let failure = call("CHECK", &one.id, &one.netns, &stock()).unwrap_err();
            assert_eq!(code_and_text(&failure), (7, "Required prevResult missing"));
            let mut elsewhere = result.clone();
            elsewhere["interfaces"][2]["sandbox"] = json!("/run/netns/two");
            assert_eq!(one.check(&stock(), &elsewhere).unwrap_err()["code"], 102);
            fs::write("/var/lib/cni/networks/cbr0/10.1.2.2", "two\r\neth0").unwrap();
            let failure = one.check(&stock(), &result).unwrap_err();
            let expected = "host-local: Failed to find address added by container one";
            assert_eq!(code_and_text(&failure), (102, expected));
        });
    });
}

#[test]
fn masquerade_rules_come_and_go() {
    sandboxed(|| {
        write_subnet_file(&SUBNET_FILE.replace("IPMASQ=true", "IPMASQ=false"));
        let (one, two) = (Container::new("one"), Container::new("two"));
        one.add(&stock()).unwrap();
        two.add(&stock()).unwrap();
        assert!(rules().contains("ip saddr 10.1.2.2 ip daddr != 10.1.2.0/24"), "{}", rules());
        assert!(rules().contains("net: cbr0, if: eth0, id: one"), "{}", rules());
        one.del(&stock()).unwrap();
        assert!(!rules().contains("10.1.2.2 ") && rules().contains("10.1.2.3 "), "{}", rules());
        fs::remove_file("/var/lib/cni/flannel/two").unwrap();
        call("DEL", "two", "", &stock()).unwrap();
        assert_eq!(remains(), "");
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
        assert_eq!(left.count(), 2, "only the hints");
    });
}

#[test]
fn many_are_attached_at_once() {
    const COUNT: usize = 24;
    sandboxed(|| {
        node(|| {
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
    });
}

/// An ADD that is killed does some of its operations, from the first to any.
#[test]
fn whatever_a_killed_add_did_is_undone() {
    sandboxed(|| {
        node(|| {
            let netns = Container::new("one").netns;
            let attachment = Attachment {
                network: Id::new("cbr0").unwrap(),
                container: Id::new("one").unwrap(),
                if_name: "eth0".parse().unwrap(),
            };
            let conf: NetConf = serde_json::from_value(stock()).unwrap();
            let subnet_file = SUBNET_FILE.replace("IPMASQ=true", "IPMASQ=false");
            let subnet_file = fabric::subnet_file::SubnetFile::parse(&subnet_file).unwrap();
            let delegate = delegate::configuration(&conf, &subnet_file).unwrap();
            let bridge = Bridge::new(&delegate, "").unwrap();
            let ips: Vec<Ip> = ipam::allocate(&bridge.ipam, &attachment, true).unwrap().ips;
            let desired = attachment::desired(&attachment, Path::new(&netns), &bridge, &ips, &[]);
            let mut socket = Socket::open().unwrap();
            for count in 0.. {
                let observed = observe(&mut socket, &Scope::of(&desired.host)).unwrap();
                let plan = diff(&desired.host, &observed);
                if count > plan.ops.len() {
                    break;
                }
                let ops = plan.ops[..count].to_vec();
                let failures = apply(&mut socket, &Plan { ops });
                assert!(failures.is_empty(), "{failures:?}");
                del::detach(&mut socket, &attachment, true).unwrap();
                assert_eq!(remains(), "", "after {count} operations");
            }
        });
    });
}

#[test]
fn results_have_the_version_that_was_asked_for() {
    sandboxed(|| {
        node(|| {
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
    });
}
