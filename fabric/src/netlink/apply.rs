//! Does what a plan says, many requests in one send.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoMacVlan, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage, MacVlanMode,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::socket::{BATCH, Request, Socket};
use super::{bridge, joined, parameters, shaping};
use crate::link_name::LinkName;
use crate::mac::MacAddr;
use crate::netns::Netns;
use crate::netstate::{
    Address, Link, LinkKind, Macvlan, MacvlanMode, ROUTE_PROTOCOL, Route, RouteKey, VethPeer, Vxlan,
};
use crate::plan::{LinkChange, Op, Plan};
use crate::{offload, sysctl, tun};

/// An operation that was not done.
#[derive(Debug, thiserror::Error)]
#[error("{op}: {reason}")]
pub struct ApplyError {
    /// What was tried.
    pub op: Box<Op>,
    /// The kernel's words (its extended acknowledgement, if there is one).
    pub reason: String,
    /// The kernel's error number, if it was the kernel that refused.
    pub errno: Option<i32>,
}

impl ApplyError {
    /// Whether somebody else made or removed something since it was observed.
    pub fn is_race(&self) -> bool {
        self.errno.is_some_and(|errno| errno == libc::EEXIST || GONE.contains(&errno))
    }
}

/// How the kernel says that there is nothing of the kind.
const GONE: [i32; 4] = [libc::ENOENT, libc::ENODEV, libc::ESRCH, libc::EADDRNOTAVAIL];

/// Does every operation in order and returns those that failed; one failure does not stop the rest.
/// To remove what is gone already is no failure.
pub fn apply(socket: &mut Socket, plan: &Plan) -> Vec<ApplyError> {
    let mut applier = Applier {
        indices: std::mem::take(&mut socket.indices),
        socket,
        queued: Vec::new(),
        namespaces: Vec::new(),
        failures: Vec::new(),
    };
    for op in &plan.ops {
        if let Err(failure) = applier.queue(op) {
            applier.fail(op, failure.to_string(), &failure);
        }
    }
    applier.flush();
    let Applier { socket, indices, failures, .. } = applier;
    socket.indices = indices;
    failures
}

struct Applier<'a> {
    socket: &'a mut Socket,
    /// Numbers of the links that were observed or asked for so far.
    indices: BTreeMap<LinkName, u32>,
    /// Not sent yet, each with the operations that it comes from.
    queued: Vec<(Request, Vec<&'a Op>)>,
    /// Namespaces that the requests refer to by descriptor.
    namespaces: Vec<Netns>,
    failures: Vec<ApplyError>,
}

impl<'a> Applier<'a> {
    fn queue(&mut self, op: &'a Op) -> io::Result<()> {
        let Some(request) = self.request(op)? else { return Ok(()) };
        if let Op::AddLink(name, _) | Op::DelLink(name) = op {
            self.indices.remove(name);
        }
        if let Some((last, ops)) = self.queued.last_mut()
            && joined::join(last, &request)
        {
            ops.push(op);
        } else {
            self.queued.push((request, vec![op]));
        }
        if self.queued.len() == BATCH {
            self.flush();
        }
        Ok(())
    }

