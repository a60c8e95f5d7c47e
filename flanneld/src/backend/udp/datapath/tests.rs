//! Two nodes in a sandbox whose kernels do all, some or nothing of what helps.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use fabric::tun;
use flannel_tests::namespace::Namespace;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::traffic::{Flow, ping, tcp_stream};
use flannel_tests::underlay::Underlay;
use flannel_tests::wait;

use super::super::counters::Drop;
use super::super::packet::finish_header;
use super::*;

const PORT: u16 = 8285;
const STREAM_LEN: usize = 4 << 20;
/// Datagrams a second: the device has room for so many while the data path has no processor.
const FLOW_RATE: u32 = 500;

/// A host that carries packets for addresses of its own.
struct Host {
    number: u8,
    namespace: Namespace,
    data_path: DataPath,
}

fn device() -> LinkName {
    "flannel0".parse().unwrap()
}

fn subnet(number: u8) -> IpNetwork {
    format!("10.244.{number}.0/24").parse().unwrap()
}

fn inner(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, number, 0)
}

fn forwarding(number: u8, listen: Ipv4Addr, peers: &[(u8, Ipv4Addr)]) -> Forwarding {
    let peers = peers.iter().map(|(peer, at)| (subnet(*peer), (*at, PORT).into()));
    Forwarding {
        device: device(),
        listen: (listen, PORT).into(),
        own: subnet(number),
        peers: peers.collect(),
    }
}

impl Host {
    fn start(underlay: &Underlay, number: u8, peer: u8, wishes: Wishes) -> Self {
        Self::with_device(underlay, number, peer, wishes, || tun::create(device()).unwrap())
    }

    fn with_device(
        underlay: &Underlay,
        number: u8,
        peer: u8,
        wishes: Wishes,
        make: impl FnOnce() + Send + 'static,
    ) -> Self {
        let namespace = underlay.host(&format!("n{number}"), number);
        namespace.inside(make);
        namespace.ip(&format!("address add {}/32 dev flannel0", inner(number)));
        namespace.ip("link set flannel0 mtu 1472 up");
        namespace.ip("route add 10.244.0.0/16 dev flannel0");
        let peers = [(peer, Underlay::address(peer))];
        let forwarding = forwarding(number, Underlay::address(number), &peers);
        let data_path = namespace.inside(move || DataPath::start(forwarding, wishes));
        Self { number, namespace, data_path: data_path.unwrap() }
    }

    fn stream_to(&self, other: &Self) {
        let (from, to) = (&self.namespace, &other.namespace);
        tcp_stream(from, to, inner(other.number), STREAM_LEN)
            .unwrap_or_else(|e| panic!("n{} to n{}: {e}", self.number, other.number));
    }

    fn flow_to(&self, other: &Self) -> Flow {
        Flow::start(&self.namespace, &other.namespace, inner(other.number), FLOW_RATE).unwrap()
    }

    fn dropped(&self) -> String {
        self.data_path.drops.to_string()
    }
}

fn pair(wishes: Wishes) -> [Host; 2] {
    let underlay = Underlay::create();
    connected([(1, 2), (2, 1)].map(|(n, peer)| Host::start(&underlay, n, peer, wishes)))
}

fn connected(hosts: [Host; 2]) -> [Host; 2] {
    wait::until("the hosts reach each other", || {
        ping(&hosts[0].namespace, inner(hosts[1].number)).map_err(|e| e.to_string())
    });
    hosts
}

/// Streams and small datagrams in both directions, of which none may be lost.
fn exchange([one, two]: &[Host; 2]) {
    for (from, to) in [(one, two), (two, one)] {
        from.stream_to(to);
        let flow = from.flow_to(to);
        wait::until_true("datagrams arrive", || flow.received() > 250);
        let report = flow.finish().unwrap();
        println!("n{} to n{}: {report}; {} dropped", from.number, to.number, to.dropped());
        assert_eq!(report.lost(), 0, "{report}");
    }
}

fn wishes(lanes: usize, offload: Offload, cuts: bool, merges: bool) -> Wishes {
    Wishes { lanes, offload, features: Features { cuts, merges } }
}

fn exchange_with(wishes: Wishes) {
    let hosts = pair(wishes);
    for host in &hosts {
        assert_eq!(host.data_path.lanes.len(), wishes.lanes);
        assert_eq!(host.data_path.lanes[0].queue.offload(), wishes.offload);
    }
    exchange(&hosts);
}

#[test]
fn packets_arrive_with_everything_that_the_kernel_has() {
    sandboxed(|| exchange_with(wishes(2, Offload::TcpAndUdp, true, true)));
}

#[test]
fn packets_arrive_without_segments_of_udp_and_without_merged_datagrams() {
    sandboxed(|| exchange_with(wishes(1, Offload::Tcp, true, false)));
}

#[test]
fn packets_arrive_without_segments_and_without_cut_messages() {
    sandboxed(|| exchange_with(wishes(2, Offload::None, false, true)));
}

