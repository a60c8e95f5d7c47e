//! Properties of links, kinds of links and traffic control, in a real kernel.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use fabric::link_name::LinkName;
use fabric::netlink::{Scope, Socket, apply, converge, observe};
use fabric::netns::Netns;
use fabric::netstate::{
    Address, Link, LinkKind, Macvlan, MacvlanMode, NetState, ROUTE_PROTOCOL, Route, RouteKey,
    TokenBucket,
};
use fabric::plan::{Op, Plan, diff};
use flannel_tests::sandbox::sandboxed;

fn name(name: &str) -> LinkName {
    name.parse().unwrap()
}

fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Makes the state true, and finds that it is. Returns the plan.
fn become_true(socket: &mut Socket, desired: &NetState) -> String {
    let scope = Scope::of(desired);
    let report = converge(socket, &scope, desired).unwrap();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    let rest = diff(desired, &observe(socket, &scope).unwrap());
    assert_eq!(rest.to_string(), "");
    report.plan.to_string()
}

fn shaped(rate: u64) -> NetState {
    let (link, ifb) = (name("veth0"), name("ifb0"));
    let bucket = TokenBucket::new(rate, 100_000, Duration::from_millis(25)).unwrap();
    NetState {
        links: [(link, Link::up(LinkKind::Veth(None))), (ifb, Link::up(LinkKind::Ifb))].into(),
        shapers: [(link, bucket), (ifb, bucket)].into(),
        redirects: [(link, ifb)].into(),
        ..NetState::default()
    }
}

#[test]
fn links_are_shaped_as_tc_shows_it() {
    sandboxed(|| {
        run("ip link add veth0 type veth peer name other");
        let mut socket = Socket::open().unwrap();
        let plan = become_true(&mut socket, &shaped(125_000));
        assert!(plan.contains("tc qdisc replace dev veth0 root handle 1: tbf rate 125000bps burst 100000 limit 103125\n"), "{plan}");
        let shown = " rate 1Mbit burst 100000b lat 25ms";
        for link in ["veth0", "ifb0"] {
            let disciplines = run(&format!("tc qdisc show dev {link}"));
            assert!(disciplines.starts_with("qdisc tbf 1: root "), "{disciplines}");
            assert!(disciplines.contains(shown), "{disciplines}");
        }
        let filter = run("tc filter show dev veth0 ingress");
        assert!(filter.contains("match 00000000/00000000 at 0"), "{filter}");
        assert!(filter.contains("mirred (Egress Redirect to device ifb0) stolen"), "{filter}");

        let plan = become_true(&mut socket, &shaped(10_000_000_000));
        assert_eq!(plan.lines().count(), 2, "{plan}");
        assert!(run("tc qdisc show dev ifb0").contains("rate 80Gbit"));

        // What was there of an attempt that was cut off is taken up.
        run("tc filter del dev veth0 ingress");
        let plan = become_true(&mut socket, &shaped(10_000_000_000));
        assert_eq!(plan.lines().count(), 2, "{plan}");
        run("ip link add ifb1 type ifb");
        run("tc filter del dev veth0 ingress");
        run("tc filter add dev veth0 parent ffff: protocol all u32 match u32 0 0 \
             action mirred egress redirect dev ifb1");
        let plan = become_true(&mut socket, &shaped(125_000));
        assert!(plan.contains("tc qdisc del dev veth0 ingress"), "{plan}");

        let none = NetState { links: shaped(1).links, ..NetState::default() };
        let scope = Scope::of(&shaped(1));
        assert!(converge(&mut socket, &scope, &none).unwrap().failures.is_empty());
        let observed = observe(&mut socket, &scope).unwrap();
        assert!(observed.shapers.is_empty() && observed.redirects.is_empty());
    });
}

