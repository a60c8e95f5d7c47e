//! Which node has which lease. Kubernetes tells about nodes, the data plane wants to know about
//! subnets: a node may come back with another one, and two may claim the same.

use std::collections::BTreeMap;

use tracing::warn;

use crate::lease::acquire::Listed;
use crate::lease::table::LeaseUpdate;
use crate::lease::{Lease, LeaseKey};

/// Nodes with their names and, where they take part, what they say.
pub(super) type Nodes = Vec<(String, Option<Listed>)>;

/// The leases of all other nodes, by their names.
#[derive(Debug, Default)]
pub(super) struct Roster {
    leases: BTreeMap<String, Lease>,
    /// Who has a subnet: of two that claim it, the one that claimed it first.
    holders: BTreeMap<LeaseKey, String>,
    /// Whether anybody ever said which nodes there are.
    is_known: bool,
}

impl Roster {
    /// Returns all leases with the names of their nodes.
    pub(super) fn leases(&self) -> impl Iterator<Item = (&String, &Lease)> + Clone {
        self.leases.iter()
    }

    /// Whether it says more than that nothing was heard yet.
    pub(super) fn is_known(&self) -> bool {
        self.is_known
    }

    /// These are all nodes there are. Of one whose lease became unreadable, what was known stays.
    pub(super) fn replace(&mut self, nodes: Nodes) -> LeaseUpdate {
        let before = std::mem::take(self);
        self.is_known = true;
        let mut unreadable = Vec::new();
        for (name, listed) in nodes {
            let Some(listed) = listed else { continue };
            let lease = before.leases.get(&name).cloned();
            match known(listed, lease) {
                Ok(lease) => {
                    let had_it = before.holders.get(&lease.subnet) == Some(&name);
                    if had_it || !self.holders.contains_key(&lease.subnet) {
                        self.holders.insert(lease.subnet, name.clone());
                    }
                    self.leases.insert(name, lease);
                }
                Err(key) => unreadable.push(Listed { key, attributes: None }),
            }
        }
        for (name, lease) in &self.leases {
            self.complain(name, lease.subnet);
        }
        unreadable.retain(|listed| !self.holders.contains_key(&listed.key));
        let held = self.holders.values().filter_map(|name| self.leases.get(name)).cloned();
        let held = held.map(|Lease { subnet, attributes }| Listed {
            key: subnet,
            attributes: Some(attributes),
        });
        LeaseUpdate::Snapshot(held.chain(unreadable).collect())
    }

    /// A node is new or has changed.
    pub(super) fn put(&mut self, name: &str, listed: Option<Listed>) -> Vec<LeaseUpdate> {
        let before = self.leases.get(name).cloned();
        let Some(listed) = listed else { return self.remove(name) };
        let Ok(lease) = known(listed, before.clone()) else { return Vec::new() };
        if before.as_ref() == Some(&lease) {
            return Vec::new();
        }
        let subnet = lease.subnet;
        self.leases.insert(name.to_owned(), lease.clone());
        let mut updates = Vec::new();
        if self.holders.entry(subnet).or_insert_with(|| name.to_owned()) == name {
            updates.push(LeaseUpdate::Put(lease));
        }
        self.complain(name, subnet);
        if let Some(before) = before.filter(|before| before.subnet != subnet) {
            updates.extend(self.give_up(name, before.subnet));
        }
        updates
    }

    /// A node is gone, or takes no part any more.
    pub(super) fn remove(&mut self, name: &str) -> Vec<LeaseUpdate> {
        let gone = self.leases.remove(name);
        gone.and_then(|lease| self.give_up(name, lease.subnet)).into_iter().collect()
    }

    /// Passes a subnet on to whoever claims it too.
    fn give_up(&mut self, name: &str, subnet: LeaseKey) -> Option<LeaseUpdate> {
        if self.holders.get(&subnet).is_none_or(|holder| holder != name) {
            return None;
        }
        let mut others = self.leases.iter().filter(|(_, lease)| lease.subnet == subnet);
        Some(match others.next() {
            Some((other, lease)) => {
                self.holders.insert(subnet, other.clone());
                LeaseUpdate::Put(lease.clone())
            }
            None => {
                self.holders.remove(&subnet);
                LeaseUpdate::Removed(subnet)
            }
        })
    }

