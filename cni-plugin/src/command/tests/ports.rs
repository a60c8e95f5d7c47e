//! Ports of the node that lead to pods: in the list of one plugin, and through `portmap`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use flannel_tests::namespace::Namespace;
use flannel_tests::sandbox::sandboxed;
use serde_json::{Value, json};

use super::*;
use crate::invocation::Attachment;
use crate::{masquerade, portmap};

const PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait for what must not come.
const SILENCE: Duration = Duration::from_secs(2);

fn mappings() -> Value {
    json!([
        {"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""},
        {"HostPort": 8081, "ContainerPort": 80, "Protocol": "TCP", "HostIP": "192.168.9.1"},
        {"HostPort": 5353, "ContainerPort": 53, "Protocol": "udp", "HostIP": ""},
    ])
}

/// The list of one plugin, as containerd calls it.
fn native() -> Value {
    let list = include_str!("../../../../config/10-flannel-native.conflist");
    let list: Value = serde_json::from_str(list).unwrap();
    let [plugin] = list["plugins"].as_array().unwrap().as_slice() else { panic!("not one") };
    let mut conf = plugin.clone();
    conf["name"] = list["name"].clone();
    conf["cniVersion"] = list["cniVersions"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(conf["capabilities"]["portMappings"], true);
    conf["runtimeConfig"] = json!({"portMappings": mappings()});
    conf
}

/// A neighbour of the node, which has the address 192.168.9.1 for it.
fn client() -> Namespace {
    let client = Namespace::create("client");
    client.ip("link add eth0 type veth peer name uplink netns 1");
    for command in ["address add 192.168.9.1/24 dev uplink", "link set uplink up"] {
        sh(&format!("ip {command}"));
    }
    client.ip("address add 192.168.9.2/24 dev eth0");
    client.ip("link set eth0 up");
    client.ip("route add default via 192.168.9.1");
    client.wait_until_operational("eth0");
    client
}

fn namespace(container: &Container) -> Namespace {
    Namespace::existing(&container.id)
}

/// Tells on TCP port 80 and UDP port 53 who the client is.
fn serve(container: &Container) {
    let listener = namespace(container).inside(|| TcpListener::bind("[::]:80").unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip().to_canonical();
            stream.write_all(peer.to_string().as_bytes()).unwrap();
        }
    });
    let id = container.id.clone();
    let socket = namespace(container).inside(|| UdpSocket::bind("0.0.0.0:53").unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            socket.send_to(id.as_bytes(), peer).unwrap();
        }
    });
}

/// Who the pod sees when somebody connects to an address of the node.
fn ask(address: &str) -> Option<String> {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

fn ask_from(client: &Namespace, address: &str) -> Option<String> {
    let address = address.to_owned();
    client.inside(move || ask(&address))
}

#[test]
fn ports_lead_to_the_pod_from_everywhere() {
    sandboxed(|| {
        node();
        let (one, two, client) = (Container::new("one"), Container::new("two"), client());
        let result = one.add(&native()).unwrap();
        two.add(&stock()).unwrap();
        serve(&one);
        let seen = |address| ask_from(&client, address);
        assert_eq!(seen("192.168.9.1:8080").as_deref(), Some("192.168.9.2"));
        assert_eq!(seen("192.168.9.1:8081").as_deref(), Some("192.168.9.2"));
        assert_eq!(seen("10.1.2.1:8081"), None, "only on the address that was said");
        assert_eq!(ask("127.0.0.1:8080").as_deref(), Some("10.1.2.1"), "the node itself");
        assert_eq!(ask("192.168.9.1:8080").as_deref(), Some("192.168.9.1"));
        let from = |container, address| ask_from(&namespace(container), address);
        assert_eq!(from(&one, "192.168.9.1:8080").as_deref(), Some("10.1.2.1"), "itself");
        assert_eq!(from(&two, "10.1.2.1:8080").as_deref(), Some("10.1.2.3"), "another pod");

        one.check(&native(), &result).unwrap();
        sh("nft flush chain ip cni_hostport hostports");
        let broken = one.check(&native(), &result).unwrap_err();
        assert!(broken["details"].as_str().unwrap().contains("tcp dport 8080 dnat to"));
        one.del(&native()).unwrap();
        two.del(&stock()).unwrap();
        assert_eq!(remains(), "");
        assert!(!sh("nft list ruleset").contains("dport"));
    });
}

#[test]
fn what_is_not_for_the_node_is_left_alone() {
    sandboxed(|| {
        node();
        let (one, server, client) = (Container::new("one"), Container::new("server"), client());
        one.add(&native()).unwrap();
        server.add(&stock()).unwrap();
        serve(&one);
        let listener = namespace(&server).inside(|| TcpListener::bind("0.0.0.0:8080").unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"somebody else").unwrap();
        });
        let answer = ask_from(&client, "10.1.2.3:8080");
        assert_eq!(answer.as_deref(), Some("somebody else"), "no port of a pod is taken");
    });
}

