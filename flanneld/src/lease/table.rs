//! The leases of the other nodes, kept up to date by what the store tells.

use std::collections::BTreeMap;

use super::acquire::Listed;
use super::keeper::Time;
use super::{Attributes, Lease, LeaseKey};

/// What a store tells about leases.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum LeaseUpdate {
    /// These are all leases there are, the oldest first as far as the store knows. Of one that became
    /// unreadable, what was known stays.
    Snapshot(Vec<Listed>),
    /// This lease is new or has changed.
    Put(Lease),
    /// This lease is gone.
    Removed(LeaseKey),
}

/// How long a peer is kept whose lease was removed: its node may be taking it again just now, and
/// its pods are still there.
const REMOVED_FOR: Time = Time::from_secs(3);
/// The same for one that is missing in a new list: a store that lost everything gets it back from
/// the nodes as they notice.
const MISSING_FOR: Time = Time::from_secs(30);

/// All leases, our own included, and those that ended a moment ago.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LeaseTable {
    leases: BTreeMap<LeaseKey, Known>,
    /// Until when they are kept.
    leaving: BTreeMap<LeaseKey, (Attributes, Time)>,
    /// Keys that were heard of so far.
    heard: u64,
}

#[derive(Clone, Debug, PartialEq)]
struct Known {
    attributes: Attributes,
    /// Lower for those that were there before.
    age: u64,
}

impl LeaseTable {
    /// Takes in what a store told. Returns whether anything changed by it.
    pub(crate) fn apply(&mut self, update: LeaseUpdate, now: Time) -> bool {
        match update {
            LeaseUpdate::Snapshot(listed) => self.replace(listed, now),
            LeaseUpdate::Put(lease) => {
                self.leaving.remove(&lease.subnet);
                let known = self.known(lease.subnet, lease.attributes);
                let before = self.leases.insert(lease.subnet, known);
                before.as_ref() != self.leases.get(&lease.subnet)
            }
            LeaseUpdate::Removed(key) => match self.leases.remove(&key) {
                Some(Known { attributes, .. }) => {
                    self.leaving.insert(key, (attributes, now + REMOVED_FOR));
                    true
                }
                None => false,
            },
        }
    }

    fn replace(&mut self, listed: Vec<Listed>, now: Time) -> bool {
        let known = |Listed { key, attributes }: Listed| {
            let attributes = attributes.or_else(|| Some(self.leases.get(&key)?.attributes.clone()));
            Some((key, self.known(key, attributes?)))
        };
        // A map that is collected leaves no room open in its nodes.
        let leases: BTreeMap<_, _> = listed.into_iter().filter_map(known).collect();
        let changed = self.leases != leases;
        let before = std::mem::replace(&mut self.leases, leases);
        let missing = before.into_iter().filter(|(key, _)| !self.leases.contains_key(key));
        let until = now + MISSING_FOR;
        self.leaving.extend(missing.map(|(key, known)| (key, (known.attributes, until))));
        self.leaving.retain(|key, _| !self.leases.contains_key(key));
        changed
    }

    /// A key that is known already has its age, whatever it says now.
    fn known(&mut self, key: LeaseKey, attributes: Attributes) -> Known {
        self.heard += 1;
        let age = self.leases.get(&key).map_or(self.heard, |known| known.age);
        Known { attributes, age }
    }

    /// Forgets whoever was kept long enough. Returns when the next one will have been.
    pub(crate) fn forget(&mut self, now: Time) -> Option<Time> {
        self.leaving.retain(|_, (_, until)| now < *until);
        self.leaving.values().map(|(_, until)| *until).min()
    }

    /// Returns what is known about a subnet.
    #[cfg(test)]
    pub(crate) fn get(&self, key: &LeaseKey) -> Option<&Attributes> {
        self.leases.get(key).map(|known| &known.attributes)
    }

    /// Whether a lease of ours is known here as we know it.
    pub(crate) fn agrees_with(&self, lease: &Lease) -> bool {
        self.leases.get(&lease.subnet).is_some_and(|known| known.attributes == lease.attributes)
    }

