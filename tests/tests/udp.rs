//! The udp backend: nodes that carry packets themselves, among each other and with peers that
//! speak the plain wire.

#![expect(unsafe_code, reason = "a supervisor passes descriptors between fork and exec")]
#![expect(clippy::print_stdout, reason = "helpers of tests are tests")]

use std::fs;
use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use flannel_tests::cluster::{Cluster, Store};
use flannel_tests::daemon::Daemon;
use flannel_tests::impairment::Impairment;
use flannel_tests::namespace::Namespace;
use flannel_tests::node::Node;
use flannel_tests::plain_tunnel::{PORT, PlainTunnel};
use flannel_tests::pod::{self, Pod};
use flannel_tests::sandbox::sandboxed;
use flannel_tests::traffic::{Flow, tcp_stream, wait_until_reached};
use flannel_tests::wait;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

const NETWORK: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}"#;

/// What each TCP stream carries.
const STREAM_LEN: usize = 8 << 20;

/// The subnet of a node that does not run flanneld; outside of what the others may lease.
const PLAIN_SUBNET: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 0);

/// How long to wait for what must not arrive.
const SILENCE: Duration = Duration::from_millis(200);

/// Restarting takes some hundredths of a second, as `bench_udp` measures; here it may have to wait
/// for other tests, whose interfaces come and go under one lock of the kernel.
const GAP_MAX: Duration = Duration::from_secs(10);

/// Packets a second that wait in the device while nobody reads: it has room for 500.
const WAITING_RATE: u32 = 50;

fn cluster(size: u8) -> Cluster {
    running(Cluster::unconfigured(size, Store::any()))
}

fn running(mut cluster: Cluster) -> Cluster {
    cluster.store().configure(NETWORK);
    cluster.start_all();
    cluster
}

