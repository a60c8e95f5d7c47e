//! What GC removes and what it leaves, and what STATUS says.

use std::fs;

use flannel_tests::sandbox::sandboxed;
use serde_json::{Value, json};

use super::*;
use crate::bandwidth::ifb_of_go;
use crate::invocation::Id;

/// A call about the network and not about one attachment.
fn network_call(plugin: Plugin, command: &str, conf: &Value) -> Result<Value, Value> {
    call_plugin(plugin, "", command, "", "", conf)
}

fn gc(conf: &Value, key: &str, valid: Value) -> Result<Value, Value> {
    let mut conf = conf.clone();
    conf[key] = valid;
    network_call(Plugin::Flannel, "GC", &conf)
}

#[test]
fn what_is_not_valid_any_more_is_collected() {
    sandboxed(|| {
        write_subnet_file(&SUBNET_FILE.replace("IPMASQ=true", "IPMASQ=false"));
        let containers = ["one", "two", "three"].map(Container::new);
        let results = containers.each_ref().map(|container| container.add(&stock()).unwrap());
        sh("ip netns del three");
        let veth = results[2]["interfaces"][1]["name"].as_str().unwrap();
        let gone = || !sh("ip -o link").contains(veth);
        flannel_tests::wait::until_true("the kernel has removed what was in the sandbox", gone);
        sh("ip link add veth00000000 type veth peer name peer0");
        sh("ip link set veth00000000 alias other/eth0/another");
        fs::write("/var/lib/cni/networks/cbr0/10.1.2.77", "").unwrap();
        fs::write("/var/lib/cni/networks/cbr0/10.1.2.78", "two").unwrap();
        fs::write("/var/lib/cni/flannel/foreign", r#"{"name":"another"}"#).unwrap();

        let before = remains();
        network_call(Plugin::Flannel, "GC", &stock()).unwrap();
        assert_eq!(remains(), before, "without a list, nothing is known to be stale");

        let valid = json!([{"containerID": "two", "ifname": "eth0"}]);
        gc(&stock(), "cni.dev/valid-attachments", valid.clone()).unwrap();
        containers[1].check(&stock(), &results[1]).unwrap();
        containers[1].ping("10.1.2.1");
        assert!(!containers[0].sh("ip -o link").contains("eth0"));
        let left = remains();
        for stale in ["10.1.2.2", "10.1.2.4", "10.1.2.77", "/one", "/three", "id: one"] {
            assert!(!left.contains(stale), "{left} should not have {stale}");
        }
        for kept in ["veth00000000", "/10.1.2.3", "10.1.2.78", "flannel/two", "/foreign"] {
            assert!(left.contains(kept), "{left} should have {kept}");
        }
        gc(&stock(), "cni.dev/attachments", valid).unwrap();
        assert_eq!(remains(), left);

        sh("ip link del veth00000000");
        fs::remove_file("/var/lib/cni/flannel/foreign").unwrap();
        gc(&stock(), "cni.dev/valid-attachments", json!([])).unwrap();
        assert_eq!(remains(), "");
    });
}

/// They know the container and nothing else.
#[test]
fn what_the_go_plugins_marked_by_a_container_is_collected_where_it_is_known() {
    sandboxed(|| {
        node();
        let cbr0 = Id::new("cbr0").unwrap();
        let containers = ["one", "two", "three", "nobody"].map(|name| Id::new(name).unwrap());
        let ifbs = containers.each_ref().map(|container| ifb_of_go(&cbr0, container).to_string());
        sh("nft add table ip cni_hostport");
        sh("nft add chain ip cni_hostport hostports");
        for (container, ifb) in containers.iter().zip(&ifbs) {
            sh(&format!("ip link add {ifb} type ifb"));
            let rule = format!("tcp dport 99 dnat to 10.1.2.9:99 comment {container}");
            sh(&format!("nft add rule ip cni_hostport hostports {rule}"));
        }
        fs::create_dir_all("/var/lib/cni/networks/cbr0").unwrap();
        for (address, text) in [("10.1.2.7", "one\r\neth0"), ("10.1.2.8", "two\r\neth0")] {
            fs::write(format!("/var/lib/cni/networks/cbr0/{address}"), text).unwrap();
        }
        fs::create_dir_all("/var/lib/cni/flannel").unwrap();
        fs::write("/var/lib/cni/flannel/three", r#"{"name":"cbr0","type":"bridge"}"#).unwrap();
        let left = || {
            let rules = sh("nft list ruleset");
            let links = sh("ip -o link");
            let has = |(container, ifb): (&Id, &String)| {
                (rules.contains(&format!("comment \"{container}\"")), links.contains(ifb))
            };
            containers.iter().zip(&ifbs).map(has).collect::<Vec<_>>()
        };
        const KEPT: (bool, bool) = (true, true);
        const GONE: (bool, bool) = (false, false);
        gc(
            &stock(),
            "cni.dev/valid-attachments",
            json!([{"containerID": "one", "ifname": "eth0"}]),
        )
        .unwrap();
        assert_eq!(left(), [KEPT, GONE, GONE, KEPT]);
        gc(&stock(), "cni.dev/valid-attachments", json!([])).unwrap();
        assert_eq!(left(), [GONE, GONE, GONE, KEPT]);
    });
}

#[test]
fn an_error_does_not_keep_the_rest() {
    sandboxed(|| {
        node();
        Container::new("one").add(&stock()).unwrap();
        fs::create_dir("/var/lib/cni/networks/cbr0/lock").unwrap_err();
        fs::remove_file("/var/lib/cni/networks/cbr0/lock").unwrap();
        fs::create_dir("/var/lib/cni/networks/cbr0/lock").unwrap();
        let error = gc(&stock(), "cni.dev/valid-attachments", json!([])).unwrap_err();
        let expected = "cannot open /var/lib/cni/networks/cbr0/lock: Is a directory (os error 21)";
        assert_eq!(code_and_text(&error), (5, expected));
        assert!(!remains().contains("veth"), "{}", remains());
        fs::remove_dir("/var/lib/cni/networks/cbr0/lock").unwrap();
        gc(&stock(), "cni.dev/valid-attachments", json!([])).unwrap();
        assert_eq!(remains(), "");
        let error = gc(&stock(), "cni.dev/valid-attachments", json!({})).unwrap_err();
        assert_eq!(error["code"], 6);
    });
}

#[test]
fn bridge_and_host_local_collect_alone() {
    sandboxed(|| {
        let conf = |list: Value| {
            json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "bridge", "isGateway": true,
                   "ipMasq": true, "ipam": {"type": "host-local", "subnet": "10.7.0.0/24"},
                   "cni.dev/valid-attachments": list})
        };
        for plugin in [Plugin::Bridge, Plugin::HostLocal] {
            Container::new(plugin.as_str());
            let netns = format!("/run/netns/{plugin}");
            let none = conf(Value::Null);
            call_plugin(plugin, "eth0", "ADD", plugin.as_str(), &netns, &none).unwrap();
            network_call(plugin, "GC", &none).unwrap();
            assert!(remains().contains("10.7.0."));
            network_call(plugin, "GC", &conf(json!([]))).unwrap();
            assert_eq!(remains(), "", "{plugin}");
        }
        network_call(Plugin::Loopback, "GC", &conf(json!([]))).unwrap();
    });
}

#[test]
fn status_is_true() {
    sandboxed(|| {
        let status = || network_call(Plugin::Flannel, "STATUS", &stock());
        let failure = status().unwrap_err();
        assert_eq!(failure["code"], 50);
        write_subnet_file(&SUBNET_FILE.replace("10.1.2.1/24", "10.1.2.1/30"));
        status().unwrap();
        sh("ip link add cni0 type veth peer name peer0");
        let taken = "no pod can be attached: \"cni0\" already exists but is not a bridge";
        assert_eq!(code_and_text(&status().unwrap_err()), (50, taken));
        sh("ip link del cni0");
        let one = Container::new("one");
        one.add(&stock()).unwrap();
        let exhausted = "no pod can be attached: \
                         no IP addresses available in range set: 10.1.2.1-10.1.2.2";
        assert_eq!(code_and_text(&status().unwrap_err()), (50, exhausted));
        one.del(&stock()).unwrap();
        status().unwrap();
    });
}
