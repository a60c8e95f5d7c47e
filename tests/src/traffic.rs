//! Traffic between namespaces: echo requests, TCP streams, and a steady flow that counts losses.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::thread::{JoinHandle, park_timeout};
use std::time::{Duration, Instant};
use std::{fmt, fs};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::namespace::Namespace;
use crate::wait;

/// How long to wait for a reply, or for an answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long a stream may stand still.
const STREAM_TIMEOUT: Duration = wait::PATIENCE;

/// What a TCP stream carries, again and again, from a different place each time.
const PATTERN_LEN: usize = 1 << 20;

/// Tells the replies to one ping from those to another.
static IDENTIFIER: AtomicU16 = AtomicU16::new(1);

/// Waits until there is a reply to a [`ping`].
///
/// # Panics
/// After [`wait::PATIENCE`].
#[track_caller]
pub fn wait_until_reached(from: &Namespace, to: impl Into<IpAddr>) {
    let to = to.into();
    wait::until(&format!("{} reaches {to}", from.name()), || {
        ping(from, to).map_err(|error| error.to_string())
    });
}

/// Sends one echo request (RFC 792, RFC 4443) and returns the time until the reply: `ping -c 1`.
///
/// # Errors
/// If there is no route, or no reply within ten seconds.
pub fn ping(from: &Namespace, to: impl Into<IpAddr>) -> Result<Duration> {
    let to = to.into();
    from.inside(move || {
        let (family, icmp, request_type, reply_type) = match to {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129),
        };
        let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, icmp)?;
        let socket = UdpSocket::from(raw);
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.connect(SocketAddr::from((to, 0)))?;
        let request = echo_request(request_type, IDENTIFIER.fetch_add(1, Ordering::Relaxed));
        let start = Instant::now();
        socket.send(&request)?;
        let mut packet = [0; 256];
        loop {
            let length = socket.recv(&mut packet)?;
            let reply = match to {
                IpAddr::V4(_) => ip_payload(&packet[..length]),
                IpAddr::V6(_) => &packet[..length],
            };
            // An echo reply is the request with another type; the checksum differs by that.
            if reply.first() == Some(&reply_type) && reply.get(4..) == Some(&request[4..]) {
                return Ok(start.elapsed());
            }
            if start.elapsed() > TIMEOUT {
                return Err(ErrorKind::TimedOut.into());
            }
        }
    })
}

/// Sends `length` bytes over TCP, checks on the other side that they arrive as they were sent,
/// and returns the time it took.
///
/// # Errors
/// If the connection fails, or if a byte arrives changed.
pub fn tcp_stream(
    from: &Namespace,
    to: &Namespace,
    address: impl Into<IpAddr>,
    length: usize,
) -> Result<Duration> {
    let address = address.into();
    let pattern = Arc::new(pattern());
    let (listener, port) = listen(to, address)?;
    let expected = Arc::clone(&pattern);
    let server = to.spawn(move || {
        let (mut stream, _client) = listener.accept()?;
        stream.set_read_timeout(Some(STREAM_TIMEOUT))?;
        receive_pattern(&mut stream, &expected, length)?;
        stream.write_all(b"complete")
    });
    let sent = from.inside(move || {
        let start = Instant::now();
        let mut stream = TcpStream::connect_timeout(&(address, port).into(), STREAM_TIMEOUT)?;
        stream.set_read_timeout(Some(STREAM_TIMEOUT))?;
        stream.set_write_timeout(Some(STREAM_TIMEOUT))?;
        send_pattern(&mut stream, &pattern, length)?;
        let mut answer = [0; 8];
        stream.read_exact(&mut answer)?;
        Ok(start.elapsed())
    });
    let received: Result<()> = server.join().map_err(|_| Error::other("the server panicked"))?;
    received.and(sent)
}

/// Sends over one TCP stream for so long, and returns how many bytes arrived.
///
/// # Panics
/// If the stream cannot be had.
pub fn stream_for(
    from: &Namespace,
    to: &Namespace,
    address: impl Into<IpAddr>,
    time: Duration,
) -> u64 {
    let address = address.into();
    let (listener, port) = listen(to, address).expect("a port is free");
    let receiver = to.spawn(move || {
        let (mut stream, _) = listener.accept().expect("the sender connects");
        let mut buffer = vec![0; 256 << 10];
        let (start, mut bytes) = (Instant::now(), 0);
        while start.elapsed() < time {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(count) => bytes += count as u64,
            }
        }
        bytes
    });
    let sender = from.spawn(move || {
        let mut stream = TcpStream::connect((address, port)).expect("the receiver listens");
        let buffer = vec![0; 128 << 10];
        // Until the receiver has had enough.
        while stream.write_all(&buffer).is_ok() {}
    });
    let bytes = receiver.join().expect("the receiver ends");
    sender.join().expect("the sender ends");
    bytes
}

