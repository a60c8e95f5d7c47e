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

pub(crate) mod backend_data;
pub(crate) mod follow;
pub(crate) mod table;
pub(crate) mod wire;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::family::{Family, PerFamily};
pub(crate) use backend_data::BackendData;

/// What a node holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Lease {
    /// What is granted.
    pub(crate) subnet: LeaseKey,
    /// To whom.
    pub(crate) attributes: Attributes,
}

/// The subnets of a lease, of one family or of both. Its text is the last part of the key in the
/// store: `10.5.52.0-24`, or `10.5.52.0-24&2001:cafe:42:8::-64` with both families. There is no form
/// for IPv6 alone; flannel writes the empty network then, as in `0.0.0.0-0&2001:cafe:42:8::-64`.
///
/// Host bits are kept, so that two keys stay two keys even if somebody wrote them by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LeaseKey {
    ipv4: Option<Ipv4Network>,
    ipv6: Option<Ipv6Network>,
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
    pub(crate) backend_data: Option<BackendData>,
    /// The same for IPv6.
    pub(crate) backend_v6_data: Option<BackendData>,
}

impl Attributes {
    /// Returns the underlay address of a family, if the node has one.
    pub(crate) fn public(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => Some(self.public_ip.into()).filter(|_| !self.public_ip.is_unspecified()),
            Family::V6 => self.public_ipv6.map(IpAddr::V6),
        }
    }

    /// Returns what the backend needs to know about the node, for a family.
    pub(crate) fn data(&self, family: Family) -> Option<&BackendData> {
        match family {
            Family::V4 => self.backend_data.as_ref(),
            Family::V6 => self.backend_v6_data.as_ref(),
        }
    }

    /// Returns the address that the node is known by: the IPv4 one, if it has one.
    pub(crate) fn identity(&self) -> Option<IpAddr> {
        Family::ALL.into_iter().find_map(|family| self.public(family))
    }

    /// Whether both are known by the same address, the IPv4 one where both have one.
    pub(crate) fn is_same_node(&self, other: &Self) -> bool {
        let both = |family| self.public(family).zip(other.public(family));
        Family::ALL.into_iter().find_map(both).is_some_and(|(this, other)| this == other)
    }
}

impl LeaseKey {
    /// A lease of IPv4 only.
    pub(crate) const fn v4(ipv4: Ipv4Network) -> Self {
        Self { ipv4: Some(ipv4), ipv6: None }
    }

    /// Returns `None` if there is no subnet of any family, or one under the name of the other.
    pub(crate) fn new(subnets: PerFamily<IpNetwork>) -> Option<Self> {
        let (ipv4, ipv6) = match (subnets.ipv4, subnets.ipv6) {
            (Some(IpNetwork::V4(ipv4)), None) => (Some(ipv4), None),
            (None, Some(IpNetwork::V6(ipv6))) => (None, Some(ipv6)),
            (Some(IpNetwork::V4(ipv4)), Some(IpNetwork::V6(ipv6))) => (Some(ipv4), Some(ipv6)),
            _ => return None,
        };
        Some(Self { ipv4, ipv6 })
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
            None => return Some(Self::v4(ipv4)),
            Some(text) if text.contains(|c: char| c.is_ascii_uppercase()) => return None,
            Some(text) => network(text, 127)?,
        };
        let ipv6 = Some(Ipv6Network::new(ipv6.0, ipv6.1).ok()?);
        Some(Self { ipv4: Some(ipv4).filter(|ipv4| *ipv4 != NO_IPV4), ipv6 })
    }

    /// The IPv4 subnet.
    pub(crate) const fn ipv4(&self) -> Option<Ipv4Network> {
        self.ipv4
    }

    /// The IPv6 subnet.
    pub(crate) const fn ipv6(&self) -> Option<Ipv6Network> {
        self.ipv6
    }

    /// The subnet of a family.
    pub(crate) fn subnet(&self, family: Family) -> Option<IpNetwork> {
        match family {
            Family::V4 => self.ipv4.map(IpNetwork::V4),
            Family::V6 => self.ipv6.map(IpNetwork::V6),
        }
    }

    /// The subnets of all families, IPv4 first.
    pub(crate) fn subnets(&self) -> impl Iterator<Item = IpNetwork> {
        Family::ALL.into_iter().filter_map(|family| self.subnet(family))
    }

    /// Whether two leases grant the same address.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.ipv4.zip(other.ipv4).is_some_and(|(this, other)| this.overlaps(other))
            || self.ipv6.zip(other.ipv6).is_some_and(|(this, other)| this.overlaps(other))
    }

    /// Whether every host bit is zero, as it is in what flannel writes.
    pub(crate) fn is_network(&self) -> bool {
        self.subnets().all(|subnet| subnet.ip() == subnet.network())
    }

    /// Returns the text for people: the subnets in the usual form, joined by `&`.
    pub(crate) fn to_plain(self) -> String {
        self.subnets().map(|subnet| subnet.to_string()).collect::<Vec<_>>().join("&")
    }

    /// Reads what [`Self::to_plain`] returns, and keys.
    pub(crate) fn parse_plain(text: &str) -> Option<Self> {
        let text = text.replace('/', "-");
        let is_ipv6_only = text.contains(':') && !text.contains('&');
        Self::parse(&if is_ipv6_only { format!("0.0.0.0-0&{text}") } else { text })
    }
}

