//! What a keeper is about.

use std::time::Duration;

use super::step::Time;
use crate::family::Family;
use crate::lease::LeaseKey;
use crate::lease::acquire::Entry;

/// A lease that is ours in the store.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Held {
    pub(super) entry: Entry,
    /// When it ends unless it is renewed; `None` for a reservation.
    pub(super) expires: Option<Time>,
    /// Until then it is certain that nobody else has it.
    pub(super) confirmed: Option<Time>,
}

/// What is being done.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Phase {
    Waiting {
        until: Time,
        then: Then,
    },
    Listing,
    Looking(Entry),
    Counting(Family, Vec<Entry>),
    Granting,
    Writing(Target),
    Deleting(Entry),
    Revoking(i64),
    Renewing,
    Reading {
        asked: Time,
        left: Option<Duration>,
    },
    /// After a take-over: whether the former holder renewed in the meantime.
    LookingBack {
        asked: Time,
        left: Option<Duration>,
        before: Entry,
    },
    Restoring(Entry),
}

/// What follows a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    List,
    Renew,
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Target {
    Create(LeaseKey),
    TakeOver(Entry),
    Update(Entry),
    Move(Entry, LeaseKey),
}

impl Target {
    pub(super) fn key(&self) -> LeaseKey {
        match self {
            Self::Create(key) | Self::Move(_, key) => *key,
            Self::TakeOver(entry) | Self::Update(entry) => entry.listed.key,
        }
    }
}
