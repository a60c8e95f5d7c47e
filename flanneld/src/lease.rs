//! A lease grants a subnet to a node, and says how to reach that node.
//!
//! # Whose a key is
//!
//! A node is known by its public address, as with flannel. Addresses can be given twice, so what a
//! backend publishes besides (`BackendData`, with the Ethernet address of the tunnel device) is
//! taken as the mark of whoever wrote a key, and the time of the last renewal as its sign of life:
//! every node renews its etcd lease every 10 s, which no other node sees unless it asks.
//!
//! | address | mark | the key is |
//! |---|---|---|
//! | ours | ours, or none | ours |
//! | ours | another, renewed within 32 s | that of another living node: we refuse to share, and say so |
//! | ours | another, not renewed | ours, from before this machine booted: it is taken over |
//! | another | ours, on the subnet that we had, not renewed | ours, from before our address changed |
//! | another | any | somebody else's |
//!
//! Whoever takes a key over looks once more at the old etcd lease afterwards; if it was renewed in
//! the meantime, everything is put back. A reservation (a key without an end) shows no sign of
//! life: who starts last has it, half a minute after writing it, and who had it before gives way.
//! Backends that publish nothing (host-gw) have no mark; there, two nodes with one address are seen
//! only when they change each other's keys. A flannel node renews once in 23 hours, so it looks
//! dead: it is succeeded by a node with its address, as flannel itself would do.

pub(crate) mod acquire;
pub(crate) mod keeper;

pub(crate) mod follow;
pub(crate) mod table;
pub(crate) mod wire;

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde_json::Value;

/// What a node holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Lease {
    /// What is granted.
    pub(crate) subnet: LeaseKey,
    /// To whom.
    pub(crate) attributes: Attributes,
}

/// The subnets of a lease. Its text is the last part of the key in the store: `10.5.52.0-24`, or
/// `10.5.52.0-24&2001:cafe:42:8::-64` with both families.
///
/// Host bits are kept, so that two keys stay two keys even if somebody wrote them by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LeaseKey {
    pub(crate) ipv4: Ipv4Network,
    pub(crate) ipv6: Option<Ipv6Network>,
}

/// How to reach a node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attributes {
    /// Underlay address; 0.0.0.0 if the node has none.
    pub(crate) public_ip: Ipv4Addr,
    /// IPv6 underlay address.
    pub(crate) public_ipv6: Option<Ipv6Addr>,
    /// The backend, empty for udp.
    pub(crate) backend_type: String,
    /// What the backend needs to know about the node, for IPv4.
    pub(crate) backend_data: Option<Value>,
    /// The same for IPv6.
    pub(crate) backend_v6_data: Option<Value>,
}

impl LeaseKey {
    /// A lease of IPv4 only.
    pub(crate) const fn v4(ipv4: Ipv4Network) -> Self {
        Self { ipv4, ipv6: None }
    }

    /// Reads the last part of a key. Returns `None` if it is not of this form.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (ipv4, ipv6) = match text.split_once('&') {
            Some((ipv4, ipv6)) => (ipv4, Some(ipv6)),
            None => (text, None),
        };
        let (address, length) = network(ipv4, 31)?;
        let ipv4 = Ipv4Network::new(address, length).ok()?;
        let ipv6 = match ipv6 {
            None => None,
            Some(text) if text.contains(|c: char| c.is_ascii_uppercase()) => return None,
            Some(text) => {
                let (address, length) = network(text, 127)?;
                Some(Ipv6Network::new(address, length).ok()?)
            }
        };
        Some(Self { ipv4, ipv6 })
    }

    /// Whether two leases grant the same address.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.ipv4.overlaps(other.ipv4)
            || self.ipv6.zip(other.ipv6).is_some_and(|(this, other)| this.overlaps(other))
    }

    /// Whether every host bit is zero, as it is in what flannel writes.
    pub(crate) fn is_network(&self) -> bool {
        let is_base = self.ipv4.ip() == self.ipv4.network();
        is_base && self.ipv6.is_none_or(|ipv6| ipv6.ip() == ipv6.network())
    }

    /// The IPv4 subnet in general terms.
    pub(crate) const fn subnet4(&self) -> IpNetwork {
        IpNetwork::V4(self.ipv4)
    }
}

/// Reads `ADDRESS-LENGTH`; the length is decimal digits only.
fn network<A: std::str::FromStr>(text: &str, longest: u8) -> Option<(A, u8)> {
    let (address, length) = text.rsplit_once('-')?;
    if !length.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let length = length.parse().ok().filter(|length| *length <= longest)?;
    Some((address.parse().ok()?, length))
}

impl fmt::Display for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ipv4.ip(), self.ipv4.prefix())?;
        match self.ipv6 {
            Some(ipv6) => write!(f, "&{}-{}", ipv6.ip(), ipv6.prefix()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_round_trip() {
        for text in ["10.12.13.0-24", "10.12.13.0-24&fd00:12:13::-56", "10.12.13.7-24", "0.0.0.0-0"]
        {
            assert_eq!(LeaseKey::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_subnet_is_no_key() {
        for text in [
            "10.12.13.0-24hi",
            "10.12.13.300-24",
            "&2001::-56",
            "10.12.13.0-32",
            "10.12.13.0",
            "10.12.13.0-+24",
            "10.12.13.0-24&",
            "10.12.13.0-24&fd00::-128",
            "10.12.13.0-24&FD00::-64",
            "lock",
            "",
        ] {
            assert_eq!(LeaseKey::parse(text), None, "{text}");
        }
    }

    #[test]
    fn overlap_is_a_matter_of_addresses_not_of_text() {
        let key = |text| LeaseKey::parse(text).unwrap();
        assert!(key("10.1.0.0-16").overlaps(&key("10.1.5.0-24")));
        assert!(key("10.1.5.7-24").overlaps(&key("10.1.5.0-26")));
        assert!(!key("10.1.5.0-24").overlaps(&key("10.1.6.0-24")));
        assert!(key("10.1.5.0-24&fd00:1::-64").overlaps(&key("10.1.6.0-24&fd00:1::-64")));
    }
}
