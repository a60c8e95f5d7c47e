//! What the udp backend carries, against flannel's method (one thread, one packet per system call)
//! and against kernel VXLAN, over the same underlay in turns.
//!
//! Each method has two nodes with one pod; in each round, every method carries one TCP stream,
//! requests and responses of one byte, and small datagrams of which none may be lost: as many are
//! on the way as every queue has room for. Those are sent and taken one by one, and in trains, many
//! with one system call: programs that take a system call for each are slower than a fast tunnel.
//!
//! In the end, flanneld is killed and started again under a flow.
//!
//! `bench_udp [ROUNDS [SECONDS [METHOD]]]`, by default 5 rounds of 2 seconds for each measurement.

#![expect(clippy::print_stdout, reason = "a program for a terminal")]
#![expect(clippy::cast_precision_loss, reason = "figures for people")]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flannel_tests::cluster::LeaseStore;
use flannel_tests::daemon::Daemon;
use flannel_tests::namespace::Namespace;
use flannel_tests::node::Node;
use flannel_tests::plain_tunnel;
use flannel_tests::pod::Pod;
use flannel_tests::statistics::{Samples, machine};
use flannel_tests::traffic::{Flow, stream_for, wait_until_reached};
use flannel_tests::underlay::Underlay;
use flannel_tests::{program, sandbox, wait};
use nix::sys::socket::{setsockopt, sockopt};

/// So many datagrams are on the way at most; less than every queue between the pods holds.
const WINDOW: u64 = 200;
/// So many are sent with one system call in a train.
const TRAIN: usize = 40;
/// Datagrams that the kernel has put together are no longer.
const TRAIN_MAX: usize = 65_536;
/// Room for many windows of datagrams in the receiver's socket, in bytes.
const RECEIVE_BUFFER: usize = 4 << 20;
/// So often is flanneld killed.
const KILLS: u32 = 11;
/// Datagrams a second while it is.
const FLOW: u32 = 2000;
const DATAGRAM: usize = 64;
/// Of the plain wire over an underlay of 1500.
const MTU: u16 = 1472;

fn main() -> ExitCode {
    let argument = |place, default: u64| {
        std::env::args().nth(place).map_or(Some(default), |text| text.parse().ok())
    };
    if let Some("relay") = std::env::args().nth(1).as_deref() {
        let address = |place| {
            let text = std::env::args().nth(place).unwrap_or_default();
            text.parse().expect("relay NODE SUBNET PEER-SUBNET PEER")
        };
        plain_tunnel::run(address(2), address(3), MTU, (address(4), address(5)));
    }
    match (argument(1, 5), argument(2, 2)) {
        (Some(rounds @ 1..), Some(seconds @ 1..)) => sandbox::main_in_sandbox(|| {
            measure(rounds, Duration::from_secs(seconds), std::env::args().nth(3));
        }),
        _ => {
            println!("usage: bench_udp [ROUNDS [SECONDS [METHOD]]]");
            ExitCode::from(2)
        }
    }
}

/// Two nodes, a pod on each, and what carries the packets between them.
struct Pair {
    name: &'static str,
    pods: [Pod; 2],
    /// One process on each node.
    daemons: Vec<Daemon>,
    figures: Vec<Figures>,
}

/// The result of one round.
#[derive(Clone, Copy, Debug)]
struct Figures {
    gigabits_per_second: f64,
    cpu_per_gigabit: f64,
    round_trip: Duration,
    datagrams_per_second: f64,
    in_trains_per_second: f64,
    lost: u64,
}