#[test]
fn packets_arrive_without_headers_and_one_datagram_at_a_time() {
    sandboxed(|| exchange_with(wishes(1, Offload::Bare, false, false)));
}

#[test]
fn packets_arrive_when_the_underlay_does_not_cut_what_the_device_does_not() {
    sandboxed(|| exchange_with(wishes(2, Offload::TcpAndUdp, false, false)));
}

#[test]
fn a_device_that_somebody_made_with_one_queue_is_used() {
    sandboxed(|| {
        let underlay = Underlay::create();
        let all = wishes(2, Offload::TcpAndUdp, true, true);
        let make = || {
            let ip = ["tuntap", "add", "dev", "flannel0", "mode", "tun"];
            flannel_tests::program::run(flannel_tests::program::installed("ip").args(ip));
        };
        let one = Host::with_device(&underlay, 1, 2, all, make);
        assert_eq!(one.data_path.lanes.len(), 1);
        exchange(&connected([one, Host::start(&underlay, 2, 1, all)]));
    });
}

#[test]
fn packets_arrive_at_an_address_that_changed() {
    sandboxed(|| {
        let [mut one, mut two] = pair(wishes(2, Offload::TcpAndUdp, true, true));
        let new = Underlay::address(77);
        one.namespace.ip("address flush dev eth0");
        one.namespace.ip(&format!("address add {new}/24 dev eth0"));
        one.change(forwarding(1, new, &[(2, Underlay::address(2))]));
        two.change(forwarding(2, Underlay::address(2), &[(1, new)]));
        exchange(&connected([one, two]));
    });
}

/// `LOAD_SECONDS=60` goes on for longer, as for the address sanitizer.
#[test]
fn the_data_path_stands_load_from_friends_and_foes() {
    sandboxed(|| {
        let seconds = std::env::var("LOAD_SECONDS").map_or(1, |text| text.parse().unwrap());
        let hosts = pair(wishes(2, Offload::TcpAndUdp, true, true));
        let [one, two] = &hosts;
        let mut hostile = 0;
        let end = Instant::now() + Duration::from_secs(seconds);
        while hostile == 0 || Instant::now() < end {
            let flows = [one.flow_to(two), two.flow_to(one)];
            one.stream_to(two);
            two.stream_to(one);
            hostile += one.send_nonsense_to(two);
            flows.into_iter().for_each(|flow| assert!(flow.finish().unwrap().received > 0));
        }
        // One after the other, the counters included: all of it was looked at.
        wait::until_true("nonsense is dropped", || two.data_path.drops.get(Drop::Malformed) > 0);
        println!("{hostile} hostile datagrams; dropped: {}", two.dropped());
        exchange(&hosts);
        let peers = two.data_path.published.current();
        let Endpoint { traffic, .. } = &peers.peers.endpoints()[0];
        assert!(traffic.dropped.get(Drop::ForeignSource) > 0, "{}", traffic.dropped);
        assert_eq!(traffic.dropped.get(Drop::UnknownSender), 0);
        let unknown = two.data_path.drops.get(Drop::UnknownSender);
        assert!(unknown > 0, "{}", two.dropped());
    });
}

impl Host {
    fn change(&mut self, forwarding: Forwarding) {
        // In the namespace of the host, whose sockets it makes.
        let namespace = self.namespace.clone();
        std::thread::scope(|scope| {
            let data_path = &mut self.data_path;
            let inside = scope.spawn(move || {
                let file = std::fs::File::open(namespace.path()).unwrap();
                nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                data_path.make_true(forwarding)
            });
            inside.join().unwrap().unwrap();
        });
    }

    /// Sends packets that were damaged in every way from our own socket, and good ones from
    /// another; returns how many.
    fn send_nonsense_to(&self, other: &Self) -> usize {
        let good = packet(inner(self.number), inner(other.number));
        let lane = Arc::clone(&self.data_path.lanes[0]);
        let to = (Underlay::address(other.number), PORT);
        let damaged = (0..good.len()).flat_map(|at| {
            let (short, mut broken) = (good[..at].to_vec(), good.clone());
            broken[at] ^= 0xa5;
            [short, broken]
        });
        let foreign = packet(inner(9), inner(other.number));
        let mut sent = 0;
        for bytes in damaged.chain([foreign]) {
            sent += usize::from(lane.socket.send_to(&bytes, to).is_ok());
        }
        let stranger = self.namespace.inside(|| std::net::UdpSocket::bind("0.0.0.0:0"));
        sent + usize::from(stranger.unwrap().send_to(&good, to).is_ok())
    }
}

/// A UDP packet without a checksum.
fn packet(source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend([0, 9, 0, 9, 0, 12, 0, 0]);
    packet.extend(b"evil");
    let len = packet.len();
    finish_header(&mut packet[..20], len, 0);
    packet
}
