//! flanneld may be killed at any moment and started again: packets do not notice, or pass again at
//! once where flanneld itself carries them.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests")]

use std::thread::park_timeout;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flannel_tests::cluster::{Cluster, Store};
use flannel_tests::net_conf::{Stack, network};
use flannel_tests::pod::Pod;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::traffic::Flow;
use flannel_tests::wait;

const KILLS: u32 = 200;
/// With udp, each is followed by a wait until packets pass.
const UDP_KILLS: u32 = 40;

/// Longer than a start takes, so that it is killed at every moment of it, and after it.
const LIFE_MAX: Duration = Duration::from_millis(250);

#[test]
fn two_hundred_kills_lose_no_packet_with_vxlan_and_kubernetes() {
    sandboxed(|| kills_lose_no_packet("vxlan", Store::Kube));
}

#[test]
fn two_hundred_kills_lose_no_packet_with_host_gw() {
    sandboxed(|| kills_lose_no_packet("host-gw", Store::any()));
}

fn kills_lose_no_packet(backend: &str, store: Store) {
    let (mut cluster, [from, to]) = cluster_over(backend, store);
    let flow = Flow::start(from.namespace(), to.namespace(), to.address(), 1000).unwrap();
    let mut lives = Lives::new();
    let (start, mut complete) = (Instant::now(), 0);
    for kill in 0..KILLS {
        complete += u32::from(live_once(&mut cluster, kill, &mut lives));
    }
    let time = start.elapsed();
    let report = flow.finish().unwrap();
    println!("{KILLS} kills in {time:.0?}, {complete} of them after a complete start: {report}");
    assert_eq!(report.lost(), 0, "{report}");
    settles(&mut cluster);
}

#[test]
fn packets_pass_again_after_every_kill_with_udp() {
    sandboxed(|| {
        let (mut cluster, [from, to]) = cluster_over("udp", Store::any());
        let flow = Flow::start(from.namespace(), to.namespace(), to.address(), 1000).unwrap();
        let mut lives = Lives::new();
        for kill in 0..UDP_KILLS {
            live_once(&mut cluster, kill, &mut lives);
            let before = flow.received();
            wait::until_true("the flow goes on", || flow.received() > before + 50);
            // The device was there all the time, with everything that belongs to it.
            for node in cluster.nodes() {
                assert!(node.ip("route show dev flannel0").starts_with("10.244.0.0/16 "));
            }
        }
        println!("{UDP_KILLS} kills: {}", flow.finish().unwrap());
        settles(&mut cluster);
        // The device has room for so many while flanneld has no processor.
        let flow = Flow::start(from.namespace(), to.namespace(), to.address(), 500).unwrap();
        wait::until_true("the flow goes on", || flow.received() > 500);
        let report = flow.finish().unwrap();
        assert_eq!(report.lost(), 0, "after the last start: {report}");
    });
}

fn cluster_over(backend: &str, store: Store) -> (Cluster, [Pod; 2]) {
    let cluster = Cluster::running_with(2, store, &network(Stack::Ipv4, backend));
    let pods = ["a", "b"].into_iter().zip(cluster.nodes());
    let pods: Vec<_> = pods.map(|(name, node)| Pod::attach(node, name)).collect();
    (cluster, pods.try_into().unwrap())
}

/// Kills flanneld on one of the nodes and lets the next one live for a while; true if that was long
/// enough to start.
fn live_once(cluster: &mut Cluster, kill: u32, lives: &mut Lives) -> bool {
    let number = if kill.is_multiple_of(2) { 1 } else { 2 };
    cluster.kill(number);
    cluster.start(number);
    park_timeout(lives.next());
    let log = cluster.flanneld(number).log();
    assert_eq!(cluster.flanneld(number).status(), None, "{log}");
    log.contains("subnet file written")
}

fn settles(cluster: &mut Cluster) {
    for number in [1, 2] {
        cluster.wait_until_ready(number);
    }
    cluster.wait_for_peers();
}

/// Random spans of time up to the longest, most of them short: the squares of what a linear
/// congruential generator draws (Knuth, MMIX).
struct Lives(u64);

impl Lives {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let seed = now.map_or(1, |time| u64::from(time.subsec_nanos()));
        println!("seed {seed}");
        Self(seed)
    }

    fn next(&mut self) -> Duration {
        let Self(state) = *self;
        self.0 = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        let drawn = u32::try_from(self.0 >> 32).map_or(0.0, f64::from) / f64::from(u32::MAX);
        LIFE_MAX.mul_f64(drawn * drawn)
    }
}
