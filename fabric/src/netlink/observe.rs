//! Reads the state that is: one question per link, one dump per table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::Nla;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoMacVlan, InfoTun, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags,
    LinkInfo, LinkLayerType, LinkMessage, MacVlanMode,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{RouteAddress, RouteMessage, RouteProtocol, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::rows::{RouteRow, permanent_entry, route};
use super::socket::{NetlinkError, Socket};
use super::{bridge, parameters, shaping};
use crate::link_name::LinkName;
use crate::mac::MacAddr;
use crate::mtu::Mtu;
use crate::netstate::{
    Address, BridgePort, Link, LinkKind, Macvlan, MacvlanMode, NetState, ROUTE_PROTOCOL, Route,
    RouteKey, Sysctl, Vxlan,
};
use crate::vni::Vni;
use crate::{offload, sysctl};

/// What of a namespace is looked at. What is found there counts as ours: whoever wants to leave
/// some of it alone takes it out of the result.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// The links.
    pub links: BTreeSet<LinkName>,
    /// The Ethernet addresses of tunnels of ours: one that somebody renamed is known by it.
    pub macs: BTreeSet<MacAddr>,
    /// Whether to read the addresses of these links.
    pub addresses: bool,
    /// Whether to read the permanent neighbours on these links.
    pub neighbours: bool,
    /// Whether to read the forwarding databases of these links.
    pub fdb: bool,
    /// Whether to read the VLANs of these links.
    pub vlans: bool,
    /// Whether to read how much these links may send and where what comes in by them goes.
    pub shaping: bool,
    /// Whether to read which checksums links compute.
    pub tx_checksum: bool,
    /// Which routes to read.
    pub routes: Routes,
    /// The networks outside of which addresses and routes are somebody else's, unless a route on
    /// one of the links carries our mark. None means that everything is ours.
    pub networks: Vec<IpNetwork>,
    /// Routes of somebody else that count as ours.
    pub adopted: Vec<Adopted>,
    /// The kernel parameters.
    pub sysctls: BTreeSet<Sysctl>,
}

/// Routes as the predecessor made them: of protocol `boot`, inside the networks of the scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// The link they leave by.
    pub link: LinkName,
    /// The next hops they may have.
    pub gateways: BTreeSet<IpAddr>,
}

impl Adopted {
    fn covers(&self, route: &Route) -> bool {
        const BOOT: u8 = 3;
        route.link == self.link
            && route.protocol == BOOT
            && route.via.is_some_and(|via| self.gateways.contains(&via))
    }
}

/// Which routes to read. Those that the kernel made itself are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Routes {
    /// None.
    #[default]
    None,
    /// Those that leave by the links of the scope.
    OnLinks,
    /// Those, and whatever carries our mark, [`ROUTE_PROTOCOL`], and leads to a next hop on any
    /// link: what leads to a pod of this node is the plugin's.
    OnLinksAndMarked,
}

impl Scope {
    /// Everything that `desired` speaks of.
    pub fn of(desired: &NetState) -> Self {
        Self {
            links: desired.links.keys().copied().collect(),
            macs: BTreeSet::new(),
            addresses: !desired.addresses.is_empty(),
            neighbours: !desired.neighbours.is_empty(),
            fdb: !desired.fdb.is_empty(),
            vlans: !desired.vlans.is_empty(),
            shaping: !(desired.shapers.is_empty() && desired.redirects.is_empty()),
            tx_checksum: !desired.tx_checksum.is_empty(),
            routes: if desired.routes.is_empty() { Routes::None } else { Routes::OnLinks },
            networks: Vec::new(),
            adopted: Vec::new(),
            sysctls: desired.sysctls.keys().cloned().collect(),
        }
    }

    /// Everything that is in one or the other. Each of them has networks, or neither.
    pub fn join(mut self, other: Self) -> Self {
        let Self {
            links,
            macs,
            addresses,
            neighbours,
            fdb,
            vlans,
            shaping,
            tx_checksum,
            routes,
            networks,
            adopted,
            sysctls,
        } = other;
        self.macs.extend(macs);
        self.links.extend(links);
        self.addresses |= addresses;
        self.neighbours |= neighbours;
        self.fdb |= fdb;
        self.vlans |= vlans;
        self.shaping |= shaping;
        self.tx_checksum |= tx_checksum;
        self.routes = self.routes.max(routes);
        self.networks.extend(networks);
        self.adopted.extend(adopted);
        self.sysctls.extend(sysctls);
        self
    }

