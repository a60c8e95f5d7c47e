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
//! Each lane has a thread, a queue of the device and a socket of its own; the kernel spreads flows
//! over the queues and peers over the sockets. The threads end with the program. The device stays.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;

use fabric::link_name::LinkName;
use ipnetwork::IpNetwork;
use tracing::{info, warn};

use super::counters::Drops;
use super::handover::{self, Kept};
use super::inbound::Inbound;
use super::lane::Lane;
use super::outbound::Outbound;
use super::peers::{Endpoint, PeerTable};
use super::routing::{Published, Routing, View};
use super::socket::{self, Features, Sender};
use super::tun::{Offload, Queue};

/// More lanes than this would only cost memory: one carries several gigabits a second.
const LANES_MAX: usize = 8;

/// What shall be carried where, of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Forwarding {
    /// The TUN device.
    pub(crate) device: LinkName,
    /// Where peers send to.
    pub(crate) listen: SocketAddr,
    /// Our subnet.
    pub(crate) own: IpNetwork,
    /// The subnets of the others, and where they listen.
    pub(crate) peers: Vec<(IpNetwork, SocketAddr)>,
}

/// What the kernel shall do for us if it can.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wishes {
    pub(super) lanes: usize,
    pub(super) offload: Offload,
    pub(super) features: Features,
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
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot make a pipe")]
    Pipe(#[source] io::Error),
    #[error("cannot start a thread for packets")]
    Thread(#[source] io::Error),
}

/// The running data path of a device; the applier thread owns it.
#[derive(Debug)]
pub(crate) struct DataPath {
    forwarding: Forwarding,
    lanes: Vec<Arc<Lane>>,
    published: Arc<Published>,
    drops: Arc<Drops>,
    reported: String,
}

impl Wishes {
    fn everything() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self {
            lanes: processors.min(LANES_MAX),
            offload: Offload::TcpAndUdp,
            features: Features::ALL,
        }
    }
}

impl DataPath {
    /// Makes it so, and starts what is not running yet. The devices must be there.
    pub(crate) fn ensure(
        running: &mut Vec<Self>,
        forwarding: Forwarding,
    ) -> Result<(), DataPathError> {
        let device = forwarding.device;
        match running.iter_mut().find(|data_path| data_path.forwarding.device == device) {
            Some(data_path) => data_path.make_true(forwarding)?,
            None => running.push(Self::start(forwarding, Wishes::everything())?),
        }
        Ok(())
    }

