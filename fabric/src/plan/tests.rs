//! Golden plans, and the property that a plan leads from any state to any other.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use proptest::prelude::*;

use super::{Plan, diff, model};
use crate::link_name::LinkName;
use crate::mac::MacAddr;
use crate::mtu::Mtu;
use crate::netstate::{
    Address, BridgePort, Link, LinkKind, NetState, PortVlan, ROUTE_PROTOCOL, Route, RouteKey,
    Sysctl, TokenBucket, VethPeer, Vxlan,
};
use crate::vni::Vni;

fn name(name: &str) -> LinkName {
    name.parse().unwrap()
}

fn flannel(local: [u8; 4]) -> Link {
    let vxlan = Vxlan {
        vni: Vni::new(1).unwrap(),
        port: 8472,
        local: Some(IpAddr::from(local)),
        underlay: Some(name("eth0")),
        learning: false,
        gbp: false,
    };
    let mac = Some(MacAddr([2, 0, 0, 0, 0, 1]));
    Link { mac, mtu: Mtu::new(1450), ..Link::up(LinkKind::Vxlan(vxlan)) }
}

/// A node with a tunnel and these peers: number, last byte of the MAC, VTEP.
fn node(peers: &[(u8, u8, u8)]) -> NetState {
    let link = name("flannel.1");
    let mut state = NetState::default();
    state.links.insert(link, flannel([198, 51, 100, 1]));
    state.addresses.insert(Address { link, ip: "10.244.1.0/32".parse().unwrap() });
    for (peer, mac, vtep) in peers {
        let gateway = IpAddr::from([10, 244, *peer, 0]);
        let mac = MacAddr([2, 0, 0, 0, 0, *mac]);
        state.neighbours.insert((link, gateway), mac);
        state.fdb.insert((link, mac), IpAddr::from([198, 51, 100, *vtep]));
        let key = RouteKey::main(format!("10.244.{peer}.0/24").parse().unwrap());
        let protocol = ROUTE_PROTOCOL;
        let route = Route { link, via: Some(gateway), onlink: true, protocol, source: None };
        state.routes.insert(key, route);
    }
    state
}

#[test]
fn a_new_node_gets_device_address_and_peer_in_this_order() {
    let mut desired = node(&[(2, 2, 2)]);
    desired.sysctls.insert(Sysctl::ipv6(name("flannel.1"), "accept_ra"), "0".to_owned());
    let plan = diff(&desired, &NetState::default());
    assert_eq!(
        plan.to_string(),
        "\
ip link add flannel.1 address 02:00:00:00:00:01 mtu 1450 type vxlan id 1 local 198.51.100.1 \
dev eth0 dstport 8472 nolearning
sysctl -w net/ipv6/conf/flannel.1/accept_ra=0
ip address replace 10.244.1.0/32 dev flannel.1
ip link set flannel.1 up
ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent
bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 198.51.100.2 self permanent
ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto 199 onlink
"
    );
}

#[test]
fn a_tunnel_that_was_renamed_makes_room_for_its_successor() {
    let mut renamed = NetState::default();
    renamed.links.insert(name("stray"), flannel([198, 51, 100, 1]));
    renamed.links.insert(name("other"), Link::up(LinkKind::Bridge));
    let mut desired = node(&[]);
    desired.links.insert(name("other"), Link::up(LinkKind::Bridge));
    let plan = diff(&desired, &renamed).to_string();
    assert!(plan.starts_with("ip link del stray\nip link add flannel.1 "), "{plan}");
    assert_eq!(plan.matches("link del").count(), 1, "{plan}");
}

#[test]
fn a_changed_mac_replaces_the_neighbour_and_drops_the_old_fdb_entry_last() {
    let plan = diff(&node(&[(2, 9, 2), (3, 3, 3)]), &node(&[(2, 2, 2), (3, 3, 3)]));
    assert_eq!(
        plan.to_string(),
        "\
ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:09 dev flannel.1 nud permanent
bridge fdb replace 02:00:00:00:00:09 dev flannel.1 dst 198.51.100.2 self permanent
bridge fdb del 02:00:00:00:00:02 dev flannel.1 dst 198.51.100.2 self
"
    );
}

