//! Routes (`ip route`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::rows::{RouteRow, route};
use super::scope::Scope;
use super::socket::{NetlinkError, Request, Socket, family, replace};
use crate::link_name::LinkName;
use crate::netstate::{ROUTE_PROTOCOL, Route, RouteKey};

pub(super) fn observe_routes(
    socket: &mut Socket,
    scope: &Scope,
    mut names: BTreeMap<u32, LinkName>,
) -> Result<(BTreeMap<RouteKey, Route>, BTreeSet<RouteKey>), NetlinkError> {
    let (mut routes, mut blackholes) = (Vec::new(), BTreeSet::new());
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        for row in socket.dump_with("routes", &RouteNetlinkMessage::GetRoute(request), route)? {
            if row.kind == RouteType::BlackHole {
                blackholes.extend(Some(row.key).filter(|_| scope.has_blackhole(&row)));
                continue;
            }
            let Some(index) = row.index else { continue };
            if scope.may_be_elsewhere(&row) && !names.contains_key(&index) {
                names.extend(socket.name_of(index)?.map(|name| (index, name)));
            }
            let route = names.get(&index).and_then(|link| unicast(&row, *link));
            routes.extend(route.map(|route| (row.key, route)).filter(|(k, r)| scope.has(k, r)));
        }
    }
    Ok((routes.into_iter().collect(), blackholes))
}

/// Returns where a route leads that somebody made.
fn unicast(row: &RouteRow, link: LinkName) -> Option<Route> {
    let kernel_made = matches!(
        row.protocol,
        RouteProtocol::Kernel | RouteProtocol::Ra | RouteProtocol::IcmpRedirect
    );
    if kernel_made || row.kind != RouteType::Unicast {
        return None;
    }
    let RouteRow { via, onlink, source, .. } = *row;
    Some(Route { link, via, onlink, protocol: u8::from(row.protocol), source })
}

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

fn message(index: u32, key: &RouteKey, route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let destination = key.destination;
    message.header.address_family = family(destination.ip());
    message.header.destination_prefix_length = destination.prefix();
    message.header.table = u8::try_from(key.table).unwrap_or(0);
    message.header.kind = RouteType::Unicast;
    message.header.protocol = RouteProtocol::from(route.protocol);
    message.header.scope =
        if route.via.is_some() { RouteScope::Universe } else { RouteScope::Link };
    if route.onlink {
        message.header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Destination(route_address(destination.network())));
    attributes.extend(route.via.map(|via| RouteAttribute::Gateway(route_address(via))));
    attributes.extend(route.source.map(|ip| RouteAttribute::PrefSource(route_address(ip))));
    attributes.push(RouteAttribute::Oif(index));
    attributes.push(RouteAttribute::Table(key.table));
    attributes.push(RouteAttribute::Priority(key.metric));
    message
}

pub(super) fn add_route(index: u32, key: &RouteKey, to: &Route) -> Request {
    let message = RouteNetlinkMessage::NewRoute(message(index, key, to));
    Request { message, flags: NLM_F_CREATE | NLM_F_EXCL }
}

pub(super) fn replace_route(index: u32, key: &RouteKey, to: &Route) -> Request {
    replace(RouteNetlinkMessage::NewRoute(message(index, key, to)))
}

pub(super) fn del_route(index: u32, key: &RouteKey, to: &Route) -> Request {
    Request { message: RouteNetlinkMessage::DelRoute(message(index, key, to)), flags: 0 }
}

fn blackhole(key: &RouteKey) -> RouteMessage {
    let destination = key.destination;
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination.ip());
    message.header.destination_prefix_length = destination.prefix();
    message.header.table = u8::try_from(key.table).unwrap_or(0);
    message.header.kind = RouteType::BlackHole;
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.attributes = vec![
        RouteAttribute::Destination(route_address(destination.network())),
        RouteAttribute::Table(key.table),
        RouteAttribute::Priority(key.metric),
    ];
    message
}

pub(super) fn add_blackhole(key: &RouteKey) -> Request {
    let message = RouteNetlinkMessage::NewRoute(blackhole(key));
    Request { message, flags: NLM_F_CREATE | NLM_F_EXCL }
}

pub(super) fn del_blackhole(key: &RouteKey) -> Request {
    Request { message: RouteNetlinkMessage::DelRoute(blackhole(key)), flags: 0 }
}

const fn route_address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}
