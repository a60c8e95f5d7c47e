//! Host ports as golden rules.

use fabric::packet_filter::{Observed, diff};
use serde_json::json;

use super::*;
use crate::invocation::Id;

fn port_map(config: Value) -> Result<PortMap, PortMapError> {
    PortMap::new(config.as_object().unwrap())
}

fn mapped(mappings: Value) -> Value {
    json!({"runtimeConfig": {"portMappings": mappings}})
}

fn attachment() -> Attachment {
    Attachment {
        network: Id::new("cbr0").unwrap(),
        container: Id::new("one").unwrap(),
        if_name: "eth0".parse().unwrap(),
    }
}

/// The commands that make the rules from nothing, with `#` for the comment of the attachment.
fn commands(config: Value, pod: &[&str]) -> String {
    let pod: Vec<IpAddr> = pod.iter().map(|ip| ip.parse().unwrap()).collect();
    let rules = rules(&attachment(), &port_map(config).unwrap(), &pod, "cni0".parse().unwrap());
    let comment = format!(" comment \"{}\"", masquerade::comment(&attachment()));
    diff(&rules, &Observed::default()).to_string().replace(&comment, " #")
}

#[test]
fn mappings_are_understood_as_every_runtime_writes_them() {
    let containerd = json!([
        {"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""},
        {"HostPort": 53, "ContainerPort": 5353, "Protocol": "UDP", "HostIP": "10.0.0.1"},
    ]);
    let mapping = |transport, host_ip, host_port, container_port| Mapping {
        transport,
        host_ip,
        host_port,
        container_port,
    };
    let expected = [
        mapping(Transport::Tcp, None, 8080, 80),
        mapping(Transport::Udp, Some("10.0.0.1".parse().unwrap()), 53, 5353),
    ];
    let map = port_map(mapped(containerd)).unwrap();
    assert_eq!(map.mappings, expected);
    assert_eq!(map.udp_ports().collect::<Vec<_>>(), [53]);
    let documented = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    assert_eq!(port_map(mapped(documented)).unwrap().mappings, expected[..1]);
    assert!(port_map(json!({"markMasqBit": 5})).unwrap().is_empty());
}

#[test]
fn what_makes_no_sense_or_cannot_be_done_is_named() {
    let one = |host: i64, container: i64, protocol: &str, ip: &str| {
        mapped(json!([{"hostPort": host, "containerPort": container, "protocol": protocol,
                       "hostIP": ip}]))
    };
    let table = [
        (one(0, 0, "tcp", ""), "failed to parse config: Invalid container port number: 0"),
        (one(-1, 80, "tcp", ""), "failed to parse config: Invalid host port number: -1"),
        (one(65536, 80, "tcp", ""), "failed to parse config: Invalid host port number: 65536"),
        (one(1, 80, "icmp", ""), "failed to parse config: unknown protocol \"icmp\""),
        (one(1, 80, "tcp", "x"), "failed to parse config: invalid hostIP \"x\""),
        (json!({"backend": "bpf"}), "failed to parse config: unrecognized backend \"bpf\""),
        (json!({"backend": "iptables"}), "unsupported field: backend is \"iptables\""),
        (
            json!({"markMasqBit": 32}),
            "failed to parse config: MasqMarkBit must be between 0 and 31",
        ),
        (
            json!({"conditionsV4": ["-s", "10.0.0.0/8"]}),
            "unsupported field: conditionsV4 is [\"-s\",\"10.0.0.0/8\"]",
        ),
        (json!({"externalSetMarkChain": "X"}), "unsupported field: externalSetMarkChain is \"X\""),
    ];
    for (config, expected) in table {
        assert_eq!(crate::error::chain(&port_map(config).unwrap_err()), expected);
    }
}

#[test]
fn ports_of_all_and_of_one_address_lead_to_the_pod() {
    let mappings = json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "192.168.0.1"},
        {"hostPort": 7, "containerPort": 7, "protocol": "sctp", "hostIP": "::"},
    ]);
    let expected = "\
add table ip cni_hostport { comment \"CNI portmap plugin\"; }
add chain ip cni_hostport hostip_hostports
add chain ip cni_hostport hostports
add chain ip cni_hostport hostports_all
add chain ip cni_hostport prerouting { type nat hook prerouting priority dstnat; policy accept; }
add chain ip cni_hostport output { type nat hook output priority -100; policy accept; }
add chain ip cni_hostport masquerading { type nat hook postrouting priority srcnat; policy accept; }
add chain ip cni_hostport martians { type filter hook prerouting priority raw; policy accept; }
add rule ip cni_hostport hostip_hostports ip daddr 192.168.0.1 udp dport 53 dnat to 10.1.2.5:5353 #
add rule ip cni_hostport hostports tcp dport 8080 dnat to 10.1.2.5:80 #
add rule ip cni_hostport hostports_all jump hostip_hostports
add rule ip cni_hostport hostports_all jump hostports
add rule ip cni_hostport prerouting fib daddr type local jump hostports_all
add rule ip cni_hostport output fib daddr type local jump hostports_all
add rule ip cni_hostport masquerading ip saddr 10.1.2.5 ip daddr 10.1.2.5 masquerade #
add rule ip cni_hostport masquerading ip saddr 127.0.0.1 ip daddr 10.1.2.5 masquerade #
add rule ip cni_hostport martians iifname \"cni0\" ip daddr 127.0.0.0/8 drop
add rule ip cni_hostport martians iifname \"cni0\" ip saddr 127.0.0.0/8 drop
";
    assert_eq!(commands(mapped(mappings.clone()), &["10.1.2.5"]), expected);
    let v6 = commands(mapped(mappings), &["fd00::5"]);
    for line in [
        "add rule ip6 cni_hostport hostports tcp dport 8080 dnat to [fd00::5]:80 #\n",
        "add rule ip6 cni_hostport hostports sctp dport 7 dnat to [fd00::5]:7 #\n",
        "add rule ip6 cni_hostport masquerading ip6 saddr fd00::5 ip6 daddr fd00::5 masquerade #\n",
    ] {
        assert!(v6.contains(line), "{v6} should have {line}");
    }
    assert!(!v6.contains("5353") && !v6.contains("martians"), "{v6}");
}

#[test]
fn masquerading_is_as_configured() {
    let with = |key: &str, value: bool| {
        let mut config = mapped(json!([{"hostPort": 1, "containerPort": 2}]));
        config[key] = value.into();
        config
    };
    let nobody = commands(with("snat", false), &["10.1.2.5"]);
    assert!(!nobody.contains("masquerad") && !nobody.contains("martians"), "{nobody}");
    assert!(!port_map(with("snat", false)).unwrap().leads_loopback());
    let all = commands(with("masqAll", true), &["10.1.2.5"]);
    let expected = "masquerading ip saddr 0.0.0.0/0 ip daddr 10.1.2.5 masquerade #\n";
    assert!(all.contains(expected) && !all.contains("127.0.0.1"), "{all}");
}

#[test]
fn without_ports_there_are_no_rules() {
    assert_eq!(commands(json!({}), &["10.1.2.5", "fd00::5"]), "");
    let other_family = mapped(json!([{"hostPort": 1, "containerPort": 2, "hostIP": "::1"}]));
    assert_eq!(commands(other_family, &["10.1.2.5"]), "");
}
