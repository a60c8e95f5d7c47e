//! What is desired becomes true in a real kernel, and what is observed there is what is desired.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use fabric::link_name::LinkName;
use fabric::mac::MacAddr;
use fabric::mtu::Mtu;
use fabric::netlink::{
    Adopted, Inventory, Report, Routes, Scope, Socket, apply, converge, observe, route_to,
    wait_until_up,
};
use fabric::netns::{Netns, NetnsError};
use fabric::netstate::{
    Address, BridgePort, Link, LinkKind, NetState, ROUTE_PROTOCOL, Route, RouteKey, Sysctl,
    VethPeer, Vxlan,
};
use fabric::plan::{LinkChange, Op, Plan, diff};
use fabric::tun::{self, PacketHeader};
use fabric::vni::Vni;
use flannel_tests::sandbox::sandboxed;

fn name(name: &str) -> LinkName {
    name.parse().unwrap()
}

fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// An underlay to put tunnels on: a bridge, because there is no hardware in a sandbox.
fn underlay() {
    ip("link add eth0 type bridge");
    ip("addr add 198.51.100.1/24 dev eth0");
    ip("link set eth0 up");
}

fn tunnel(peers: u8) -> NetState {
    let link = name("flannel.1");
    let vxlan = Vxlan {
        vni: Vni::new(1).unwrap(),
        port: 8472,
        local: Some(IpAddr::from([198, 51, 100, 1])),
        underlay: Some(name("eth0")),
        learning: false,
        gbp: false,
    };
    let mac = Some(MacAddr([2, 0, 0, 0, 0, 1]));
    let mut state = NetState::default();
    state.links.insert(link, Link { mac, mtu: Mtu::new(1450), ..Link::up(LinkKind::Vxlan(vxlan)) });
    state.addresses.insert(Address { link, ip: "10.244.1.0/32".parse().unwrap() });
    for peer in 2..2 + peers {
        let gateway = IpAddr::from([10, 244, peer, 0]);
        let mac = MacAddr([2, 0, 0, 0, 0, peer]);
        state.neighbours.insert((link, gateway), mac);
        state.fdb.insert((link, mac), IpAddr::from([198, 51, 100, peer]));
        let key = RouteKey::main(format!("10.244.{peer}.0/24").parse().unwrap());
        let via = Some(gateway);
        state
            .routes
            .insert(key, Route { link, via, onlink: true, protocol: ROUTE_PROTOCOL, source: None });
    }
    state
}

fn tunnel_scope() -> Scope {
    Scope {
        links: BTreeSet::from([name("flannel.1")]),
        addresses: true,
        neighbours: true,
        fdb: true,
        routes: Routes::OnLinksAndMarked,
        networks: vec!["10.244.0.0/16".parse().unwrap()],
        ..Scope::default()
    }
}

fn make(desired: &NetState) -> Report {
    let mut socket = Socket::open().unwrap();
    let report = converge(&mut socket, &tunnel_scope(), desired).unwrap();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    let observed = observe(&mut socket, &tunnel_scope()).unwrap();
    assert_eq!(diff(desired, &observed).to_string(), "");
    report
}

#[test]
fn a_tunnel_with_peers_looks_as_ip_and_bridge_would_have_made_it() {
    sandboxed(|| {
        underlay();
        make(&tunnel(1));
        let link = ip("-d link show flannel.1");
        assert!(link.contains("vxlan id 1 local 198.51.100.1 dev eth0 "), "{link}");
        assert!(link.contains("dstport 8472 nolearning ttl auto"), "{link}");
        assert!(link.contains("mtu 1450"), "{link}");
        assert_eq!(
            ip("neigh show dev flannel.1"),
            "10.244.2.0 lladdr 02:00:00:00:00:02 PERMANENT \n"
        );
        assert_eq!(
            run("bridge", "fdb show dev flannel.1"),
            "02:00:00:00:00:02 dst 198.51.100.2 self permanent\n"
        );
        assert_eq!(
            ip("route show dev flannel.1"),
            "10.244.2.0/24 via 10.244.2.0 proto 199 onlink \n"
        );
        assert!(ip("-o -4 addr show dev flannel.1").contains("10.244.1.0/32 scope global"));
    });
}

