//! Annotations of every backend and family, as flannel writes them.

use serde_json::{Value, json};

use super::*;
use crate::config::NetworkConfig;
use crate::lease::flannel;

fn stock() -> Annotations {
    Annotations::with_prefix("flannel.alpha.coreos.com").unwrap()
}

fn attributes(backend: &str, families: PerFamily<Value>) -> Attributes {
    Attributes {
        public_ip: match families.ipv4 {
            Some(_) => Ipv4Addr::new(192, 168, 0, 3),
            None => Ipv4Addr::UNSPECIFIED,
        },
        public_ipv6: families.ipv6.as_ref().map(|_| "fd00::3".parse().unwrap()),
        backend_type: backend.to_owned(),
        backend_data: families.ipv4.filter(|data| !data.is_null()).map(Into::into),
        backend_v6_data: families.ipv6.filter(|data| !data.is_null()).map(Into::into),
    }
}

fn vxlan(mac: &str) -> Value {
    json!({ "VNI": 1, "VtepMAC": mac })
}

fn v4(data: Value) -> PerFamily<Value> {
    PerFamily { ipv4: Some(data), ipv6: None }
}

fn v6(data: Value) -> PerFamily<Value> {
    PerFamily { ipv4: None, ipv6: Some(data) }
}

fn dual(ipv4: Value, ipv6: Value) -> PerFamily<Value> {
    PerFamily { ipv4: Some(ipv4), ipv6: Some(ipv6) }
}

fn golden(attributes: &Attributes) -> String {
    let desired = stock().desired(attributes, &Texts::new());
    let present = desired.iter().filter_map(|(name, text)| Some((name, text.as_ref()?)));
    let line = |(name, text): (&String, &String)| {
        format!("{}: {text}\n", name.strip_prefix("flannel.alpha.coreos.com/").unwrap())
    };
    present.map(line).collect()
}