fn measure(rounds: u64, time: Duration, only: Option<String>) {
    let underlay = Underlay::create();
    let nodes: Vec<_> = (1..=6).map(|number| Node::create(&underlay, number)).collect();
    let mut pairs = vec![
        relayed("one by one", &nodes[0..2]),
        leased("udp", "udp", &nodes[2..4]),
        leased("vxlan", "vxlan", &nodes[4..6]),
    ];
    pairs.retain(|pair| only.as_ref().is_none_or(|only| pair.name == only));
    println!("{rounds} rounds of {time:?}; {}", machine());
    for _ in 0..rounds {
        for pair in &mut pairs {
            let figures = pair.measure(time);
            println!("  {:<10} {figures}", pair.name);
            pair.figures.push(figures);
        }
    }
    println!("\nmedians");
    let medians: Vec<_> = pairs.iter().map(|pair| median(&pair.figures)).collect();
    for (pair, figures) in pairs.iter().zip(&medians) {
        println!("  {:<10} {figures}", pair.name);
    }
    if let [reference, udp, vxlan] = medians[..] {
        let ratio = |from: fn(&Figures) -> f64, other: &Figures| from(&udp) / from(other);
        let throughput = |figures: &Figures| figures.gigabits_per_second;
        println!("\nudp");
        println!("  {:.2} x one by one in TCP (want 10)", ratio(throughput, &reference));
        println!("  {:.2} x vxlan in TCP (want 0.75)", ratio(throughput, &vxlan));
        let round_trip = |figures: &Figures| figures.round_trip.as_secs_f64();
        println!("  {:.2} x the round trip (want 0.5)", ratio(round_trip, &reference));
        let datagrams = |figures: &Figures| figures.datagrams_per_second;
        println!("  {:.2} x the small datagrams one by one", ratio(datagrams, &reference));
        let in_trains = |figures: &Figures| figures.in_trains_per_second;
        println!("  {:.2} x the small datagrams in trains (want 4)", ratio(in_trains, &reference));
    }
    if let Some(pair) = pairs.iter_mut().find(|pair| pair.name == "udp") {
        pair.measure_restarts();
    }
    println!("\n{}", machine());
}

fn relayed(name: &'static str, nodes: &[Node]) -> Pair {
    let subnets = [1, 2].map(|number| Ipv4Addr::new(10, 244, number, 0));
    let mut relays = Vec::new();
    for (here, there) in [(0, 1), (1, 0)] {
        // A process of its own, as flanneld is.
        let mut command = nodes[here].command("/proc/self/exe");
        let peer = [subnets[here], subnets[there], nodes[there].address()];
        command.arg("relay").arg(nodes[here].address().to_string());
        command.args(peer.map(|address| address.to_string()));
        relays.push(Daemon::start(&format!("relay-{here}"), &mut command));
        let [a, b, c, _] = subnets[here].octets();
        let file = format!(
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={a}.{b}.{c}.1/24\nFLANNEL_MTU={MTU}\n\
             FLANNEL_IPMASQ=true\n"
        );
        fs::write(nodes[here].directory("/run/flannel/subnet.env"), file)
            .expect("the sandbox is writable");
    }
    Pair { name, pods: pods(name, nodes), daemons: relays, figures: vec![] }
}

fn leased(name: &'static str, kind: &str, nodes: &[Node]) -> Pair {
    let network = format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"{kind}"}}}}"#);
    store(kind).configure(&network);
    let daemons: Vec<_> = nodes.iter().map(|node| start_flanneld(node, kind)).collect();
    for node in nodes {
        wait::until("there is a subnet file", || {
            node.subnet_file().map(|_| ()).ok_or(String::new())
        });
    }
    Pair { name, pods: pods(name, nodes), daemons, figures: vec![] }
}

fn store(kind: &str) -> LeaseStore {
    LeaseStore::in_directory(Path::new(&format!("/run/leases-{kind}")))
}

fn start_flanneld(node: &Node, kind: &str) -> Daemon {
    let mut command = node.command(program::flanneld());
    command.args(store(kind).flags()).arg("--ip-masq");
    Daemon::start(&format!("flanneld-{}", node.name()), &mut command)
}

fn pods(name: &str, nodes: &[Node]) -> [Pod; 2] {
    let pod = |index: usize| {
        let name = format!("{}-{index}", name.replace(' ', "-"));
        Pod::attach(&nodes[index], &name)
    };
    let pods = [pod(0), pod(1)];
    wait_until_reached(pods[0].namespace(), pods[1].address());
    pods
}

