//! Addresses of links (`ip address`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};

use super::socket::{Request, family, replace};
use crate::link_name::LinkName;
use crate::netstate::Address;

pub(super) fn addresses_on(index: u32) -> RouteNetlinkMessage {
    let mut request = AddressMessage::default();
    request.header.index = index;
    RouteNetlinkMessage::GetAddress(request)
}

pub(super) fn decode_address(
    row: &RouteNetlinkMessage,
    names: &BTreeMap<u32, LinkName>,
) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = row else { return None };
    let link = *names.get(&message.header.index)?;
    if message.header.scope != AddressScope::Universe {
        return None;
    }
    let ip = local_address(&message.attributes)?;
    Some(Address { link, ip: IpNetwork::new(ip, message.header.prefix_len).ok()? })
}

/// Returns the address itself: IPv4 has it as `IFA_LOCAL`, IPv6 as `IFA_ADDRESS`.
pub(super) fn local_address(attributes: &[AddressAttribute]) -> Option<IpAddr> {
    let local = attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    local.or_else(|| {
        attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    })
}

fn address(index: u32, ip: IpNetwork) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = ip.prefix();
    message.header.family = family(ip.ip());
    message.header.scope = AddressScope::Universe;
    message.attributes.push(AddressAttribute::Local(ip.ip()));
    message.attributes.push(AddressAttribute::Address(ip.ip()));
    message
}

pub(super) fn replace_unrouted_address(index: u32, ip: IpNetwork) -> Request {
    let mut request = replace_address(index, ip);
    if let RouteNetlinkMessage::NewAddress(message) = &mut request.message {
        // The one byte of the header has no room for this flag.
        let flags = message.header.flags.bits().into();
        let flags = AddressFlags::from_bits_retain(flags) | AddressFlags::Noprefixroute;
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    request
}

pub(super) fn replace_address(index: u32, ip: IpNetwork) -> Request {
    let mut message = address(index, ip);
    match ip {
        IpNetwork::V4(network) if network.prefix() < 31 => {
            message.attributes.push(AddressAttribute::Broadcast(network.broadcast()));
        }
        IpNetwork::V4(_) => {}
        // Addresses are handed out by us, so there is no duplicate to wait for (RFC 4862, 5.4).
        IpNetwork::V6(_) => message.header.flags = AddressHeaderFlags::Nodad,
    }
    replace(RouteNetlinkMessage::NewAddress(message))
}

/// Without the flag that suppresses it, the kernel looks for duplicates if `accept_dad` is set.
pub(super) fn probe_address(index: u32, ip: IpNetwork) -> Request {
    let mut request = replace_address(index, ip);
    if let RouteNetlinkMessage::NewAddress(message) = &mut request.message {
        message.header.flags = AddressHeaderFlags::empty();
    }
    request
}

pub(super) fn del_address(index: u32, ip: IpNetwork) -> Request {
    let message = RouteNetlinkMessage::DelAddress(address(index, ip));
    Request { message, flags: 0 }
}