    /// Whether a route can be of interest although it leaves by another link.
    fn may_be_elsewhere(&self, row: &RouteRow) -> bool {
        match row.protocol {
            RouteProtocol::Other(ROUTE_PROTOCOL) => self.routes == Routes::OnLinksAndMarked,
            RouteProtocol::Boot => !self.adopted.is_empty(),
            _ => false,
        }
    }

    fn has(&self, key: &RouteKey, route: &Route) -> bool {
        let on_link = self.links.contains(&route.link);
        let marked = route.protocol == ROUTE_PROTOCOL;
        let to_next_hop = marked && route.via.is_some();
        let adopted = || self.adopted.iter().any(|adopted| adopted.covers(route));
        match self.is_inside(key.destination) {
            true => on_link || to_next_hop || adopted(),
            false => on_link && marked,
        }
    }

    /// Only those with our mark are ours, because nothing else tells them apart.
    fn has_blackhole(&self, row: &RouteRow) -> bool {
        self.routes == Routes::OnLinksAndMarked
            && row.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
            && self.is_inside(row.key.destination)
    }

    fn is_inside(&self, network: IpNetwork) -> bool {
        let contains = |ours: &IpNetwork| {
            ours.is_ipv4() == network.is_ipv4()
                && ours.contains(network.ip())
                && ours.prefix() <= network.prefix()
        };
        self.networks.is_empty() || self.networks.iter().any(contains)
    }
}

/// Reads everything in `scope`. Links that do not exist are missing from the result.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn observe(socket: &mut Socket, scope: &Scope) -> Result<NetState, NetlinkError> {
    let mut state = NetState::default();
    let mut names = BTreeMap::new();
    socket.indices.clear();
    for name in &scope.links {
        if let Some(message) = socket.link_by_name(*name)? {
            socket.indices.insert(*name, message.header.index);
            names.insert(message.header.index, *name);
            let link = socket.decode_link(&message)?;
            state.links.insert(*name, link);
            state.sysctls.extend(parameters_of(*name, scope, &message));
        }
    }
    if !scope.macs.is_empty() && scope.links.len() > state.links.len() {
        for message in socket.tunnels()? {
            let link = socket.decode_link(&message)?;
            if let Some(name) = name(&message)
                && link.mac.is_some_and(|mac| scope.macs.contains(&mac))
            {
                names.insert(message.header.index, name);
                state.links.insert(name, link);
            }
        }
    }
    for index in names.keys() {
        if scope.addresses {
            let rows = socket.dump("addresses", &addresses_on(*index))?;
            let addresses = rows.iter().filter_map(|row| decode_address(row, &names));
            state.addresses.extend(addresses.filter(|address| scope.is_inside(address.ip)));
        }
        if scope.neighbours {
            let rows = socket.dump_with("neighbours", &neighbours_on(*index), permanent_entry)?;
            let named = rows.iter().filter_map(|row| Some((*names.get(&row.index)?, row)));
            // Collected first, because a map is made faster at once than entry by entry.
            let mut found = named.map(|(link, row)| ((link, row.ip), row.mac)).collect();
            state.neighbours.append(&mut found);
        }
        if scope.shaping
            && let Some(to) = shaping::observe_redirect(socket, *index)?
            && let Some(link) =
                names.get(&to).copied().map_or_else(|| socket.name_of(to), |n| Ok(Some(n)))?
        {
            state.redirects.insert(names[index], link);
        }
        if scope.fdb {
            let rows = socket.dump_with("FDB entries", &fdb_of(*index), permanent_entry)?;
            let named = rows.iter().filter_map(|row| Some((*names.get(&row.index)?, row)));
            let mut found = named.map(|(link, row)| ((link, row.mac), row.ip)).collect();
            state.fdb.append(&mut found);
        }
    }
    if scope.vlans {
        state.vlans = bridge::observe_vlans(socket, &names)?;
    }
    if scope.shaping {
        state.shapers = shaping::observe_shapers(socket, &names)?;
    }
    if scope.routes != Routes::None {
        (state.routes, state.blackholes) = observe_routes(socket, scope, names)?;
    }
    if scope.tx_checksum {
        let value = |link: &LinkName| Some((*link, offload::tx_checksum(*link).ok()?));
        state.tx_checksum = state.links.keys().filter_map(value).collect();
    }
    for key in &scope.sysctls {
        let is_known = state.sysctls.contains_key(key) || is_of_missing_link(key, scope, &state);
        if let Some(value) = (!is_known).then(|| sysctl::read(key).ok()).flatten() {
            state.sysctls.insert(key.clone(), value);
        }
    }
    Ok(state)
}

