//! What the threads of the data path look up, published whole.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ipnetwork::IpNetwork;

use super::peers::PeerTable;

/// Who we are and who the others are.
#[derive(Debug)]
pub(super) struct Routing {
    /// Our subnet; its first address is that of the device.
    pub(super) own: IpNetwork,
    pub(super) peers: PeerTable,
}

impl Routing {
    /// The address that we speak with ourselves.
    pub(super) fn address(&self) -> IpAddr {
        self.own.network()
    }
}

/// Where the current value is found.
#[derive(Debug)]
pub(super) struct Published {
    generation: AtomicU64,
    current: Mutex<Arc<Routing>>,
}

impl Published {
    pub(super) fn new(routing: Routing) -> Self {
        Self { generation: AtomicU64::new(0), current: Mutex::new(Arc::new(routing)) }
    }

    /// Replaces the value, for every thread before it looks at its next packets.
    pub(super) fn replace(&self, routing: Routing) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(routing);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Returns the current value.
    pub(super) fn current(&self) -> Arc<Routing> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A thread's view of the current value: one atomic read, unless there is a new one.
#[derive(Debug)]
pub(super) struct View {
    published: Arc<Published>,
    generation: u64,
    routing: Arc<Routing>,
}

impl View {
    pub(super) fn new(published: Arc<Published>) -> Self {
        let generation = published.generation.load(Ordering::Acquire);
        let routing = published.current();
        Self { published, generation, routing }
    }

    /// Takes over a new value, if there is one.
    pub(super) fn refresh(&mut self) {
        let generation = self.published.generation.load(Ordering::Acquire);
        if generation != self.generation {
            self.generation = generation;
            self.routing = self.published.current();
        }
    }

    pub(super) fn routing(&self) -> &Routing {
        &self.routing
    }
}
