//! The threads that carry packets, and what they share.
//!
//! ```text
//! pods ─▶ flannel0 ─queue─▶ Outbound ─▶ UDP socket ─▶ underlay     } a lane,
//! pods ◀─ flannel0 ◀─queue─ Inbound ◀── UDP socket ◀── underlay    } several of them
//! ```
//!
//! ```text
//! applier thread: Forwarding ─▶ Routing, published whole ─▶ all threads
//! ```
//!
//! Each lane has a thread, a queue of the device and a socket of its own; the kernel spreads flows over the
//! queues and peers over the sockets. The threads end with the program. The device stays.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use fabric::link_name::LinkName;
use ipnetwork::Ipv4Network;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{info, trace};

use super::counters::Drops;
use super::handover::{self, Kept};
use super::inbound::Inbound;
use super::outbound::Outbound;
use super::peers::{Endpoint, PeerTable};
use super::routing::{Published, Routing, View};
use super::socket::{self, Features};
use super::tun::{Offload, Queue};

/// More lanes than this would only cost memory: one carries several gigabits a second.
const LANES_MAX: usize = 8;
/// After an error that may stay: the device is gone until it is made anew.
const ERROR_PAUSE: Duration = Duration::from_millis(5);

/// What shall be carried where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Forwarding {
    /// The TUN device.
    pub(crate) device: LinkName,
    /// Where peers send to; they use the same port.
    pub(crate) listen: SocketAddrV4,
    /// Our subnet.
    pub(crate) own: Ipv4Network,
    /// The subnets of the others, and their underlay addresses.
    pub(crate) peers: Vec<(Ipv4Network, Ipv4Addr)>,
}

/// Why packets cannot be carried.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataPathError {
    #[error("cannot open a queue of {device}")]
    Queue {
        device: LinkName,
        #[source]
        source: io::Error,
    },
    #[error("cannot listen for packets of other nodes on UDP {address}")]
    Socket {
        address: SocketAddrV4,
        #[source]
        source: io::Error,
    },
    #[error("cannot start a thread for packets")]
    Thread(#[source] io::Error),
}

/// A queue of the device, a socket, and the thread that carries packets between them.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) queue: Queue,
    pub(super) socket: UdpSocket,
    pub(super) drops: Arc<Drops>,
}

/// The running data path; there is at most one, and the applier thread owns it.
#[derive(Debug)]
pub(crate) struct DataPath {
    forwarding: Forwarding,
    lanes: Vec<Arc<Lane>>,
    published: Arc<Published>,
    drops: Arc<Drops>,
    reported: String,
}

impl Lane {
    /// Carries packets as long as the program runs, in both directions in turn.
    ///
    /// One thread for both, because replies usually follow requests: it is awake already, and on
    /// the right processor.
    fn carry(&self, mut outbound: Outbound, mut inbound: Inbound) {
        loop {
            let (there, back) = (outbound.step(), inbound.step());
            if let (Err(there), Err(back)) = (there, back) {
                let nothing = [there, back].iter().all(|e| e.kind() == ErrorKind::WouldBlock);
                if nothing { self.wait() } else { thread::park_timeout(ERROR_PAUSE) }
            }
        }
    }

    fn wait(&self) {
        let interest = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = [interest(self.queue.as_fd()), interest(self.socket.as_fd())];
        // What is there is found by reading; what is wrong too.
        let _readiness = poll(&mut fds, PollTimeout::NONE);
    }
}

impl DataPath {
    /// Makes it so, and starts what is not running yet. The device must be there.
    pub(crate) fn ensure(
        running: &mut Option<Self>,
        forwarding: Forwarding,
    ) -> Result<(), DataPathError> {
        match running {
            Some(data_path) => data_path.make_true(forwarding),
            None => {
                *running = Some(Self::start(forwarding)?);
                Ok(())
            }
        }
    }

