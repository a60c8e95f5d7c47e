//! Who is chosen, and why others are not.

use fabric::netlink::DefaultRoute;

use super::*;

const V4: &[Family] = &[Family::V4];
const V6: &[Family] = &[Family::V6];
const BOTH: &[Family] = &[Family::V4, Family::V6];

fn address(ip: &str) -> InterfaceAddress {
    InterfaceAddress {
        ip: ip.parse().unwrap(),
        link_scope: ip.starts_with("fe80"),
        permanent: true,
        deprecated: false,
        temporary: false,
    }
}

fn interface(name: &str, addresses: Vec<InterfaceAddress>) -> Interface {
    Interface { name: name.parse().unwrap(), mtu: 1500, up: true, addresses }
}

fn route(ipv6: bool, interface: &str) -> DefaultRoute {
    DefaultRoute { ipv6, metric: 0, interface: interface.parse().unwrap() }
}

fn host() -> Inventory {
    let dynamic = |ip| InterfaceAddress { permanent: false, ..address(ip) };
    let privacy = |ip| InterfaceAddress { temporary: true, ..dynamic(ip) };
    let old = |ip| InterfaceAddress { deprecated: true, ..address(ip) };
    Inventory {
        interfaces: vec![
            interface("lo", vec![address("127.0.0.1"), address("::1")]),
            interface(
                "eth0",
                vec![
                    dynamic("10.9.0.5"),
                    address("10.0.2.15"),
                    address("fe80::1"),
                    privacy("2001:db8:9::aa"),
                    dynamic("2001:db8:9::5"),
                ],
            ),
            interface(
                "eth1",
                vec![
                    address("169.254.7.7"),
                    address("198.51.100.1"),
                    old("fd99::99"),
                    address("fd99::1"),
                    address("fd99::2"),
                ],
            ),
            interface("eth2", vec![]),
            interface("eth3", vec![address("203.0.113.3")]),
        ],
        default_routes: vec![route(false, "eth3"), route(false, "eth0"), route(true, "eth0")],
        ways: Vec::new(),
    }
}

/// Options as they are typed: `iface=eth1 public-ip=203.0.113.9`.
fn options(text: &str) -> InterfaceOptions {
    let mut options = InterfaceOptions::default();
    for (flag, value) in text.split_whitespace().filter_map(|word| word.split_once('=')) {
        match flag {
            "iface" => options.names.push(value.to_owned()),
            "iface-regex" => options.regexes.push(value.to_owned()),
            "iface-can-reach" => options.can_reach = Some(value.parse().unwrap()),
            "public-ip" => options.public_ip = Some(value.parse().unwrap()),
            "public-ipv6" => options.public_ipv6 = Some(value.parse().unwrap()),
            other => panic!("{other}"),
        }
    }
    options
}

/// What is chosen, or why nothing is.
fn chosen(text: &str, families: &[Family], host: &Inventory) -> String {
    let reach = Some(("eth0".parse().unwrap(), Some([10, 9, 0, 5].into())));
    match choose(&options(text), families, host, reach) {
        Ok(interface) => interface.to_string(),
        Err(none) => none.to_string(),
    }
}