/// What the message about a link says of the parameters in the scope.
fn parameters_of(link: LinkName, scope: &Scope, message: &LinkMessage) -> Vec<(Sysctl, String)> {
    let of_link = |key: &&Sysctl| key.of_link().is_some_and(|(_, name, _)| name == link);
    let keys = scope.sysctls.iter().filter(of_link);
    keys.filter_map(|key| Some((key.clone(), parameters::observed(key, message)?))).collect()
}

/// Whether there is no such parameter because there is no such link.
fn is_of_missing_link(key: &Sysctl, scope: &Scope, state: &NetState) -> bool {
    key.of_link()
        .is_some_and(|(_, link, _)| scope.links.contains(&link) && !state.links.contains_key(&link))
}

impl Socket {
    /// Returns the link of that name in this namespace.
    pub(super) fn link_by_name(
        &mut self,
        name: LinkName,
    ) -> Result<Option<LinkMessage>, NetlinkError> {
        self.link(0, vec![LinkAttribute::IfName(name.as_str().to_owned())])
    }

    pub(super) fn link_by_index(
        &mut self,
        index: u32,
    ) -> Result<Option<LinkMessage>, NetlinkError> {
        self.link(index, Vec::new())
    }

    fn link(
        &mut self,
        index: u32,
        mut attributes: Vec<LinkAttribute>,
    ) -> Result<Option<LinkMessage>, NetlinkError> {
        // Statistics are most of what the kernel tells about a link, and of no use here.
        attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let mut request = LinkMessage::default();
        request.header.index = index;
        request.attributes = attributes;
        match self.get(RouteNetlinkMessage::GetLink(request))? {
            Ok(RouteNetlinkMessage::NewLink(link)) => Ok(Some(link)),
            Err(refusal) if refusal.errno.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(refusal) => Err(NetlinkError::Refused { about: "a link", refusal }),
            Ok(_) => Ok(None),
        }
    }

