//! The state of attachments as golden plans.

use fabric::plan::diff;
use serde_json::{Value, json};

use super::*;
use crate::ipam::source::Source;

fn attachment() -> Attachment {
    Attachment::named("cbr0", "one", "eth0")
}

fn bridge(changes: &[(&str, Value)]) -> Bridge {
    let mut delegate = json!({
        "type": "bridge", "hairpinMode": true, "isDefaultGateway": true, "isGateway": true,
        "mtu": 1450,
        "ipam": {"type": "host-local", "routes": [{"dst": "10.1.0.0/16"}]},
    });
    for (key, value) in changes {
        delegate[*key] = value.clone();
    }
    delegate["ipam"]["ranges"] = json!([[{"subnet": "10.1.2.0/24"}]]);
    Bridge::new(delegate.as_object().unwrap(), "").unwrap()
}

fn ip(address: &str, gateway: &str) -> Ip {
    Ip {
        interface: None,
        address: address.parse().unwrap(),
        gateway: Some(gateway.parse().unwrap()),
    }
}

fn v4() -> Vec<Ip> {
    vec![ip("10.1.2.5/24", "10.1.2.1")]
}

fn dual_stack() -> Vec<Ip> {
    vec![ip("10.1.2.5/24", "10.1.2.1"), ip("fd00::5/64", "fd00::1")]
}

fn desired_with(bridge: &Bridge, ips: &[Ip]) -> Desired {
    let routes = routes(bridge, bridge.ipam.as_ref().map_or(&[][..], Source::routes), ips);
    desired(&attachment(), Path::new("/run/netns/x"), bridge, ips, &routes)
}

/// The commands that make the state from nothing.
fn commands(state: &NetState) -> String {
    diff(state, &NetState::default()).to_string()
}

#[test]
fn the_stock_list_on_the_host() {
    let expected = "\
ip link add cni0 address 0a:58:0a:01:02:01 mtu 1450 type bridge
ip link add veth50419296 address f6:b9:19:3b:2f:b7 mtu 1450 master cni0 type veth peer name eth0 netns /run/netns/x \
address 0a:58:0a:01:02:05 mtu 1450
ip link set veth50419296 alias \"one/eth0/cbr0\"
bridge link set dev veth50419296 hairpin on
sysctl -w net/ipv4/ip_forward=1
sysctl -w net/ipv6/conf/cni0/accept_ra=0
sysctl -w net/ipv6/conf/veth50419296/addr_gen_mode=1
ip address replace 10.1.2.1/24 dev cni0
ip link set cni0 up
ip link set veth50419296 up
";
    assert_eq!(commands(&desired_with(&bridge(&[]), &v4()).host), expected);
}

#[test]
fn the_stock_list_in_the_sandbox() {
    let expected = "\
sysctl -w net/ipv6/conf/eth0/addr_gen_mode=1
ip address replace 10.1.2.5/24 dev eth0
ip link set eth0 up
ip link set lo up
sysctl -w net/ipv4/conf/eth0/arp_notify=1
ip route add 0.0.0.0/0 via 10.1.2.1 dev eth0 proto 199
ip route add 10.1.0.0/16 via 10.1.2.1 dev eth0 proto 199
";
    assert_eq!(commands_inside(&desired_with(&bridge(&[]), &v4()).sandbox), expected);
}

#[test]
fn ipv6_goes_the_same_way() {
    let desired = desired_with(&bridge(&[]), &dual_stack());
    let expected = "\
sysctl -w net/ipv6/conf/eth0/disable_ipv6=0
sysctl -w net/ipv6/conf/eth0/keep_addr_on_down=1
sysctl -w net/ipv6/conf/lo/disable_ipv6=0
ip address replace 10.1.2.5/24 dev eth0
ip address replace fd00::5/64 dev eth0
ip link set eth0 up
ip link set lo up
sysctl -w net/ipv4/conf/eth0/arp_notify=1
ip route add 0.0.0.0/0 via 10.1.2.1 dev eth0 proto 199
ip route add 10.1.0.0/16 via 10.1.2.1 dev eth0 proto 199
ip route add ::/0 via fd00::1 dev eth0 proto 199
";
    assert_eq!(commands_inside(&desired.sandbox), expected);
    let host = commands(&desired.host);
    for line in [
        "ip address replace 10.1.2.1/24 dev cni0\n",
        "ip address replace fd00::1/64 dev cni0\n",
        "sysctl -w net/ipv6/conf/all/forwarding=1\n",
    ] {
        assert!(host.contains(line), "{host} should have {line}");
    }
}