#[test]
fn annotations_of_every_backend_and_family_are_those_of_flannel() {
    let macs = ("c6:d2:32:6f:8f:44", "0a:11:22:33:44:55");
    let golden_vxlan4 = "\
backend-data: {\"VNI\":1,\"VtepMAC\":\"c6:d2:32:6f:8f:44\"}
backend-type: vxlan
kube-subnet-manager: true
public-ip: 192.168.0.3
";
    let golden_vxlan6 = "\
backend-type: vxlan
backend-v6-data: {\"VNI\":1,\"VtepMAC\":\"0a:11:22:33:44:55\"}
kube-subnet-manager: true
public-ipv6: fd00::3
";
    let golden_dual = "\
backend-data: {\"VNI\":1,\"VtepMAC\":\"c6:d2:32:6f:8f:44\"}
backend-type: vxlan
backend-v6-data: {\"VNI\":1,\"VtepMAC\":\"0a:11:22:33:44:55\"}
kube-subnet-manager: true
public-ip: 192.168.0.3
public-ipv6: fd00::3
";
    let without_data = |backend: &str| {
        format!(
            "backend-data: null\nbackend-type: {backend}\nkube-subnet-manager: true\n\
             public-ip: 192.168.0.3\n"
        )
    };
    let golden_host_gw_dual = "\
backend-data: null
backend-type: host-gw
backend-v6-data: null
kube-subnet-manager: true
public-ip: 192.168.0.3
public-ipv6: fd00::3
";
    let golden_host_gw6 = "\
backend-data: null
backend-type: host-gw
backend-v6-data: null
kube-subnet-manager: true
public-ip: 0.0.0.0
public-ipv6: fd00::3
";
    let golden_udp_dual = "\
backend-data: null
backend-type: 
backend-v6-data: {\"Port\":8285}
kube-subnet-manager: true
public-ip: 192.168.0.3
public-ipv6: fd00::3
";
    for (backend, families, text) in [
        ("vxlan", v4(vxlan(macs.0)), golden_vxlan4),
        ("vxlan", v6(vxlan(macs.1)), golden_vxlan6),
        ("vxlan", dual(vxlan(macs.0), vxlan(macs.1)), golden_dual),
        ("host-gw", v4(Value::Null), &without_data("host-gw")),
        ("host-gw", dual(Value::Null, Value::Null), golden_host_gw_dual),
        ("host-gw", v6(Value::Null), golden_host_gw6),
        ("ipip", v4(Value::Null), &without_data("ipip")),
        ("", v4(Value::Null), &without_data("")),
        ("", dual(Value::Null, Value::Null), &without_data("")),
        ("", dual(Value::Null, json!({ "Port": 8285 })), golden_udp_dual),
    ] {
        assert_eq!(golden(&attributes(backend, families.clone())), text, "{backend} {families:?}");
    }
}

/// How flannel finds the Ethernet address that its device had: not by reading JSON.
fn naive_mac(backend_data: &str) -> Option<String> {
    let trimmed = backend_data.trim_end_matches('}').trim_end_matches('"');
    let parts: Vec<_> = trimmed.split(":\"").collect();
    match parts[..] {
        [_, mac] => Some(mac.to_owned()),
        _ => None,
    }
}

#[test]
fn flannel_finds_its_ethernet_address_in_what_vxlan_writes_of_every_family() {
    for network in [
        r#""Network":"10.3.0.0/16""#,
        r#""Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48""#,
        r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48""#,
    ] {
        let json = format!(r#"{{{network},"Backend":{{"Type":"vxlan","VNI":7}}}}"#);
        let config = NetworkConfig::parse_assigned(json.as_bytes()).unwrap();
        let published = flannel::tests::attributes(&config);
        let published = published.iter().find(|a| a.backend_type == "vxlan").unwrap();
        let desired = stock().desired(published, &Texts::new());
        for family in config.pools.families() {
            let data = desired[&stock().name(names(family).data)].clone().unwrap();
            assert_eq!(data, r#"{"VNI":7,"VtepMAC":"02:00:00:00:00:01"}"#);
            assert_eq!(naive_mac(&data).as_deref(), Some("02:00:00:00:00:01"));
        }
    }
}

#[test]
fn what_is_written_is_read_again() {
    let annotations = stock();
    let subnets = PerFamily {
        ipv4: Some("10.244.1.0/24".parse().unwrap()),
        ipv6: Some("fd00:1::/64".parse().unwrap()),
    };
    for (families, key) in [
        (v4(vxlan("02:00:00:00:00:01")), "10.244.1.0-24"),
        (v6(vxlan("02:00:00:00:00:02")), "0.0.0.0-0&fd00:1::-64"),
        (dual(vxlan("02:00:00:00:00:01"), vxlan("02:00:00:00:00:02")), "10.244.1.0-24&fd00:1::-64"),
    ] {
        let written = attributes("vxlan", families);
        let texts = annotations.desired(&written, &Texts::new());
        let texts = texts.into_iter().filter_map(|(name, text)| Some((name, text?))).collect();
        let listed = annotations.lease(&texts, subnets).unwrap();
        assert_eq!((listed.key.to_string().as_str(), listed.attributes), (key, Some(written)));
    }
}

fn texts(pairs: &[(&str, &str)]) -> Texts {
    let name = |suffix: &str| format!("flannel.alpha.coreos.com/{suffix}");
    pairs.iter().map(|(suffix, text)| (name(suffix), (*text).to_owned())).collect()
}

#[test]
fn what_administrators_write_is_published_or_used() {
    let own = texts(&[
        ("public-ip-overwrite", "203.0.113.9"),
        ("public-ipv6-overwrite", "not an address"),
        ("node-public-ip", "198.51.100.9"),
        ("node-public-ipv6", "198.51.100.9"),
    ]);
    let annotations = stock();
    let written = attributes("host-gw", dual(Value::Null, Value::Null));
    let desired = annotations.desired(&written, &own);
    let text = |suffix: &str| desired[&annotations.name(suffix)].clone().unwrap();
    assert_eq!(text("public-ip"), "203.0.113.9");
    assert_eq!(text("public-ipv6"), "fd00::3");
    assert!(desired.keys().all(|name| !own.contains_key(name)), "{desired:?}");
    let used = annotations.own_addresses(&own);
    assert_eq!((used.ipv4, used.ipv6), (Some("198.51.100.9".parse().unwrap()), None));
}

#[test]
fn annotations_of_a_family_that_went_away_are_taken_back() {
    let desired = stock().desired(&attributes("vxlan", v4(vxlan("02::"))), &Texts::new());
    assert_eq!(desired["flannel.alpha.coreos.com/backend-v6-data"], None);
    assert_eq!(desired["flannel.alpha.coreos.com/public-ipv6"], None);
}

#[test]
fn a_node_takes_part_only_when_it_says_so_and_a_family_only_with_address_and_subnet() {
    let annotations = stock();
    let subnets = PerFamily { ipv4: Some("10.244.1.0/24".parse().unwrap()), ipv6: None };
    let key = |pairs: &[(&str, &str)]| {
        let listed = annotations.lease(&texts(pairs), subnets)?;
        Some((listed.key.to_string(), listed.attributes.is_some()))
    };
    let managed = ("kube-subnet-manager", "true");
    let v4 = Some(("10.244.1.0-24".to_owned(), true));
    let unreadable = Some(("10.244.1.0-24".to_owned(), false));
    for (pairs, expected) in [
        (&[("public-ip", "192.168.0.3")][..], None),
        (&[("kube-subnet-manager", "True"), ("public-ip", "192.168.0.3")], None),
        (&[managed, ("public-ip", "192.168.0.3")], v4.clone()),
        (&[managed, ("public-ip", "192.168.0.3"), ("public-ipv6", "fd00::3")], v4),
        (&[managed, ("public-ip", "node-3")], unreadable.clone()),
        (&[managed, ("public-ip", "fd00::3")], unreadable.clone()),
        (&[managed], unreadable.clone()),
        (&[managed, ("public-ip", "192.168.0.3"), ("backend-data", "{")], unreadable),
    ] {
        assert_eq!(key(pairs), expected, "{pairs:?}");
    }
    let nothing = PerFamily { ipv4: None, ipv6: None };
    assert_eq!(annotations.lease(&texts(&[managed, ("public-ip", "1.2.3.4")]), nothing), None);
}

#[test]
fn prefixes_are_completed_as_flannel_does() {
    let name = |prefix| Annotations::with_prefix(prefix).map(|a| a.name("backend-type"));
    for (prefix, expected) in [
        ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/backend-type"),
        ("org.com/", "org.com/backend-type"),
        ("org.com/p", "org.com/p-backend-type"),
        ("org.com/p-", "org.com/p-backend-type"),
        ("org.com/p_1", "org.com/p_1-backend-type"),
    ] {
        assert_eq!(name(prefix).as_deref(), Ok(expected), "{prefix}");
    }
    for prefix in ["", "nodot", "Org.com", "org.com/P", "org.com/a/b", "org..com", "org.com/ä"] {
        assert_eq!(name(prefix), Err(BadPrefix), "{prefix}");
    }
}