#[test]
fn nothing_is_done_twice() {
    sandboxed(|| {
        underlay();
        make(&tunnel(100));
        assert_eq!(make(&tunnel(100)).plan.to_string(), "");
    });
}

#[test]
fn every_part_that_was_removed_comes_back() {
    sandboxed(|| {
        underlay();
        make(&tunnel(2));
        for damage in [
            "route del 10.244.2.0/24",
            "neigh del 10.244.2.0 dev flannel.1",
            "addr del 10.244.1.0/32 dev flannel.1",
            "link set flannel.1 down",
            "link set flannel.1 mtu 1400",
            "link set flannel.1 address 02:00:00:00:00:77",
            "link del flannel.1",
        ] {
            ip(damage);
            assert!(!make(&tunnel(2)).plan.is_empty(), "{damage}");
        }
        run("bridge", "fdb del 02:00:00:00:00:02 dev flannel.1 dst 198.51.100.2 self");
        make(&tunnel(2));
    });
}

#[test]
fn a_tunnel_is_changed_in_place_or_made_anew() {
    sandboxed(|| {
        underlay();
        ip("addr add 198.51.100.9/24 dev eth0");
        make(&tunnel(2));
        let mut desired = tunnel(2);
        let link = desired.links.get_mut(&name("flannel.1")).unwrap();
        let LinkKind::Vxlan(vxlan) = &mut link.kind else { unreachable!() };
        (vxlan.local, vxlan.learning) = (Some(IpAddr::from([198, 51, 100, 9])), true);
        assert_eq!(make(&desired).plan.ops.len(), 2);
        let link = desired.links.get_mut(&name("flannel.1")).unwrap();
        let LinkKind::Vxlan(vxlan) = &mut link.kind else { unreachable!() };
        (vxlan.vni, vxlan.gbp) = (Vni::new(2).unwrap(), true);
        assert_eq!(make(&desired).plan.ops[0], Op::DelLink(name("flannel.1")));
    });
}

#[test]
fn stale_entries_go_and_foreign_ones_stay() {
    sandboxed(|| {
        underlay();
        make(&tunnel(3));
        ip("route add 10.244.9.0/24 via 198.51.100.9 dev eth0 proto 199");
        ip("route add 10.245.9.0/24 via 198.51.100.9 dev flannel.1 onlink proto 199");
        let foreign = [
            "10.99.0.0/24 via 198.51.100.9 dev eth0",
            "10.98.0.0/24 via 198.51.100.9 dev eth0 proto 199",
            "10.97.0.0/24 via 10.244.2.0 dev flannel.1 onlink",
        ];
        foreign.iter().for_each(|route| drop(ip(&format!("route add {route}"))));
        ip("addr add 172.20.0.1/32 dev flannel.1");
        make(&tunnel(1));
        let routes = ip("route show");
        assert!(!routes.contains("10.244.9.0"), "{routes}");
        assert!(!routes.contains("10.245.9.0"), "{routes}");
        for route in foreign {
            assert!(routes.contains(&route[..12]), "{route} is gone:\n{routes}");
        }
        assert!(ip("addr show dev flannel.1").contains("172.20.0.1/32"));
    });
}

#[test]
fn routes_of_the_predecessor_are_told_by_their_next_hops() {
    sandboxed(|| {
        underlay();
        for route in [
            "10.244.2.0/24 via 198.51.100.2",
            "10.244.3.0/24 via 198.51.100.3 proto static",
            "10.244.4.0/24 via 198.51.100.4",
            "10.99.0.0/24 via 198.51.100.2",
        ] {
            ip(&format!("route add {route} dev eth0"));
        }
        let gateways = [2, 3].map(|last| IpAddr::from([198, 51, 100, last])).into();
        let scope = Scope {
            routes: Routes::OnLinksAndMarked,
            networks: vec!["10.244.0.0/16".parse().unwrap()],
            adopted: vec![Adopted { link: name("eth0"), gateways }],
            ..Scope::default()
        };
        let observed = observe(&mut Socket::open().unwrap(), &scope).unwrap();
        let found: Vec<_> = observed.routes.keys().map(|key| key.destination.to_string()).collect();
        assert_eq!(found, ["10.244.2.0/24"]);
    });
}