impl Pair {
    fn measure(&self, time: Duration) -> Figures {
        let [from, to] = &self.pods;
        let before = self.cpu_time();
        let bytes = stream_for(from.namespace(), to.namespace(), to.address(), time);
        let cpu = self.cpu_time().saturating_sub(before);
        let gigabits = bytes as f64 * 8e-9;
        let round_trip = request_response(from.namespace(), to.namespace(), to.address(), time);
        let datagrams =
            |train| datagrams(from.namespace(), to.namespace(), to.address(), time, train);
        let ((single, lost), (in_trains, lost_in_trains)) = (datagrams(1), datagrams(TRAIN));
        Figures {
            gigabits_per_second: gigabits / time.as_secs_f64(),
            cpu_per_gigabit: cpu.as_secs_f64() / gigabits,
            round_trip,
            datagrams_per_second: single as f64 / time.as_secs_f64(),
            in_trains_per_second: in_trains as f64 / time.as_secs_f64(),
            lost: lost + lost_in_trains,
        }
    }

    /// Kills flanneld on the first node and starts it again under a flow, and prints for how long
    /// nothing arrived, and how much of that any start of the program takes.
    fn measure_restarts(&mut self) {
        let (mut gaps, mut starts) = (Samples::default(), Samples::default());
        for _ in 0..KILLS {
            let [from, to] = &self.pods;
            let flow = Flow::start(from.namespace(), to.namespace(), to.address(), FLOW)
                .expect("there is a route");
            let pass = |count: u64| {
                let before = flow.received();
                wait::until_true("the flow goes on", || flow.received() > before + count);
            };
            pass(200);
            self.daemons[0].kill();
            self.daemons[0] = start_flanneld(from.node(), self.name);
            pass(500);
            gaps.push(flow.finish().expect("sockets stay open").gap_max);
            let start = Instant::now();
            program::run(Command::new(program::flanneld()).arg("--version"));
            starts.push(start.elapsed());
        }
        println!("  kill and restart, gap in a flow    {gaps}");
        println!("  start of the program alone         {starts}");
    }

    /// Of this process, which has the ends of the streams, and of the processes on the nodes.
    fn cpu_time(&self) -> Duration {
        let own = fs::read_to_string("/proc/self/stat");
        let daemons =
            self.daemons.iter().map(|d| fs::read_to_string(format!("/proc/{}/stat", d.pid())));
        std::iter::once(own).chain(daemons).flatten().map(|stat| ticks(&stat)).sum()
    }
}

/// User and system time of `/proc/PID/stat` (proc(5)), in hundredths of a second.
fn ticks(stat: &str) -> Duration {
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields).split(' ');
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

fn median(figures: &[Figures]) -> Figures {
    let middle = |value: fn(&Figures) -> f64| {
        let mut values: Vec<_> = figures.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Figures {
        gigabits_per_second: middle(|figures| figures.gigabits_per_second),
        cpu_per_gigabit: middle(|figures| figures.cpu_per_gigabit),
        round_trip: Duration::from_secs_f64(middle(|figures| figures.round_trip.as_secs_f64())),
        datagrams_per_second: middle(|figures| figures.datagrams_per_second),
        in_trains_per_second: middle(|figures| figures.in_trains_per_second),
        lost: figures.iter().map(|figures| figures.lost).sum(),
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:6.2} Gbit/s, {:5.3} CPU s/Gbit, round trip {:6.1} us, {:7.0} datagrams/s, \
             {:7.0} in trains, {} lost",
            self.gigabits_per_second,
            self.cpu_per_gigabit,
            self.round_trip.as_secs_f64() * 1e6,
            self.datagrams_per_second,
            self.in_trains_per_second,
            self.lost
        )
    }
}