/// The commands for a sandbox in which the interface came into being with its other end.
fn commands_inside(state: &NetState) -> String {
    let down = |link: &Link| Link { up: false, ..link.clone() };
    let links = state.links.iter().map(|(name, link)| (*name, down(link))).collect();
    diff(state, &NetState { links, ..NetState::default() }).to_string()
}

#[test]
fn the_node_is_as_much_of_a_gateway_as_configured() {
    let dst = |desired: &Desired| -> Vec<String> {
        desired.sandbox.routes.keys().map(|key| key.destination.to_string()).collect()
    };
    let no_default = [("isDefaultGateway", json!(false))];
    let of_subnet = desired_with(&bridge(&no_default), &v4());
    assert_eq!(dst(&of_subnet), ["10.1.0.0/16"]);
    assert_eq!(of_subnet.host.addresses.len(), 1);

    let none = [("isDefaultGateway", json!(false)), ("isGateway", json!(false))];
    let none = desired_with(&bridge(&none), &v4());
    assert_eq!(dst(&none), ["10.1.0.0/16"]);
    assert_eq!(none.host.addresses.len(), 0);
    assert!(!none.host.sysctls.contains_key(&Sysctl::ipv4_forwarding()));
}

#[test]
fn a_default_route_of_the_template_replaces_ours_if_it_has_a_gateway() {
    let with_route = |route: Value| {
        let ipam = json!({"type": "host-local", "routes": [route]});
        let bridge = bridge(&[("ipam", ipam)]);
        serde_json::to_value(routes(&bridge, bridge.ipam.as_ref().unwrap().routes(), &v4()))
            .unwrap()
    };
    let elsewhere = json!({"dst": "0.0.0.0/0", "gw": "10.1.2.9"});
    assert_eq!(with_route(elsewhere.clone()), json!([elsewhere]));
    let nowhere = json!({"dst": "0.0.0.0/0"});
    let ours = json!({"dst": "0.0.0.0/0", "gw": "10.1.2.1"});
    assert_eq!(with_route(nowhere.clone()), json!([nowhere, ours]));
}

