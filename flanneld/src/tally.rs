//! What the agent has done and left out so far, for whoever asks with SIGUSR1.

use std::collections::BTreeMap;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tracing::info;

use crate::backend::Reason;
use crate::kernel::Outcome;

/// Counts from the start of the program on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Comparisons with the kernel.
    passes: u64,
    /// Those that had something to correct.
    corrections: u64,
    /// What they did, in commands.
    operations: u64,
    /// What of it was refused.
    failures: u64,
    /// Peers that claimed what an older one has, or this node.
    conflicts: u64,
}

impl Tally {
    /// Counts a comparison.
    pub(crate) fn pass(&mut self, outcome: &Outcome) {
        self.passes += 1;
        self.corrections += u64::from(outcome.operations > 0);
        self.operations += outcome.operations as u64;
        self.failures += outcome.failures().count() as u64;
    }

    /// Counts a peer that is left out from now on.
    pub(crate) fn leave_out(&mut self, reason: &Reason) {
        self.conflicts += u64::from(reason.is_conflict());
    }

    /// Tells, with what is the case at the moment.
    pub(crate) fn tell<'a>(self, peers: usize, left_out: impl Iterator<Item = &'a Reason>) {
        let Self { passes, corrections, operations, failures, conflicts } = self;
        let left_out = by_kind(left_out);
        info!(
            peers, %left_out, conflicts, passes, corrections, operations, failures,
            "what was done so far"
        );
    }
}

/// `2 overlapping, 1 of another backend`; otherwise `none`.
fn by_kind<'a>(reasons: impl Iterator<Item = &'a Reason>) -> String {
    let mut counts = BTreeMap::<_, usize>::new();
    for reason in reasons {
        *counts.entry(reason.kind()).or_default() += 1;
    }
    let counts: Vec<_> = counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }
}

/// Tells `asked` whenever SIGUSR1 comes, as long as the program runs.
pub(crate) async fn ask_on_signal(asked: &Notify) -> std::io::Result<()> {
    let mut signals = signal(SignalKind::user_defined1())?;
    while signals.recv().await.is_some() {
        asked.notify_one();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_told_by_kind_and_conflicts_are_those_with_a_claim_of_others() {
        let peer = "10.244.1.0/24".parse().unwrap();
        let reasons =
            [Reason::OverlapsPeer(peer), Reason::HostBits, Reason::OverlapsOwn, Reason::HostBits];
        assert_eq!(by_kind(reasons.iter()), "2 overlapping, 2 with host bits");
        assert_eq!(by_kind([].iter()), "none");
        let mut tally = Tally::default();
        reasons.iter().for_each(|reason| tally.leave_out(reason));
        assert_eq!(tally.conflicts, 2);
    }

    #[test]
    fn a_comparison_that_found_nothing_is_no_correction() {
        let mut tally = Tally::default();
        tally.pass(&Outcome::default());
        let failures = vec!["no".to_owned()];
        tally.pass(&Outcome { operations: 3, node_failures: failures, ..Outcome::default() });
        let wanted = Tally { passes: 2, corrections: 1, operations: 3, failures: 1, conflicts: 0 };
        assert_eq!(tally, wanted);
    }
}
