//! Host ports as golden rules.

use fabric::packet_filter::iptables::IpVersion;
use fabric::packet_filter::{self, Observed, diff};
use serde_json::json;

use super::*;
use crate::masquerade;

fn port_map(config: Value) -> Result<PortMap, PortMapError> {
    PortMap::new(config.as_object().unwrap())
}

fn mapped(mappings: Value) -> Value {
    json!({"runtimeConfig": {"portMappings": mappings}})
}

fn attachment() -> Attachment {
    Attachment::named("cbr0", "one", "eth0")
}

/// The commands that make the rules from nothing, with `#` for the comment of the attachment.
fn commands(config: Value, pod: &[&str]) -> String {
    let pod: Vec<IpNetwork> = pod.iter().map(|ip| ip.parse().unwrap()).collect();
    let map = port_map(config).unwrap();
    let rules = rules(&attachment(), &map, &pod, "cni0".parse().unwrap()).nftables;
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
        (
            json!({"markMasqBit": 32}),
            "failed to parse config: MasqMarkBit must be between 0 and 31",
        ),
        (
            json!({"conditionsV6": ["meta", "l4proto", "tcp"]}),
            "unsupported field: conditionsV6 is [\"meta\",\"l4proto\",\"tcp\"]",
        ),
        (
            json!({"externalSetMarkChain": "X", "markMasqBit": 1}),
            "failed to parse config: Cannot specify externalSetMarkChain and markMasqBit",
        ),
        (
            json!({"backend": "nftables", "externalSetMarkChain": "X", "conditionsV4": ["-s", "a"]}),
            "failed to parse config: nftables backend was requested but configuration contains \
             iptables-specific options [externalSetMarkChain conditionsV4]",
        ),
        (
            json!({"backend": "iptables", "conditionsV6": ["ip6", "saddr", "::1"]}),
            "failed to parse config: iptables backend was requested but configuration contains \
             nftables-specific options [conditionsV6]",
        ),
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

/// What iptables-restore gets, with `#` for the comment of the attachment.
fn restored(config: Value, pod: &[&str], version: IpVersion) -> String {
    let pod: Vec<IpNetwork> = pod.iter().map(|ip| ip.parse().unwrap()).collect();
    let map = port_map(config).unwrap();
    let rules = rules(&attachment(), &map, &pod, "cni0".parse().unwrap());
    assert!(rules.nftables.tables.is_empty());
    let change = packet_filter::iptables::diff(&rules.iptables[&version], &Default::default());
    change.to_string().replace(r#""dnat name: \"cbr0\" id: \"one\"""#, "#")
}

#[test]
fn iptables_gets_the_rules_of_the_go_plugin() {
    let mut config = mapped(json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "192.168.9.1"},
        {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "fd00::9"},
    ]));
    config["backend"] = json!("iptables");
    config["conditionsV4"] = json!(["!", "-d", "10.9.0.0/16"]);
    let pod = ["10.1.2.5/24", "fd00::5/64"];
    let v4 = "\
*nat
-N CNI-HOSTPORT-DNAT
-N CNI-DN-bf6160f434cb726281bdc
-N CNI-HOSTPORT-SETMARK
-N CNI-HOSTPORT-MASQ
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment # -m multiport --dports 8080,8081 ! -d 10.9.0.0/16 -j CNI-DN-bf6160f434cb726281bdc
-A CNI-HOSTPORT-DNAT -p udp -m comment --comment # -m multiport --dports 53 ! -d 10.9.0.0/16 -j CNI-DN-bf6160f434cb726281bdc
-A CNI-DN-bf6160f434cb726281bdc -s 10.1.2.0/24 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-bf6160f434cb726281bdc -s 127.0.0.1/32 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-bf6160f434cb726281bdc -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.1.2.5:80
-A CNI-DN-bf6160f434cb726281bdc -s 10.1.2.0/24 -d 192.168.9.1/32 -p tcp -m tcp --dport 8081 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-bf6160f434cb726281bdc -s 127.0.0.1/32 -d 192.168.9.1/32 -p tcp -m tcp --dport 8081 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-bf6160f434cb726281bdc -d 192.168.9.1/32 -p tcp -m tcp --dport 8081 -j DNAT --to-destination 10.1.2.5:80
-A CNI-HOSTPORT-SETMARK -m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark 0x2000/0x2000
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
-I POSTROUTING -m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ
COMMIT
*raw
-A PREROUTING -d 127.0.0.0/8 -i cni0 -m comment --comment \"CNI portfwd martians\" -j DROP
-A PREROUTING -s 127.0.0.0/8 -i cni0 -m comment --comment \"CNI portfwd martians\" -j DROP
COMMIT
";
    assert_eq!(restored(config.clone(), &pod, IpVersion::V4), v4);
    let v6 = restored(config.clone(), &pod, IpVersion::V6);
    let own = |text: &str| -> Vec<String> {
        let of_chain = text.lines().filter_map(|line| line.strip_prefix("-A CNI-DN-"));
        of_chain.map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    };
    let expected = [
        "-s fd00::/64 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
        "-p tcp -m tcp --dport 8080 -j DNAT --to-destination [fd00::5]:80",
        "-s fd00::/64 -d fd00::9/128 -p udp -m udp --dport 53 -j CNI-HOSTPORT-SETMARK",
        "-d fd00::9/128 -p udp -m udp --dport 53 -j DNAT --to-destination [fd00::5]:5353",
    ];
    assert_eq!(own(&v6), expected);
    assert!(!v6.contains("127.0.0") && !v6.contains("*raw"), "{v6}");

    config["masqAll"] = json!(true);
    config["markMasqBit"] = json!(5);
    let all = restored(config.clone(), &pod[..1], IpVersion::V4);
    assert_eq!(own(&all)[0], "-p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK");
    assert!(all.contains("--set-xmark 0x20/0x20"), "{all}");

    config["snat"] = json!(false);
    let none = restored(config.clone(), &pod[..1], IpVersion::V4);
    assert_eq!(own(&none).len(), 2);
    assert!(!none.contains("MARK") && !none.contains("MASQ"), "{none}");

    let mut config = mapped(json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]));
    // Only iptables has such a chain, so nobody need say that it is meant.
    config["externalSetMarkChain"] = json!("KUBE-MARK-MASQ");
    let external = restored(config, &pod[..1], IpVersion::V4);
    assert_eq!(own(&external)[0], "-s 10.1.2.0/24 -p tcp -m tcp --dport 8080 -j KUBE-MARK-MASQ");
    assert!(!external.contains("CNI-HOSTPORT-MASQ"), "{external}");
}