    /// Returns all VXLAN links.
    fn tunnels(&mut self) -> Result<Vec<LinkMessage>, NetlinkError> {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan)]));
        let rows = self.dump("links", &RouteNetlinkMessage::GetLink(request))?;
        Ok(rows
            .into_iter()
            .filter_map(|row| match row {
                RouteNetlinkMessage::NewLink(link) => Some(link),
                _ => None,
            })
            .collect())
    }

    fn name_of(&mut self, index: u32) -> Result<Option<LinkName>, NetlinkError> {
        Ok(self.link_by_index(index)?.and_then(|link| name(&link)))
    }

    fn decode_link(&mut self, message: &LinkMessage) -> Result<Link, NetlinkError> {
        let mut link = Link {
            kind: LinkKind::Other(String::new()),
            mac: None,
            mtu: None,
            up: message.header.flags.contains(LinkFlags::Up),
            port: None,
            alias: None,
            promiscuous: Some(message.header.flags.contains(LinkFlags::Promisc)),
            all_multicast: Some(message.header.flags.contains(LinkFlags::Allmulti)),
            queue_length: None,
            vlan_filtering: None,
        };
        if message.header.link_layer_type == LinkLayerType::Loopback {
            link.kind = LinkKind::Loopback;
        }
        let mut master = None;
        let mut infos = &[][..];
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::Address(bytes) => {
                    link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(MacAddr);
                }
                LinkAttribute::Mtu(bytes) => link.mtu = Mtu::new(*bytes),
                LinkAttribute::TxQueueLen(length) => link.queue_length = Some(*length),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
                LinkAttribute::Controller(index) => master = Some(*index),
                LinkAttribute::LinkInfo(link_infos) => infos = link_infos,
                _ => {}
            }
        }
        self.decode_infos(infos, &mut link)?;
        link.vlan_filtering = bridge::observed_vlan_filtering(infos);
        if let Some(index) = master {
            let (hairpin, isolated) = bridge::observed_port(infos);
            let port = |bridge| BridgePort { bridge, hairpin, isolated };
            link.port = self.name_of(index)?.map(port);
        }
        Ok(link)
    }

    fn decode_infos(&mut self, infos: &[LinkInfo], link: &mut Link) -> Result<(), NetlinkError> {
        for info in infos {
            match info {
                LinkInfo::Kind(InfoKind::Bridge) => link.kind = LinkKind::Bridge,
                LinkInfo::Kind(InfoKind::Veth) => link.kind = LinkKind::Veth(None),
                LinkInfo::Kind(InfoKind::Vxlan) => {}
                LinkInfo::Kind(InfoKind::Ifb) => link.kind = LinkKind::Ifb,
                LinkInfo::Kind(kind) => link.kind = LinkKind::Other(kind.to_string()),
                LinkInfo::Data(InfoData::Vxlan(attributes)) => {
                    link.kind = self.decode_vxlan(attributes)?;
                }
                LinkInfo::Data(InfoData::MacVlan(attributes)) => {
                    link.kind = decode_macvlan(attributes)
                        .map_or(LinkKind::Other("macvlan".to_owned()), LinkKind::Macvlan);
                }
                LinkInfo::Data(InfoData::Tun(attributes)) if is_our_kind_of_tun(attributes) => {
                    link.kind = LinkKind::Tun;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn decode_vxlan(&mut self, attributes: &[InfoVxlan]) -> Result<LinkKind, NetlinkError> {
        let mut vni = None;
        let (mut local, mut underlay) = (None, None);
        let (mut port, mut learning, mut gbp) = (0, false, false);
        for attribute in attributes {
            match attribute {
                InfoVxlan::Id(id) => vni = Vni::new(*id),
                InfoVxlan::Port(number) => port = *number,
                InfoVxlan::Local(ip) => local = Some(IpAddr::V4(*ip)),
                InfoVxlan::Local6(ip) => local = Some(IpAddr::V6(*ip)),
                InfoVxlan::Link(index) => underlay = self.name_of(*index)?,
                InfoVxlan::Learning(on) => learning = *on,
                InfoVxlan::Gbp => gbp = true,
                _ => {}
            }
        }
        Ok(match vni {
            Some(vni) => LinkKind::Vxlan(Vxlan { vni, port, local, underlay, learning, gbp }),
            None => LinkKind::Other("vxlan".to_owned()),
        })
    }
}

/// The parent is asked for by number, which says nothing if it is in another namespace.
fn decode_macvlan(attributes: &[InfoMacVlan]) -> Option<Macvlan> {
    let mode = attributes.iter().find_map(|attribute| match attribute {
        InfoMacVlan::Mode(MacVlanMode::Bridge) => Some(MacvlanMode::Bridge),
        InfoMacVlan::Mode(MacVlanMode::Private) => Some(MacvlanMode::Private),
        InfoMacVlan::Mode(MacVlanMode::Vepa) => Some(MacvlanMode::Vepa),
        InfoMacVlan::Mode(MacVlanMode::Passthrough) => Some(MacvlanMode::Passthru),
        _ => None,
    });
    Some(Macvlan { parent: None, mode: mode?, broadcast_queue: None })
}

/// Whether queues can be opened of this device as of those that we make. The attributes are those
/// of `IFLA_TUN_*` in the kernel's `linux/if_link.h`, one byte each.
fn is_our_kind_of_tun(attributes: &[InfoTun]) -> bool {
    const TYPE: u16 = 3;
    const PERSISTS: u16 = 6;
    const HAS_QUEUES: u16 = 7;
    let is_one = |attribute: &InfoTun| {
        let mut value = [0];
        let is_byte = attribute.value_len() == value.len();
        is_byte && {
            attribute.emit_value(&mut value);
            value == [1]
        }
    };
    [TYPE, PERSISTS, HAS_QUEUES]
        .iter()
        .all(|kind| attributes.iter().any(|found| found.kind() == *kind && is_one(found)))
}

pub(super) fn name(message: &LinkMessage) -> Option<LinkName> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => name.parse().ok(),
        _ => None,
    })
}

pub(super) fn addresses_on(index: u32) -> RouteNetlinkMessage {
    let mut request = AddressMessage::default();
    request.header.index = index;
    RouteNetlinkMessage::GetAddress(request)
}

fn decode_address(row: &RouteNetlinkMessage, names: &BTreeMap<u32, LinkName>) -> Option<Address> {
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

fn neighbours_on(index: u32) -> RouteNetlinkMessage {
    let mut request = NeighbourMessage::default();
    request.attributes.push(NeighbourAttribute::IfIndex(index));
    RouteNetlinkMessage::GetNeighbour(request)
}

fn fdb_of(index: u32) -> RouteNetlinkMessage {
    let mut request = NeighbourMessage::default();
    request.header.family = AddressFamily::Bridge;
    request.header.ifindex = index;
    RouteNetlinkMessage::GetNeighbour(request)
}

fn observe_routes(
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
