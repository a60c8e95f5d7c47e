//! The CNI plugin as a runtime sees it.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use flannel_tests::namespace::Namespace;
use flannel_tests::node::Node;
use flannel_tests::pod::{self, Pod, VERSION};
use flannel_tests::program;
use flannel_tests::runtime::{self, Failure, VERSIONS, Verb, call, stock_configuration};
use flannel_tests::sandbox::sandboxed;
use flannel_tests::traffic::ping;
use flannel_tests::underlay::Underlay;
use serde_json::{Value, json};

const SUBNET_FILE: &str = "/run/flannel/subnet.env";
const RESERVATIONS: &str = "/var/lib/cni/networks/cbr0";

/// A node where flanneld is not ready.
fn bare_node() -> Node {
    Node::create(&Underlay::create(), 1)
}

/// A node where flanneld has leased a subnet.
fn node_with_subnet(subnet: &str) -> Node {
    let node = bare_node();
    write_subnet_file(&node, subnet);
    node
}

fn write_subnet_file(node: &Node, subnet: &str) {
    let text = format!(
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={subnet}\n\
         FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    );
    fs::write(node.directory(SUBNET_FILE), text).unwrap();
}

/// The addresses that are reserved on a node.
fn reserved(node: &Node) -> BTreeSet<Ipv4Addr> {
    let entries = fs::read_dir(node.directory(RESERVATIONS)).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn veths(node: &Node) -> Vec<String> {
    let links = node.ip("-brief link show type veth");
    let names = links.lines().map(|line| line.split(['@', ' ']).next().unwrap().to_owned());
    names.filter(|name| name != "eth0").collect()
}

/// Nothing of a failed attachment is left: no interface, no address, no state.
fn assert_nothing_is_left(node: &Node) {
    assert_eq!(veths(node), [""; 0]);
    assert_eq!(reserved(node), BTreeSet::new());
    let state =
        fs::read_dir(node.directory("/var/lib/cni/flannel")).into_iter().flatten().flatten();
    assert_eq!(state.map(|entry| entry.file_name()).collect::<Vec<_>>(), [""; 0]);
}

/// The message of an error as a person reads it: one line.
fn one_line(failure: &Failure) -> String {
    let text = failure.to_string();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn version_lists_all_versions_of_the_specification() {
    sandboxed(|| {
        let node = bare_node();
        let attachment = pod::attachment("dummy", PathBuf::from("dummy"));
        let question = json!({ "cniVersion": "1.1.0" });
        let answer = call(&node, Verb::Version, &attachment, &question).unwrap().unwrap();
        assert_eq!(answer["supportedVersions"], json!(VERSIONS));
        assert!(answer["cniVersion"].is_string());
    });
}

#[test]
fn pod_gets_interface_address_and_routes_and_the_node_its_bridge() {
    sandboxed(|| {
        let node = node_with_subnet("10.244.3.1/24");
        let pod = Pod::attach(&node, "p1");
        assert_eq!(pod.address(), Ipv4Addr::new(10, 244, 3, 2));

        let addresses = pod.namespace().ip("-4 -oneline address show dev eth0");
        assert!(
            addresses.contains("inet 10.244.3.2/24 brd 10.244.3.255 scope global eth0"),
            "{addresses}"
        );
        let link = pod.namespace().ip("link show eth0");
        assert!(link.contains("UP,LOWER_UP") && link.contains(" mtu 1450 "), "{link}");
        let routes: BTreeSet<_> =
            pod.namespace().ip("route show").lines().map(|line| line.trim().to_owned()).collect();
        let wanted = [
            "default via 10.244.3.1 dev eth0 proto 199",
            "10.244.0.0/16 via 10.244.3.1 dev eth0 proto 199",
            "10.244.3.0/24 dev eth0 proto kernel scope link src 10.244.3.2",
        ];
        assert_eq!(routes, wanted.map(str::to_owned).into());

        let bridge = node.ip("-4 -oneline address show dev cni0");
        assert!(
            bridge.contains("inet 10.244.3.1/24 brd 10.244.3.255 scope global cni0"),
            "{bridge}"
        );
        let link = node.ip("-d link show cni0");
        assert!(link.contains(" mtu 1450 "), "{link}");
        let veth = &veths(&node)[0];
        let port = node.bridge(&format!("-d link show dev {veth}"));
        assert!(port.contains("master cni0") && port.contains("hairpin on"), "{port}");
        let forwarding = node
            .namespace()
            .inside(|| fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap());
        assert_eq!(forwarding.trim(), "1");
        ping(node.namespace(), pod.address()).unwrap();
    });
}

#[test]
fn pod_reaches_itself_through_its_bridge_port() {
    sandboxed(|| {
        let node = node_with_subnet("10.244.3.1/24");
        let pod = Pod::attach(&node, "p1");
        // As a Service does that leads back to the pod that asked.
        let rules = format!(
            "table ip service {{
                chain in {{
                    type nat hook prerouting priority dstnat; policy accept;
                    ip daddr 203.0.113.1 dnat to {address}
                }}
                chain out {{
                    type nat hook postrouting priority srcnat; policy accept;
                    ip saddr {address} ip daddr {address} masquerade
                }}
            }}",
            address = pod.address()
        );
        let mut nft = node.namespace().command("nft");
        let output = runtime::feed(nft.args(["-f", "-"]), &rules);
        assert!(output.status.success(), "{}", program::describe(&nft, &output));
        ping(pod.namespace(), Ipv4Addr::new(203, 0, 113, 1)).unwrap();
    });
}