#[test]
fn checksums_are_switched_and_stay_so_when_the_tunnel_is_made_anew() {
    sandboxed(|| {
        underlay();
        let mut desired = tunnel(1);
        let scope = Scope { tx_checksum: true, ..tunnel_scope() };
        let mut socket = Socket::open().unwrap();
        let mut converge = |desired: &NetState| converge(&mut socket, &scope, desired).unwrap();
        converge(&desired);
        assert!(converge(&desired).plan.is_empty(), "what is not wanted is not touched");
        for on in [false, true, false] {
            desired.tx_checksum.insert(name("flannel.1"), on);
            assert!(converge(&desired).failures.is_empty());
            assert!(converge(&desired).plan.is_empty());
            let state =
                if on { "tx-checksum-ip-generic: on" } else { "tx-checksum-ip-generic: off" };
            assert!(run("ethtool", "-k flannel.1").contains(state));
        }
        ip("link delete flannel.1");
        converge(&desired);
        assert!(run("ethtool", "-k flannel.1").contains("tx-checksum-ip-generic: off"));
    });
}

#[test]
fn blackholes_come_and_go_and_yield_to_every_other_route() {
    sandboxed(|| {
        underlay();
        let subnets = ["10.244.3.0/24", "fd00:10:244:3::/64"].map(|net| net.parse().unwrap());
        let desired = NetState {
            blackholes: subnets.map(RouteKey::last_resort).into(),
            ..NetState::default()
        };
        let scope = Scope { networks: Vec::new(), ..tunnel_scope() };
        let mut socket = Socket::open().unwrap();
        ip("route add blackhole 10.244.4.0/24");
        for plan_len in [2, 0] {
            let report = converge(&mut socket, &scope, &desired).unwrap();
            assert!(report.failures.is_empty(), "{:?}", report.failures);
            assert_eq!(report.plan.ops.len(), plan_len, "{}", report.plan);
        }
        let get = |to: &str| Command::new("ip").args(["route", "get", to]).output().unwrap();
        assert!(!get("10.244.3.7").status.success() && !get("fd00:10:244:3::7").status.success());
        ip("addr add 10.244.3.1/24 dev eth0");
        assert!(get("10.244.3.7").status.success(), "the bridge of the pods counts");
        assert_eq!(converge(&mut socket, &scope, &NetState::default()).unwrap().plan.ops.len(), 2);
        assert_eq!(ip("route show type blackhole").trim(), "blackhole 10.244.4.0/24");
    });
}

#[test]
fn a_route_of_somebody_else_is_reported_and_not_fought() {
    sandboxed(|| {
        underlay();
        ip("route add 10.244.2.0/24 via 198.51.100.77 dev eth0 proto static");
        let desired = tunnel(2);
        let mut socket = Socket::open().unwrap();
        let report = converge(&mut socket, &tunnel_scope(), &desired).unwrap();
        let failures: Vec<_> = report.failures.iter().map(ToString::to_string).collect();
        assert_eq!(failures.len(), 1, "{failures:?}");
        assert!(failures[0].starts_with("ip route add 10.244.2.0/24"), "{failures:?}");
        let routes = ip("route show");
        assert!(routes.contains("10.244.2.0/24 via 198.51.100.77"), "{routes}");
        assert!(routes.contains("10.244.3.0/24 via 10.244.3.0"), "{routes}");
    });
}

#[test]
fn a_refusal_carries_the_words_of_the_kernel_and_does_not_stop_the_rest() {
    sandboxed(|| {
        underlay();
        let key = RouteKey::main("10.244.2.0/24".parse().unwrap());
        let via = Some(IpAddr::from([203, 0, 113, 1]));
        let link = name("eth0");
        let unreachable =
            Route { link, via, onlink: false, protocol: ROUTE_PROTOCOL, source: None };
        let plan = Plan {
            ops: vec![
                Op::ReplaceRoute(key, unreachable),
                Op::SetLink(link, LinkChange::Alias("still done".to_owned())),
            ],
        };
        let failures = apply(&mut Socket::open().unwrap(), &plan);
        assert_eq!(failures.len(), 1);
        let text = failures[0].to_string();
        assert!(text.contains("ip route replace 10.244.2.0/24 via 203.0.113.1"), "{text}");
        assert!(text.contains("Nexthop has invalid gateway"), "{text}");
        assert!(ip("link show eth0").contains("still done"));
    });
}

