//! The Go plugins of Debian as the measure of ours: the same call has the same result and leaves the
//! kernel in the same state, and either can check and remove what the other made, so that a node can
//! be swapped and swapped back under running pods.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use flannel_tests::namespace::Namespace;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::{program, runtime, wait};
use serde_json::{Value, json};

/// Where the two sets of plugins are.
const GO: &str = "/run/go";
const OURS: &str = "/run/ours";

const SUBNET_FILE: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.2.1/24\n\
                           FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// A node with both: flannel's own plugin is in the last Debian that had it.
fn node() {
    fs::create_dir_all("/run/flannel").unwrap();
    fs::write("/run/flannel/subnet.env", SUBNET_FILE).unwrap();
    fs::create_dir(GO).unwrap();
    let programs = ["/usr/lib/cni/bridge", "/usr/lib/cni/host-local", "/usr/lib/cni/portmap"];
    for program in programs.into_iter().chain(["bullseye/usr/lib/cni/flannel"]) {
        let found =
            program::find(program).unwrap_or_else(|| panic!("{}", program::missing(program)));
        symlink(&found, Path::new(GO).join(found.file_name().unwrap())).unwrap();
    }
    fs::create_dir(OURS).unwrap();
    program::run(Command::new(program::flannel()).args(["install", OURS]));
}

/// A pod, named as its container and its namespace.
struct Pod(Namespace);

impl Pod {
    fn new(name: &str) -> Self {
        Self(Namespace::create(name))
    }

    fn call(&self, plugins: &str, plugin: &str, verb: &str, conf: &Value) -> Result<Value, String> {
        let mut command = Command::new(Path::new(plugins).join(plugin));
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", self.0.name())
            .env("CNI_NETNS", self.0.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", "IgnoreUnknown=1")
            .env("CNI_PATH", plugins)
            .env("PATH", program::search_path());
        let output = runtime::feed(&mut command, &conf.to_string());
        match output.status.success() {
            true => Ok(serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)),
            false => Err(program::describe(&command, &output)),
        }
    }

    fn ip(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.0.ip(&format!("-json {arguments}"))).unwrap()
    }

    /// Attaches as a runtime does with the stock list, with a port of the node that leads here.
    fn attach(&self, plugins: &str, list: &List) -> Value {
        let result = self.call(plugins, "flannel", "ADD", &list.flannel).unwrap();
        let mut portmap = list.portmap.clone();
        portmap["prevResult"] = result;
        self.call(plugins, "portmap", "ADD", &portmap).unwrap()
    }

    fn check(&self, plugins: &str, list: &List, result: &Value) -> Result<(), String> {
        for (plugin, conf) in [("flannel", &list.flannel), ("portmap", &list.portmap)] {
            let mut conf = conf.clone();
            conf["prevResult"] = result.clone();
            self.call(plugins, plugin, "CHECK", &conf)?;
        }
        Ok(())
    }

    fn detach(&self, plugins: &str, list: &List) {
        self.call(plugins, "portmap", "DEL", &list.portmap).unwrap();
        self.call(plugins, "flannel", "DEL", &list.flannel).unwrap();
    }

    fn ping(&self, address: &str) {
        let mut ping = self.0.command("ping");
        program::run(ping.args(["-c", "1", "-W", "5", address]));
    }
}

/// The stock list, as a runtime passes it on.
struct List {
    flannel: Value,
    portmap: Value,
}

impl List {
    fn new(delegate: &[(&str, Value)], port: u16) -> Self {
        let version = "0.4.0";
        let mut flannel = runtime::stock_configuration(version);
        for (key, value) in delegate {
            flannel["delegate"][*key] = value.clone();
        }
        let portmap = json!({
            "cniVersion": version, "name": flannel["name"], "type": "portmap",
            "capabilities": {"portMappings": true},
            "runtimeConfig": {"portMappings": [
                {"hostPort": port, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": port, "containerPort": 53, "protocol": "udp", "hostIP": "10.1.2.1"},
            ]},
        });
        Self { flannel, portmap }
    }
}

fn host(program: &str, arguments: &str) -> String {
    program::run(program::installed(program).args(arguments.split_whitespace()))
}

fn host_ip(arguments: &str) -> Value {
    serde_json::from_str(&host("ip", &format!("-json {arguments}"))).unwrap()
}

/// The named values of each object in a list.
fn columns(rows: &Value, names: &[&str]) -> Value {
    let row = |row: &Value| -> BTreeMap<String, Value> {
        names.iter().map(|name| ((*name).to_owned(), row[*name].clone())).collect()
    };
    json!(rows.as_array().unwrap().iter().map(row).collect::<Vec<_>>())
}

/// The files of a directory with their text, by their names.
fn files(directory: &str) -> BTreeMap<String, String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let files = entries.filter(|entry| entry.file_name() != ".boot_id").map(|entry| {
        let text = fs::read_to_string(entry.path()).unwrap();
        (entry.file_name().into_string().unwrap(), text)
    });
    files.collect()
}