#[test]
fn a_vanished_peer_goes_in_reverse_order() {
    let plan = diff(&node(&[]), &node(&[(2, 2, 2)]));
    assert_eq!(
        plan.to_string(),
        "\
ip route del 10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto 199 onlink
bridge fdb del 02:00:00:00:00:02 dev flannel.1 dst 198.51.100.2 self
ip neigh del 10.244.2.0 dev flannel.1
"
    );
}

#[test]
fn a_tunnel_is_changed_in_place_where_the_kernel_can() {
    let mut desired = node(&[(2, 2, 2)]);
    desired.links.insert(name("flannel.1"), flannel([198, 51, 100, 9]));
    let plan = diff(&desired, &node(&[(2, 2, 2)]));
    assert_eq!(plan.to_string(), "ip link set flannel.1 type vxlan local 198.51.100.9\n");
}

#[test]
fn a_tunnel_is_made_anew_with_everything_on_it_where_the_kernel_cannot() {
    let mut observed = node(&[(2, 2, 2)]);
    let link = observed.links.get_mut(&name("flannel.1")).unwrap();
    let LinkKind::Vxlan(vxlan) = &mut link.kind else { unreachable!() };
    vxlan.port = 4789;
    let plan = diff(&node(&[(2, 2, 2)]), &observed).to_string();
    assert!(plan.starts_with("ip link del flannel.1\nip link add flannel.1 "), "{plan}");
    assert_eq!(plan.lines().count(), 7, "{plan}");
}

#[test]
fn a_blackhole_is_one_route_without_a_link() {
    let mut desired = NetState::default();
    desired.blackholes.insert(RouteKey::last_resort("10.244.1.0/24".parse().unwrap()));
    let route = "blackhole 10.244.1.0/24 table 254 proto 199 metric 1073741824\n";
    let nothing = NetState::default();
    assert_eq!(diff(&desired, &nothing).to_string(), format!("ip route add {route}"));
    assert_eq!(diff(&nothing, &desired).to_string(), format!("ip route del {route}"));
    assert!(diff(&desired, &desired).is_empty());
}

#[test]
fn a_route_made_by_somebody_else_is_adopted_without_a_gap() {
    let mut observed = node(&[(2, 2, 2)]);
    observed.routes.values_mut().for_each(|route| route.protocol = 3);
    let plan = diff(&node(&[(2, 2, 2)]), &observed);
    assert_eq!(
        plan.to_string(),
        "ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto 199 onlink\n"
    );
}

#[test]
fn a_pod_gets_its_bridge_before_its_port() {
    let (bridge, veth) = (name("cni0"), name("veth0a1b2c3d"));
    let peer = VethPeer {
        name: name("eth0"),
        netns: Some("/run/netns/pod".into()),
        mac: None,
        mtu: Mtu::new(1450),
    };
    let mut desired = NetState::default();
    desired.links.insert(bridge, Link { mtu: Mtu::new(1450), ..Link::up(LinkKind::Bridge) });
    let port = Some(BridgePort { bridge, hairpin: true, isolated: false });
    desired.links.insert(veth, Link { port, ..Link::up(LinkKind::Veth(Some(peer))) });
    desired.addresses.insert(Address { link: bridge, ip: "10.244.1.1/24".parse().unwrap() });
    assert_eq!(
        diff(&desired, &NetState::default()).to_string(),
        "\
ip link add cni0 mtu 1450 type bridge
ip link add veth0a1b2c3d master cni0 type veth peer name eth0 netns /run/netns/pod mtu 1450
bridge link set dev veth0a1b2c3d hairpin on
ip address replace 10.244.1.1/24 dev cni0
ip link set cni0 up
ip link set veth0a1b2c3d up
"
    );
}

#[test]
fn another_address_of_the_same_subnet_comes_back_if_the_kernel_takes_it_along() {
    let link = name("cni0");
    let bridge = |addresses: &[&str]| {
        let mut state = NetState::default();
        state.links.insert(link, Link::up(LinkKind::Bridge));
        let address = |ip: &&str| Address { link, ip: ip.parse().unwrap() };
        state.addresses.extend(addresses.iter().map(address));
        state
    };
    let (desired, observed) = (bridge(&["10.1.0.2/24"]), bridge(&["10.1.0.1/24", "10.1.0.2/24"]));
    let plan = diff(&desired, &observed);
    assert_eq!(
        plan.to_string(),
        "ip address del 10.1.0.1/24 dev cni0\nip address replace 10.1.0.2/24 dev cni0\n"
    );
    assert_eq!(model::run(&observed, &plan), Ok(desired));
}