    /// Returns how rtnetlink is asked for an operation. What it does not know is done at once.
    fn request(&mut self, op: &Op) -> io::Result<Option<Request>> {
        let request = match op {
            Op::SetSysctl(key, value) => match parameters::setting(key, value) {
                Some(request) => request,
                None => {
                    // The link whose parameter it is may still be in the queue.
                    self.flush();
                    return sysctl::write(key, value).map(|()| None);
                }
            },
            Op::SetTxChecksum(link, on) => {
                self.flush();
                return offload::set_tx_checksum(*link, *on).map(|()| None);
            }
            Op::AddLink(name, link) if link.kind == LinkKind::Tun => {
                // One of another kind may still be in the queue for removal.
                self.flush();
                return tun::create(*name).map(|()| None);
            }
            Op::AddLink(name, link) => self.add_link(*name, link)?,
            Op::AddLinkIn(netns, name, link) => self.add_link_in(netns, *name, link)?,
            Op::DelLink(name) => del_link(*name),
            Op::SetLink(name, change) => self.set_link(*name, change)?,
            Op::ReplaceAddress(address) => replace_address(self.index(address.link)?, address.ip),
            Op::ReplaceUnroutedAddress(address) => {
                replace_unrouted_address(self.index(address.link)?, address.ip)
            }
            Op::ProbeAddress(address) => probe_address(self.index(address.link)?, address.ip),
            Op::ReplaceVlan(link, vid, vlan) => {
                bridge::replace_vlan(self.index(*link)?, *vid, *vlan)
            }
            Op::DelVlan(link, vid) => bridge::del_vlan(self.index(*link)?, *vid),
            Op::ClearVlans(link) => bridge::clear_vlans(self.index(*link)?),
            Op::DelAddress(Address { link, ip }) => del_address(self.index(*link)?, *ip),
            Op::ReplaceNeighbour(link, ip, mac) => replace_neighbour(self.index(*link)?, *ip, *mac),
            Op::DelNeighbour(link, ip) => del_neighbour(self.index(*link)?, *ip),
            Op::ReplaceFdbEntry(link, mac, vtep) => {
                replace_fdb_entry(self.index(*link)?, *mac, *vtep)
            }
            Op::DelFdbEntry(link, mac, vtep) => del_fdb_entry(self.index(*link)?, *mac, *vtep),
            Op::AddRoute(key, route) => add_route(self.index(route.link)?, key, route),
            Op::ReplaceRoute(key, route) => replace_route(self.index(route.link)?, key, route),
            Op::DelRoute(key, route) => del_route(self.index(route.link)?, key, route),
            Op::AddBlackhole(key) => add_blackhole(key),
            Op::DelBlackhole(key) => del_blackhole(key),
            Op::ReplaceShaper(link, bucket) => shaping::replace_shaper(self.index(*link)?, bucket),
            Op::DelShaper(link) => shaping::del_shaper(self.index(*link)?),
            Op::AddIngress(link) => shaping::add_ingress(self.index(*link)?),
            Op::AddRedirect(link, to) => {
                shaping::add_redirect(self.index(*link)?, self.index(*to)?)
            }
            Op::DelIngress(link) => shaping::del_ingress(self.index(*link)?),
        };
        Ok(Some(request))
    }