fn pod(netns: &str) -> (NetState, NetState) {
    let (bridge, veth, eth0) = (name("cni0"), name("veth01234567"), name("eth0"));
    let peer = VethPeer { name: eth0, netns: Some(netns.into()), mac: None, mtu: Mtu::new(1450) };
    let mut host = NetState::default();
    let mac = Some(MacAddr([2, 0, 0, 0, 0, 1]));
    host.links.insert(bridge, Link { mac, mtu: Mtu::new(1450), ..Link::up(LinkKind::Bridge) });
    let port = Some(BridgePort { bridge, hairpin: true, isolated: false });
    let alias = Some("pod".to_owned());
    let kind = LinkKind::Veth(Some(peer));
    host.links.insert(veth, Link { port, alias, mtu: Mtu::new(1450), ..Link::up(kind) });
    host.addresses.insert(Address { link: bridge, ip: "10.244.1.1/24".parse().unwrap() });
    host.sysctls.insert(Sysctl::ipv4_forwarding(), "1".to_owned());

    let mut inside = NetState::default();
    inside.links.insert(name("lo"), Link::up(LinkKind::Loopback));
    inside.links.insert(eth0, Link::up(LinkKind::Veth(None)));
    inside.addresses.insert(Address { link: eth0, ip: "10.244.1.2/24".parse().unwrap() });
    let via = Some(IpAddr::from([10, 244, 1, 1]));
    let route = Route { link: eth0, via, onlink: false, protocol: 3, source: None };
    inside.routes.insert(RouteKey::main("0.0.0.0/0".parse().unwrap()), route);
    (host, inside)
}

#[test]
fn a_pod_is_attached_with_its_interface_made_in_place() {
    sandboxed(|| {
        ip("netns add pod");
        let (host, inside) = pod("/run/netns/pod");
        let mut socket = Socket::open().unwrap();
        let report = converge(&mut socket, &Scope::of(&host), &host).unwrap();
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        let netns = Netns::open("/run/netns/pod".as_ref()).unwrap();
        let report = netns
            .run(|| converge(&mut Socket::open().unwrap(), &Scope::of(&inside), &inside).unwrap())
            .unwrap();
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        let patience = Duration::from_secs(5);
        assert!(wait_until_up(&mut socket, name("veth01234567"), patience).unwrap());
        ip("netns exec pod ping -c1 -W5 10.244.1.1");
        let again = diff(&host, &observe(&mut socket, &Scope::of(&host)).unwrap());
        assert_eq!(again.to_string(), "");

        let gone = Scope { links: BTreeSet::from([name("veth01234567")]), ..Scope::default() };
        let report = converge(&mut socket, &gone, &NetState::default()).unwrap();
        assert_eq!(report.plan.to_string(), "ip link del veth01234567\n");
        assert!(!ip("netns exec pod ip link").contains("eth0"));
    });
}

#[test]
fn an_address_in_the_same_subnet_is_exchanged() {
    sandboxed(|| {
        ip("netns add pod");
        let (mut host, _) = pod("/run/netns/pod");
        let mut socket = Socket::open().unwrap();
        let scope = Scope::of(&host);
        converge(&mut socket, &scope, &host).unwrap();
        for extra in ["10.244.1.7/24", "10.244.1.8/24"] {
            ip(&format!("addr add {extra} dev cni0"));
        }
        let link = name("cni0");
        host.addresses = [Address { link, ip: "10.244.1.8/24".parse().unwrap() }].into();
        let report = converge(&mut socket, &scope, &host).unwrap();
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        let observed = observe(&mut socket, &scope).unwrap();
        assert_eq!(observed.addresses, host.addresses);
    });
}