#[test]
fn the_loopback_link_is_never_removed() {
    let mut observed = NetState::default();
    observed.links.insert(name("lo"), Link::up(LinkKind::Loopback));
    assert!(diff(&NetState::default(), &observed).is_empty());
}

proptest! {
    #[test]
    fn nothing_is_done_where_nothing_differs(state in states()) {
        prop_assert_eq!(diff(&state, &state), Plan::default());
    }

    #[test]
    fn the_plan_leads_from_any_state_to_any_other(desired in states(), observed in states()) {
        let plan = diff(&desired, &observed);
        let mut reached = model::run(&observed, &plan).map_err(|refused| {
            let (op, refusal) = *refused;
            TestCaseError::fail(format!("{refusal:?}: {op}\nof the plan\n{plan}"))
        })?;
        // Parameters are set and never restored.
        reached.sysctls.retain(|key, _| desired.sysctls.contains_key(key));
        reached.tx_checksum.retain(|link, _| desired.tx_checksum.contains_key(link));
        // A port without desired VLANs keeps those that it has.
        let has_vlans = |port: &LinkName| desired.vlans.keys().any(|(link, _)| link == port);
        reached.vlans.retain(|(port, _), _| has_vlans(port));
        prop_assert_eq!(&reached, &desired, "{}", plan);
    }

    #[test]
    fn what_stays_is_not_touched(peers in peers(), gone in 0..16_u8) {
        let rest: Vec<_> = peers.iter().copied().filter(|(peer, _, _)| *peer != gone).collect();
        let plan = diff(&node(&rest), &node(&peers)).to_string();
        for (peer, _, _) in rest {
            prop_assert!(!plan.contains(&format!("10.244.{peer}.0")), "{}", plan);
        }
    }
}

prop_compose! {
    fn peers()(macs in proptest::collection::btree_map(2..16_u8, (any::<u8>(), any::<u8>()), 0..8))
        -> Vec<(u8, u8, u8)>
    {
        // Two peers never share an Ethernet address: whoever computes the state sees to that.
        macs.into_iter().map(|(peer, (mac, vtep))| (peer, (mac & 0xf0) | peer, vtep)).collect()
    }
}

prop_compose! {
    fn states()(
        peers in peers(),
        vni in 1..3_u32,
        learning: bool,
        tx_checksum: Option<bool>,
        mtu in 1400..1403_u32,
        tunnel in proptest::bool::weighted(0.8),
        bridge in proptest::option::weighted(0.8, (any::<bool>(), 1..4_u8, any::<bool>())),
        forwarding: bool,
        blackhole: bool,
        shaped in proptest::option::weighted(0.5, (1..3_u64, 1..3_u8)),
        vlans in proptest::collection::btree_map(1..4_u16, (any::<bool>(), any::<bool>()), 0..3),
    ) -> NetState {
        let mut state = if tunnel { node(&peers) } else { NetState::default() };
        if let Some(link) = state.links.get_mut(&name("flannel.1")) {
            link.mtu = Mtu::new(mtu);
            let LinkKind::Vxlan(vxlan) = &mut link.kind else { unreachable!() };
            (vxlan.vni, vxlan.learning) = (Vni::new(vni).unwrap(), learning);
            state.tx_checksum.extend(tx_checksum.map(|on| (name("flannel.1"), on)));
        }
        if let Some((hairpin, host, second_address)) = bridge {
            add_bridge(&mut state, hairpin, host, second_address);
            add_vlans(&mut state, vlans);
        }
        if let Some((rate, ifb)) = shaped {
            shape(&mut state, rate, ifb);
        }
        if blackhole {
            state.blackholes.insert(RouteKey::last_resort("10.244.1.0/24".parse().unwrap()));
        }
        if forwarding {
            state.sysctls.insert(Sysctl::ipv4_forwarding(), "1".to_owned());
        }
        state
    }
}