/// The rules of iptables, without what others made and without counters.
fn rules() -> Vec<String> {
    let text = ["iptables-save", "ip6tables-save"].map(|save| host(save, "-t nat")).concat();
    let mut rules: Vec<_> =
        text.lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect();
    rules.sort();
    rules
}

/// What an attachment is, without what is chosen at random or differs on purpose: Ethernet addresses,
/// the name of the host's end, and who made a route.
fn state(pod: &Pod, bridge: &str, result: &Value) -> Value {
    let mut result = result.clone();
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        assert_eq!(interface["mac"].as_str().unwrap().len(), 17);
        interface["mac"] = json!("some");
        if interface["name"].as_str().unwrap().starts_with("veth") {
            interface["name"] = json!("veth");
        }
    }
    // Whether nothing is said is of no matter.
    if result["dns"] == json!({}) {
        result.as_object_mut().unwrap().remove("dns");
    }
    // Not all plugins wait for that, and it takes the kernel a moment.
    pod.0.wait_until_operational("eth0");
    let port = wait::until("the port of the bridge carries packets", || {
        let port = host_ip(&format!("-details link show master {bridge}"));
        if port[0]["operstate"] == "UP" { Ok(port) } else { Err(port.to_string()) }
    });
    let flags = |row: &Value| {
        let data = &row["linkinfo"]["info_slave_data"];
        json!([data["hairpin"], data["isolated"], data["learning"], row["operstate"], row["mtu"]])
    };
    let link = host_ip(&format!("-details link show {bridge}"));
    let data = &link[0]["linkinfo"]["info_data"];
    let address = ["family", "local", "prefixlen", "broadcast", "scope"];
    let addresses = |rows: &Value| {
        let mut global = rows[0]["addr_info"].as_array().unwrap().clone();
        global.retain(|row| row["scope"] == "global");
        columns(&global.into(), &address)
    };
    let routes = |family: &str| {
        let routes = pod.ip(&format!("{family} route show"));
        let mut routes = routes.as_array().unwrap().clone();
        routes.retain(|row| row["dst"] != "fe80::/64");
        columns(&routes.into(), &["dst", "gateway", "dev", "metric", "prefsrc"])
    };
    let eth0 = pod.ip("address show dev eth0");
    json!({
        "result": result,
        "pod": [addresses(&eth0), eth0[0]["mtu"], eth0[0]["operstate"]],
        "routes": [routes("-4"), routes("-6")],
        "port": port.as_array().unwrap().iter().map(flags).collect::<Vec<_>>(),
        "bridge": [
            addresses(&host_ip(&format!("address show dev {bridge}"))),
            link[0]["mtu"], link[0]["promiscuity"], data["vlan_filtering"], data["stp_state"],
        ],
        "forwarding": [
            fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(),
            fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding").unwrap(),
        ],
        "reservations": files("/var/lib/cni/networks/cbr0"),
        "rules": rules(),
    })
}

/// Makes the machine as if no plugin had ever run.
fn forget(bridge: &str) {
    host("ip", &format!("link del {bridge}"));
    let _without_addresses_there_is_none = fs::remove_dir_all("/var/lib/cni");
    for tool in ["iptables", "ip6tables"] {
        host(tool, "-t nat -F");
        host(tool, "-t nat -X");
    }
    for parameter in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        fs::write(Path::new("/proc/sys/net").join(parameter), "0").unwrap();
    }
}

fn assert_same(go: &Value, ours: &Value, of: &str) {
    for (key, value) in go.as_object().unwrap() {
        assert_eq!(&ours[key], value, "{key} of {of} (ours is on the left)");
    }
}

