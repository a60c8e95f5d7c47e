//! Whatever is changed behind its back, flanneld puts right; what is not its own, it leaves alone.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests")]

use std::time::{Duration, Instant};

use flannel_tests::cluster::{Cluster, Store, network_over};
use flannel_tests::node::Node;
use flannel_tests::pod::{self, Pod};
use flannel_tests::sandbox::sandboxed;
use flannel_tests::traffic::{Flow, FlowReport, ping};
use flannel_tests::{program, snapshot, wait};

/// A second is promised; a machine that runs other tests at the same time takes longer.
const HEALING_TIME_MAX: Duration = Duration::from_secs(5);

/// What happens to a node.
struct Fault {
    name: &'static str,
    strike: fn(&Node),
    /// Whether it takes packets to repair it.
    traffic: Traffic,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Traffic {
    /// No packet may be lost.
    Survives,
    /// Packets are lost until it is healed.
    Stops,
}

const fn fault(name: &'static str, traffic: Traffic, strike: fn(&Node)) -> Fault {
    Fault { name, strike, traffic }
}

const VXLAN: &[Fault] = &[
    fault("device deleted", Traffic::Stops, |node| {
        node.ip("link delete flannel.1");
    }),
    fault("device down", Traffic::Stops, |node| {
        node.ip("link set flannel.1 down");
    }),
    fault("device renamed", Traffic::Stops, |node| {
        node.ip("link set flannel.1 down");
        node.ip("link set flannel.1 name stray");
        node.ip("link set stray up");
    }),
    fault("MAC changed", Traffic::Stops, |node| {
        node.ip("link set flannel.1 address 02:00:00:00:00:99");
    }),
    fault("MTU changed", Traffic::Survives, |node| {
        node.ip("link set flannel.1 mtu 1300");
    }),
    fault("learning switched on", Traffic::Survives, |node| {
        node.ip("link set flannel.1 type vxlan learning");
    }),
    fault("address lost", Traffic::Stops, |node| {
        node.ip("address flush dev flannel.1");
    }),
    fault("address added", Traffic::Survives, |node| {
        node.ip("address add 10.244.77.7/32 dev flannel.1");
    }),
    fault("route deleted", Traffic::Stops, |node| {
        node.ip(&format!("route delete {}", first(&node.ip("route show dev flannel.1"))));
    }),
    fault("route replaced", Traffic::Stops, |node| {
        let subnet = first(&node.ip("route show dev flannel.1")).to_owned();
        node.ip(&format!("route replace {subnet} via 10.244.99.0 dev flannel.1 onlink"));
    }),
    fault("routes purged by protocol", Traffic::Stops, |node| {
        node.ip("route flush proto 199");
    }),
    fault("route to nobody added", Traffic::Survives, |node| {
        node.ip("route add 10.244.99.0/24 via 10.244.99.0 dev flannel.1 onlink");
    }),
    fault("neighbours deleted", Traffic::Stops, |node| {
        for neighbour in node.ip("neighbour show dev flannel.1").lines() {
            node.ip(&format!("neighbour delete {} dev flannel.1", first(neighbour)));
        }
    }),
    fault("neighbours altered", Traffic::Stops, |node| {
        for neighbour in node.ip("neighbour show dev flannel.1").lines() {
            let ip = first(neighbour);
            node.ip(&format!("neighbour replace {ip} lladdr 02:00:00:00:00:99 dev flannel.1"));
        }
    }),
    fault("FDB entries deleted", Traffic::Stops, |node| {
        for entry in node.bridge("fdb show dev flannel.1").lines() {
            node.bridge(&format!("fdb delete {} dev flannel.1", first(entry)));
        }
    }),
    fault("FDB entries altered", Traffic::Stops, |node| {
        for entry in node.bridge("fdb show dev flannel.1").lines() {
            node.bridge(&format!("fdb replace {} dev flannel.1 dst 198.51.100.99", first(entry)));
        }
    }),
    fault("rules flushed", Traffic::Survives, |node| {
        flush_rules(node);
    }),
    fault("kernel parameter changed", Traffic::Survives, |node| {
        let write = || std::fs::write("/proc/sys/net/ipv6/conf/flannel.1/accept_ra", "1");
        node.namespace().inside(write).unwrap();
    }),
    fault("subnet file removed", Traffic::Survives, |node| {
        std::fs::remove_file(node.directory("/run/flannel/subnet.env")).unwrap();
    }),
    fault("underlay down and up", Traffic::Stops, flap),
    fault("more notifications than anybody reads", Traffic::Stops, storm),
];

const HOST_GW: &[Fault] = &[
    fault("route deleted", Traffic::Stops, |node| {
        node.ip(&format!("route delete {}", first(&node.ip("route show proto 199"))));
    }),
    fault("route replaced", Traffic::Stops, |node| {
        let routes = node.ip("route show proto 199");
        let last = routes.lines().last().unwrap();
        let gateway = last.split(' ').nth(2).unwrap();
        node.ip(&format!("route replace {} via {gateway}", first(&routes)));
    }),
    fault("routes purged by protocol", Traffic::Stops, |node| {
        node.ip("route flush proto 199");
    }),
    fault("rules flushed", Traffic::Survives, |node| {
        flush_rules(node);
    }),
    fault("underlay down and up", Traffic::Stops, flap),
    fault("more notifications than anybody reads", Traffic::Stops, storm),
];

const UDP: &[Fault] = &[
    fault("device deleted", Traffic::Stops, |node| {
        node.ip("link delete flannel0");
    }),
    fault("device down", Traffic::Stops, |node| {
        node.ip("link set flannel0 down");
    }),
    fault("device renamed", Traffic::Stops, |node| {
        node.ip("link set flannel0 down");
        // It may be gone the next moment.
        node.ip("link set flannel0 name stray");
    }),
    fault("MTU changed", Traffic::Survives, |node| {
        node.ip("link set flannel0 mtu 1300");
    }),
    fault("address lost", Traffic::Stops, |node| {
        node.ip("address flush dev flannel0");
    }),
    fault("address added", Traffic::Survives, |node| {
        node.ip("address add 10.244.77.7/32 dev flannel0");
    }),
    fault("route deleted", Traffic::Stops, |node| {
        node.ip("route delete 10.244.0.0/16");
    }),
    fault("routes purged by protocol", Traffic::Stops, |node| {
        node.ip("route flush proto 199");
    }),
    fault("route to nobody added", Traffic::Survives, |node| {
        node.ip("route add 10.244.99.0/24 dev flannel0");
    }),
    fault("rules flushed", Traffic::Survives, |node| {
        flush_rules(node);
    }),
    fault("kernel parameter changed", Traffic::Survives, |node| {
        let write = || std::fs::write("/proc/sys/net/ipv4/conf/flannel0/accept_local", "0");
        node.namespace().inside(write).unwrap();
    }),
    fault("subnet file removed", Traffic::Survives, |node| {
        std::fs::remove_file(node.directory("/run/flannel/subnet.env")).unwrap();
    }),
    fault("underlay down and up", Traffic::Stops, flap),
    fault("more notifications than anybody reads", Traffic::Stops, storm),
];

#[test]
fn vxlan_heals_under_a_running_flow() {
    sandboxed(|| heals("vxlan", VXLAN, Store::Directory));
}

#[test]
fn host_gw_heals_under_a_running_flow() {
    sandboxed(|| heals("host-gw", HOST_GW, Store::Directory));
}

#[test]
fn udp_heals_under_a_running_flow() {
    sandboxed(|| heals("udp", UDP, Store::Directory));
}

#[test]
fn host_gw_heals_under_a_running_flow_with_kubernetes() {
    sandboxed(|| heals("host-gw", HOST_GW, Store::Kube));
}

fn heals(backend: &str, faults: &[Fault], store: Store) {
    let mut cluster = Cluster::unconfigured(3, store);
    cluster.store().configure(&network_over(backend));
    plant_foreign_objects(cluster.node(1));
    cluster.start_all();
    let pods = pod::attach_to_each(cluster.nodes(), 1);
    let node = cluster.node(1);
    let before = snapshot::of(node).unwrap();
    for fault in faults {
        let (time, report) = heal(node, &pods, &before, fault);
        println!(
            "{:<40} healed in {time:>6.0?}, {} of {} packets lost",
            fault.name,
            report.lost(),
            report.sent
        );
        assert!(time < HEALING_TIME_MAX, "{}: healed in {time:?}", fault.name);
        if fault.traffic == Traffic::Survives {
            assert_eq!(report.lost(), 0, "{}: {report}", fault.name);
        }
    }
    for (from, to) in pod::pairs(&pods) {
        ping(from.namespace(), to.address()).unwrap();
    }
}

/// Strikes, and waits until all is as before, foreign objects included.
fn heal(node: &Node, pods: &[Pod], before: &str, fault: &Fault) -> (Duration, FlowReport) {
    let (from, to) = (&pods[0], &pods[1]);
    let flow = Flow::start(from.namespace(), to.namespace(), to.address(), 1000).unwrap();
    let goes_on = |why: &str| {
        let count = flow.received();
        wait::until_true(&format!("the flow goes on {why} {}", fault.name), || {
            flow.received() > count + 50
        });
    };
    goes_on("before");
    (fault.strike)(node);
    let start = Instant::now();
    wait::until(&format!("all is as it was before: {}", fault.name), || {
        let now = snapshot::of(node)?;
        if now == before { Ok(()) } else { Err(snapshot::difference(before, &now)) }
    });
    let time = start.elapsed();
    goes_on("after");
    (time, flow.finish().unwrap())
}

/// Things that look like ours, or are in their way, but belong to somebody else.
fn plant_foreign_objects(node: &Node) {
    node.ip("address add 203.0.113.7/24 dev eth0");
    node.ip("link add foreign0 type bridge");
    node.ip("address add 10.245.0.1/24 dev foreign0");
    node.ip("link set foreign0 up");
    node.ip("link add flannel.77 address 02:77:00:00:00:01 type vxlan id 77 dstport 4789 dev eth0");
    node.ip("link set flannel.77 up");
    node.ip("neighbour add 10.245.9.9 lladdr 02:77:00:00:00:02 dev flannel.77 nud permanent");
    node.bridge("fdb add 02:77:00:00:00:02 dev flannel.77 dst 198.51.100.77");
    node.ip("route add 10.245.9.0/24 dev flannel.77");
    node.ip("route add 10.244.200.0/24 dev foreign0");
    node.ip("route add 10.244.2.0/24 dev foreign0 table 77");
    node.ip("route add 172.30.0.0/16 dev foreign0 proto 199 table 78");
    let rules =
        "table ip foreign { chain forward { type filter hook forward priority 5; accept; }; }";
    program::run(node.namespace().command("nft").arg(rules));
}

/// What `nft flush ruleset` does to ours; somebody else restores what is theirs.
fn flush_rules(node: &Node) {
    let nft = |script: &str| program::run(node.namespace().command("nft").arg(script));
    let foreign = nft("list table ip foreign");
    nft(&format!("flush ruleset\n{foreign}"));
}

/// The administrator's part of what a flap takes away comes back with the link.
fn flap(node: &Node) {
    let before = node.ip("route show");
    node.ip("link set eth0 down");
    node.ip("link set eth0 up");
    let lost = before.lines().filter(|route| route.starts_with("default"));
    lost.for_each(|route| drop(node.ip(&format!("route add {route}"))));
}

/// Thousands of changes next to ours, and one of ours in the middle.
fn storm(node: &Node) {
    let foreign = |verb: &str| -> String {
        let octets = (0..20_u8).flat_map(|high| (0..250_u8).map(move |low| (high, low)));
        octets
            .map(|(high, low)| format!("route {verb} 172.16.{high}.{low}/32 dev eth0\n"))
            .collect()
    };
    let ours = "route flush proto 199\n".to_owned();
    let batch = [foreign("add"), ours, foreign("delete")].concat();
    std::fs::write("/run/storm.batch", batch).unwrap();
    let mut ip = program::installed("ip");
    program::run(ip.args(["-n", node.name(), "-batch", "/run/storm.batch"]));
}

/// The first word, which in listings is the destination or address.
fn first(text: &str) -> &str {
    text.split(' ').next().unwrap()
}