    /// Returns all leases but `own`, the oldest first, and then those that ended a moment ago, unless
    /// somebody else has the subnet by now, or the node another one.
    pub(crate) fn peers(&self, own: &LeaseKey) -> Vec<(&LeaseKey, &Attributes)> {
        let mut leases: Vec<_> = self.leases.iter().filter(|(key, _)| *key != own).collect();
        leases.sort_by_key(|(_, known)| known.age);
        let leaving = self.leaving.iter().filter(|(key, (attributes, _))| {
            let succeeded = |(other, by): (&LeaseKey, &Known)| {
                other.overlaps(key) || by.attributes.is_same_node(attributes)
            };
            !key.overlaps(own) && !self.leases.iter().any(succeeded)
        });
        let leases = leases.into_iter().map(|(key, known)| (key, &known.attributes));
        leases.chain(leaving.map(|(key, (attributes, _))| (key, attributes))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const NOW: Time = Time::ZERO;

    fn lease(text: &str, last: u8) -> Lease {
        let attributes = Attributes {
            public_ip: Ipv4Addr::new(198, 51, 100, last),
            public_ipv6: None,
            backend_type: "vxlan".to_owned(),
            backend_data: None,
            backend_v6_data: None,
        };
        Lease { subnet: LeaseKey::parse(text).unwrap(), attributes }
    }

    fn listed(text: &str, last: u8) -> Listed {
        let Lease { subnet, attributes } = lease(text, last);
        Listed { key: subnet, attributes: Some(attributes) }
    }

    #[test]
    fn a_lease_that_becomes_unreadable_keeps_what_is_known_of_it() {
        let mut table = LeaseTable::default();
        table.apply(LeaseUpdate::Put(lease("10.3.1.0-24", 1)), NOW);
        let unreadable = ["10.3.1.0-24", "10.3.2.0-24"]
            .map(|text| Listed { key: LeaseKey::parse(text).unwrap(), attributes: None });
        assert!(!table.apply(LeaseUpdate::Snapshot(unreadable.to_vec()), NOW));
    }

    #[test]
    fn a_snapshot_replaces_everything_and_changed_attributes_count() {
        let mut table = LeaseTable::default();
        let both = vec![listed("10.3.1.0-24", 1), listed("10.3.2.0-24", 2)];
        assert!(table.apply(LeaseUpdate::Snapshot(both.clone()), NOW));
        assert!(!table.apply(LeaseUpdate::Snapshot(both), NOW));
        assert!(table.apply(LeaseUpdate::Snapshot(vec![listed("10.3.1.0-24", 9)]), NOW));
        table.forget(MISSING_FOR);
        let own = LeaseKey::parse("10.3.7.0-24").unwrap();
        let peers: Vec<_> = table.peers(&own).iter().map(|(key, _)| key.to_string()).collect();
        assert_eq!(peers, ["10.3.1.0-24"]);
    }

    #[test]
    fn single_changes_are_taken_in() {
        let mut table = LeaseTable::default();
        assert!(table.apply(LeaseUpdate::Put(lease("10.3.1.0-24", 1)), NOW));
        assert!(!table.apply(LeaseUpdate::Put(lease("10.3.1.0-24", 1)), NOW));
        assert!(table.apply(LeaseUpdate::Put(lease("10.3.1.0-24", 2)), NOW));
        let key = LeaseKey::parse("10.3.1.0-24").unwrap();
        assert_eq!(table.get(&key).unwrap().public_ip, Ipv4Addr::new(198, 51, 100, 2));
        assert!(table.apply(LeaseUpdate::Removed(key), NOW));
        assert!(!table.apply(LeaseUpdate::Removed(key), NOW));
    }

    #[test]
    fn peers_are_in_the_order_of_their_age() {
        let own = LeaseKey::parse("10.3.7.0-24").unwrap();
        let mut table = LeaseTable::default();
        let both = vec![listed("10.3.5.0-24", 1), listed("10.3.2.0-24", 2)];
        table.apply(LeaseUpdate::Snapshot(both), NOW);
        table.apply(LeaseUpdate::Put(lease("10.3.1.0-24", 3)), NOW);
        // What is listed in another order, or changes, stays as old as it was.
        let all = ["10.3.1.0-24", "10.3.2.0-24", "10.3.3.0-24", "10.3.5.0-24"];
        table.apply(LeaseUpdate::Snapshot(all.map(|text| listed(text, 9)).to_vec()), NOW);
        let peers: Vec<_> = table.peers(&own).iter().map(|(key, _)| key.to_string()).collect();
        assert_eq!(peers, ["10.3.5.0-24", "10.3.2.0-24", "10.3.1.0-24", "10.3.3.0-24"]);
    }

    #[test]
    fn the_own_lease_is_no_peer() {
        let mut table = LeaseTable::default();
        table.apply(LeaseUpdate::Put(lease("10.3.1.0-24", 1)), NOW);
        assert_eq!(table.peers(&LeaseKey::parse("10.3.1.0-24").unwrap()).len(), 0);
    }

    #[test]
    fn who_ended_a_moment_ago_is_kept_unless_somebody_else_is_in_the_way() {
        let own = LeaseKey::parse("10.3.7.0-24").unwrap();
        let peers = |table: &LeaseTable| {
            table.peers(&own).iter().map(|(key, _)| key.to_string()).collect::<Vec<_>>()
        };
        let mut table = LeaseTable::default();
        for (text, last) in [("10.3.1.0-24", 1), ("10.3.2.0-24", 2), ("10.3.3.0-24", 3)] {
            table.apply(LeaseUpdate::Put(lease(text, last)), NOW);
        }
        table.apply(LeaseUpdate::Snapshot(vec![listed("10.3.1.0-24", 1)]), NOW);
        assert_eq!(peers(&table), ["10.3.1.0-24", "10.3.2.0-24", "10.3.3.0-24"]);
        // Another node has the subnet; the node has another subnet.
        table.apply(LeaseUpdate::Put(lease("10.3.2.0-25", 9)), NOW);
        table.apply(LeaseUpdate::Put(lease("10.3.4.0-24", 3)), NOW);
        assert_eq!(peers(&table), ["10.3.1.0-24", "10.3.2.0-25", "10.3.4.0-24"]);
        table.apply(LeaseUpdate::Removed(LeaseKey::parse("10.3.4.0-24").unwrap()), NOW);
        assert_eq!(table.forget(NOW), Some(REMOVED_FOR));
        assert_eq!(peers(&table).len(), 4, "two leases, and two that ended");
        table.forget(REMOVED_FOR);
        assert_eq!(table.forget(MISSING_FOR), None);
        assert_eq!(peers(&table), ["10.3.1.0-24", "10.3.2.0-25"]);
    }
}
