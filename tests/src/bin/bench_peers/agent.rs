//! flanneld on a node, as the benchmarks start and watch it.

use std::thread::park_timeout;
use std::time::{Duration, Instant};

use flannel_tests::cluster::LeaseStore;
use flannel_tests::daemon::Daemon;
use flannel_tests::node::Node;
use flannel_tests::{program, wait};

/// Nothing that is measured takes this long.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running flanneld whose subnet file is there: the kernel has everything then.
pub(crate) struct Agent<'a> {
    pub(crate) daemon: Daemon,
    /// From the start of the process until the subnet file was there.
    pub(crate) started_in: Duration,
    node: &'a Node,
    store: &'a LeaseStore,
}

impl<'a> Agent<'a> {
    pub(crate) fn start(node: &'a Node, store: &'a LeaseStore, flags: &[&str]) -> Self {
        let mut command = node.command(program::flanneld());
        command.args(store.flags()).arg("--ip-masq").args(flags);
        let file = node.directory("/run/flannel/subnet.env");
        let start = Instant::now();
        let mut daemon = Daemon::start(&format!("flanneld-{}", node.name()), &mut command);
        while !file.exists() {
            assert!(start.elapsed() < PATIENCE, "no subnet file\n{}", daemon.log());
            if let Some(status) = daemon.status() {
                panic!("flanneld ended ({status})\n{}", daemon.log());
            }
            park_timeout(Duration::from_millis(1));
        }
        Self { daemon, started_in: start.elapsed(), node, store }
    }

    /// How long the comparisons took so far that ended with this message, as the log tells: from
    /// the leases in memory to the last acknowledgement of the kernel.
    pub(crate) fn passes(&self, message: &str) -> Vec<Duration> {
        let log = self.daemon.log();
        let of_line = |line: &str| {
            let (_, rest) = line.split_once(message)?;
            let (_, time) = rest.split_once("duration_ms=")?;
            let milliseconds: f64 = time.split(' ').next()?.parse().ok()?;
            Some(Duration::from_secs_f64(milliseconds / 1e3))
        };
        log.lines().filter_map(of_line).collect()
    }

    /// How long the comparison took that found nothing of the peers in the kernel.
    pub(crate) fn first_pass(&self) -> Duration {
        let first = || self.passes(CORRECTED).first().copied().ok_or_else(|| self.daemon.log());
        wait::until("the first pass is in the log", first)
    }

    /// Demands that the kernel has an entry for each peer in each table.
    pub(crate) fn assert_programmed(&self, peers: u32) {
        let tables = [
            self.node.ip("route show dev flannel.1"),
            self.node.ip("neighbour show dev flannel.1"),
            self.node.bridge("fdb show dev flannel.1"),
        ];
        for table in tables {
            let count = u32::try_from(table.lines().count()).unwrap_or(u32::MAX);
            assert_eq!(count, peers, "entries on {}", self.node.name());
        }
    }

    /// Ends it, and removes what it leaves for another one.
    pub(crate) fn end(mut self) {
        self.daemon.terminate();
        let (key, _) = self.store.lease_of(self.node).expect("flanneld has leased a subnet");
        self.store.delete(&format!("subnets/{key}"));
        self.node.ip("link delete flannel.1");
    }
}

/// What the log says of a comparison that had something to do, and of one that had nothing to do
/// (at `-v 2`).
pub(crate) const CORRECTED: &str = "kernel state corrected";
pub(crate) const UNCHANGED: &str = "kernel state is as it shall be";