/// What flannel takes for the absence of a network.
const NO_IPV4: Ipv4Network = match Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0) {
    Some(network) => network,
    None => panic!("0 is a prefix length"),
};

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
        let ipv4 = self.ipv4.unwrap_or(NO_IPV4);
        write!(f, "{}-{}", ipv4.ip(), ipv4.prefix())?;
        match self.ipv6 {
            Some(ipv6) => write!(f, "&{}-{}", ipv6.ip(), ipv6.prefix()),
            None => Ok(()),
        }
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod flannel;
#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_round_trip() {
        for text in [
            "10.12.13.0-24",
            "10.12.13.0-24&fd00:12:13::-56",
            "0.0.0.0-0&fd00:12:13::-56",
            "10.12.13.7-24",
            "0.0.0.0-0",
        ] {
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
        assert!(key("10.1.5.0-24&fd00:1::-64").overlaps(&key("0.0.0.0-0&fd00:1::-56")));
        assert!(!key("10.1.5.0-24").overlaps(&key("0.0.0.0-0&fd00:1::-64")));
    }

    #[test]
    fn a_key_of_ipv6_alone_has_no_ipv4_subnet() {
        let key = LeaseKey::parse("0.0.0.0-0&fd00:1::-64").unwrap();
        assert_eq!((key.ipv4(), key.to_plain().as_str()), (None, "fd00:1::/64"));
        for text in ["fd00:1::/64", "10.5.52.0/24", "10.5.52.0/24&fd00:1::/64"] {
            assert_eq!(LeaseKey::parse_plain(text).unwrap().to_plain(), text);
        }
    }

    #[test]
    fn nodes_are_told_apart_by_an_address_that_both_have() {
        let node = |ipv4: &str, ipv6: Option<&str>| Attributes {
            public_ip: ipv4.parse().unwrap(),
            public_ipv6: ipv6.map(|ip| ip.parse().unwrap()),
            backend_type: String::new(),
            backend_data: None,
            backend_v6_data: None,
        };
        let dual = node("198.51.100.1", Some("fd99::1"));
        assert!(dual.is_same_node(&node("198.51.100.1", None)));
        assert!(dual.is_same_node(&node("0.0.0.0", Some("fd99::1"))));
        assert!(!dual.is_same_node(&node("198.51.100.2", Some("fd99::1"))));
        assert!(!node("0.0.0.0", None).is_same_node(&node("0.0.0.0", None)));
    }
}
