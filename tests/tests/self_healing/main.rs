//! Whatever is changed behind its back, flanneld puts right; what is not its own, it leaves alone.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests")]

mod faults;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use faults::{Fault, HOST_GW, Place, Traffic, UDP, VXLAN, plant_foreign_objects};
use flannel_tests::cluster::{Cluster, Store};
use flannel_tests::net_conf::{Stack, network_in};
use flannel_tests::pod::{self, Pod};
use flannel_tests::rule_engine::RuleEngine;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::statistics::Samples;
use flannel_tests::traffic::{Flow, FlowReport, ping};
use flannel_tests::{snapshot, wait};

/// What is promised. A machine that runs other tests at the same time takes longer now and then, so
/// that the median counts.
const HEALING_TIME: Duration = Duration::from_secs(1);
/// What the dozen programs that tell what is there take at most where nothing else runs: where they
/// take longer, healing may take as much longer.
const LOOK_TIME: Duration = Duration::from_millis(100);
/// For a single fault.
const HEALING_TIME_MAX: Duration = Duration::from_secs(60);

/// Packets a second. A device whose packets a program carries has room for 500 while the program does
/// not run, as on a busy machine.
const RATE: u32 = 500;

#[test]
fn vxlan_heals_under_a_running_flow() {
    sandboxed(|| heals("vxlan", Store::any(), Stack::Ipv4, RuleEngine::Nftables, VXLAN));
}

#[test]
fn vxlan_heals_under_a_running_flow_of_ipv6() {
    sandboxed(|| heals("vxlan", Store::any(), Stack::Dual, RuleEngine::IptablesNft, VXLAN));
}

#[test]
fn host_gw_heals_under_a_running_flow() {
    sandboxed(|| heals("host-gw", Store::any(), Stack::Ipv4, RuleEngine::IptablesNft, HOST_GW));
}

#[test]
fn host_gw_heals_under_a_running_flow_of_ipv6() {
    sandboxed(|| heals("host-gw", Store::any(), Stack::Dual, RuleEngine::Nftables, HOST_GW));
}

#[test]
fn vxlan_heals_under_a_running_flow_with_kubernetes() {
    sandboxed(|| heals("vxlan", Store::Kube, Stack::Ipv4, RuleEngine::Nftables, VXLAN));
}

#[test]
fn udp_heals_under_a_running_flow() {
    sandboxed(|| heals("udp", Store::any(), Stack::Ipv4, RuleEngine::Nftables, UDP));
}

/// Where there are two families, the faults strike IPv6, and nothing of IPv4 may change.
fn heals(backend: &str, store: Store, stack: Stack, engine: RuleEngine, faults: &[Fault]) {
    let mut cluster = Cluster::unconfigured(3, store);
    cluster.store().configure(&network_in(engine, stack, backend));
    plant_foreign_objects(cluster.node(1));
    cluster.start_all();
    let pods = pod::attach_to_each(cluster.nodes(), 1);
    let ipv6 = stack == Stack::Dual;
    let place = Place { node: cluster.node(1), device: device(backend, ipv6), ipv6 };
    let to = pods[1].addresses().find(|ip| ip.is_ipv6() == ipv6).unwrap();
    let before = wait::until("all addresses are settled", || snapshot::of(place.node));
    // A node looks for a pod of IPv6 from the bridge's own address, which is first found to be unique
    // (RFC 4862, section 5.4): what is sent to the pod within these two seconds is lost, fault or not.
    let first = Flow::start(pods[0].namespace(), pods[1].namespace(), to, 100).unwrap();
    wait::until_true("the pods reach each other", || first.received() > 0);
    first.finish().unwrap();
    let (mut times, mut looks) = (Samples::default(), Samples::default());
    for fault in faults {
        let Healing { time, look, report } = heal(&place, &pods, to, &before, fault);
        println!(
            "{:<40} healed in {time:>6.0?}, {} of {} packets lost",
            fault.name,
            report.lost(),
            report.sent
        );
        assert!(time < HEALING_TIME_MAX, "{}: healed in {time:?}", fault.name);
        times.push(time);
        looks.push(look);
        if fault.traffic == Traffic::Survives {
            assert_eq!(report.lost(), 0, "{}: {report}", fault.name);
        }
    }
    println!("healing {times}\na look  {looks}");
    let busy = looks.median().as_secs_f64() / LOOK_TIME.as_secs_f64();
    assert!(times.median() < HEALING_TIME.mul_f64(busy.max(1.0)), "{times}; a look: {looks}");
    for (from, to) in pod::pairs(&pods) {
        for ip in to.addresses() {
            ping(from.namespace(), ip).unwrap();
        }
    }
}

/// The device that leads to the peers.
fn device(backend: &str, ipv6: bool) -> &'static str {
    match (backend, ipv6) {
        ("vxlan", false) => "flannel.1",
        ("vxlan", true) => "flannel-v6.1",
        ("udp", _) => "flannel0",
        _ => "eth0",
    }
}

/// What became of a fault.
struct Healing {
    time: Duration,
    /// What the look took that found everything as it was before.
    look: Duration,
    report: FlowReport,
}

/// Strikes, and waits until all is as before, foreign objects included.
fn heal(place: &Place<'_>, pods: &[Pod], to: IpAddr, before: &str, fault: &Fault) -> Healing {
    let flow = Flow::start(pods[0].namespace(), pods[1].namespace(), to, RATE).unwrap();
    let goes_on = |why: &str| {
        let count = flow.received();
        wait::until_true(&format!("the flow goes on {why} {}", fault.name), || {
            flow.received() > count + 50
        });
    };
    goes_on("before");
    (fault.strike)(place);
    let start = Instant::now();
    let mut look = start;
    wait::until(&format!("all is as it was before: {}", fault.name), || {
        look = Instant::now();
        let now = snapshot::of(place.node)?;
        if now == before { Ok(()) } else { Err(snapshot::difference(before, &now)) }
    });
    let (time, look) = (start.elapsed(), look.elapsed());
    goes_on("after");
    Healing { time, look, report: flow.finish().unwrap() }
}