#[test]
fn many_ports_take_several_rules_of_iptables() {
    let ports = (1..=16).map(|port| json!({"hostPort": port, "containerPort": port}));
    let mut config = mapped(ports.collect());
    config["backend"] = json!("iptables");
    let rules = restored(config, &["10.1.2.5/24"], IpVersion::V4);
    assert!(rules.contains("--dports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15 -j"), "{rules}");
    assert!(rules.contains("--dports 16 -j"), "{rules}");
}

#[test]
fn the_chain_in_iptables_is_that_of_the_go_plugin() {
    let container = "icee6giejonei6sohng6ahngee7laquohquee9shiGo7fohferakah3Feiyoolu2pei7ciPhoh7shao\
                     X6vai3vuf0ahfaeng8yohb9ceu0daez5hashee8ooYai5wa3y";
    let of = |network| Attachment::named(network, container, "eth0");
    assert_eq!(iptables::chain_of(&of("test")), "CNI-DN-67e92b96e692a494b6b85");
    assert_eq!(iptables::chain_of(&of("testNetName")), "CNI-DN-bfd599665540dd91d5d28");
}

#[test]
fn conditions_hold_for_what_is_led_to_the_pod() {
    let mut config = mapped(json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]));
    config["conditionsV4"] = json!(["ip", "saddr", "!=", "10.9.0.0/16"]);
    let rules = commands(config, &["10.1.2.5", "fd00::5"]);
    assert!(
        rules.contains("ip saddr != 10.9.0.0/16 tcp dport 8080 dnat to 10.1.2.5:80"),
        "{rules}"
    );
    assert!(rules.contains("hostports tcp dport 8080 dnat to [fd00::5]:80"), "{rules}");
}