    fn flush(&mut self) {
        let (requests, ops): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.queued).into_iter().unzip();
        if requests.is_empty() {
            return;
        }
        match self.socket.execute(requests) {
            Ok(results) => {
                for (ops, result) in ops.into_iter().zip(results) {
                    match (result, ops.as_slice()) {
                        (Ok(()), _) => {}
                        (Err(refusal), [op]) => {
                            self.fail(op, refusal.to_string(), &refusal.errno);
                        }
                        (Err(_), ops) => ops.iter().for_each(|op| self.retry(op)),
                    }
                }
            }
            Err(error) => {
                ops.into_iter().flatten().for_each(|op| self.fail(op, error.to_string(), &error));
            }
        }
        self.namespaces.clear();
    }

    /// Does one of several operations that went together: one refusal does not stop the others.
    fn retry(&mut self, op: &Op) {
        let result = self.request(op).and_then(|request| {
            self.socket
                .execute(request.into_iter().collect())
                .map(|results| results.into_iter().next())
        });
        match result {
            Ok(Some(Err(refusal))) => self.fail(op, refusal.to_string(), &refusal.errno),
            Ok(Some(Ok(())) | None) => {}
            Err(error) => self.fail(op, error.to_string(), &error),
        }
    }

    fn fail(&mut self, op: &Op, reason: String, error: &io::Error) {
        let errno = error.raw_os_error();
        let gone = errno.is_some_and(|errno| GONE.contains(&errno));
        if !(gone && op.is_removal()) {
            self.failures.push(ApplyError { op: Box::new(op.clone()), reason, errno });
        }
    }

    /// Returns the number of a link, which may be among those queued for creation.
    fn index(&mut self, link: LinkName) -> io::Result<u32> {
        if let Some(index) = self.indices.get(&link) {
            return Ok(*index);
        }
        self.flush();
        let found = self.socket.link_by_name(link).map_err(io::Error::other)?;
        let index = found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?.header.index;
        self.indices.insert(link, index);
        Ok(index)
    }

    fn add_link(&mut self, name: LinkName, link: &Link) -> io::Result<Request> {
        let mut attributes = vec![LinkAttribute::IfName(name.as_str().to_owned())];
        attributes.extend(link.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        attributes.extend(link.mtu.map(|mtu| LinkAttribute::Mtu(mtu.get())));
        if let Some(port) = link.port {
            attributes.push(LinkAttribute::Controller(self.index(port.bridge)?));
        }
        let info = match &link.kind {
            LinkKind::Bridge => {
                let kind = LinkInfo::Kind(InfoKind::Bridge);
                [kind].into_iter().chain(link.vlan_filtering.map(bridge::vlan_filtering)).collect()
            }
            LinkKind::Ifb => vec![LinkInfo::Kind(InfoKind::Ifb)],
            LinkKind::Macvlan(macvlan) => {
                let parent = macvlan.parent.ok_or(io::ErrorKind::InvalidInput)?;
                attributes.push(LinkAttribute::Link(self.index(parent)?));
                let data = InfoData::MacVlan(macvlan_data(macvlan));
                vec![LinkInfo::Kind(InfoKind::MacVlan), LinkInfo::Data(data)]
            }
            LinkKind::Veth(Some(peer)) => {
                attributes.extend(ONE_QUEUE);
                let peer = InfoData::Veth(InfoVeth::Peer(self.peer(peer)?));
                vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(peer)]
            }
            LinkKind::Vxlan(vxlan) => {
                let data = InfoData::Vxlan(self.vxlan(vxlan)?);
                vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(data)]
            }
            LinkKind::Veth(None) | LinkKind::Loopback | LinkKind::Tun | LinkKind::Other(_) => {
                return Err(io::Error::from_raw_os_error(libc::ENODEV));
            }
        };
        attributes.push(LinkAttribute::LinkInfo(info));
        if matches!(link.kind, LinkKind::Vxlan(_)) {
            // A tunnel has no queue of its own; the underlay does.
            attributes.push(LinkAttribute::TxQueueLen(0));
        }
        attributes.extend(link.queue_length.map(LinkAttribute::TxQueueLen));
        Ok(new_link(attributes, NLM_F_CREATE | NLM_F_EXCL))
    }

    /// The link that it is on is one of this namespace, since the request comes from here.
    fn add_link_in(&mut self, netns: &Path, name: LinkName, link: &Link) -> io::Result<Request> {
        let namespace = Netns::open(netns).map_err(io::Error::other)?;
        let descriptor = namespace.as_fd().as_raw_fd();
        let mut request = self.add_link(name, link)?;
        if let RouteNetlinkMessage::NewLink(message) = &mut request.message {
            message.attributes.push(LinkAttribute::NetNsFd(descriptor));
        }
        self.namespaces.push(namespace);
        Ok(request)
    }

    /// The other end is made where it shall live: moving it there afterwards takes the kernel a
    /// grace period under its global network lock. It cannot be brought up at this moment.
    fn peer(&mut self, peer: &VethPeer) -> io::Result<LinkMessage> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(peer.name.as_str().to_owned()));
        message.attributes.extend(ONE_QUEUE);
        if let Some(netns) = &peer.netns {
            let namespace = Netns::open(netns).map_err(io::Error::other)?;
            message.attributes.push(LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd()));
            self.namespaces.push(namespace);
        }
        message.attributes.extend(peer.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        message.attributes.extend(peer.mtu.map(|mtu| LinkAttribute::Mtu(mtu.get())));
        Ok(message)
    }

    fn vxlan(&mut self, vxlan: &Vxlan) -> io::Result<Vec<InfoVxlan>> {
        let mut attributes = vec![InfoVxlan::Id(vxlan.vni.get()), InfoVxlan::Port(vxlan.port)];
        attributes.push(InfoVxlan::Learning(vxlan.learning));
        attributes.extend(vxlan.local.map(vxlan_local));
        if let Some(underlay) = vxlan.underlay {
            attributes.push(InfoVxlan::Link(self.index(underlay)?));
        }
        if vxlan.gbp {
            attributes.push(InfoVxlan::Gbp);
        }
        Ok(attributes)
    }

    fn set_link(&mut self, name: LinkName, change: &LinkChange) -> io::Result<Request> {
        let mut attributes = vec![LinkAttribute::IfName(name.as_str().to_owned())];
        let vxlan = |data| {
            let data = InfoData::Vxlan(vec![data]);
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(data)])
        };
        match change {
            LinkChange::Up
            | LinkChange::Down
            | LinkChange::Promiscuous(_)
            | LinkChange::AllMulticast(_) => {}
            LinkChange::QueueLength(length) => attributes.push(LinkAttribute::TxQueueLen(*length)),
            LinkChange::Mtu(mtu) => attributes.push(LinkAttribute::Mtu(mtu.get())),
            LinkChange::Mac(mac) => attributes.push(LinkAttribute::Address(mac.0.to_vec())),
            LinkChange::Alias(alias) => attributes.push(LinkAttribute::IfAlias(alias.clone())),
            LinkChange::Master(bridge) => {
                attributes.push(LinkAttribute::Controller(self.index(*bridge)?));
            }
            LinkChange::Hairpin(on) => {
                attributes.push(bridge::port(InfoBridgePort::HairpinMode(*on)));
            }
            LinkChange::Isolated(on) => {
                attributes.push(bridge::port(InfoBridgePort::Isolated(*on)));
            }
            LinkChange::VlanFiltering(on) => {
                let kind = LinkInfo::Kind(InfoKind::Bridge);
                let info = vec![kind, bridge::vlan_filtering(*on)];
                attributes.push(LinkAttribute::LinkInfo(info));
            }
            LinkChange::VxlanLocal(local) => attributes.push(vxlan(vxlan_local(*local))),
            LinkChange::VxlanLearning(on) => attributes.push(vxlan(InfoVxlan::Learning(*on))),
            LinkChange::VxlanUnderlay(underlay) => {
                let index = self.index(*underlay)?;
                attributes.push(vxlan(InfoVxlan::Link(index)));
            }
        }
        let mut request = new_link(attributes, 0);
        if let (Some((flag, on)), RouteNetlinkMessage::NewLink(message)) =
            (flag(change), &mut request.message)
        {
            message.header.flags = if on { flag } else { LinkFlags::empty() };
            message.header.change_mask = flag;
        }
        Ok(request)
    }
}