#[test]
fn namespaces_are_told_from_what_is_none() {
    sandboxed(|| {
        ip("netns add pod");
        let pod = Netns::open("/run/netns/pod".as_ref()).unwrap();
        assert!(!pod.is_current().unwrap());
        assert!(pod.run(|| pod.is_current().unwrap()).unwrap());
        assert!(Netns::open("/proc/self/ns/net".as_ref()).unwrap().is_current().unwrap());
        std::fs::write("/run/netns/file", "").unwrap();
        let file = Netns::open("/run/netns/file".as_ref());
        assert!(matches!(file, Err(NetnsError::NotANamespace(_))), "{file:?}");
        let missing = Netns::open("/run/netns/none".as_ref());
        assert!(matches!(missing, Err(NetnsError::Missing(_))), "{missing:?}");
    });
}

#[test]
fn the_inventory_lists_addresses_and_the_way_out() {
    sandboxed(|| {
        underlay();
        ip("link add eth1 type bridge");
        ip("addr add 203.0.113.1/24 dev eth1");
        ip("link set eth1 up");
        ip("route add default via 203.0.113.254 metric 200");
        ip("route add default via 198.51.100.254 metric 100");
        let mut socket = Socket::open().unwrap();
        let inventory = Inventory::take(&mut socket).unwrap();
        assert_eq!(inventory.default_routes[0].interface, name("eth0"));
        let eth0 = inventory.interfaces.iter().find(|i| i.name == name("eth0")).unwrap();
        assert_eq!(eth0.mtu, 1500);
        let first = eth0.addresses.iter().find(|a| a.ip.is_ipv4()).unwrap();
        assert_eq!(first.ip, IpAddr::from([198, 51, 100, 1]));
        assert!(first.permanent && !first.link_scope);
        let (link, source) = route_to(&mut socket, [203, 0, 113, 7].into()).unwrap().unwrap();
        assert_eq!((link, source), (name("eth1"), Some([203, 0, 113, 1].into())));

        ip("route flush default");
        ip("route add default nexthop via 198.51.100.254 nexthop via 203.0.113.254");
        let inventory = Inventory::take(&mut socket).unwrap();
        assert_eq!(inventory.default_routes[0].interface, name("eth0"));
        ip("route flush table main");
        assert_eq!(route_to(&mut socket, [100, 64, 0, 1].into()).unwrap(), None);
    });
}

#[test]
fn a_tun_device_stays_and_its_queues_can_be_opened() {
    sandboxed(|| {
        let link = name("flannel0");
        let mut desired = NetState::default();
        let mtu = Mtu::new(1472);
        desired.links.insert(link, Link { mtu, ..Link::up(LinkKind::Tun) });
        desired.addresses.insert(Address { link, ip: "10.244.1.0/32".parse().unwrap() });
        let key = RouteKey::main("10.244.0.0/16".parse().unwrap());
        let route =
            Route { link, via: None, onlink: false, protocol: ROUTE_PROTOCOL, source: None };
        desired.routes.insert(key, route);
        let mut socket = Socket::open().unwrap();
        // One that is gone when its program ends cannot be shared, so it is made anew.
        ip("tuntap add dev flannel0 mode tun");
        let report = converge(&mut socket, &Scope::of(&desired), &desired).unwrap();
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        assert_eq!(
            report.plan.to_string(),
            "\
ip link del flannel0
ip tuntap add dev flannel0 mode tun multi_queue vnet_hdr
ip link set flannel0 mtu 1472
ip address replace 10.244.1.0/32 dev flannel0
ip link set flannel0 up
ip route add 10.244.0.0/16 dev flannel0 proto 199
"
        );
        let again = converge(&mut socket, &Scope::of(&desired), &desired).unwrap();
        assert!(again.plan.is_empty(), "{}", again.plan);
        let open = |link| tun::open_queue(link, PacketHeader::VirtioNet);
        let _queues = [open(link).unwrap(), open(link).unwrap()];
        assert!(open(name("flannel9")).is_err());
        assert_eq!(tun::create(link).unwrap_err().raw_os_error(), Some(libc::EEXIST));
    });
}