/// Connects to a server in `to`, and returns the address that the server sees the client under.
///
/// # Errors
/// If the connection fails.
pub fn source_seen_by(
    from: &Namespace,
    to: &Namespace,
    address: impl Into<IpAddr>,
) -> Result<IpAddr> {
    let address = address.into();
    let (listener, port) = listen(to, address)?;
    let server = to.spawn(move || listener.accept().map(|(_stream, client)| client.ip()));
    let connected =
        from.inside(move || TcpStream::connect_timeout(&(address, port).into(), STREAM_TIMEOUT));
    let client = server.join().map_err(|_| Error::other("the server panicked"))?;
    connected.and(client)
}

/// Asks an HTTP server from inside a namespace; returns status and body.
///
/// # Errors
/// If nobody answers, or not in HTTP.
pub fn http_get(from: &Namespace, server: SocketAddr, path: &str) -> Result<(u16, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n");
    from.inside(move || {
        let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.trim().to_owned());
        status.zip(body).ok_or_else(|| Error::other(format!("not HTTP: {answer:?}")))
    })
}

/// A flow of numbered UDP datagrams at a steady rate.
#[derive(Debug)]
pub struct Flow {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<Arrivals>>,
}

/// What became of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowReport {
    /// Datagrams that the sender handed to its kernel, and those it was refused.
    pub sent: u64,
    /// Different datagrams that arrived at the receiver's socket.
    pub received: u64,
    /// Those that the network delivered but the receiving program was too slow to take.
    pub overrun: u64,
    /// The longest time between two arrivals.
    pub gap_max: Duration,
    /// From the first to the last datagram.
    pub duration: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Arrivals {
    received: u64,
    overrun: u64,
    gap_max: Duration,
    duration: Duration,
}

impl Flow {
    /// Starts sending `per_second` datagrams a second.
    ///
    /// # Errors
    /// If a socket cannot be opened.
    pub fn start(
        from: &Namespace,
        to: &Namespace,
        address: impl Into<IpAddr>,
        per_second: u32,
    ) -> Result<Self> {
        let address = address.into();
        let socket = to.inside(move || {
            let socket = UdpSocket::bind((address, 0))?;
            // As much as the system allows: a busy machine must not look like a lossy network.
            setsockopt(&socket, sockopt::RcvBuf, &(4 << 20))?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            Ok::<_, Error>(socket)
        })?;
        let port = socket.local_addr()?.port();
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&stop);
        let sender = from.spawn(move || send_steadily((address, port).into(), per_second, &done));
        let received = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&received);
        let done = Arc::clone(&stop);
        let receiver = to.spawn(move || receive_until_silent(&socket, &count, &done));
        Ok(Self { stop, received, sender, receiver })
    }

    /// How many have arrived so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Stops sending, lets the last datagrams arrive, and counts.
    ///
    /// # Errors
    /// If a socket failed on the way.
    pub fn finish(self) -> Result<FlowReport> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().map_err(|_| Error::other("the sender panicked"))??;
        let arrivals =
            self.receiver.join().map_err(|_| Error::other("the receiver panicked"))??;
        let Arrivals { received, overrun, gap_max, duration } = arrivals;
        Ok(FlowReport { sent, received, overrun, gap_max, duration })
    }
}

impl FlowReport {
    /// Datagrams that the network lost.
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received + self.overrun)
    }
}

impl fmt::Display for FlowReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, received, overrun, gap_max, duration } = self;
        let lost = self.lost();
        write!(
            f,
            "{sent} sent in {duration:.1?}, {received} received, {overrun} overrun, {lost} lost, \
             longest gap {gap_max:.1?}"
        )
    }
}

fn listen(inside: &Namespace, address: IpAddr) -> Result<(TcpListener, u16)> {
    let listener = inside.inside(move || TcpListener::bind((address, 0)))?;
    // Also limits accept().
    let limit = TimeVal::seconds(i64::try_from(STREAM_TIMEOUT.as_secs()).unwrap_or(i64::MAX));
    setsockopt(&listener, sockopt::ReceiveTimeout, &limit)?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

fn pattern() -> Vec<u8> {
    // A linear congruential generator (Knuth's MMIX constants): nothing repeats within a segment.
    let mut state = 0x0123_4567_89ab_cdef_u64;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..PATTERN_LEN).map(|_| next()).collect()
}

