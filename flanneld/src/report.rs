//! What the log is told of each comparison: only what is new since the one before.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnetwork::IpNetwork;
use tracing::{debug, info, warn};

use crate::backend::Reason;
use crate::kernel::Outcome;
use crate::neighbour_limits::Shortage;
use crate::tally::Tally;

/// What was told last.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Peers that the kernel shall know of.
    peers: usize,
    left_out: BTreeMap<IpNetwork, Reason>,
    shortages: Vec<Shortage>,
    failures: Vec<String>,
    tally: Tally,
}

impl Report {
    /// Tells whom a comparison leaves out of so many peers.
    pub(crate) fn peers(&mut self, known: usize, left_out: Vec<(IpNetwork, Reason)>) {
        self.peers = known.saturating_sub(left_out.len());
        let left_out: BTreeMap<_, _> = left_out.into_iter().collect();
        for (subnet, reason) in &left_out {
            if self.left_out.get(subnet) != Some(reason) {
                warn!(%subnet, %reason, "a peer is left out");
                self.tally.leave_out(reason);
            }
        }
        self.left_out = left_out;
    }

    /// Tells where the kernel may have too little room.
    pub(crate) fn shortages(&mut self, shortages: Vec<Shortage>) {
        for shortage in shortages.iter().filter(|shortage| !self.shortages.contains(shortage)) {
            warn!("{shortage}");
        }
        self.shortages = shortages;
    }

    /// Tells what came of a comparison.
    pub(crate) fn outcome(&mut self, outcome: &Outcome, duration: Duration) {
        self.tally.pass(outcome);
        let (peers, duration_ms) = (self.peers, milliseconds(duration));
        if outcome.operations > 0 {
            let operations = outcome.operations;
            info!(operations, peers, duration_ms, "kernel state corrected");
        } else {
            debug!(peers, duration_ms, "kernel state is as it shall be");
        }
        let failures: Vec<_> = outcome.failures().cloned().collect();
        for failure in failures.iter().filter(|failure| !self.failures.contains(failure)) {
            warn!("the kernel refused: {failure}");
        }
        self.failures = failures;
    }

    /// Tells what was done so far.
    pub(crate) fn so_far(&self) {
        self.tally.tell(self.peers, self.left_out.values());
    }
}

/// With one decimal.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e4).round() / 10.0
}
