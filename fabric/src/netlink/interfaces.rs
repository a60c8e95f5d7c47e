//! What a host has to offer: its interfaces, their addresses, and where its routes lead.
//!
//! Only questions; nothing here is ours or will be changed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::addresses::local_address;
use super::links::name;
use super::routes::ip;
use super::socket::{NetlinkError, Socket, row};
use crate::link_name::LinkName;
use crate::netstate::{RouteKey, route_protocol};

/// The interfaces of a namespace and its routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// In the kernel's order.
    pub interfaces: Vec<Interface>,
    /// Default routes of the main table, the one that wins first.
    pub default_routes: Vec<DefaultRoute>,
    /// Unicast routes of the main table, but for those with our mark.
    pub ways: Vec<Way>,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: LinkName,
    /// Its MTU in bytes; 0 where it has none.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Its addresses of global and link scope, in the kernel's order.
    pub addresses: Vec<InterfaceAddress>,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The address.
    pub ip: IpAddr,
    /// Whether it is only valid on the link.
    pub link_scope: bool,
    /// Whether it was set by hand, not by DHCP or a router.
    pub permanent: bool,
    /// Whether it should not be used any more.
    pub deprecated: bool,
    /// Whether it is one of those that change for privacy (RFC 8981), or an IPv4 alias.
    pub temporary: bool,
}

/// A way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefaultRoute {
    /// Whether it is for IPv6.
    pub ipv6: bool,
    /// The lowest wins.
    pub metric: u32,
    /// The interface; a route over several counts once for each.
    pub interface: LinkName,
}

/// Where a route leads, and whether by way of a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// Where to.
    pub destination: IpNetwork,
    /// The lowest wins.
    pub metric: u32,
    /// The interface; a route over several counts once for each.
    pub interface: LinkName,
    /// Whether the destination itself is on the link.
    pub on_link: bool,
}

impl Inventory {
    /// Takes stock of the namespace that the socket was opened in.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub fn take(socket: &mut Socket) -> Result<Self, NetlinkError> {
        let mut interfaces = BTreeMap::new();
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        for row in socket.dump("links", &RouteNetlinkMessage::GetLink(request))? {
            let RouteNetlinkMessage::NewLink(message) = row else { continue };
            let interface = decode_interface(&message);
            interfaces.extend(interface.map(|interface| (message.header.index, interface)));
        }
        let request = RouteNetlinkMessage::GetAddress(Default::default());
        for row in socket.dump("addresses", &request)? {
            let RouteNetlinkMessage::NewAddress(message) = row else { continue };
            let Some(interface) = interfaces.get_mut(&message.header.index) else { continue };
            interface.addresses.extend(decode_address(&message));
        }
        let ways = ways(socket, &interfaces)?;
        let default_routes = default_routes(&ways);
        Ok(Self { interfaces: interfaces.into_values().collect(), default_routes, ways })
    }
}

/// Returns the interface by which the kernel would reach `destination`, and the source address it
/// would use; `None` if there is no route.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn route_to(
    socket: &mut Socket,
    destination: IpAddr,
) -> Result<Option<(LinkName, Option<IpAddr>)>, NetlinkError> {
    let mut request = RouteMessage::default();
    (request.header.address_family, request.header.destination_prefix_length) = match destination {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    let address = match destination {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    };
    request.attributes.push(RouteAttribute::Destination(address));
    let Ok(RouteNetlinkMessage::NewRoute(route)) =
        socket.get(RouteNetlinkMessage::GetRoute(request))?
    else {
        return Ok(None);
    };
    let source = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(address) => ip(address),
        _ => None,
    });
    let Some(index) = output_interfaces(&route).first().copied() else { return Ok(None) };
    let link = socket.link_by_index(index)?.and_then(|link| name(&link));
    Ok(link.map(|link| (link, source)))
}

/// Returns the remarks on links, of those that have one.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn aliases(socket: &mut Socket) -> Result<BTreeMap<LinkName, String>, NetlinkError> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let rows = socket.dump("links", &RouteNetlinkMessage::GetLink(request))?;
    let alias = |row: &RouteNetlinkMessage| {
        let RouteNetlinkMessage::NewLink(message) = row else { return None };
        let alias = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfAlias(alias) => Some(alias.clone()),
            _ => None,
        });
        Some((name(message)?, alias?))
    };
    Ok(rows.iter().filter_map(alias).collect())
}

fn decode_interface(message: &LinkMessage) -> Option<Interface> {
    let mtu = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    Some(Interface {
        name: name(message)?,
        mtu: mtu.unwrap_or(0),
        up: message.header.flags.contains(LinkFlags::Up),
        addresses: Vec::new(),
    })
}

fn decode_address(
    message: &netlink_packet_route::address::AddressMessage,
) -> Option<InterfaceAddress> {
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let flags = flags.unwrap_or(AddressFlags::empty());
    let scope = message.header.scope;
    (scope == AddressScope::Universe || scope == AddressScope::Link).then_some(())?;
    Some(InterfaceAddress {
        ip: local_address(&message.attributes)?,
        link_scope: scope == AddressScope::Link,
        permanent: flags.contains(AddressFlags::Permanent),
        deprecated: flags.contains(AddressFlags::Deprecated),
        temporary: flags.contains(AddressFlags::Secondary),
    })
}

fn ways(
    socket: &mut Socket,
    interfaces: &BTreeMap<u32, Interface>,
) -> Result<Vec<Way>, NetlinkError> {
    let mut ways = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        // Of thousands of routes, most are ours.
        let decode = |message: &[u8]| match row(message) {
            Some(RouteNetlinkMessage::NewRoute(route)) => Some(decode_ways(&route, interfaces)),
            _ => None,
        };
        let request = RouteNetlinkMessage::GetRoute(request);
        ways.extend(socket.dump_with("routes", &request, decode)?.into_iter().flatten());
    }
    Ok(ways)
}

fn default_routes(ways: &[Way]) -> Vec<DefaultRoute> {
    let default = ways.iter().filter(|way| way.destination.prefix() == 0);
    let mut routes: Vec<_> = default
        .map(|way| DefaultRoute {
            ipv6: way.destination.is_ipv6(),
            metric: way.metric,
            interface: way.interface,
        })
        .collect();
    routes.sort_by_key(|route| (route.ipv6, route.metric));
    routes
}

fn decode_ways(message: &RouteMessage, interfaces: &BTreeMap<u32, Interface>) -> Vec<Way> {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let mut metric = 0;
    let mut on_link = true;
    let mut destination = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_) => {
                on_link = false;
            }
            _ => {}
        }
    }
    let is_ours = route_protocol::is_ours(header.protocol.into());
    if table != RouteKey::TABLE_MAIN || header.kind != RouteType::Unicast || is_ours {
        return Vec::new();
    }
    let any = if header.address_family == AddressFamily::Inet {
        IpAddr::from([0; 4])
    } else {
        IpAddr::from([0; 16])
    };
    let prefix = header.destination_prefix_length;
    let Ok(destination) = IpNetwork::new(destination.unwrap_or(any), prefix) else {
        return Vec::new();
    };
    let named = output_interfaces(message).into_iter().filter_map(|index| interfaces.get(&index));
    named.map(|link| Way { destination, metric, interface: link.name, on_link }).collect()
}

/// The interfaces that a route leaves by, in the kernel's order.
fn output_interfaces(message: &RouteMessage) -> Vec<u32> {
    let hops = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    };
    message.attributes.iter().flat_map(hops).collect()
}
