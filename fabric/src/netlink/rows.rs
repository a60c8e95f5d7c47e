//! Rows of the tables that grow with a cluster: neighbours, forwarding entries and routes.
//!
//! They are decoded in place, from the bytes of rtnetlink(7): a message of the library takes half a
//! dozen allocations, and a large cluster has twelve thousand rows.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NlaBuffer, NlasIterator};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteFlags, RouteProtocol, RouteType};

use super::socket::HEADER_BYTES;
use crate::mac::MacAddr;
use crate::netstate::RouteKey;

/// `struct ndmsg` and `struct rtmsg` have the same length.
const STRUCT_BYTES: usize = 12;

/// A neighbour or a forwarding entry that is there until somebody removes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PermanentEntry {
    /// The number of the link.
    pub(super) index: u32,
    /// Whose it is, or where it leads.
    pub(super) ip: IpAddr,
    /// The Ethernet address.
    pub(super) mac: MacAddr,
}

/// A route with at most one next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RouteRow {
    pub(super) key: RouteKey,
    pub(super) kind: RouteType,
    pub(super) protocol: RouteProtocol,
    pub(super) onlink: bool,
    /// The number of the link that it leaves by.
    pub(super) index: Option<u32>,
    pub(super) via: Option<IpAddr>,
    pub(super) source: Option<IpAddr>,
}

/// Decodes a message with a neighbour or a forwarding entry (`RTM_NEWNEIGH`).
pub(super) fn permanent_entry(message: &[u8]) -> Option<PermanentEntry> {
    let [header, attributes] = split(message)?;
    let [_, _, _, _, i0, i1, i2, i3, s0, s1, ..] = header else { return None };
    // `bridge fdb` sets another bit besides (`NUD_NOARP`).
    if u16::from_ne_bytes([*s0, *s1]) & libc::NUD_PERMANENT == 0 {
        return None;
    }
    let (mut ip, mut mac) = (None, None);
    for attribute in attributes_of(attributes) {
        match attribute.kind() {
            libc::NDA_DST => ip = address(attribute.value()),
            libc::NDA_LLADDR => mac = <[u8; 6]>::try_from(attribute.value()).ok().map(MacAddr),
            _ => {}
        }
    }
    Some(PermanentEntry { index: u32::from_ne_bytes([*i0, *i1, *i2, *i3]), ip: ip?, mac: mac? })
}

/// Decodes a message with a route (`RTM_NEWROUTE`).
pub(super) fn route(message: &[u8]) -> Option<RouteRow> {
    let [header, attributes] = split(message)?;
    let [family, prefix, _, _, table, protocol, _, kind, f0, f1, f2, f3] = header else {
        return None;
    };
    let any = match AddressFamily::from(*family) {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        _ => IpAddr::from([0; 16]),
    };
    let flags = RouteFlags::from_bits_retain(u32::from_ne_bytes([*f0, *f1, *f2, *f3]));
    let (mut destination, mut table, mut metric) = (any, u32::from(*table), 0);
    let (mut index, mut via, mut source) = (None, None, None);
    for attribute in attributes_of(attributes) {
        match attribute.kind() {
            libc::RTA_DST => destination = address(attribute.value())?,
            libc::RTA_OIF => index = number(attribute.value()),
            libc::RTA_GATEWAY => via = Some(address(attribute.value())?),
            libc::RTA_PREFSRC => source = Some(address(attribute.value())?),
            libc::RTA_PRIORITY => metric = number(attribute.value())?,
            libc::RTA_TABLE => table = number(attribute.value())?,
            _ => {}
        }
    }
    let destination = IpNetwork::new(destination, *prefix).ok()?;
    Some(RouteRow {
        key: RouteKey { table, destination, metric },
        kind: RouteType::from(*kind),
        protocol: RouteProtocol::from(*protocol),
        onlink: flags.contains(RouteFlags::Onlink),
        index,
        via,
        source,
    })
}

/// Returns the structure at the beginning of a message, and its attributes.
fn split(message: &[u8]) -> Option<[&[u8]; 2]> {
    message.get(HEADER_BYTES..)?.split_at_checked(STRUCT_BYTES).map(<[&[u8]; 2]>::from)
}

fn attributes_of(bytes: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(bytes).map_while(Result::ok)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let ipv4 = || <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let ipv6 = || <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    ipv4().or_else(|_| ipv6()).ok()
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().map(u32::from_ne_bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_off_is_no_row() {
        let mut message = [0; HEADER_BYTES + STRUCT_BYTES];
        message[HEADER_BYTES + 8] = libc::NUD_PERMANENT.to_ne_bytes()[0];
        for length in 0..=message.len() {
            assert_eq!(permanent_entry(&message[..length]), None);
        }
        assert_eq!(route(&message[..message.len() - 1]), None);
        let row = route(&message).unwrap();
        assert_eq!(row.key.destination, "::/0".parse().unwrap());
        // An attribute that says to be longer than what is left.
        let long = [&message[..], &[200, 0, 1, 0]].concat();
        assert_eq!((permanent_entry(&long), route(&long)), (None, Some(row)));
    }
}