#[test]
fn result_has_the_form_of_each_version() {
    sandboxed(|| {
        let node = node_with_subnet("10.244.3.1/24");
        for (number, version) in VERSIONS.into_iter().enumerate() {
            let name = format!("p{number}");
            let pod = Pod::try_attach(&node, &name, &stock_configuration(version)).unwrap();
            let result = pod.result();
            assert_eq!(result["cniVersion"], version);
            if version < "0.3.0" {
                assert_eq!(result["ip4"]["ip"], format!("{}/24", pod.address()));
                assert_eq!(result["ip4"]["gateway"], "10.244.3.1");
                assert_eq!(result["interfaces"], Value::Null);
            } else {
                let interfaces = result["interfaces"].as_array().unwrap();
                assert_eq!(interfaces.len(), 3, "{result}");
                assert_eq!(interfaces[0]["name"], "cni0");
                assert_eq!(interfaces[1]["name"], veths(&node)[0]);
                assert_eq!(interfaces[2]["name"], "eth0");
                assert_eq!(interfaces[2]["sandbox"], pod.namespace().path().to_str().unwrap());
                let address = &result["ips"][0];
                assert_eq!(address["address"], format!("{}/24", pod.address()));
                assert_eq!(address["gateway"], "10.244.3.1");
                assert_eq!(address["interface"], 2);
                let family = if version < "1.0.0" { json!("4") } else { Value::Null };
                assert_eq!(address["version"], family, "{version}");
                let routes = json!([
                    { "dst": "10.244.0.0/16" },
                    { "dst": "0.0.0.0/0", "gw": "10.244.3.1" },
                ]);
                assert_eq!(result["routes"], routes, "{version}");
            }
            if version >= "0.4.0" {
                pod.call(Verb::Check).unwrap();
            } else {
                let failure = pod.call(Verb::Check).unwrap_err();
                assert_eq!(failure.code, 1, "{failure}");
            }
            pod.detach();
            assert_nothing_is_left(&node);
        }
    });
}

#[test]
fn deleted_pod_gives_its_address_back() {
    sandboxed(|| {
        // One address for a pod: the others are network, gateway and broadcast.
        let node = node_with_subnet("10.244.3.1/30");
        let first = Pod::attach(&node, "first");
        let only = first.address();
        let second = Pod::try_attach(&node, "second", &stock_configuration(VERSION));
        assert_eq!(second.unwrap_err().code, 100);
        first.detach();
        assert_nothing_is_left(&node);
        let third = Pod::attach(&node, "third");
        assert_eq!(third.address(), only);
        third.vanish_and_detach();
        assert_nothing_is_left(&node);
        assert_eq!(Pod::attach(&node, "fourth").address(), only);
    });
}

#[test]
fn addresses_are_kept_in_the_format_of_host_local() {
    sandboxed(|| {
        let node = node_with_subnet("10.244.3.1/24");
        let pod = Pod::attach(&node, "p1");
        let directory = node.directory(RESERVATIONS);
        let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
        let id = &pod.attachment().container_id;
        assert_eq!(read("10.244.3.2"), format!("{id}\r\neth0"));
        assert_eq!(read("last_reserved_ip.0"), "10.244.3.2");
        pod.detach();
        // The next pod gets the next address: a peer may still know the old one.
        let next = Pod::attach(&node, "p2");
        assert_eq!(next.address(), Ipv4Addr::new(10, 244, 3, 3));
    });
}