    fn start(forwarding: Forwarding) -> Result<Self, DataPathError> {
        let count = thread::available_parallelism().map_or(1, usize::from).min(LANES_MAX);
        let drops = Arc::default();
        let Kept { queues, sockets } = handover::take();
        let (mut queues, mut sockets) = (queues.into_iter(), sockets.into_iter());
        let lanes: Result<Vec<_>, _> = (0..count)
            .map(|_| open_lane(&forwarding, &drops, queues.next(), sockets.next()))
            .collect();
        let lanes = lanes?;
        let published = Arc::new(Published::new(routing(&forwarding, None)));
        for (index, (lane, offload, features)) in lanes.iter().enumerate() {
            let view = || View::new(Arc::clone(&published));
            let (lane, features, offload) = (Arc::clone(lane), *features, *offload);
            let (there, back) = (view(), view());
            // Both are made by their thread, because their buffers point into each other.
            let carry = move || {
                let outbound = Outbound::new(Arc::clone(&lane), there, features);
                let inbound = Inbound::new(Arc::clone(&lane), back, offload);
                lane.carry(outbound, inbound);
            };
            let thread = thread::Builder::new().name(format!("udp-{index}"));
            thread.spawn(carry).map_err(DataPathError::Thread)?;
        }
        if let Some((_, offload, features)) = lanes.first() {
            let Features { cuts, merges } = features;
            info!(lanes = count, ?offload, cuts, merges, "packets are carried");
        }
        let lanes = lanes.into_iter().map(|(lane, ..)| lane).collect();
        let this = Self { forwarding, lanes, published, drops, reported: String::new() };
        this.keep();
        Ok(this)
    }

    fn keep(&self) {
        handover::keep(self.lanes.iter().map(|lane| (lane.queue.as_fd(), lane.socket.as_fd())));
    }

    /// Takes up peers that are new, and the device if it was made anew.
    fn make_true(&mut self, forwarding: Forwarding) -> Result<(), DataPathError> {
        let device = forwarding.device;
        let mut lost = self.lanes.iter().filter(|lane| !lane.queue.is_attached()).peekable();
        if lost.peek().is_some() {
            for lane in lost {
                let reattached = lane.queue.reattach(device);
                reattached.map_err(|source| DataPathError::Queue { device, source })?;
            }
            self.keep();
        }
        if self.forwarding != forwarding {
            let before = self.published.current();
            self.published.replace(routing(&forwarding, Some(&before.peers)));
            self.forwarding = forwarding;
        }
        self.report();
        Ok(())
    }

    fn report(&mut self) {
        let drops = self.drops.to_string();
        if drops != self.reported {
            info!(packets = drops, "packets were dropped since the start");
            self.reported = drops;
        }
        for Endpoint { subnet, traffic, .. } in self.published.current().peers.endpoints() {
            trace!(%subnet, "{traffic}");
        }
    }
}

fn open_lane(
    forwarding: &Forwarding,
    drops: &Arc<Drops>,
    queue: Option<OwnedFd>,
    socket: Option<OwnedFd>,
) -> Result<(Arc<Lane>, Offload, Features), DataPathError> {
    let (device, address) = (forwarding.device, forwarding.listen);
    // What a predecessor left may be of a device that is gone, or of another address.
    let adopted = queue.and_then(|fd| Queue::adopt(fd, device).ok());
    let queue = adopted.map_or_else(|| Queue::open(device), Ok);
    let (queue, offload) = queue.map_err(|source| DataPathError::Queue { device, source })?;
    let adopted = socket.and_then(|fd| socket::adopt(fd, address).ok());
    let socket = adopted.map_or_else(|| socket::open(address), Ok);
    let (socket, features) = socket.map_err(|source| DataPathError::Socket { address, source })?;
    let lane = Lane { queue, socket, drops: Arc::clone(drops) };
    Ok((Arc::new(lane), offload, features))
}

/// Counters of peers that stay are carried over.
fn routing(forwarding: &Forwarding, before: Option<&PeerTable>) -> Routing {
    let endpoint = |(subnet, address): &(Ipv4Network, Ipv4Addr)| {
        let known = before.and_then(|table| table.get(*subnet));
        let traffic = known.map_or_else(Arc::default, |known| Arc::clone(&known.traffic));
        Endpoint { subnet: *subnet, address: *address, traffic }
    };
    Routing {
        own: forwarding.own,
        port: forwarding.listen.port(),
        peers: PeerTable::new(forwarding.peers.iter().map(endpoint).collect()),
    }
}
