//! The threads that carry packets, and what they share.
//!
//!     pods ─▶ flannel0 ─queue─▶ outbound thread ─▶ UDP socket ─▶ underlay     } a lane,
//!     pods ◀─ flannel0 ◀─queue─ inbound thread ◀── UDP socket ◀── underlay    } several of them
//!
//!     applier thread: Forwarding ─▶ Routing, published whole ─▶ all threads
//!
//! Each lane has its own queue of the device and its own socket; the kernel spreads flows over the
//! queues and peers over the sockets. The threads end with the program. The device stays.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::{io, thread};

use fabric::link_name::LinkName;
use ipnetwork::Ipv4Network;
use tracing::{info, trace};

use super::counters::Drops;
use super::inbound::Inbound;
use super::outbound::Outbound;
use super::peers::{Endpoint, PeerTable};
use super::routing::{Published, Routing, View};
use super::socket::{self, Features};
use super::tun::{Offload, Queue};

/// More lanes than this would only cost memory: one carries several gigabits a second.
const LANES_MAX: usize = 8;

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

/// A queue of the device and a socket; one thread for each direction.
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
        let lanes: Result<Vec<_>, _> = (0..count).map(|_| open_lane(&forwarding, &drops)).collect();
        let lanes = lanes?;
        let published = Arc::new(Published::new(routing(&forwarding, None)));
        for (index, (lane, offload, features)) in lanes.iter().enumerate() {
            let view = || View::new(Arc::clone(&published));
            // Each is made by its own thread, because its buffers point into each other.
            let (carried, peers, features) = (Arc::clone(lane), view(), *features);
            let outbound = move || Outbound::new(carried, peers, features).run();
            spawn(format!("udp-out-{index}"), outbound)?;
            let (carried, peers, offload) = (Arc::clone(lane), view(), *offload);
            let inbound = move || Inbound::new(carried, peers, offload).run();
            spawn(format!("udp-in-{index}"), inbound)?;
        }
        if let Some((_, offload, features)) = lanes.first() {
            let Features { cuts, merges } = features;
            info!(lanes = count, ?offload, cuts, merges, "packets are carried");
        }
        let lanes = lanes.into_iter().map(|(lane, ..)| lane).collect();
        Ok(Self { forwarding, lanes, published, drops, reported: String::new() })
    }

    /// Takes up peers that are new, and the device if it was made anew.
    fn make_true(&mut self, forwarding: Forwarding) -> Result<(), DataPathError> {
        let device = forwarding.device;
        for lane in self.lanes.iter().filter(|lane| !lane.queue.is_attached()) {
            let reattached = lane.queue.reattach(device);
            reattached.map_err(|source| DataPathError::Queue { device, source })?;
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
) -> Result<(Arc<Lane>, Offload, Features), DataPathError> {
    let (device, address) = (forwarding.device, forwarding.listen);
    let queue = Queue::open(device);
    let (queue, offload) = queue.map_err(|source| DataPathError::Queue { device, source })?;
    let socket = socket::open(address);
    let (socket, features) = socket.map_err(|source| DataPathError::Socket { address, source })?;
    let lane = Lane { queue, socket, drops: Arc::clone(drops) };
    Ok((Arc::new(lane), offload, features))
}

fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> Result<(), DataPathError> {
    let thread = thread::Builder::new().name(name).spawn(work);
    thread.map(drop).map_err(DataPathError::Thread)
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
