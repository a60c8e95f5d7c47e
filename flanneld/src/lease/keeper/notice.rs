//! What there is to tell about a lease, as values; the words are chosen where it is logged.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::lease::acquire::Entry;
use crate::lease::{Attributes, LeaseKey};

/// A holder who did not renew for this long looks dead. Flannel renews only once in 23 hours.
const LOOKS_DEAD: Duration = Duration::from_secs(5 * 60);
/// So many of them are named.
const NAMED_MAX: usize = 10;

/// Something to tell.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Notice {
    /// The lease is confirmed, for the first time or again.
    Acquired { key: LeaseKey, before: Option<LeaseKey> },
    /// Our key is gone.
    Gone { key: LeaseKey },
    /// Somebody else wrote our key.
    Changed { key: LeaseKey, attributes: Option<Attributes> },
    /// A key carries our address, and it is not clear yet whether its writer lives.
    Unclear { key: LeaseKey, age: Duration },
    /// Another living node has our address.
    Twin { key: LeaseKey, attributes: Option<Attributes> },
    /// No subnet is free.
    Exhausted { network: IpNetwork, holders: Vec<Holder> },
}

/// Who holds a subnet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Holder {
    key: LeaseKey,
    public_ip: Option<IpAddr>,
    reserved: bool,
    age: Option<Duration>,
}

impl Holder {
    pub(crate) fn new(entry: &Entry, age: Option<Duration>) -> Self {
        let attributes = entry.listed.attributes.as_ref();
        Self {
            key: entry.listed.key,
            public_ip: attributes.and_then(Attributes::identity),
            reserved: entry.lease == 0,
            age,
        }
    }

    fn looks_dead(&self) -> bool {
        !self.reserved && self.age.is_none_or(|age| age > LOOKS_DEAD)
    }
}

impl Notice {
    /// Whether the store may not be the one whose changes were followed: what the node knows of
    /// its own key is the sample by which that is noticed.
    pub(crate) const fn casts_doubt_on_the_table(&self) -> bool {
        matches!(self, Self::Gone { .. } | Self::Changed { .. } | Self::Acquired { .. })
    }

    /// Whether telling it again would tell nothing new.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unclear { key, .. }, Self::Unclear { key: other, .. }) => key == other,
            (Self::Exhausted { holders, .. }, Self::Exhausted { holders: other, .. }) => {
                holders.len() == other.len()
            }
            _ => self == other,
        }
    }
}

/// Who holds what, in one line.
pub(crate) fn summary(holders: &[Holder]) -> String {
    let reserved = holders.iter().filter(|holder| holder.reserved).count();
    let mut dead: Vec<_> = holders.iter().filter(|holder| holder.looks_dead()).collect();
    dead.sort_by_key(|holder| std::cmp::Reverse(holder.age));
    let mut text = format!(
        "{} keys, of which {reserved} are reservations and {} were not renewed for {} min",
        holders.len(),
        dead.len(),
        LOOKS_DEAD.as_secs() / 60
    );
    for (n, holder) in dead.iter().take(NAMED_MAX).enumerate() {
        text.push_str(if n == 0 { ": " } else { ", " });
        text.push_str(&holder.to_string());
    }
    if dead.len() > NAMED_MAX {
        text.push_str(", …");
    }
    text
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.key)?;
        match self.public_ip {
            Some(ip) => write!(f, " of {ip}")?,
            None => f.write_str(" with an unreadable value")?,
        }
        match self.age {
            Some(age) => write!(f, " ({} min)", age.as_secs() / 60),
            None => Ok(()),
        }
    }
}