/// The kernel uses one queue for each direction of a pair anyway. If not told so, it makes more and
/// then waits for a grace period under its global network lock to give them up (`veth_init_queues`).
const ONE_QUEUE: [LinkAttribute; 2] =
    [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];

const fn flag(change: &LinkChange) -> Option<(LinkFlags, bool)> {
    match change {
        LinkChange::Up => Some((LinkFlags::Up, true)),
        LinkChange::Down => Some((LinkFlags::Up, false)),
        LinkChange::Promiscuous(on) => Some((LinkFlags::Promisc, *on)),
        LinkChange::AllMulticast(on) => Some((LinkFlags::Allmulti, *on)),
        _ => None,
    }
}

fn macvlan_data(macvlan: &Macvlan) -> Vec<InfoMacVlan> {
    let mode = match macvlan.mode {
        MacvlanMode::Bridge => MacVlanMode::Bridge,
        MacvlanMode::Private => MacVlanMode::Private,
        MacvlanMode::Vepa => MacVlanMode::Vepa,
        MacvlanMode::Passthru => MacVlanMode::Passthrough,
    };
    let queue = macvlan.broadcast_queue.map(InfoMacVlan::BcQueueLen);
    [InfoMacVlan::Mode(mode)].into_iter().chain(queue).collect()
}