    /// Starts as many lanes as are wished for and the device has queues.
    pub(super) fn start(forwarding: Forwarding, wishes: Wishes) -> Result<Self, DataPathError> {
        let published = Arc::new(Published::new(routing(&forwarding, None)));
        let mut this = Self {
            forwarding,
            lanes: Vec::new(),
            published,
            drops: Arc::default(),
            reported: Drops::default().to_string(),
        };
        let mut kept = handover::take(this.forwarding.device);
        let mut features = Features::ALL;
        while this.lanes.len() < wishes.lanes {
            match this.open_lane(wishes, &mut kept) {
                Ok((lane, has)) => {
                    features = has;
                    this.lanes.push(Arc::new(lane));
                }
                Err(DataPathError::Queue { .. }) if !this.lanes.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        for (index, lane) in this.lanes.iter().enumerate() {
            this.carry(index, Arc::clone(lane), features)?;
        }
        this.say_how(wishes, features);
        this.keep();
        Ok(this)
    }

    fn open_lane(
        &self,
        wishes: Wishes,
        kept: &mut Kept,
    ) -> Result<(Lane, Features), DataPathError> {
        let Forwarding { device, listen: address, .. } = self.forwarding;
        // What a predecessor left may be of a device that is gone, or of another address.
        let adopted =
            kept.queues.pop().and_then(|fd| Queue::adopt(fd, device, wishes.offload).ok());
        let queue = adopted.map_or_else(|| Queue::open(device, wishes.offload), Ok);
        let queue = queue.map_err(|source| DataPathError::Queue { device, source })?;
        let adopted = kept.sockets.pop().and_then(|fd| socket::adopt(fd, address));
        let socket = adopted.map_or_else(|| socket::open(address), Ok);
        let socket = socket.map_err(|source| DataPathError::Socket { address, source })?;
        let features = wishes.features.enable(&socket);
        let lane = Lane::new(queue, socket, Arc::clone(&self.drops));
        Ok((lane.map_err(DataPathError::Pipe)?, features))
    }

    fn carry(
        &self,
        index: usize,
        lane: Arc<Lane>,
        features: Features,
    ) -> Result<(), DataPathError> {
        let published = Arc::clone(&self.published);
        // The halves are made by their thread, because their buffers point into each other.
        let carry = move || {
            let view = || View::new(Arc::clone(&published));
            let inbound = Inbound::new(Arc::clone(&lane), view());
            let outbound = Outbound::new(Arc::clone(&lane), view(), Sender::new(features.cuts));
            lane.carry(outbound, inbound);
        };
        let thread = thread::Builder::new().name(format!("{}-{index}", self.forwarding.device));
        thread.spawn(carry).map(drop).map_err(DataPathError::Thread)
    }

    fn say_how(&self, wishes: Wishes, features: Features) {
        let Features { cuts, merges } = features;
        let Some(offload) = self.lanes.first().map(|lane| lane.queue.offload()) else { return };
        let (device, lanes) = (self.forwarding.device, self.lanes.len());
        info!(%device, lanes, ?offload, cuts, merges, "packets are carried");
        if lanes < wishes.lanes {
            warn!(%device, "the device has no more queues; delete it, and a better one is made");
        }
        if offload != Offload::TcpAndUdp || features != Features::ALL {
            warn!(%device, "the kernel does not do everything for packets that it could; this costs speed");
        }
    }

    fn keep(&self) {
        let queues = self.lanes.iter().map(|lane| lane.queue.as_fd());
        let sockets = self.lanes.iter().map(|lane| lane.socket.as_fd());
        handover::keep(self.forwarding.device, queues, sockets);
    }

    /// Takes up peers that are new, the device if it was made anew, and addresses that changed.
    fn make_true(&mut self, forwarding: Forwarding) -> Result<(), DataPathError> {
        if self.reattach(forwarding.device)? | self.rebind(forwarding.listen)? {
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

    fn reattach(&self, device: LinkName) -> Result<bool, DataPathError> {
        let lost = |lane: &&Arc<Lane>| !lane.queue.is_of(device);
        let lost: Vec<_> = self.lanes.iter().filter(lost).collect();
        for lane in &lost {
            let reattached = lane.reattach(device);
            reattached.map_err(|source| DataPathError::Queue { device, source })?;
        }
        Ok(!lost.is_empty())
    }

    fn rebind(&self, address: SocketAddr) -> Result<bool, DataPathError> {
        if self.forwarding.listen == address {
            return Ok(false);
        }
        for lane in &self.lanes {
            let rebound = lane.rebind(address);
            rebound.map_err(|source| DataPathError::Socket { address, source })?;
        }
        Ok(true)
    }

    fn report(&mut self) {
        let drops = self.drops.to_string();
        if drops != self.reported {
            info!(packets = drops, "packets were dropped since the start");
            self.reported = drops;
        }
    }

    /// Logs what passed since the start, for each peer.
    pub(crate) fn log_traffic(&self) {
        for Endpoint { subnet, address, traffic } in self.published.current().peers.endpoints() {
            let (sent, received, dropped) = (&traffic.sent, &traffic.received, &traffic.dropped);
            info!(%subnet, via = %address, %sent, %received, %dropped, "traffic of a peer");
        }
        info!(device = %self.forwarding.device, dropped = %self.drops, "traffic of all peers");
    }
}

/// Counters of peers that stay are carried over.
fn routing(forwarding: &Forwarding, before: Option<&PeerTable>) -> Routing {
    let endpoint = |(subnet, address): &(IpNetwork, SocketAddr)| {
        let known = before.and_then(|table| table.get(*subnet));
        let traffic = known.map_or_else(Arc::default, |known| Arc::clone(&known.traffic));
        Endpoint { subnet: *subnet, address: *address, traffic }
    };
    Routing {
        own: forwarding.own,
        peers: PeerTable::new(forwarding.peers.iter().map(endpoint).collect()),
    }
}

#[cfg(test)]
mod tests;