#[test]
fn loopback_services_of_the_node_stay_its_own() {
    sandboxed(|| {
        node();
        let one = Container::new("one");
        one.add(&native()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:2379").unwrap();
        one.sh("sysctl -qw net.ipv4.conf.all.route_localnet=1");
        one.sh("ip address del 127.0.0.1/8 dev lo");
        one.sh("ip route add 127.0.0.1/32 via 10.1.2.1 src 10.1.2.2");
        let connects_within = |time| {
            let service = "127.0.0.1:2379".parse().unwrap();
            namespace(&one).inside(move || TcpStream::connect_timeout(&service, time).is_ok())
        };
        assert!(!connects_within(SILENCE));
        sh("nft flush chain ip cni_hostport martians");
        assert!(connects_within(PATIENCE), "otherwise this test shows nothing");
        drop(listener);
    });
}

#[test]
fn udp_follows_from_one_pod_to_the_next() {
    sandboxed(|| {
        node();
        let (one, two, client) = (Container::new("one"), Container::new("two"), client());
        let socket = client.inside(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect("192.168.9.1:5353").unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        });
        let answer = || {
            socket.send(b"?").ok()?;
            let mut buffer = [0; 100];
            let length = socket.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
        };
        assert_eq!(answer(), None, "nobody has the port, but now there is a flow to the node");
        one.add(&native()).unwrap();
        serve(&one);
        assert_eq!(answer().as_deref(), Some("one"));
        one.del(&native()).unwrap();
        two.add(&native()).unwrap();
        serve(&two);
        assert_eq!(answer().as_deref(), Some("two"));
    });
}

#[test]
fn portmap_is_chained_behind_any_plugin() {
    sandboxed(|| {
        node();
        let (one, client) = (Container::new("one"), client());
        let result = one.add(&stock()).unwrap();
        let conf = |previous: &Value| {
            json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "portmap",
                   "runtimeConfig": {"portMappings": mappings()}, "prevResult": previous})
        };
        let run = |command, conf: &Value| {
            call_plugin(Plugin::Portmap, "eth0", command, "one", &one.netns, conf)
        };
        let alone = run("ADD", &conf(&Value::Null)).unwrap_err();
        assert_eq!(code_and_text(&alone), (7, "must be called as chained plugin"));
        assert_eq!(run("ADD", &conf(&result)).unwrap(), result);
        serve(&one);
        let seen = || ask_from(&client, "192.168.9.1:8080");
        assert_eq!(seen().as_deref(), Some("192.168.9.2"));
        assert_eq!(ask("127.0.0.1:8080").as_deref(), Some("10.1.2.1"));
        run("CHECK", &conf(&result)).unwrap();
        // Neither the ports nor the result need be said again.
        run("DEL", &json!({"cniVersion": "1.1.0", "name": "cbr0"})).unwrap();
        assert_eq!(seen(), None);
        let missing = run("CHECK", &conf(&result)).unwrap_err();
        assert_eq!(missing["code"], 102);
        run("ADD", &conf(&result)).unwrap();
        let gone = json!({"cniVersion": "1.1.0", "name": "cbr0", "cni.dev/valid-attachments": []});
        call_plugin(Plugin::Portmap, "", "GC", "", "", &gone).unwrap();
        assert!(!sh("nft list ruleset").contains("dport"));
        one.del(&stock()).unwrap();
        assert_eq!(remains(), "");
    });
}

#[test]
fn ports_of_the_go_plugin_go_with_their_container() {
    sandboxed(|| {
        node();
        let one = Container::new("one");
        one.add(&native()).unwrap();
        for id in ["one", "two"] {
            let rule = format!("tcp dport 99 dnat to 10.1.2.9:99 comment {id}");
            sh(&format!("nft add rule ip cni_hostport hostports {rule}"));
        }
        one.del(&native()).unwrap();
        let rules = sh("nft list ruleset");
        assert_eq!(rules.matches("dport").count(), 1, "{rules}");
        assert!(rules.contains("comment \"two\""), "{rules}");
    });
}