#[test]
fn the_stock_list_has_the_same_result_and_kernel_state() {
    sandboxed(|| {
        node();
        // By name, so that there is something to compare.
        let iptables = [("ipMasq", json!(true)), ("ipMasqBackend", json!("iptables"))];
        let quiet = [("hairpinMode", json!(false)), ("isDefaultGateway", json!(false))];
        let variants: [&[(&str, Value)]; 3] = [&[], &iptables, &quiet];
        for (number, delegate) in variants.into_iter().enumerate() {
            let mut list = List::new(delegate, 8080);
            let mut seen = Vec::new();
            for plugins in [GO, OURS] {
                if plugins == OURS {
                    list.portmap["backend"] = json!("iptables");
                }
                // The same container, so that chains have the same names.
                let pod = Pod::new("pod");
                let result = pod.attach(plugins, &list);
                seen.push(state(&pod, "cni0", &result));
                let file = fs::read_to_string("/var/lib/cni/flannel/pod").unwrap();
                let mut file: Value = serde_json::from_str(&file).unwrap();
                let if_name = file.as_object_mut().unwrap().remove("ifName");
                assert_eq!(if_name, (plugins == OURS).then(|| json!("eth0")));
                // Later versions of flannel's plugin say it in this way.
                let ipam = file["ipam"].as_object_mut().unwrap();
                if let Some(subnet) = ipam.remove("subnet") {
                    ipam.insert("ranges".to_owned(), json!([[{"subnet": subnet}]]));
                }
                seen.last_mut().unwrap()["state"] = file;
                pod.detach(plugins, &list);
                assert_eq!(files("/var/lib/cni/flannel"), BTreeMap::new());
                seen.last_mut().unwrap()["reservations after DEL"] =
                    json!(files("/var/lib/cni/networks/cbr0"));
                seen.last_mut().unwrap()["rules after DEL"] = json!(rules());
                pod.0.delete();
                forget("cni0");
            }
            assert_same(&seen[0], &seen[1], &format!("variant {number}"));
        }
    });
}

#[test]
fn a_bridge_has_the_same_result_and_kernel_state() {
    sandboxed(|| {
        node();
        fs::write("/run/resolv.conf", "nameserver 10.9.9.9\nsearch a.example\n").unwrap();
        let mut dual_stack = json!({
            "type": "host-local",
            "ranges": [[{"subnet": "10.7.0.0/24", "rangeStart": "10.7.0.20"}],
                       [{"subnet": "fd07::/64", "gateway": "fd07::9"}]],
            "routes": [{"dst": "10.8.0.0/16"}, {"dst": "fd08::/64"},
                       {"dst": "10.9.0.0/16", "gw": "10.7.0.7"}],
        });
        let old = json!({"type": "host-local", "subnet": "10.7.0.0/24"});
        let plain = dual_stack.clone();
        dual_stack["resolvConf"] = json!("/run/resolv.conf");
        let variants = [
            json!({"isDefaultGateway": true, "ipMasq": true, "ipam": plain}),
            json!({"isGateway": true, "mtu": 1400, "hairpinMode": true, "ipam": old}),
            json!({"promiscMode": true, "ipam": old}),
            json!({"dns": {"nameservers": ["10.1.1.1"]}, "ipam": dual_stack}),
            json!({}),
        ];
        let versions = ["0.3.1", "0.4.0", "1.0.0"];
        for (number, variant) in variants.iter().enumerate() {
            let mut seen = Vec::new();
            for plugins in [GO, OURS] {
                let mut conf = variant.clone();
                conf["name"] = json!("cbr0");
                conf["bridge"] = json!("br0");
                conf["cniVersion"] = json!(versions[number % versions.len()]);
                if plugins == OURS {
                    conf["ipMasqBackend"] = json!("iptables");
                }
                let pod = Pod::new("pod");
                let result = pod.call(plugins, "bridge", "ADD", &conf).unwrap();
                seen.push(state(&pod, "br0", &result));
                pod.call(plugins, "bridge", "DEL", &conf).unwrap();
                seen.last_mut().unwrap()["reservations after DEL"] =
                    json!(files("/var/lib/cni/networks/cbr0"));
                seen.last_mut().unwrap()["rules after DEL"] = json!(rules());
                pod.0.delete();
                forget("br0");
            }
            assert_same(&seen[0], &seen[1], &format!("variant {number}"));
        }
    });
}

/// Everything that a pod could have left behind, but for chains that all pods share.
fn remains() -> (Vec<String>, Vec<String>, Vec<String>) {
    let rules = rules().into_iter().filter(|rule| rule.contains("CNI-DN") || rule.contains("id:"));
    let nft = host("nft", "list ruleset");
    let nft = nft.lines().filter(|line| line.contains("id: ")).map(str::to_owned);
    let state = files("/var/lib/cni/flannel").into_keys();
    let addresses = files("/var/lib/cni/networks/cbr0").into_keys();
    let addresses = addresses.filter(|name| name.starts_with("10."));
    let links = host("ip", "-o link show type veth");
    let links = links.lines().map(str::to_owned);
    (rules.chain(nft).collect(), state.chain(addresses).collect(), links.collect())
}

fn nothing() -> (Vec<String>, Vec<String>, Vec<String>) {
    Default::default()
}