    fn complain(&self, name: &str, subnet: LeaseKey) {
        match self.holders.get(&subnet) {
            Some(holder) if holder != name => {
                warn!(node = name, %subnet, %holder, "a node claims the subnet of another one");
            }
            _ => {}
        }
    }
}

/// What the node says now, or what it said when it could be read.
fn known(listed: Listed, before: Option<Lease>) -> Result<Lease, LeaseKey> {
    match (listed.attributes, before) {
        (Some(attributes), _) => Ok(Lease { subnet: listed.key, attributes }),
        (None, Some(before)) if before.subnet == listed.key => Ok(before),
        (None, _) => Err(listed.key),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::lease::Attributes;

    fn key(third: u8) -> LeaseKey {
        LeaseKey::parse(&format!("10.244.{third}.0-24")).unwrap()
    }

    fn lease(third: u8, node: u8) -> Option<Listed> {
        let attributes = Attributes {
            public_ip: Ipv4Addr::new(198, 51, 100, node),
            public_ipv6: None,
            backend_type: "host-gw".to_owned(),
            backend_data: None,
            backend_v6_data: None,
        };
        Some(Listed { key: key(third), attributes: Some(attributes) })
    }

    fn unreadable(third: u8) -> Option<Listed> {
        Some(Listed { key: key(third), attributes: None })
    }

    /// What is told, as `subnet via node` lines.
    fn text(updates: &[LeaseUpdate]) -> String {
        let line = |update: &LeaseUpdate| match update {
            LeaseUpdate::Snapshot(all) => {
                let via = |listed: &Listed| listed.attributes.as_ref().map(|a| a.public_ip);
                let each = all.iter().map(|listed| format!("{} {:?}", listed.key, via(listed)));
                format!("all {}", each.collect::<Vec<_>>().join(", "))
            }
            LeaseUpdate::Put(lease) => format!("{} {}", lease.subnet, lease.attributes.public_ip),
            LeaseUpdate::Removed(key) => format!("{key} removed"),
        };
        updates.iter().map(line).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn what_was_never_heard_is_told_from_a_cluster_of_one() {
        let mut roster = Roster::default();
        assert!(!roster.is_known());
        roster.replace(Vec::new());
        assert!(roster.is_known());
    }

    #[test]
    fn a_recreated_node_leaves_no_old_subnet() {
        let mut roster = Roster::default();
        assert_eq!(text(&roster.put("a", lease(1, 1))), "10.244.1.0-24 198.51.100.1");
        // Deleted and made again between two looks: only the change is seen.
        let updates = roster.put("a", lease(2, 1));
        assert_eq!(text(&updates), "10.244.2.0-24 198.51.100.1; 10.244.1.0-24 removed");
        assert_eq!(text(&roster.remove("a")), "10.244.2.0-24 removed");
        assert_eq!(text(&roster.remove("a")), "");
    }

    #[test]
    fn what_did_not_change_is_not_told() {
        let mut roster = Roster::default();
        roster.put("a", lease(1, 1));
        assert_eq!(text(&roster.put("a", lease(1, 1))), "");
        assert_eq!(text(&roster.put("b", None)), "");
    }

    #[test]
    fn the_first_to_claim_a_subnet_keeps_it_and_the_next_one_inherits_it() {
        let mut roster = Roster::default();
        roster.put("b", lease(1, 2));
        assert_eq!(text(&roster.put("a", lease(1, 1))), "");
        let nodes = vec![("a".to_owned(), lease(1, 1)), ("b".to_owned(), lease(1, 2))];
        let all = roster.replace(nodes);
        assert_eq!(text(&[all]), "all 10.244.1.0-24 Some(198.51.100.2)");
        assert_eq!(text(&roster.put("b", None)), "10.244.1.0-24 198.51.100.1");
    }

    #[test]
    fn a_lease_that_becomes_unreadable_stays_as_it_was() {
        let mut roster = Roster::default();
        roster.put("a", lease(1, 1));
        assert_eq!(text(&roster.put("a", unreadable(1))), "");
        let all = roster.replace(vec![
            ("a".to_owned(), unreadable(1)),
            ("b".to_owned(), unreadable(2)),
            ("c".to_owned(), None),
        ]);
        assert_eq!(text(&[all]), "all 10.244.1.0-24 Some(198.51.100.1), 10.244.2.0-24 None");
    }
}