/// Returns the median time from one byte to the answer.
fn request_response(
    from: &Namespace,
    to: &Namespace,
    address: Ipv4Addr,
    time: Duration,
) -> Duration {
    let listener = to.inside(move || TcpListener::bind((address, 0))).expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    let server = to.spawn(move || {
        let (mut stream, _) = listener.accept().expect("the client connects");
        stream.set_nodelay(true).expect("it is TCP");
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
    });
    let mut times = from.inside(move || {
        let mut stream = TcpStream::connect((address, port)).expect("the server listens");
        stream.set_nodelay(true).expect("it is TCP");
        let (start, mut times) = (Instant::now(), Vec::new());
        let mut byte = [0];
        while start.elapsed() < time {
            let sent = Instant::now();
            stream.write_all(&byte).expect("the server reads");
            stream.read_exact(&mut byte).expect("the server answers");
            times.push(sent.elapsed());
        }
        times
    });
    server.join().expect("the server ends");
    times.sort_unstable();
    times[times.len() / 2]
}

/// Returns how many small datagrams arrived, and how many were lost; `train` of them are sent with
/// one system call.
fn datagrams(
    from: &Namespace,
    to: &Namespace,
    address: Ipv4Addr,
    time: Duration,
    train: usize,
) -> (u64, u64) {
    let socket = to.inside(move || UdpSocket::bind((address, 0))).expect("a port is free");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("not zero");
    setsockopt(&socket, sockopt::UdpGroSegment, &(train > 1)).expect("Linux 5.0 or newer");
    // By default it may have less room than the window: what counts is what the way loses.
    setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER).expect("as much as there may be");
    let port = socket.local_addr().expect("it is bound").port();
    let received = Arc::new(AtomicU64::new(0));
    // The number of the datagram that arrived last.
    let newest = Arc::new(AtomicU64::new(0));
    let done = Arc::new(AtomicBool::new(false));
    let (count, latest, finished) = (Arc::clone(&received), Arc::clone(&newest), Arc::clone(&done));
    let receiver = to.spawn(move || {
        let mut buffer = vec![0; TRAIN_MAX];
        loop {
            match socket.recv(&mut buffer) {
                Ok(len) => {
                    let (datagrams, _) = buffer[..len].as_chunks::<DATAGRAM>();
                    count.fetch_add(datagrams.len() as u64, Ordering::Relaxed);
                    latest.fetch_max(datagrams.last().map_or(0, number), Ordering::Release);
                }
                Err(_) if finished.load(Ordering::Relaxed) => return,
                Err(_) => {}
            }
        }
    });
    let arrived = Arc::clone(&received);
    let (sent, in_time) = from.inside(move || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port is free");
        socket.connect((address, port)).expect("there is a route");
        let segment = libc::c_int::try_from(DATAGRAM).expect("it is small");
        setsockopt(&socket, sockopt::UdpGsoSegment, &segment).expect("Linux 4.18 or newer");
        let mut bytes = vec![0; train * DATAGRAM];
        let (start, mut sent, mut given_up) = (Instant::now(), 0_u64, 0_u64);
        let mut progress = (Instant::now(), 0);
        while start.elapsed() < time {
            let newest = newest.load(Ordering::Acquire);
            if newest != progress.1 {
                progress = (Instant::now(), newest);
            }
            if sent - newest.max(given_up) + train as u64 <= WINDOW {
                for (datagram, number) in bytes.as_chunks_mut::<DATAGRAM>().0.iter_mut().zip(1..) {
                    datagram[..8].copy_from_slice(&(sent + number).to_be_bytes());
                }
                sent += socket.send(&bytes).map_or(0, |_| train as u64);
            } else if progress.0.elapsed() > Duration::from_millis(50) {
                // What has not arrived by now may be lost; go on without it.
                given_up = sent;
                progress.0 = Instant::now();
            } else {
                std::thread::yield_now();
            }
        }
        (sent, arrived.load(Ordering::Relaxed))
    });
    done.store(true, Ordering::Relaxed);
    receiver.join().expect("the receiver ends");
    (in_time, sent - received.load(Ordering::Relaxed))
}

/// Every datagram begins with its number.
fn number(datagram: &[u8; DATAGRAM]) -> u64 {
    u64::from_be_bytes(*datagram.first_chunk().expect("it is longer than eight bytes"))
}