#[test]
fn pods_of_the_go_plugins_live_on_and_end_under_ours() {
    sandboxed(|| {
        node();
        let masquerading = [("ipMasq", json!(true))];
        let list = List::new(&masquerading, 8080);
        let (old, older, new) = (Pod::new("first"), Pod::new("second"), Pod::new("new"));
        let result = old.attach(GO, &list);
        older.attach(GO, &List::new(&masquerading, 8081));

        // The node is swapped.
        old.check(OURS, &list, &result).unwrap();
        new.attach(OURS, &List::new(&masquerading, 8082));
        for address in ["10.1.2.1", "10.1.2.2", "10.1.2.3"] {
            new.ping(address);
        }
        old.ping("10.1.2.4");
        old.0.ip("route del default");
        let changed = old.check(OURS, &list, &result).unwrap_err();
        assert!(changed.contains("ip route add 0.0.0.0/0 via 10.1.2.1 dev eth0"), "{changed}");

        old.detach(OURS, &list);
        old.detach(OURS, &list);
        let left = remains();
        assert!(!left.0.iter().any(|rule| rule.contains("\"first") || rule.contains("8080")));
        assert!(left.0.iter().any(|rule| rule.contains("8081")), "{left:?}");
        assert!(!old.0.ip("link").contains("eth0"));
        // Without the state that the Go plugin kept, and without the pod.
        fs::remove_file("/var/lib/cni/flannel/second").unwrap();
        older.0.delete();
        older.detach(OURS, &List::new(&masquerading, 8081));
        new.ping("10.1.2.1");
        new.detach(OURS, &List::new(&masquerading, 8082));
        assert_eq!(remains(), nothing());
    });
}

#[test]
fn our_pods_live_on_and_end_under_the_go_plugins() {
    sandboxed(|| {
        node();
        // The Go plugins of Debian know iptables only.
        let iptables = [("ipMasq", json!(true)), ("ipMasqBackend", json!("iptables"))];
        let mut list = List::new(&iptables, 8080);
        list.portmap["backend"] = json!("iptables");
        let pod = Pod::new("pod");
        pod.attach(OURS, &list);

        // The node is swapped back.
        pod.call(GO, "flannel", "CHECK", &list.flannel).unwrap();
        let alone = Pod::new("alone");
        let mut conf = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "mtu": 1450,
            "isDefaultGateway": true, "ipam": {"type": "host-local", "subnet": "10.1.2.0/24"}});
        conf["prevResult"] = alone.call(OURS, "bridge", "ADD", &conf).unwrap();
        alone.call(GO, "bridge", "CHECK", &conf).unwrap();
        alone.call(GO, "bridge", "DEL", &conf).unwrap();
        let other = Pod::new("other");
        other.attach(GO, &List::new(&iptables, 8081));
        other.ping("10.1.2.2");
        pod.detach(GO, &list);
        other.detach(GO, &List::new(&iptables, 8081));
        assert_eq!(remains(), nothing());
    });
}

/// With our own back end, whose rules the Go plugins of Debian cannot see.
#[test]
fn rules_in_nftables_are_handed_over_to_the_go_plugins() {
    sandboxed(|| {
        node();
        let list = List::new(&[("ipMasq", json!(true))], 8080);
        let pod = Pod::new("pod");
        pod.attach(OURS, &list);
        let hand_over = || {
            let output = program::outcome(Command::new(program::flannel()).arg("hand-over"));
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stderr).unwrap()
        };
        assert_eq!(hand_over(), "moved to iptables: rules of pod, interface eth0, cbr0\n");
        assert_eq!(hand_over(), "");
        let nft = host("nft", "list table ip cni_hostport");
        assert!(!nft.contains("id: "), "{nft}");

        // They are those that the Go plugins would have made.
        let moved: Vec<_> =
            rules().iter().map(|rule| rule.replace("10.1.2.2", "10.1.2.3")).collect();
        pod.detach(GO, &list);
        assert_eq!(remains(), nothing());
        pod.attach(GO, &list);
        assert_eq!(rules(), moved, "but for the address, which is the next one");
        pod.detach(GO, &list);

        // What cannot be told any more is named and stays.
        let gone = Pod::new("gone");
        gone.attach(OURS, &list);
        gone.0.delete();
        wait::until_true("the pod is gone", || !host("ip", "-o link").contains("gone/eth0"));
        let left = hand_over();
        assert!(
            left.starts_with("left in nftables: ports of ") && left.contains("id: gone"),
            "{left}"
        );
        gone.detach(OURS, &list);
        assert_eq!(hand_over(), "");
    });
}