/// The rules of one table, without counters and remarks.
fn saved(program: &str) -> String {
    let text = sh(program);
    text.lines().filter(|line| line.starts_with("-A")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn ports_and_masquerading_are_in_iptables_by_name() {
    sandboxed(|| {
        write_subnet_file(&SUBNET_FILE.replace("IPMASQ=true", "IPMASQ=false"));
        let (one, two, client) = (Container::new("one"), Container::new("two"), client());
        let mut conf = native();
        conf["delegate"]["backend"] = json!("iptables");
        conf["delegate"]["ipMasqBackend"] = json!("iptables");
        let result = one.add(&conf).unwrap();
        let mut other = conf.clone();
        other["runtimeConfig"] = json!({"portMappings": [
            {"HostPort": 9090, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""},
        ]});
        two.add(&other).unwrap();
        serve(&one);
        let seen = |address| ask_from(&client, address);
        assert_eq!(seen("192.168.9.1:8080").as_deref(), Some("192.168.9.2"));
        assert_eq!(seen("192.168.9.1:8081").as_deref(), Some("192.168.9.2"));
        assert_eq!(seen("10.1.2.1:8081"), None, "only on the address that was said");
        assert_eq!(ask("127.0.0.1:8080").as_deref(), Some("10.1.2.1"), "the node itself");
        let from = |container, address| ask_from(&namespace(container), address);
        assert_eq!(from(&one, "192.168.9.1:8080").as_deref(), Some("10.1.2.1"), "itself");
        assert!(sh("nft list tables").lines().all(|table| !table.contains("cni_")));

        // What is read back is what was desired: nothing is missing, nothing is there twice.
        one.check(&conf, &result).unwrap();
        let rules = saved("iptables-save -t nat");
        assert_eq!(rules.matches("--dports 8080,8081 ").count(), 1, "{rules}");
        assert_eq!(rules.matches("-d 10.1.2.0/24 ").count(), 2, "{rules}");
        sh("iptables -t nat -D CNI-HOSTPORT-DNAT 1");
        let broken = one.check(&conf, &result).unwrap_err();
        let details = broken["details"].as_str().unwrap();
        assert!(details.contains("iptables -t nat -A CNI-HOSTPORT-DNAT -p tcp"), "{details}");

        one.del(&conf).unwrap();
        let rules = saved("iptables-save -t nat");
        assert!(!rules.contains("8080") && !rules.contains(r#"\"one\""#), "{rules}");
        assert!(rules.contains(r#"\"two\""#), "{rules}");
        let mut gc = conf.clone();
        gc["cni.dev/valid-attachments"] = json!([]);
        call("GC", "", "", &gc).unwrap();
        let rules = saved("iptables-save -t nat");
        assert!(!rules.contains("CNI-DN-") && !rules.contains(r#"\"two\""#), "{rules}");
        assert_eq!(remains(), "");
    });
}

#[test]
fn rules_of_the_go_plugins_in_iptables_go_with_their_container() {
    sandboxed(|| {
        node();
        let attachment = Attachment::named("cbr0", "one", "eth0");
        let ports = portmap::iptables::chain_of(&attachment);
        let name = masquerade::iptables::chain_of(&attachment);
        for variant in ["nft", "legacy"] {
            let one = Container::new("one");
            one.add(&native()).unwrap();
            let iptables = |arguments: &str| sh(&format!("iptables-{variant} -t nat {arguments}"));
            for chain in [ports.as_str(), name.as_str(), "CNI-HOSTPORT-DNAT", "CNI-DN-other"] {
                iptables(&format!("-N {chain}"));
            }
            iptables(&format!("-A {ports} -p tcp --dport 99 -j DNAT --to-destination 10.1.2.9:99"));
            iptables(&format!("-A CNI-HOSTPORT-DNAT -p tcp --dport 99 -j {ports}"));
            iptables("-A CNI-HOSTPORT-DNAT -p tcp --dport 98 -j CNI-DN-other");
            iptables("-A PREROUTING -j CNI-HOSTPORT-DNAT");
            iptables(&format!("-A {name} -j MASQUERADE"));
            iptables(&format!("-A POSTROUTING -s 10.1.2.2/32 -j {name}"));
            one.del(&native()).unwrap();
            let expected = "-A PREROUTING -j CNI-HOSTPORT-DNAT\n\
                            -A CNI-HOSTPORT-DNAT -p tcp -m tcp --dport 98 -j CNI-DN-other\n";
            assert_eq!(saved(&format!("iptables-{variant}-save -t nat")), expected, "{variant}");
            sh("ip netns del one");
        }
    });
}
