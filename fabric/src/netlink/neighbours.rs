//! Neighbours, and forwarding entries, which rtnetlink takes for neighbours of another family
//! (`ip neighbour`, `bridge fdb`).

use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::socket::{Request, family, replace};
use crate::mac::MacAddr;

pub(super) fn neighbours_on(index: u32) -> RouteNetlinkMessage {
    let mut request = NeighbourMessage::default();
    request.attributes.push(NeighbourAttribute::IfIndex(index));
    RouteNetlinkMessage::GetNeighbour(request)
}

pub(super) fn fdb_of(index: u32) -> RouteNetlinkMessage {
    let mut request = NeighbourMessage::default();
    request.header.family = AddressFamily::Bridge;
    request.header.ifindex = index;
    RouteNetlinkMessage::GetNeighbour(request)
}

fn neighbour(index: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = index;
    message.attributes.push(NeighbourAttribute::Destination(neighbour_address(ip)));
    message
}

pub(super) fn replace_neighbour(index: u32, ip: IpAddr, mac: MacAddr) -> Request {
    let mut message = neighbour(index, ip);
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    replace(RouteNetlinkMessage::NewNeighbour(message))
}

pub(super) fn del_neighbour(index: u32, ip: IpAddr) -> Request {
    let message = RouteNetlinkMessage::DelNeighbour(neighbour(index, ip));
    Request { message, flags: 0 }
}

fn fdb_entry(index: u32, mac: MacAddr, vtep: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.flags = NeighbourFlags::Own;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message.attributes.push(NeighbourAttribute::Destination(neighbour_address(vtep)));
    message
}

pub(super) fn replace_fdb_entry(index: u32, mac: MacAddr, vtep: IpAddr) -> Request {
    replace(RouteNetlinkMessage::NewNeighbour(fdb_entry(index, mac, vtep)))
}

pub(super) fn del_fdb_entry(index: u32, mac: MacAddr, vtep: IpAddr) -> Request {
    let message = RouteNetlinkMessage::DelNeighbour(fdb_entry(index, mac, vtep));
    Request { message, flags: 0 }
}

const fn neighbour_address(ip: IpAddr) -> NeighbourAddress {
    match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    }
}
