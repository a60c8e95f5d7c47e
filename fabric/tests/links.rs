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
    Sysctl, TokenBucket, VethPeer,
};
use fabric::plan::{LinkChange, Op, Plan, diff};
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
            let op = Op::AddLinkIn("/run/netns/pod".into(), link, Box::new(desired.clone()));
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

/// Parameters that rtnetlink knows, each with a value that is not the kernel's default.
const PARAMETERS: [(&str, &str); 6] = [
    ("net/ipv4/conf/br0/arp_notify", "1"),
    ("net/ipv4/conf/br0/route_localnet", "1"),
    ("net/ipv6/conf/br0/accept_ra", "0"),
    ("net/ipv6/conf/br0/addr_gen_mode", "1"),
    ("net/ipv6/conf/br0/disable_ipv6", "1"),
    ("net/ipv6/conf/br0/keep_addr_on_down", "1"),
];

#[test]
fn parameters_of_links_are_what_proc_says() {
    sandboxed(|| {
        let sysctls =
            PARAMETERS.map(|(key, value)| (Sysctl::of_network(key).unwrap(), value.to_owned()));
        let desired = NetState {
            links: [(name("br0"), Link::up(LinkKind::Bridge))].into(),
            sysctls: sysctls.into(),
            ..NetState::default()
        };
        let mut socket = Socket::open().unwrap();
        let nothing = observe(&mut socket, &Scope::of(&desired)).unwrap();
        assert_eq!(nothing, NetState::default());
        run("ip link add br0 type bridge");
        let before = observe(&mut socket, &Scope::of(&desired)).unwrap().sysctls;
        let of_proc = |key: &str| {
            let value = std::fs::read_to_string(format!("/proc/sys/{key}")).unwrap();
            value.trim().to_owned()
        };
        for (key, value) in PARAMETERS {
            let sysctl = Sysctl::of_network(key).unwrap();
            assert_eq!(before[&sysctl], of_proc(key));
            assert_ne!(before[&sysctl], value, "{key}");
        }
        become_true(&mut socket, &desired);
        PARAMETERS.iter().for_each(|(key, value)| assert_eq!(of_proc(key), *value, "{key}"));
    });
}

#[test]
fn a_refused_change_does_not_stop_those_sent_together_with_it() {
    sandboxed(|| {
        run("ip link add br0 type bridge");
        let set =
            |key, value: &str| Op::SetSysctl(Sysctl::of_network(key).unwrap(), value.to_owned());
        let ops = vec![
            Op::SetLink(name("br0"), LinkChange::Alias("ours".to_owned())),
            set("net/ipv6/conf/br0/addr_gen_mode", "77"),
            set("net/ipv4/conf/br0/arp_notify", "1"),
            Op::SetLink(name("br0"), LinkChange::Up),
        ];
        let failures = apply(&mut Socket::open().unwrap(), &Plan { ops });
        let failed: Vec<_> = failures.iter().map(|failure| failure.op.to_string()).collect();
        assert_eq!(failed, ["sysctl -w net/ipv6/conf/br0/addr_gen_mode=77"]);
        assert_eq!(run("sysctl -n net.ipv4.conf.br0.arp_notify"), "1\n");
        let link = run("ip -o link show br0");
        assert!(link.contains("alias ours") && link.contains("UP"), "{link}");
    });
}

#[test]
fn a_pair_has_one_queue_for_each_direction() {
    sandboxed(|| {
        run("ip netns add pod");
        let (peer, netns) = (name("eth0"), Some("/run/netns/pod".into()));
        let peer = VethPeer { name: peer, netns, mac: None, mtu: None };
        let link = Link::up(LinkKind::Veth(Some(peer)));
        let links = [(name("veth0"), link)].into();
        become_true(&mut Socket::open().unwrap(), &NetState { links, ..NetState::default() });
        for end in ["ip -d link show veth0", "ip -n pod -d link show eth0"] {
            let shown = run(end);
            assert!(
                shown.contains("numtxqueues 1 ") && shown.contains("numrxqueues 1 "),
                "{shown}"
            );
        }
    });
}

#[test]
fn a_thread_comes_back_from_a_namespace_also_when_it_panics() {
    sandboxed(|| {
        run("ip netns add pod");
        let netns = Netns::open("/run/netns/pod".as_ref()).unwrap();
        assert!(netns.run(|| netns.is_current().unwrap()).unwrap());
        assert!(!netns.is_current().unwrap());
        let panicking =
            std::panic::AssertUnwindSafe(|| netns.run(|| std::panic::resume_unwind(Box::new(()))));
        std::panic::catch_unwind(|| {
            let _never: std::io::Result<()> = panicking();
        })
        .unwrap_err();
        assert!(!netns.is_current().unwrap());
    });
}