#[test]
fn no_address_left_is_one_line_and_leaves_nothing() {
    sandboxed(|| {
        let node = node_with_subnet("10.244.3.1/29");
        let pods: Vec<_> = (1..=5).map(|n| Pod::attach(&node, &format!("p{n}"))).collect();
        let before = (reserved(&node), veths(&node));
        let failure = Pod::try_attach(&node, "late", &stock_configuration(VERSION)).unwrap_err();
        assert_eq!(failure.code, 100, "{failure}");
        assert!(one_line(&failure).contains("10.244.3."), "{failure}");
        assert_eq!((reserved(&node), veths(&node)), before);
        for pod in pods {
            pod.detach();
        }
        assert_nothing_is_left(&node);
    });
}

#[test]
fn missing_subnet_file_means_try_again_and_nothing_is_made() {
    sandboxed(|| {
        let node = bare_node();
        let failure = Pod::try_attach(&node, "p1", &stock_configuration(VERSION)).unwrap_err();
        assert_eq!(failure.code, 11, "{failure}");
        assert!(one_line(&failure).contains(SUBNET_FILE), "{failure}");
        assert_nothing_is_left(&node);
        assert!(!node.ip("link show").contains("cni0"));

        write_subnet_file(&node, "10.244.3.1/24");
        Pod::attach(&node, "p2");
    });
}

#[test]
fn broken_subnet_file_is_one_line_and_nothing_is_made() {
    sandboxed(|| {
        let node = bare_node();
        for (text, word) in [
            ("", "FLANNEL_SUBNET"),
            ("FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=nonsense\n", "nonsense"),
            ("FLANNEL_NETWORK\n", "FLANNEL_NETWORK"),
        ] {
            fs::write(node.directory(SUBNET_FILE), text).unwrap();
            let failure = Pod::try_attach(&node, "p1", &stock_configuration(VERSION)).unwrap_err();
            assert!(one_line(&failure).contains(word), "{failure}");
            assert_nothing_is_left(&node);
        }
    });
}

#[test]
fn wrong_sandbox_is_refused_before_anything_is_touched() {
    sandboxed(|| {
        let node = node_with_subnet("10.244.3.1/24");
        let configuration = stock_configuration(VERSION);
        let file = Path::new("/run/not-a-namespace");
        fs::write(file, "").unwrap();
        let links = node.ip("-brief link show");
        for (netns, code) in [
            (PathBuf::from("/run/netns/none"), None),
            (file.to_owned(), None),
            (PathBuf::from("/proc/self/ns/net"), Some(8)),
            (node.namespace().path(), Some(8)),
        ] {
            let attachment = pod::attachment("p1", netns.clone());
            let failure = call(&node, Verb::Add, &attachment, &configuration).unwrap_err();
            if let Some(code) = code {
                assert_eq!(failure.code, code, "{}: {failure}", netns.display());
            } else {
                assert!(one_line(&failure).contains(netns.to_str().unwrap()), "{failure}");
            }
            assert_nothing_is_left(&node);
            assert_eq!(node.ip("-brief link show"), links);

            // The node's own eth0 must survive a DEL that names the node itself.
            let _ = call(&node, Verb::Del, &attachment, &configuration);
            assert_eq!(node.ip("-brief link show"), links);
        }
    });
}

#[test]
fn delete_succeeds_when_there_is_nothing_to_delete() {
    sandboxed(|| {
        let node = node_with_subnet("10.244.3.1/24");
        let pod = Pod::attach(&node, "p1");
        let other = Pod::attach(&node, "p2");
        pod.call(Verb::Del).unwrap();
        pod.call(Verb::Del).unwrap();
        let never = pod::attachment("never", PathBuf::from("/run/netns/never"));
        call(&node, Verb::Del, &never, &stock_configuration(VERSION)).unwrap();
        let no_sandbox = pod::attachment("never", PathBuf::new());
        call(&node, Verb::Del, &no_sandbox, &stock_configuration(VERSION)).unwrap();
        assert_eq!(reserved(&node), [other.address()].into());
        ping(node.namespace(), other.address()).unwrap();
    });
}

#[test]
fn check_reports_what_differs_from_the_result() {
    sandboxed(|| {
        let node = node_with_subnet("10.244.3.1/24");
        let pod = Pod::attach(&node, "p1");
        pod.call(Verb::Check).unwrap();
        pod.namespace().ip("route delete default");
        let failure = pod.call(Verb::Check).unwrap_err();
        assert_eq!(failure.code, 102, "{failure}");
        assert!(
            failure.to_string().contains("default") || failure.to_string().contains("0.0.0.0/0"),
            "{failure}"
        );
        pod.namespace().ip("route add default via 10.244.3.1");
        pod.namespace().ip("address delete 10.244.3.2/24 dev eth0");
        assert_eq!(pod.call(Verb::Check).unwrap_err().code, 102);
    });
}

