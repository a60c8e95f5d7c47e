//! The leases of the other nodes, kept up to date by what the store tells.

use std::collections::BTreeMap;

use super::acquire::Listed;
use super::{Attributes, Lease, LeaseKey};

/// What a store tells about leases.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum LeaseUpdate {
    /// These are all leases there are. Of one that became unreadable, what was known stays.
    Snapshot(Vec<Listed>),
    /// This lease is new or has changed.
    Put(Lease),
    /// This lease is gone.
    Removed(LeaseKey),
}

/// All leases, our own included.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LeaseTable {
    leases: BTreeMap<LeaseKey, Attributes>,
}

impl LeaseTable {
    /// Takes in what a store told. Returns whether anything changed by it.
    pub(crate) fn apply(&mut self, update: LeaseUpdate) -> bool {
        match update {
            LeaseUpdate::Snapshot(listed) => {
                let known = |key| self.leases.get(&key).cloned();
                let leases = listed.into_iter().filter_map(|Listed { key, attributes }| {
                    Some((key, attributes.or_else(|| known(key))?))
                });
                let leases = leases.collect();
                let changed = self.leases != leases;
                self.leases = leases;
                changed
            }
            LeaseUpdate::Put(lease) => {
                let before = self.leases.insert(lease.subnet, lease.attributes);
                before.as_ref() != self.leases.get(&lease.subnet)
            }
            LeaseUpdate::Removed(key) => self.leases.remove(&key).is_some(),
        }
    }

    /// Returns what is known about a subnet.
    #[cfg(test)]
    pub(crate) fn get(&self, key: &LeaseKey) -> Option<&Attributes> {
        self.leases.get(key)
    }

    /// Whether a lease of ours is known here as we know it.
    pub(crate) fn agrees_with(&self, lease: &Lease) -> bool {
        self.leases.get(&lease.subnet) == Some(&lease.attributes)
    }

    /// Returns all leases but `own`, in the order of their keys.
    pub(crate) fn peers(&self, own: &LeaseKey) -> impl Iterator<Item = (&LeaseKey, &Attributes)> {
        self.leases.iter().filter(move |(key, _)| *key != own)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

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
        table.apply(LeaseUpdate::Put(lease("10.3.1.0-24", 1)));
        let unreadable = ["10.3.1.0-24", "10.3.2.0-24"]
            .map(|text| Listed { key: LeaseKey::parse(text).unwrap(), attributes: None });
        assert!(!table.apply(LeaseUpdate::Snapshot(unreadable.to_vec())));
    }

    #[test]
    fn a_snapshot_replaces_everything_and_changed_attributes_count() {
        let mut table = LeaseTable::default();
        let both = vec![listed("10.3.1.0-24", 1), listed("10.3.2.0-24", 2)];
        assert!(table.apply(LeaseUpdate::Snapshot(both.clone())));
        assert!(!table.apply(LeaseUpdate::Snapshot(both)));
        assert!(table.apply(LeaseUpdate::Snapshot(vec![listed("10.3.1.0-24", 9)])));
        let own = LeaseKey::parse("10.3.7.0-24").unwrap();
        let peers: Vec<_> = table.peers(&own).map(|(key, _)| key.to_string()).collect();
        assert_eq!(peers, ["10.3.1.0-24"]);
    }

    #[test]
    fn single_changes_are_taken_in() {
        let mut table = LeaseTable::default();
        assert!(table.apply(LeaseUpdate::Put(lease("10.3.1.0-24", 1))));
        assert!(!table.apply(LeaseUpdate::Put(lease("10.3.1.0-24", 1))));
        assert!(table.apply(LeaseUpdate::Put(lease("10.3.1.0-24", 2))));
        let key = LeaseKey::parse("10.3.1.0-24").unwrap();
        assert_eq!(table.get(&key).unwrap().public_ip, Ipv4Addr::new(198, 51, 100, 2));
        assert!(table.apply(LeaseUpdate::Removed(key)));
        assert!(!table.apply(LeaseUpdate::Removed(key)));
    }

    #[test]
    fn the_own_lease_is_no_peer() {
        let mut table = LeaseTable::default();
        table.apply(LeaseUpdate::Put(lease("10.3.1.0-24", 1)));
        assert_eq!(table.peers(&LeaseKey::parse("10.3.1.0-24").unwrap()).count(), 0);
    }
}
