//! A node of the udp backend as simple as can be: one thread, one packet per system call, both
//! directions in turn, and no checks.
//!
//! It speaks the plain wire, as a peer in tests, and is what the benchmark compares with. It works
//! as flannel's C program does.

use std::fs::File;
use std::io::{ErrorKind, Read, Result, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::device::{self, Layer};
use crate::impairment::{Fate, Impairment};
use crate::node::Node;
use crate::program;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The port of the udp backend.
pub const PORT: u16 = 8285;

/// The running thread; it ends with this value, and the device with it.
#[derive(Debug)]
pub struct PlainTunnel {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A subnet of 256 addresses, and the underlay address of the node that has it.
pub type Peer = (Ipv4Addr, Ipv4Addr);

impl PlainTunnel {
    /// Makes `flannel0` on a node that has the subnet `own`/24 of 10.244.0.0/16, and starts to
    /// carry packets.
    ///
    /// # Panics
    /// If the device or the socket cannot be made.
    pub fn start(node: &Node, own: Ipv4Addr, mtu: u16, peers: Vec<Peer>, way: Impairment) -> Self {
        let address = node.address();
        let open = move || -> Result<(File, UdpSocket)> {
            let socket = UdpSocket::bind((address, PORT))?;
            socket.set_nonblocking(true)?;
            Ok((device::open("flannel0", Layer::Ip)?, socket))
        };
        let (device, socket) = node.namespace().inside(open).expect("a device and a socket");
        node.ip(&format!("address add {own}/32 dev flannel0"));
        node.ip(&format!("link set flannel0 mtu {mtu} up"));
        node.ip("route add 10.244.0.0/16 dev flannel0");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = node.namespace().spawn(move || {
            let mut relay = Relay::new(device, socket, peers, mtu, way);
            while !stopped.load(Ordering::Relaxed) {
                relay.wait();
                while relay.forward() | relay.deliver() {}
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for PlainTunnel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has told already if it failed.
            let _outcome = thread.join();
        }
    }
}

/// Does the same in this process, which must be on the node, and does not end.
///
/// # Panics
/// If the device or the socket cannot be made.
pub fn run(address: Ipv4Addr, own: Ipv4Addr, mtu: u16, peer: Peer) -> ! {
    let socket = UdpSocket::bind((address, PORT)).expect("the port is free");
    socket.set_nonblocking(true).expect("sockets can be");
    let device = device::open("flannel0", Layer::Ip).expect("there is /dev/net/tun");
    for arguments in [
        format!("address add {own}/32 dev flannel0"),
        format!("link set flannel0 mtu {mtu} up"),
        "route add 10.244.0.0/16 dev flannel0".to_owned(),
    ] {
        program::run(program::installed("ip").args(arguments.split(' ')));
    }
    let mut relay = Relay::new(device, socket, vec![peer], mtu, Impairment::default());
    loop {
        relay.wait();
        while relay.forward() | relay.deliver() {}
    }
}

struct Relay {
    device: File,
    socket: UdpSocket,
    peers: Vec<Peer>,
    buffer: Vec<u8>,
    way: Impairment,
    count: usize,
    held: Option<(Vec<u8>, Ipv4Addr)>,
}

impl Relay {
    fn new(device: File, socket: UdpSocket, peers: Vec<Peer>, mtu: u16, way: Impairment) -> Self {
        let buffer = vec![0; usize::from(mtu)];
        Self { device, socket, peers, buffer, way, count: 0, held: None }
    }

    fn wait(&self) {
        let interest = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = [interest(self.device.as_fd()), interest(self.socket.as_fd())];
        // Nothing for a while, or interrupted: there is nothing to read then.
        let _readiness = poll(&mut fds, PollTimeout::from(100_u8));
    }

    fn forward(&mut self) -> bool {
        let Ok(len) = self.device.read(&mut self.buffer) else { return false };
        let packet = &mut self.buffer[..len];
        let Some(destination) = packet.get(16..19) else { return true };
        let next_hop = self.peers.iter().position(|peer| peer.0.octets()[..3] == *destination);
        if let Some(index) = next_hop
            && decrement_ttl(packet)
        {
            // As with flannel, the one in use is found first.
            self.peers.swap(0, index);
            self.send(len);
        }
        true
    }

    fn send(&mut self, len: usize) {
        let (packet, to) = (&self.buffer[..len], self.peers[0].1);
        self.count += 1;
        match self.way.fate(self.count) {
            Fate::Lost => return,
            Fate::Waits if self.held.is_none() => {
                self.held = Some((packet.to_vec(), to));
                return;
            }
            Fate::Waits | Fate::Passes => {}
        }
        let _lost = self.socket.send_to(packet, (to, PORT));
        if let Some((packet, to)) = self.held.take() {
            let _lost = self.socket.send_to(&packet, (to, PORT));
        }
    }

    fn deliver(&mut self) -> bool {
        match self.socket.recv(&mut self.buffer) {
            Ok(len) => {
                let packet = &mut self.buffer[..len];
                if packet.len() >= 20 && decrement_ttl(packet) {
                    let _lost = self.device.write(packet);
                }
                true
            }
            Err(error) => error.kind() == ErrorKind::ConnectionRefused,
        }
    }
}

/// Takes one from the TTL; false if nothing is left.
fn decrement_ttl(packet: &mut [u8]) -> bool {
    if packet[8] <= 1 {
        return false;
    }
    packet[8] -= 1;
    let checksum = u32::from(u16::from_be_bytes([packet[10], packet[11]])) + 0x100;
    let [_, carry, high, low] = checksum.to_be_bytes();
    let checksum = u16::from_be_bytes([high, low]) + u16::from(carry);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    true
}
