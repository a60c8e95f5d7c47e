//! What a keeper and a store say to each other.

use std::time::Duration;

use crate::lease::acquire::Entry;
use crate::lease::{Attributes, LeaseKey};

/// Time since some moment, by a clock that neither jumps nor stops in suspend.
pub(crate) type Time = Duration;

/// How often, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// The lease is renewed this often.
    pub(crate) heartbeat: Duration,
    /// A lease that was not renewed for this long is that of a node that may be gone.
    pub(crate) alive_for: Duration,
}

impl Timing {
    /// What nodes do. A margin for renewals that leaves less time than that shortens it.
    pub(crate) fn with_margin(ttl: Duration, margin: Duration) -> Self {
        let heartbeat = Duration::from_secs(10);
        let latest = ttl.saturating_sub(margin).max(Duration::from_secs(1));
        Self { heartbeat: heartbeat.min(latest), alive_for: heartbeat * 3 }
    }
}

/// What the store shall do next.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Nothing until then, or until there is a doubt.
    Wait(Time),
    /// List all leases.
    List,
    /// Grant something that a key can end with.
    Grant,
    /// Write a key if it still is as the guard says.
    Put(Put),
    /// Delete a key if it is still at this revision.
    Delete { key: LeaseKey, revision: i64 },
    /// End what was granted, and whatever hangs on it.
    Revoke(i64),
    /// Make a key last for its whole time again.
    KeepAlive { key: LeaseKey, lease: i64 },
    /// Read one key.
    Read(LeaseKey),
    /// Find out when keys were renewed last.
    Ages(Vec<Renewable>),
}

/// A key as it was seen, that may be renewed by whoever wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Renewable {
    pub(crate) key: LeaseKey,
    pub(crate) revision: i64,
    pub(crate) lease: i64,
}

impl From<&Entry> for Renewable {
    fn from(entry: &Entry) -> Self {
        Self { key: entry.listed.key, revision: entry.revision, lease: entry.lease }
    }
}

/// A guarded write.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Put {
    pub(crate) key: LeaseKey,
    pub(crate) attributes: Attributes,
    /// What must be true for it to be written.
    pub(crate) guard: Guard,
    /// What the key ends with; 0 for no end.
    pub(crate) lease: i64,
    /// The key that it takes the place of, which must still be at this revision, and goes with the
    /// write.
    pub(crate) replaces: Option<(LeaseKey, i64)>,
}

/// What must be true for a key to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    /// It has this revision.
    At(i64),
    /// It is not there, and no other key, but for the one that it replaces, has one of its subnets.
    /// A store that cannot see that demands that no lease was written since it listed them at this
    /// revision.
    Free { since: i64 },
}

/// All leases, as they were at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Listing {
    pub(crate) entries: Vec<Entry>,
    /// That of the store, where it has one.
    pub(crate) revision: i64,
}

/// What the store did.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    /// The time to wait is over.
    Waited,
    Listed(Listing),
    Granted(i64),
    /// The key was written at this revision, or not, because of the guard.
    Written(Option<i64>),
    /// Deleted or not, it is no longer as it was.
    Deleted,
    Revoked,
    /// What is left of the time, unless there is nothing that could be kept alive.
    KeptAlive(Option<Duration>),
    Read(Option<Entry>),
    /// The time since the last renewal of each key, where there is such a thing.
    Ages(Vec<Option<Duration>>),
    /// What the key should end with does not exist (any more).
    NoSuchLease,
    /// There was no answer, or none that says anything.
    Silence,
}