/// The part of the pattern that the stream carries at `position`.
fn expected_at(pattern: &[u8], position: usize) -> &[u8] {
    &pattern[position % PATTERN_LEN..]
}

fn send_pattern(stream: &mut TcpStream, pattern: &[u8], length: usize) -> Result<()> {
    let mut position = 0;
    while position < length {
        let part = expected_at(pattern, position);
        let part = &part[..part.len().min(length - position)];
        stream.write_all(part)?;
        position += part.len();
    }
    Ok(())
}

fn receive_pattern(stream: &mut TcpStream, pattern: &[u8], length: usize) -> Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut position = 0;
    while position < length {
        let room = buffer.len().min(length - position).min(expected_at(pattern, position).len());
        let count = stream.read(&mut buffer[..room])?;
        if count == 0 {
            return Err(Error::other(format!(
                "the stream ended after {position} of {length} bytes"
            )));
        }
        if buffer[..count] != expected_at(pattern, position)[..count] {
            return Err(Error::other(format!("wrong content after {position} bytes")));
        }
        position += count;
    }
    Ok(())
}

fn send_steadily(to: SocketAddr, per_second: u32, done: &AtomicBool) -> Result<u64> {
    let any: IpAddr =
        if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    let interval = Duration::from_secs(1) / per_second;
    let start = Instant::now();
    let mut due = start;
    let mut sent: u64 = 0;
    while !done.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now < due {
            park_timeout(due - now);
            continue;
        }
        // A datagram that the kernel refuses for want of a route is lost like any other.
        let _ = socket.send_to(&sent.to_be_bytes(), to);
        sent += 1;
        due += interval;
        if now > due + Duration::from_millis(100) {
            // Held up: go on from here; a burst would only test buffers.
            due = now;
        }
    }
    Ok(sent)
}

fn receive_until_silent(
    socket: &UdpSocket,
    count: &AtomicU64,
    done: &AtomicBool,
) -> Result<Arrivals> {
    let overrun_before = receive_buffer_errors();
    let mut seen = Vec::new();
    let mut buffer = [0; 8];
    let mut first_and_last: Option<(Instant, Instant)> = None;
    let mut gap_max = Duration::ZERO;
    let mut silent = 0;
    // Silence after the sender has stopped, for long enough that nothing can be on its way.
    while silent < 5 {
        match socket.recv(&mut buffer) {
            Ok(_) => {
                let now = Instant::now();
                let (first, last) = first_and_last.unwrap_or((now, now));
                gap_max = gap_max.max(now - last);
                first_and_last = Some((first, now));
                seen.push(u64::from_be_bytes(buffer));
                count.fetch_add(1, Ordering::Relaxed);
                silent = 0;
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                silent = if done.load(Ordering::Relaxed) { silent + 1 } else { 0 };
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    seen.sort_unstable();
    seen.dedup();
    let duration = first_and_last.map_or(Duration::ZERO, |(first, last)| last - first);
    let received = u64::try_from(seen.len()).unwrap_or(u64::MAX);
    let overrun = receive_buffer_errors().saturating_sub(overrun_before);
    Ok(Arrivals { received, overrun, gap_max, duration })
}

/// `RcvbufErrors` of UDP in the namespace of the calling thread.
fn receive_buffer_errors() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/snmp").unwrap_or_default();
    let mut udp = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (Some(names), Some(values)) = (udp.next(), udp.next()) else { return 0 };
    let column = names.split(' ').position(|name| name == "RcvbufErrors");
    column.and_then(|column| values.split(' ').nth(column)?.parse().ok()).unwrap_or(0)
}

/// For ICMPv6 the kernel writes the checksum, which covers addresses too.
fn echo_request(request_type: u8, identifier: u16) -> Vec<u8> {
    let [id_high, id_low] = identifier.to_be_bytes();
    let mut packet = vec![request_type, 0, 0, 0, id_high, id_low, 0, 1];
    packet.extend(b"flannel tests: is anybody there?");
    let checksum = internet_checksum(&packet).to_be_bytes();
    packet[2..4].copy_from_slice(&checksum);
    packet
}

/// The checksum of RFC 1071 over an even number of bytes.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    !words.fold(0_u16, |sum, word| {
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}

/// What follows the IPv4 header that a raw socket delivers.
fn ip_payload(packet: &[u8]) -> &[u8] {
    let header = packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
    packet.get(header..).unwrap_or_default()
}