#[test]
fn routes_of_the_template_keep_their_table_and_metric() {
    let route = json!({"dst": "10.9.1.1/16", "gw": "10.1.2.9", "table": 100, "priority": 7});
    let ipam = json!({"type": "host-local", "routes": [route]});
    let bridge = bridge(&[("ipam", ipam), ("isDefaultGateway", json!(false))]);
    let text = commands_inside(&desired_with(&bridge, &v4()).sandbox);
    let expected = "ip route add 10.9.0.0/16 via 10.1.2.9 dev eth0 table 100 proto 199 metric 7\n";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn of_two_routes_to_one_destination_the_first_counts() {
    let routes = json!([{"dst": "10.9.0.0/16", "gw": "10.1.2.8"},
                        {"dst": "10.9.0.0/16", "gw": "10.1.2.9"},
                        {"dst": "10.9.0.0/16", "gw": "10.1.2.9", "priority": 7}]);
    let ipam = json!({"type": "host-local", "routes": routes});
    let bridge = bridge(&[("ipam", ipam), ("isDefaultGateway", json!(false))]);
    let text = commands_inside(&desired_with(&bridge, &v4()).sandbox);
    let routes: Vec<_> = text.lines().filter(|line| line.contains("10.9.0.0/16")).collect();
    let expected = [
        "ip route add 10.9.0.0/16 via 10.1.2.8 dev eth0 proto 199",
        "ip route add 10.9.0.0/16 via 10.1.2.9 dev eth0 proto 199 metric 7",
    ];
    assert_eq!(routes, expected);
}

#[test]
fn only_who_masquerades_has_rules() {
    assert!(desired_with(&bridge(&[]), &v4()).filter.is_empty());
    assert!(!desired_with(&bridge(&[("ipMasq", json!(true))]), &v4()).filter.is_empty());
}

#[test]
fn identities_differ_where_attachments_do() {
    let Attachment { network, container, .. } = attachment();
    let other = Attachment::named;
    let all = [
        attachment(),
        other(network.as_str(), container.as_str(), "net1"),
        other(network.as_str(), "two", "eth0"),
        other("cbr1", container.as_str(), "eth0"),
    ];
    for (index, one) in all.iter().enumerate() {
        for another in &all[..index] {
            assert_ne!(host_veth(one), host_veth(another));
            assert_ne!(alias(one), alias(another));
        }
    }
    assert_eq!(alias(&other(&"n".repeat(300), "one", "eth0")).len(), 255);
}

#[test]
fn an_address_has_an_ethernet_address() {
    let table = [("10.1.2.5", "0a:58:0a:01:02:05"), ("255.255.255.255", "0a:58:ff:ff:ff:ff")];
    for (ip, mac) in table {
        assert_eq!(mac_of(ip.parse().unwrap()).to_string(), mac);
    }
    let one = mac_of("fd00::5".parse().unwrap());
    assert!(one.is_unicast());
    assert_ne!(one, mac_of("fd00::6".parse().unwrap()));
}

#[test]
fn a_foreign_link_of_the_same_name_is_not_the_hosts_end() {
    let link =
        |kind, alias: Option<&str>| Link { alias: alias.map(str::to_owned), ..Link::up(kind) };
    let veth = LinkKind::Veth(None);
    let table = [
        (link(veth.clone(), Some("one/eth0/cbr0")), true),
        (link(veth.clone(), None), true),
        (link(veth, Some("two/eth0/cbr0")), false),
        (link(LinkKind::Bridge, Some("one/eth0/cbr0")), false),
    ];
    for (link, expected) in table {
        assert_eq!(
            is_host_link_of(&attachment(), host_veth(&attachment()), &link),
            expected,
            "{link:?}"
        );
    }
}

/// The result of an ADD by us, with `changes` made to it.
fn result(change: impl FnOnce(&mut AddResult)) -> AddResult {
    let interface = |name: &str, mac: &str, sandbox: &str| Interface {
        name: name.to_owned(),
        mac: mac.to_owned(),
        sandbox: sandbox.to_owned(),
        ..Interface::default()
    };
    let mut result = AddResult {
        interfaces: vec![
            interface("cni0", "0a:58:0a:01:02:01", ""),
            interface(host_veth(&attachment()).as_str(), "02:00:00:00:00:01", ""),
            interface("eth0", "0a:58:0a:01:02:05", "/run/netns/x"),
        ],
        ips: vec![Ip { interface: Some(2), ..ip("10.1.2.5/24", "10.1.2.1") }],
        ..AddResult::default()
    };
    change(&mut result);
    result
}

fn found(result: &AddResult) -> Result<Made, String> {
    Made::find(&attachment(), Path::new("/run/netns/x"), &bridge(&[]), result)
}

#[test]
fn an_attachment_is_found_in_the_result_of_the_list() {
    let expected = Made {
        ips: vec![Ip { interface: Some(2), ..ip("10.1.2.5/24", "10.1.2.1") }],
        mac: Some("0a:58:0a:01:02:05".parse().unwrap()),
        foreign_veth: None,
        veth_mac: Some("02:00:00:00:00:01".parse().unwrap()),
    };
    assert_eq!(found(&result(|_| {})), Ok(expected.clone()));
    let others = result(|result| {
        let other = Interface { name: "net1".to_owned(), ..Interface::default() };
        result.interfaces.extend([other, Interface::default()]);
        result.ips.push(Ip { interface: Some(3), ..ip("10.9.2.5/24", "10.9.2.1") });
    });
    assert_eq!(found(&others), Ok(expected.clone()));
    let same_name = result(|result| {
        let mut other = result.interfaces[2].clone();
        other.sandbox = "/run/netns/y".to_owned();
        result.interfaces.insert(0, other);
        result.ips[0].interface = Some(3);
    });
    assert_eq!(found(&same_name).map(|made| made.mac), Ok(expected.mac));
    let of_go_plugin = result(|result| result.interfaces[1].name = "veth0a1b2c3d".to_owned());
    let foreign_veth = Some("veth0a1b2c3d".parse().unwrap());
    assert_eq!(found(&of_go_plugin), Ok(Made { foreign_veth, ..expected }));
}

#[test]
fn a_result_of_another_sandbox_is_refused() {
    let moved = result(|result| result.interfaces[2].sandbox = "/run/netns/y".to_owned());
    assert_eq!(found(&moved), Err("/run/netns/y".to_owned()));
    assert_eq!(found(&AddResult::default()), Err(String::new()));
}

#[test]
fn properties_that_others_may_change_need_not_last() {
    let made_by_us = found(&result(|_| {})).unwrap();
    let bridge = bridge(&[("ipMasq", json!(true))]);
    let desired = made(&attachment(), Path::new("/run/netns/x"), &bridge, &made_by_us, &[]);
    let veth = &desired.host.links[&host_veth(&attachment())];
    assert_eq!((veth.mtu, veth.mac), (None, made_by_us.veth_mac));
    assert!(veth.alias.is_some() && !desired.filter.is_empty());
    assert_eq!(desired.host.sysctls.len(), 1);

    let by_go = Made { foreign_veth: Some("veth0a1b2c3d".parse().unwrap()), ..made_by_us };
    let desired = made(&attachment(), Path::new("/run/netns/x"), &bridge, &by_go, &[]);
    let names: Vec<_> = desired.host.links.keys().map(LinkName::as_str).collect();
    assert_eq!(names, ["cni0", "veth0a1b2c3d"]);
    assert!(desired.filter.is_empty());
}

#[test]
fn a_subnet_without_gateway_gets_its_first_address_if_the_node_is_one() {
    let bare = |address: &str| Ip { gateway: None, ..ip(address, "::") };
    let completed = |changes: &[(&str, Value)]| {
        let mut ips = [bare("10.1.2.5/24"), bare("fd00::5/64"), ip("10.3.0.9/16", "10.3.0.7")];
        complete_gateways(&bridge(changes), &mut ips);
        ips.map(|ip| ip.gateway.map(|gateway| gateway.to_string()))
    };
    let expected = ["10.1.2.1", "fd00::1", "10.3.0.7"].map(|gateway| Some(gateway.to_owned()));
    assert_eq!(completed(&[]), expected);
    let no_gateway = [("isGateway", json!(false)), ("isDefaultGateway", json!(false))];
    assert_eq!(completed(&no_gateway), [None, None, Some("10.3.0.7".to_owned())]);
}

#[test]
fn a_vlan_has_a_gateway_of_its_own() {
    let vlan = [("vlan", json!(100)), ("vlanTrunk", json!([{"id": 200}]))];
    let expected = "\
ip link add cni0 address 06:e9:9e:3b:39:7a mtu 1450 type bridge vlan_filtering 1
ip link add cni0.100 address 0a:58:0a:01:02:01 mtu 1450 type veth peer name vethe8b62e5a mtu 1450
ip link add veth50419296 address f6:b9:19:3b:2f:b7 mtu 1450 master cni0 type veth peer name eth0 netns /run/netns/x \
address 0a:58:0a:01:02:05 mtu 1450
ip link set veth50419296 alias \"one/eth0/cbr0\"
bridge link set dev veth50419296 hairpin on
ip link set vethe8b62e5a mtu 1450
ip link set vethe8b62e5a master cni0
bridge vlan del vid 1-4094 dev veth50419296
bridge vlan add vid 100 dev veth50419296 pvid untagged
bridge vlan add vid 200 dev veth50419296
bridge vlan del vid 1-4094 dev vethe8b62e5a
bridge vlan add vid 100 dev vethe8b62e5a pvid untagged
sysctl -w net/ipv4/ip_forward=1
sysctl -w net/ipv6/conf/cni0.100/accept_ra=0
sysctl -w net/ipv6/conf/cni0/accept_ra=0
sysctl -w net/ipv6/conf/veth50419296/addr_gen_mode=1
sysctl -w net/ipv6/conf/vethe8b62e5a/addr_gen_mode=1
ip address replace 10.1.2.1/24 dev cni0.100
ip link set cni0 up
ip link set cni0.100 up
ip link set veth50419296 up
ip link set vethe8b62e5a up
";
    assert_eq!(commands(&desired_with(&bridge(&vlan), &v4()).host), expected);
}

#[test]
fn ports_and_bridge_are_as_strange_as_configured() {
    let odd = [
        ("hairpinMode", json!(false)),
        ("promiscMode", json!(true)),
        ("portIsolation", json!(true)),
        ("enabledad", json!(true)),
    ];
    let desired = desired_with(&bridge(&odd), &dual_stack());
    let host = commands(&desired.host);
    for line in ["ip link set cni0 promisc on\n", "bridge link set dev veth50419296 isolated on\n"]
    {
        assert!(host.contains(line), "{host}");
    }
    let sandbox = commands(&desired.sandbox);
    for line in [
        "sysctl -w net/ipv6/conf/eth0/accept_dad=1\n",
        "sysctl -w net/ipv6/conf/eth0/enhanced_dad=1\n",
        "ip address replace fd00::5/64 dev eth0 # after duplicate address detection\n",
    ] {
        assert!(sandbox.contains(line), "{sandbox}");
    }
    let conf = json!({"disableContainerInterface": true});
    let down = Bridge::new(conf.as_object().unwrap(), "").unwrap();
    assert!(!commands(&desired_with(&down, &[]).sandbox).contains("eth0 up"));
}