/// A node that runs flanneld, and one that does not but has a lease.
fn with_plain_node() -> (Cluster, Node) {
    let mut cluster = Cluster::unconfigured(2, Store::any());
    cluster.store().configure(NETWORK);
    let plain = cluster.node(2).clone();
    let lease = format!(r#"{{"PublicIP":"{}","PublicIPv6":null}}"#, plain.address());
    cluster.store().put("subnets/10.244.0.0-24", &lease);
    cluster.start(1);
    cluster.wait_until_ready(1);
    (cluster, plain)
}

fn base(node: &Node) -> Ipv4Addr {
    let subnet = node.subnet_file_value("FLANNEL_SUBNET").expect("the node is ready");
    let address = subnet.split('/').next().and_then(|text| text.parse::<Ipv4Addr>().ok());
    let [a, b, c, _] = address.expect("it is an address").octets();
    Ipv4Addr::new(a, b, c, 0)
}

/// Pods that reach each other: nodes have no routes that would tell when they know each other.
fn pods(cluster: &Cluster, count: u8) -> Vec<Pod> {
    let pods = pod::attach_to_each(cluster.nodes(), count);
    for (from, to) in pod::pairs(&pods) {
        wait_until_reached(from.namespace(), to.address());
    }
    pods
}

fn stream(from: &Pod, to: &Pod) {
    let time = tcp_stream(from.namespace(), to.namespace(), to.address(), STREAM_LEN)
        .unwrap_or_else(|e| panic!("TCP stream {} to {}: {e}", from.name(), to.name()));
    println!("{} to {}: {STREAM_LEN} bytes in {time:.1?}", from.name(), to.name());
}

#[test]
fn pods_reach_each_other_with_large_packets() {
    sandboxed(|| {
        let cluster = Cluster::unconfigured(2, Store::any());
        for node in cluster.nodes() {
            cluster.underlay().set_mtu(node.namespace(), 9000);
        }
        let cluster = running(cluster);
        let pods = pods(&cluster, 1);
        let link = pods[0].namespace().ip("link show eth0");
        assert!(link.contains(" mtu 8972 "), "{link}");
        pod::pairs(&pods).for_each(|(from, to)| stream(from, to));
    });
}

#[test]
fn loss_and_reordering_on_the_underlay_are_survived() {
    sandboxed(|| streams_pass_bad_links(1500));
}

#[test]
fn loss_and_reordering_of_large_packets_are_survived() {
    sandboxed(|| streams_pass_bad_links(9000));
}

fn streams_pass_bad_links(mtu: u32) {
    let cluster = Cluster::unconfigured(2, Store::any());
    let way = Impairment { lose_every: 199, hold_every: 7 };
    let underlay = cluster.underlay();
    let link = |node: &Node| {
        let link = underlay.impair(node.namespace(), node.number(), way);
        underlay.set_mtu(node.namespace(), mtu);
        link
    };
    let _links: Vec<_> = cluster.nodes().iter().map(link).collect();
    let cluster = running(cluster);
    let pods = pods(&cluster, 1);
    pod::pairs(&pods).for_each(|(from, to)| stream(from, to));
}

#[test]
fn packets_that_do_not_fit_the_way_arrive_all_the_same() {
    sandboxed(|| {
        let cluster = cluster(2);
        let pods = pods(&cluster, 1);
        // Behind flanneld's back, so that it knows nothing.
        for (node, other) in [(1, 2), (2, 1)] {
            let address = cluster.node(other).address();
            cluster.node(node).ip(&format!("route add {address}/32 dev eth0 mtu 1400"));
        }
        pod::pairs(&pods).for_each(|(from, to)| stream(from, to));
    });
}

#[test]
fn the_lease_has_no_type_and_the_device_is_as_usual() {
    sandboxed(|| {
        let cluster = cluster(1);
        let node = cluster.node(1);
        let (_, lease) = cluster.store().lease_of(node).unwrap();
        assert_eq!(lease, r#"{"PublicIP":"198.51.100.1","PublicIPv6":null}"#);
        assert_eq!(node.subnet_file_value("FLANNEL_MTU").as_deref(), Some("1472"));
        let link = node.ip("link show flannel0");
        assert!(link.contains(" mtu 1472 "), "{link}");
        let address = node.ip("-4 -oneline address show dev flannel0");
        assert!(address.contains(&format!("inet {}/32 scope global", base(node))), "{address}");
        let routes = node.ip("route show dev flannel0");
        assert!(routes.starts_with("10.244.0.0/16 proto 199"), "{routes}");
    });
}

#[test]
fn a_peer_that_sends_and_takes_one_packet_at_a_time_is_served() {
    sandboxed(|| {
        let (_cluster, ours, theirs, _tunnel) = beside_plain_pod(Impairment::default());
        for (from, to) in [(&ours, &theirs), (&theirs, &ours)] {
            stream(from, to);
            let flow = Flow::start(from.namespace(), to.namespace(), to.address(), 500).unwrap();
            wait::until_true("datagrams arrive", || flow.received() > 500);
            let report = flow.finish().unwrap();
            println!("{} to {}: {report}", from.name(), to.name());
            assert_eq!(report.lost(), 0, "{report}");
        }
    });
}

#[test]
fn loss_and_reordering_on_the_way_from_a_plain_peer_are_survived() {
    sandboxed(|| {
        let way = Impairment { lose_every: 501, hold_every: 7 };
        let (_cluster, ours, theirs, _tunnel) = beside_plain_pod(way);
        stream(&theirs, &ours);
        stream(&ours, &theirs);
    });
}

/// A pod on a node with flanneld and one on a node with the simplest of programs.
fn beside_plain_pod(way: Impairment) -> (Cluster, Pod, Pod, PlainTunnel) {
    let (cluster, plain) = with_plain_node();
    let node = cluster.node(1);
    let peers = vec![(base(node), node.address())];
    let tunnel = PlainTunnel::start(&plain, PLAIN_SUBNET, 1472, peers, way);
    let file = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.0.1/24\nFLANNEL_MTU=1472\n\
                FLANNEL_IPMASQ=true\n";
    fs::write(plain.directory("/run/flannel/subnet.env"), file).expect("the sandbox is writable");
    let (ours, theirs) = (Pod::attach(node, "ours"), Pod::attach(&plain, "theirs"));
    wait_until_reached(ours.namespace(), theirs.address());
    (cluster, ours, theirs, tunnel)
}

/// A bare UDP packet of a pod, ready for the wire.
fn packet(source: Ipv4Addr, destination: Ipv4Addr, port: u16, ttl: u8, text: &[u8]) -> Vec<u8> {
    let length = |len: usize| u16::try_from(len).expect("it is short").to_be_bytes();
    let mut packet = vec![0x45, 0];
    packet.extend(length(28 + text.len()));
    packet.extend([0, 1, 0, 0, ttl, 17, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let words = packet.chunks_exact(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("of few words");
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend([0x30, 0x39]);
    packet.extend(port.to_be_bytes());
    packet.extend(length(8 + text.len()));
    // No checksum (RFC 768).
    packet.extend([0, 0]);
    packet.extend(text);
    packet
}

fn socket(inside: &Namespace, address: Ipv4Addr, port: u16) -> UdpSocket {
    let socket = inside.inside(move || UdpSocket::bind((address, port))).expect("the port is free");
    socket.set_read_timeout(Some(wait::PATIENCE)).expect("not zero");
    socket
}

fn received(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 2000];
    let len = socket.recv(&mut buffer).expect("something arrives");
    buffer[..len].to_vec()
}

#[test]
fn the_wire_is_the_bare_packet_with_one_hop_less_on_each_side() {
    sandboxed(|| {
        let (cluster, plain) = with_plain_node();
        let pod = Pod::attach(cluster.node(1), "pod");
        let wire = socket(plain.namespace(), plain.address(), PORT);
        let peer = Ipv4Addr::new(10, 244, 0, 9);
        let inner = socket(pod.namespace(), pod.address(), 4000);

        inner.send_to(b"hello", (peer, 12345)).unwrap();
        let seen = received(&wire);
        // The pod's 64, less one for its node's routing, less one for the tunnel.
        assert_eq!((seen[0], seen[8], seen.len()), (0x45, 62, 33));
        assert_eq!(
            (&seen[12..16], &seen[16..20]),
            (&pod.address().octets()[..], &peer.octets()[..])
        );
        assert_eq!(&seen[28..], b"hello");

        let to_node = (cluster.node(1).address(), PORT);
        let reply = |ttl, text: &[u8]| packet(peer, pod.address(), 4000, ttl, text);
        // One for the tunnel, one for the node's routing, and one to be left.
        wire.send_to(&reply(3, b"three"), to_node).unwrap();
        assert_eq!(received(&inner), b"three");
        for ttl in [2, 1] {
            wire.send_to(&reply(ttl, b"fewer"), to_node).unwrap();
            let told = received(&wire);
            assert_eq!((told[9], told[20], told[21]), (1, 11, 0), "time exceeded, TTL {ttl}");
            assert_eq!(&told[16..20], &peer.octets());
        }
        inner.set_read_timeout(Some(SILENCE)).unwrap();
        assert!(inner.recv(&mut [0; 10]).is_err(), "a packet lived longer than it may");
    });
}

#[test]
fn only_peers_packets_from_their_subnet_to_ours_enter() {
    sandboxed(|| {
        let (mut cluster, plain) = with_plain_node();
        let stranger = cluster.underlay().host("stranger", 66);
        let node = cluster.node(1).clone();
        let pod = Pod::attach(&node, "pod");
        let peer = Ipv4Addr::new(10, 244, 0, 9);
        let inner = socket(pod.namespace(), pod.address(), 4000);
        let wire = socket(plain.namespace(), plain.address(), PORT);
        let other_port = socket(plain.namespace(), plain.address(), PORT + 1);
        let foreign = socket(&stranger, Ipv4Addr::new(198, 51, 100, 66), PORT);
        let to_node = (node.address(), PORT);
        let evil = |source, destination| packet(source, destination, 4000, 64, b"evil");
        let good = evil(peer, pod.address());

        foreign.send_to(&good, to_node).unwrap();
        other_port.send_to(&good, to_node).unwrap();
        for source in [[10, 244, 200, 9], [8, 8, 8, 8], base(&node).octets(), [224, 0, 0, 1]] {
            wire.send_to(&evil(source.into(), pod.address()), to_node).unwrap();
        }
        for destination in [[10, 244, 200, 9], [198, 51, 100, 254], [255; 4], [127, 0, 0, 1]] {
            wire.send_to(&evil(peer, destination.into()), to_node).unwrap();
        }
        // Of every length, and wrong in every byte of the headers.
        for len in 0..good.len() {
            wire.send_to(&good[..len], to_node).unwrap();
            let mut broken = good.clone();
            broken[len.min(11)] ^= 0xff;
            wire.send_to(&broken, to_node).unwrap();
        }
        wire.send_to(&packet(peer, pod.address(), 4000, 64, b"good"), to_node).unwrap();
        assert_eq!(received(&inner), b"good");
        inner.set_read_timeout(Some(SILENCE)).unwrap();
        assert!(inner.recv(&mut [0; 10]).is_err(), "something else entered");
        assert!(cluster.flanneld(1).status().is_none(), "flanneld ended");
    });
}

#[test]
fn a_signal_makes_it_tell_what_passed_and_what_did_not() {
    sandboxed(|| {
        let (mut cluster, plain) = with_plain_node();
        let pod = Pod::attach(cluster.node(1), "pod");
        let wire = socket(plain.namespace(), plain.address(), PORT);
        let to_node = (cluster.node(1).address(), PORT);
        let peer = Ipv4Addr::new(10, 244, 0, 9);
        let inner = socket(pod.namespace(), pod.address(), 4000);
        for source in [Ipv4Addr::new(8, 8, 8, 8), peer] {
            let bytes = packet(source, pod.address(), 4000, 64, b"hello");
            wire.send_to(&bytes, to_node).unwrap();
        }
        assert_eq!(received(&inner), b"hello");
        cluster.flanneld(1).signal(Signal::SIGUSR1);
        let told = "subnet=10.244.0.0/24 via=198.51.100.2:8285 sent=0 packets, 0 bytes \
                    received=1 packets, 33 bytes dropped=1 foreign source";
        wait::until_true("it is told", || cluster.flanneld(1).log().contains(told));
    });
}

#[test]
fn senders_are_told_when_nobody_has_the_destination() {
    sandboxed(|| {
        let cluster = cluster(1);
        let pod = Pod::attach(cluster.node(1), "pod");
        let nobody = SocketAddr::from((Ipv4Addr::new(10, 244, 250, 9), 9));
        let connect = move || TcpStream::connect_timeout(&nobody, wait::PATIENCE);
        let error = pod.namespace().inside(connect).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NetworkUnreachable, "{error}");
    });
}

#[test]
fn a_killed_node_agent_is_back_after_a_short_gap() {
    sandboxed(|| {
        let mut cluster = cluster(2);
        let pods = pods(&cluster, 1);
        let (from, to) = (&pods[0], &pods[1]);
        let flow = Flow::start(from.namespace(), to.namespace(), to.address(), 1000).unwrap();
        wait::until_true("the flow has begun", || flow.received() > 200);
        cluster.kill(1);
        cluster.start(1);
        let before = flow.received();
        wait::until_true("the flow goes on", || flow.received() > before + 500);
        let report = flow.finish().unwrap();
        println!("{report}");
        assert!(report.gap_max < GAP_MAX, "{report}");
        // The device was there all the time.
        assert!(cluster.node(1).ip("link show flannel0").contains("LOWER_UP"));
    });
}

#[test]
fn a_restart_under_a_supervisor_loses_nothing() {
    sandboxed(|| {
        let supervisor = Supervisor::listen();
        let mut cluster = Cluster::unconfigured(2, Store::any());
        cluster.store().configure(NETWORK);
        cluster.start(2);
        let start = |cluster: &Cluster, kept: &[(String, OwnedFd)]| {
            supervisor.start(cluster.node(1), &cluster.flanneld_command(1), kept)
        };
        let mut flanneld = start(&cluster, &[]);
        cluster.wait_until_ready(2);
        let node = cluster.node(1).clone();
        let is_ready = || node.subnet_file().map(|_| ()).ok_or_else(String::new);
        wait::until("there is a subnet file", is_ready);
        let pods = pods(&cluster, 1);
        let kept = supervisor.kept();
        assert!(kept.len() >= 2, "{kept:?}");
        let start_flows = || {
            let flows = [(0, 1), (1, 0)].map(|(from, to)| {
                let (from, to): (&Pod, &Pod) = (&pods[from], &pods[to]);
                Flow::start(from.namespace(), to.namespace(), to.address(), WAITING_RATE).unwrap()
            });
            go_on(&flows);
            flows
        };
        let flows = start_flows();
        for _ in 0..2 {
            flanneld.terminate();
            flanneld = start(&cluster, &kept);
            go_on(&flows);
        }
        assert_lost_at_most(0, flows);
        let flows = start_flows();
        flanneld.kill();
        let _flanneld = start(&cluster, &kept);
        go_on(&flows);
        // The packet that it had in its hands when it was killed, if it had one.
        assert_lost_at_most(1, flows);
    });
}

fn go_on(flows: &[Flow]) {
    let before: Vec<_> = flows.iter().map(Flow::received).collect();
    wait::until_true("the flows go on", || {
        flows.iter().zip(&before).all(|(flow, before)| flow.received() > before + 50)
    });
}

fn assert_lost_at_most(count: u64, flows: [Flow; 2]) {
    for flow in flows {
        let report = flow.finish().expect("sockets do not fail");
        println!("{report}");
        assert!(report.lost() <= count, "{report}");
    }
}

/// Keeps descriptors for a program, as systemd does.
struct Supervisor(UnixDatagram);

const NOTIFY_SOCKET: &str = "/run/supervisor";

impl Supervisor {
    fn listen() -> Self {
        let socket = UnixDatagram::bind(NOTIFY_SOCKET).expect("the sandbox is writable");
        socket.set_nonblocking(true).expect("sockets can be");
        Self(socket)
    }

    /// The same command with what was kept as descriptors from 3 on.
    fn start(&self, node: &Node, command: &Command, kept: &[(String, OwnedFd)]) -> Daemon {
        let names: Vec<_> = kept.iter().map(|(name, _)| name.as_str()).collect();
        let fds: Vec<_> = kept.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
        let mut shell = node.command("/bin/sh");
        shell.args(["-c", "export LISTEN_PID=$$; exec \"$0\" \"$@\""]);
        shell.arg(command.get_program()).args(command.get_args());
        shell.env("NOTIFY_SOCKET", NOTIFY_SOCKET).env("LISTEN_FDNAMES", names.join(":"));
        shell.env("LISTEN_FDS", fds.len().to_string());
        shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let pass = move || {
            for (fd, place) in fds.iter().zip(3..) {
                // SAFETY: dup2 takes two numbers; what was at the second is of no use after exec.
                unsafe { libc::dup2(*fd, place) };
            }
            Ok(())
        };
        // SAFETY: the closure only makes system calls.
        unsafe { shell.pre_exec(pass) };
        Daemon::start("supervised", &mut shell)
    }

    /// What the program has asked to be kept.
    fn kept(&self) -> Vec<(String, OwnedFd)> {
        let mut kept = Vec::new();
        while let Some((text, fds)) = self.receive() {
            let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("");
            if text.starts_with("FDSTOREREMOVE=1") {
                kept.retain(|(other, _)| other != name);
            }
            kept.extend(fds.into_iter().map(|fd| (name.to_owned(), fd)));
        }
        kept
    }

    fn receive(&self) -> Option<(String, Vec<OwnedFd>)> {
        let mut text = [0; 256];
        let mut rights = nix::cmsg_space!([RawFd; 1]);
        let mut parts = [IoSliceMut::new(&mut text)];
        let (socket, flags) = (self.0.as_raw_fd(), MsgFlags::MSG_CMSG_CLOEXEC);
        let message = recvmsg::<()>(socket, &mut parts, Some(&mut rights), flags).ok()?;
        let len = message.bytes;
        let mut fds = Vec::new();
        for control in message.cmsgs().expect("there is room for one") {
            let ControlMessageOwned::ScmRights(passed) = control else { continue };
            for fd in passed {
                // SAFETY: the descriptor came with the message and is nobody else's.
                let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                // Out of the way of those that a new program begins with.
                let high = fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(100)).expect("few are open");
                // SAFETY: it was just made.
                fds.push(unsafe { OwnedFd::from_raw_fd(high) });
            }
        }
        Some((String::from_utf8_lossy(&text[..len]).into_owned(), fds))
    }
}