#[test]
fn bad_requests_are_refused_with_the_codes_of_the_specification() {
    sandboxed(|| {
        let node = node_with_subnet("10.244.3.1/24");
        let namespace = Namespace::create("p1");
        let attachment = pod::attachment("p1", namespace.path());
        let with = |change: fn(&mut Value)| {
            let mut configuration = stock_configuration(VERSION);
            change(&mut configuration);
            call(&node, Verb::Add, &attachment, &configuration).unwrap_err()
        };
        let cases: [(u64, &str, Failure); 5] = [
            (1, "9.9.9", with(|conf| conf["cniVersion"] = json!("9.9.9"))),
            (7, "VLAN", with(|conf| conf["delegate"]["vlan"] = json!(7000))),
            (5, "third-party", with(|conf| conf["delegate"]["type"] = json!("third-party"))),
            (7, "name", with(|conf| conf["name"] = json!(""))),
            (7, "bad name", with(|conf| conf["name"] = json!("bad name"))),
        ];
        for (code, word, failure) in cases {
            assert_eq!(failure.code, code, "{word}: {failure}");
            assert!(one_line(&failure).contains(word), "{failure}");
        }

        let run = |stdin: &str, change: fn(&mut std::process::Command)| -> Value {
            let mut command = runtime::plugin_command(&node, Verb::Add, &attachment);
            change(&mut command);
            let output = runtime::feed(&mut command, stdin);
            assert!(!output.status.success());
            serde_json::from_slice(&output.stdout).unwrap()
        };
        let stock = stock_configuration(VERSION).to_string();
        let error = run("{", |_| ());
        assert_eq!(error["code"], 6, "{error}");
        let error = run(&stock, |command| {
            command.env_remove("CNI_CONTAINERID").env_remove("CNI_IFNAME");
        });
        assert_eq!(error["code"], 4, "{error}");
        assert!(error.to_string().contains("CNI_CONTAINERID,CNI_IFNAME"), "{error}");
        let error = run(&stock, |command| {
            command.env("CNI_COMMAND", "EXPLODE");
        });
        assert_eq!(error["code"], 4, "{error}");
        let error = run(&stock, |command| {
            command.env("CNI_IFNAME", "far-too-long-for-a-name");
        });
        assert_eq!(error["code"], 4, "{error}");
        assert_nothing_is_left(&node);
    });
}

#[test]
fn bridge_of_an_old_subnet_is_named_in_the_error_and_forced_if_wanted() {
    sandboxed(|| {
        let node = node_with_subnet("10.244.3.1/24");
        let old = Pod::attach(&node, "p1");
        write_subnet_file(&node, "10.244.4.1/24");
        let failure = Pod::try_attach(&node, "p2", &stock_configuration(VERSION)).unwrap_err();
        assert!(one_line(&failure).contains("cni0"), "{failure}");
        old.detach();
        assert_nothing_is_left(&node);
        let mut forced = stock_configuration(VERSION);
        forced["delegate"]["forceAddress"] = json!(true);
        let pod = Pod::try_attach(&node, "p2", &forced).unwrap();
        assert_eq!(pod.address().octets()[..3], [10, 244, 4]);
        ping(node.namespace(), pod.address()).unwrap();
    });
}

#[test]
fn one_file_is_installed_under_many_names() {
    sandboxed(|| {
        let directory = Path::new("/run/bin");
        fs::create_dir(directory).unwrap();
        let flannel = || std::process::Command::new(program::flannel());
        program::run(flannel().args(["install", "/run/bin"]));
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        let all = [
            "bandwidth",
            "bridge",
            "firewall",
            "flannel",
            "host-local",
            "loopback",
            "macvlan",
            "portmap",
            "ptp",
            "static",
            "tuning",
        ];
        assert_eq!(names, all);
        for name in names {
            let output = program::outcome(&mut std::process::Command::new(directory.join(&name)));
            let text = String::from_utf8(output.stderr).unwrap();
            let expected = format!("CNI Plugin {} version v", name.display());
            assert!(output.status.success() && text.starts_with(&expected), "{text}");
        }
        let refused = program::outcome(flannel().args(["install", "/run/bin", "--only", "x"]));
        assert_eq!(refused.status.code(), Some(2));
    });
}