#[test]
fn choices() {
    for (options, families, expected) in [
        ("", V4, "eth3 203.0.113.3"),
        ("", V6, "eth0 2001:db8:9::5"),
        ("", BOTH, "eth0 10.0.2.15 2001:db8:9::5"),
        ("iface=eth1", V4, "eth1 198.51.100.1"),
        ("iface=eth1", V6, "eth1 fd99::1"),
        ("iface=eth1", BOTH, "eth1 198.51.100.1 fd99::1"),
        ("iface=10.9.0.5", V4, "eth0 10.9.0.5"),
        ("iface=10.9.0.5", BOTH, "eth0 10.9.0.5 2001:db8:9::5"),
        ("iface=fd99::2", V6, "eth1 fd99::2"),
        ("iface=fd99::2", BOTH, "eth1 198.51.100.1 fd99::2"),
        ("iface=eth9 iface=eth2 iface=eth1", V4, "eth1 198.51.100.1"),
        ("iface=eth3 iface=eth1", BOTH, "eth1 198.51.100.1 fd99::1"),
        ("iface-regex=^198\\.", V4, "eth1 198.51.100.1"),
        ("iface-regex=^198\\.", BOTH, "eth1 198.51.100.1 fd99::1"),
        ("iface-regex=^(10\\.9|fd99)", BOTH, "eth0 10.9.0.5 2001:db8:9::5"),
        ("iface-regex=^(10\\.|198|fd99)", BOTH, "eth1 198.51.100.1 fd99::1"),
        ("iface-regex=th1", V4, "eth1 198.51.100.1"),
        ("iface-can-reach=8.8.8.8", V4, "eth0 10.9.0.5"),
        ("iface-can-reach=8.8.8.8", BOTH, "eth0 10.9.0.5 2001:db8:9::5"),
        ("public-ip=198.51.100.1", V4, "eth1 198.51.100.1"),
        ("public-ip=198.51.100.1 public-ipv6=fd99::2", BOTH, "eth1 198.51.100.1 fd99::2"),
        ("public-ipv6=fd99::2", BOTH, "eth1 198.51.100.1 fd99::2"),
        ("public-ip=198.51.100.1 public-ipv6=fd99::2", V6, "eth1 fd99::2"),
        ("iface=eth1 public-ip=203.0.113.9", V4, "eth1 198.51.100.1 (published as 203.0.113.9)"),
        (
            "iface=eth1 public-ipv6=fd99:9::9",
            BOTH,
            "eth1 198.51.100.1 fd99::1 (published as fd99:9::9)",
        ),
    ] {
        assert_eq!(chosen(options, families, &host()), expected, "{options} {families:?}");
    }
}

#[test]
fn every_rejected_candidate_is_named_with_the_reason() {
    let options = options(
        "iface=eth9 iface=eth2 iface=10.1.1.1 iface=fd99::1 iface-regex=wlan iface-regex=( \
         iface-can-reach=8.8.8.8",
    );
    let NoInterface(rejections) = choose(&options, V4, &host(), None).unwrap_err();
    let text: Vec<_> = rejections.iter().map(ToString::to_string).collect();
    assert_eq!(text[0], "--iface=eth9: no such interface; there are lo, eth0, eth1, eth2, eth3");
    assert_eq!(text[1], "--iface=eth2: it has no usable IPv4 address");
    assert_eq!(
        text[2],
        "--iface=10.1.1.1: no interface has this address; behind a NAT, add --iface"
    );
    assert_eq!(text[3], "--iface=fd99::1: the network has no IPv6");
    assert!(text[4].starts_with("--iface-regex=wlan: no such matching interface"));
    assert!(text[5].starts_with("--iface-regex=(: not a pattern"), "{}", text[5]);
    assert_eq!(text[6], "--iface-can-reach=8.8.8.8: no route to this address");
}

#[test]
fn an_interface_without_an_address_of_each_family_is_rejected() {
    for (options, families, reason) in [
        ("iface=eth3", BOTH, "--iface=eth3: it has no usable IPv6 address"),
        ("iface=eth3", V6, "--iface=eth3: it has no usable IPv6 address"),
        ("iface=10.0.2.15", V6, "--iface=10.0.2.15: the network has no IPv4"),
    ] {
        let expected = format!("no interface for the traffic between nodes: {reason}");
        assert_eq!(chosen(options, families, &host()), expected);
    }
}

#[test]
fn default_routes_that_do_not_serve_say_why_and_what_to_do() {
    let because = |reason: &str| {
        format!(
            "no interface for the traffic between nodes: default route: {reason}; name the \
             interface with --iface"
        )
    };
    let mut host = host();
    host.default_routes = vec![route(false, "eth3"), route(true, "eth1")];
    let no_default = "no default route for";
    assert_eq!(
        chosen("", BOTH, &host),
        because(&format!(
            "eth3: {no_default} IPv6 leads by it, eth1: {no_default} IPv4 leads by it"
        ))
    );
    host.default_routes = vec![route(false, "eth2")];
    assert_eq!(chosen("", V4, &host), because("eth2: it has no usable IPv4 address"));
    host.default_routes.clear();
    assert_eq!(chosen("", V4, &host), because("there is none for IPv4"));
    assert_eq!(chosen("", BOTH, &host), because("there is none for IPv4 or IPv6"));
}

#[test]
fn of_a_route_over_several_interfaces_the_first_that_serves_is_taken() {
    let mut host = host();
    host.default_routes = vec![route(false, "eth2"), route(false, "eth1")];
    assert_eq!(chosen("", V4, &host), "eth1 198.51.100.1");
    // The network between nodes may have no way out for IPv6.
    assert_eq!(chosen("", BOTH, &host), "eth1 198.51.100.1 fd99::1");
}
