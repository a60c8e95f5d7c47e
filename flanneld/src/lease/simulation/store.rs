//! A model of etcd as far as leases use it: revisions, guarded writes, leases that end, history
//! that is compacted. A directory behaves the same, but for history.

use std::collections::BTreeMap;

use crate::lease::acquire::{Entry, Listed};
use crate::lease::keeper::{Answer, Guard, Listing, Put, Step, Time};
use crate::lease::table::LeaseUpdate;
use crate::lease::{Lease, LeaseKey};

/// Whoever wrote a key last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writer {
    Machine(usize),
    Operator,
}

#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) entry: Entry,
    pub(super) writer: Writer,
}

#[derive(Debug)]
pub(super) struct Store {
    pub(super) keys: BTreeMap<LeaseKey, Stored>,
    /// When each was renewed last.
    leases: BTreeMap<i64, Time>,
    pub(super) revision: i64,
    pub(super) history: Vec<(i64, LeaseUpdate)>,
    pub(super) compacted: i64,
    next_lease: i64,
    ttl: Time,
}

impl Store {
    pub(super) fn new(ttl: Time) -> Self {
        Self {
            keys: BTreeMap::new(),
            leases: BTreeMap::new(),
            revision: 1,
            history: Vec::new(),
            compacted: 0,
            next_lease: 1,
            ttl,
        }
    }

    pub(super) fn listed(&self) -> Vec<Listed> {
        self.keys.values().map(|stored| stored.entry.listed.clone()).collect()
    }

    pub(super) fn entries(&self) -> Vec<Entry> {
        self.keys.values().map(|stored| stored.entry.clone()).collect()
    }

    /// The time since a lease was renewed.
    pub(super) fn age(&self, lease: i64, now: Time) -> Option<Time> {
        self.leases.get(&lease).map(|renewed| now - *renewed)
    }

    /// Ends what was not renewed in time.
    pub(super) fn expire(&mut self, now: Time) {
        let ended = |renewed: &Time| *renewed + self.ttl < now;
        let ended: Vec<_> =
            self.leases.iter().filter(|(_, at)| ended(at)).map(|(id, _)| *id).collect();
        ended.into_iter().for_each(|id| self.revoke(id));
    }

    pub(super) fn perform(&mut self, step: &Step, writer: Writer, now: Time) -> Answer {
        match step {
            Step::Wait(_) => Answer::Silence,
            Step::List => {
                Answer::Listed(Listing { entries: self.entries(), revision: self.revision })
            }
            Step::Grant => Answer::Granted(self.grant(now)),
            Step::Put(put) => self.put(put, writer),
            Step::Delete { key, revision } => {
                if self.keys.get(key).is_some_and(|stored| stored.entry.revision == *revision) {
                    self.delete(key);
                }
                Answer::Deleted
            }
            Step::Revoke(id) => {
                self.revoke(*id);
                Answer::Revoked
            }
            Step::KeepAlive { lease, .. } => {
                let left = self.leases.get_mut(lease).map(|renewed| {
                    *renewed = now;
                    self.ttl
                });
                Answer::KeptAlive(left)
            }
            Step::Read(key) => Answer::Read(self.keys.get(key).map(|stored| stored.entry.clone())),
            Step::Ages(of) => Answer::Ages(of.iter().map(|key| self.age(key.lease, now)).collect()),
        }
    }

    pub(super) fn grant(&mut self, now: Time) -> i64 {
        self.next_lease += 1;
        self.leases.insert(self.next_lease, now);
        self.next_lease
    }

    pub(super) fn put(&mut self, put: &Put, writer: Writer) -> Answer {
        if put.lease != 0 && !self.leases.contains_key(&put.lease) {
            return Answer::NoSuchLease;
        }
        if !self.is_as_guarded(put) {
            return Answer::Written(None);
        }
        if let Some((replaced, _)) = &put.replaces {
            self.delete(replaced);
        }
        self.write(
            Listed { key: put.key, attributes: Some(put.attributes.clone()) },
            put.lease,
            writer,
        );
        Answer::Written(Some(self.revision))
    }

    /// As etcd sees it: of the subnets of other keys it knows only the IPv4 one that a key begins
    /// with.
    fn is_as_guarded(&self, put: &Put) -> bool {
        let is_at = |key: &LeaseKey, revision: i64| {
            self.keys.get(key).is_some_and(|stored| stored.entry.revision == revision)
        };
        if put.replaces.is_some_and(|(key, revision)| !is_at(&key, revision)) {
            return false;
        }
        match put.guard {
            Guard::At(revision) => is_at(&put.key, revision),
            Guard::Free { since } if put.key.ipv6().is_some() => {
                !self.keys.contains_key(&put.key)
                    && self.keys.values().all(|stored| stored.entry.revision <= since)
            }
            Guard::Free { .. } if put.replaces.is_some() => !self.keys.contains_key(&put.key),
            Guard::Free { .. } => self.keys.keys().all(|key| key.ipv4() != put.key.ipv4()),
        }
    }

    /// Writes without asking.
    pub(super) fn write(&mut self, listed: Listed, lease: i64, writer: Writer) {
        self.revision += 1;
        let key = listed.key;
        if let Some(attributes) = listed.attributes.clone() {
            let update = LeaseUpdate::Put(Lease { subnet: key, attributes });
            self.history.push((self.revision, update));
        }
        let created = self.keys.get(&key).map_or(self.revision, |stored| stored.entry.created);
        let entry = Entry { listed, revision: self.revision, created, lease };
        self.keys.insert(key, Stored { entry, writer });
    }

    pub(super) fn delete(&mut self, key: &LeaseKey) {
        if self.keys.remove(key).is_some() {
            self.revision += 1;
            self.history.push((self.revision, LeaseUpdate::Removed(*key)));
        }
    }

    pub(super) fn revoke(&mut self, id: i64) {
        self.leases.remove(&id);
        let of = |stored: &&Stored| stored.entry.lease == id && id != 0;
        let keys: Vec<_> =
            self.keys.values().filter(of).map(|stored| stored.entry.listed.key).collect();
        keys.iter().for_each(|key| self.delete(key));
    }

    pub(super) fn compact(&mut self) {
        self.compacted = self.revision;
        self.history.clear();
    }

    /// Everything is gone, revisions start again.
    pub(super) fn wipe(&mut self) {
        let next_lease = self.next_lease;
        *self = Self { next_lease, ..Self::new(self.ttl) };
    }

    /// The clock of the store is set forward: every lease looks as if it had not been renewed for
    /// that long.
    pub(super) fn jump_ahead(&mut self, span: Time) {
        self.leases.values_mut().for_each(|renewed| *renewed = renewed.saturating_sub(span));
    }

    /// A new leader gives every lease its whole time again.
    pub(super) fn change_leader(&mut self, now: Time) {
        self.leases.values_mut().for_each(|renewed| *renewed = now);
    }
}