#[test]
fn flags_and_queues_of_a_link_are_changed_in_place() {
    sandboxed(|| {
        run("ip link add veth0 type veth peer name other");
        let mut socket = Socket::open().unwrap();
        let set = |on: bool, length: u32| {
            let link = Link {
                promiscuous: Some(on),
                all_multicast: Some(on),
                queue_length: Some(length),
                ..Link::up(LinkKind::Veth(None))
            };
            NetState { links: [(name("veth0"), link)].into(), ..NetState::default() }
        };
        become_true(&mut socket, &set(true, 20_000));
        let shown = run("ip link show veth0");
        for word in ["PROMISC", "ALLMULTI", "qlen 20000"] {
            assert!(shown.contains(word), "{shown}");
        }
        let plan = become_true(&mut socket, &set(false, 1000));
        let expected = "ip link set veth0 promisc off\nip link set veth0 allmulticast off\n\
                        ip link set veth0 txqueuelen 1000\n";
        assert_eq!(plan, expected);
    });
}

#[test]
fn a_macvlan_is_made_where_it_shall_live() {
    sandboxed(|| {
        run("ip link add eth0 type veth peer name other");
        run("ip netns add pod");
        let parent = Some(name("eth0"));
        let mut host = Socket::open().unwrap();
        for (number, mode) in MacvlanMode::ALL.into_iter().enumerate() {
            let kind = Macvlan { parent, mode, broadcast_queue: None };
            let link = name(&format!("mac{number}"));
            let desired = Link { mtu: None, ..Link::up(LinkKind::Macvlan(kind)) };
            let op = Op::AddLinkIn("/run/netns/pod".into(), link, desired.clone());
            let text = op.to_string();
            let failures = apply(&mut host, &Plan { ops: vec![op] });
            assert!(failures.is_empty(), "{text}: {failures:?}");
            let netns = Netns::open("/run/netns/pod".as_ref()).unwrap();
            let desired = NetState { links: [(link, desired)].into(), ..NetState::default() };
            let plan = netns.run(|| become_true(&mut Socket::open().unwrap(), &desired)).unwrap();
            assert_eq!(plan, format!("ip link set {link} up\n"));
            let shown = run(&format!("ip -n pod -d link show {link}"));
            assert!(shown.contains(&format!("mode {}", mode.as_str())), "{shown}");
            run(&format!("ip -n pod link del {link}"));
        }
        let kind = Macvlan { parent, mode: MacvlanMode::Vepa, broadcast_queue: Some(500) };
        let links = [(name("mac0"), Link::up(LinkKind::Macvlan(kind)))].into();
        let plan = become_true(&mut host, &NetState { links, ..NetState::default() });
        let expected = "ip link add mac0 link eth0 type macvlan mode vepa bcqueuelen 500\n\
                        ip link set mac0 up\n";
        assert_eq!(plan, expected);
    });
}

#[test]
fn an_address_may_bring_no_route_and_a_route_its_source() {
    sandboxed(|| {
        run("ip link add veth0 type veth peer name other");
        run("ip link set other up");
        let link = name("veth0");
        let address = |ip: &str| Address { link, ip: ip.parse().unwrap() };
        let addresses = [address("10.1.2.5/24"), address("10.1.2.9/24"), address("fd01::5/64")];
        let source = Some(IpAddr::from([10, 1, 2, 9]));
        let (via, protocol) = (None, ROUTE_PROTOCOL);
        let route = Route { link, via, onlink: false, protocol, source };
        let desired = NetState {
            links: [(link, Link::up(LinkKind::Veth(None)))].into(),
            addresses: addresses.into(),
            unrouted: addresses.into(),
            routes: [(RouteKey::main("10.1.2.1/32".parse().unwrap()), route)].into(),
            ..NetState::default()
        };
        become_true(&mut Socket::open().unwrap(), &desired);
        assert_eq!(run("ip route"), "10.1.2.1 dev veth0 proto 199 scope link src 10.1.2.9 \n");
        assert!(!run("ip -6 route").contains("fd01::/64"));
    });
}