fn new_link(attributes: Vec<LinkAttribute>, flags: u16) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = attributes;
    Request { message: RouteNetlinkMessage::NewLink(message), flags }
}

fn del_link(name: LinkName) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.as_str().to_owned()));
    Request { message: RouteNetlinkMessage::DelLink(message), flags: 0 }
}

const fn vxlan_local(local: IpAddr) -> InfoVxlan {
    match local {
        IpAddr::V4(ip) => InfoVxlan::Local(ip),
        IpAddr::V6(ip) => InfoVxlan::Local6(ip),
    }
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

fn replace_unrouted_address(index: u32, ip: IpNetwork) -> Request {
    let mut request = replace_address(index, ip);
    if let RouteNetlinkMessage::NewAddress(message) = &mut request.message {
        // The one byte of the header has no room for this flag.
        let flags = message.header.flags.bits().into();
        let flags = AddressFlags::from_bits_retain(flags) | AddressFlags::Noprefixroute;
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    request
}

fn replace_address(index: u32, ip: IpNetwork) -> Request {
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
fn probe_address(index: u32, ip: IpNetwork) -> Request {
    let mut request = replace_address(index, ip);
    if let RouteNetlinkMessage::NewAddress(message) = &mut request.message {
        message.header.flags = AddressHeaderFlags::empty();
    }
    request
}

fn del_address(index: u32, ip: IpNetwork) -> Request {
    let message = RouteNetlinkMessage::DelAddress(address(index, ip));
    Request { message, flags: 0 }
}

fn neighbour(index: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = index;
    message.attributes.push(NeighbourAttribute::Destination(neighbour_address(ip)));
    message
}

fn replace_neighbour(index: u32, ip: IpAddr, mac: MacAddr) -> Request {
    let mut message = neighbour(index, ip);
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    replace(RouteNetlinkMessage::NewNeighbour(message))
}

fn del_neighbour(index: u32, ip: IpAddr) -> Request {
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

fn replace_fdb_entry(index: u32, mac: MacAddr, vtep: IpAddr) -> Request {
    replace(RouteNetlinkMessage::NewNeighbour(fdb_entry(index, mac, vtep)))
}

fn del_fdb_entry(index: u32, mac: MacAddr, vtep: IpAddr) -> Request {
    let message = RouteNetlinkMessage::DelNeighbour(fdb_entry(index, mac, vtep));
    Request { message, flags: 0 }
}

fn route(index: u32, key: &RouteKey, route: &Route) -> RouteMessage {
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

fn add_route(index: u32, key: &RouteKey, to: &Route) -> Request {
    let message = RouteNetlinkMessage::NewRoute(route(index, key, to));
    Request { message, flags: NLM_F_CREATE | NLM_F_EXCL }
}

fn replace_route(index: u32, key: &RouteKey, to: &Route) -> Request {
    replace(RouteNetlinkMessage::NewRoute(route(index, key, to)))
}

fn del_route(index: u32, key: &RouteKey, to: &Route) -> Request {
    Request { message: RouteNetlinkMessage::DelRoute(route(index, key, to)), flags: 0 }
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

fn add_blackhole(key: &RouteKey) -> Request {
    let message = RouteNetlinkMessage::NewRoute(blackhole(key));
    Request { message, flags: NLM_F_CREATE | NLM_F_EXCL }
}

fn del_blackhole(key: &RouteKey) -> Request {
    Request { message: RouteNetlinkMessage::DelRoute(blackhole(key)), flags: 0 }
}

const fn replace(message: RouteNetlinkMessage) -> Request {
    Request { message, flags: NLM_F_CREATE | NLM_F_REPLACE }
}

const fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

const fn neighbour_address(ip: IpAddr) -> NeighbourAddress {
    match ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    }
}

const fn route_address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}