/// Limits what the tunnel sends, or a link that is there for nothing else.
fn shape(state: &mut NetState, rate: u64, ifb: u8) {
    let ifb = name(&format!("ifb{ifb}"));
    let link = state.links.keys().next().copied().unwrap_or(ifb);
    state.links.insert(ifb, Link::up(LinkKind::Ifb));
    let bucket = TokenBucket::new(rate, 1, Duration::ZERO).unwrap();
    state.shapers.extend([(ifb, bucket), (link, bucket)]);
    if link != ifb {
        state.redirects.insert(link, ifb);
    }
}

fn add_bridge(state: &mut NetState, hairpin: bool, host: u8, second_address: bool) {
    let bridge = name("cni0");
    state.links.insert(bridge, Link::up(LinkKind::Bridge));
    let port = Some(BridgePort { bridge, hairpin, isolated: hairpin });
    let alias = Some(if hairpin { "pod" } else { "another pod" }.to_owned());
    state.links.insert(name("veth1"), Link { port, alias, ..Link::up(LinkKind::Veth(None)) });
    let last_bytes = if second_address { vec![host, 9] } else { vec![host] };
    for last in last_bytes {
        let ip = IpAddr::V4(Ipv4Addr::new(10, 244, 1, last));
        let ip = ipnetwork::IpNetwork::new(ip, 24).unwrap();
        state.addresses.insert(Address { link: bridge, ip });
    }
    let via = Some(IpAddr::from([10, 244, 1, 100]));
    let route = Route { link: bridge, via, onlink: false, protocol: ROUTE_PROTOCOL, source: None };
    state.routes.insert(RouteKey::main("172.30.0.0/16".parse().unwrap()), route);
}

/// Of several VLANs for what comes in without a tag, the last one counts.
fn add_vlans(state: &mut NetState, vlans: BTreeMap<u16, (bool, bool)>) {
    let port = name("veth1");
    let pvid = vlans.iter().rev().find(|(_, (pvid, _))| *pvid).map(|(vid, _)| *vid);
    for (vid, (_, untagged)) in vlans {
        let vlan = PortVlan { pvid: pvid == Some(vid), untagged };
        state.vlans.insert((port, vid), vlan);
    }
}

#[test]
fn a_port_belongs_to_its_vlans_and_no_others() {
    let (bridge, port) = (name("cni0"), name("veth1"));
    let mut desired = NetState::default();
    let filtering = Link { vlan_filtering: Some(true), ..Link::up(LinkKind::Bridge) };
    desired.links.insert(bridge, filtering);
    let member = BridgePort { bridge, hairpin: false, isolated: true };
    let inner = VethPeer { name: port, netns: None, mac: None, mtu: None };
    let outer = Link::up(LinkKind::Veth(Some(inner)));
    desired.links.insert(name("cni0.100"), outer);
    let link = Link { port: Some(member), mtu: Mtu::new(1400), ..Link::up(LinkKind::Veth(None)) };
    desired.links.insert(port, link);
    let (access, trunk) =
        (PortVlan { pvid: true, untagged: true }, PortVlan { pvid: false, untagged: false });
    desired.vlans.extend([((port, 100), access), ((port, 200), trunk)]);
    let plan = diff(&desired, &NetState::default());
    let expected = "\
ip link add cni0 type bridge vlan_filtering 1
ip link add cni0.100 type veth peer name veth1
ip link set veth1 mtu 1400
ip link set veth1 master cni0
bridge link set dev veth1 isolated on
bridge vlan del vid 1-4094 dev veth1
bridge vlan add vid 100 dev veth1 pvid untagged
bridge vlan add vid 200 dev veth1
ip link set cni0 up
ip link set cni0.100 up
ip link set veth1 up
";
    assert_eq!(plan.to_string(), expected);
    assert_eq!(model::run(&NetState::default(), &plan), Ok(desired.clone()));

    let mut observed = desired.clone();
    observed.links.get_mut(&bridge).unwrap().vlan_filtering = Some(false);
    observed.vlans.remove(&(port, 200));
    observed.vlans.insert((port, 1), trunk);
    let expected = "\
ip link set cni0 type bridge vlan_filtering 1
bridge vlan add vid 200 dev veth1
bridge vlan del vid 1 dev veth1
";
    assert_eq!(diff(&desired, &observed).to_string(), expected);
}
