//! Making and changing links (`ip link`).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoMacVlan, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage, MacVlanMode,
};

use super::Applier;
use crate::link_name::LinkName;
use crate::netlink::bridge;
use crate::netlink::socket::Request;
use crate::netns::Netns;
use crate::netstate::{Link, LinkKind, Macvlan, MacvlanMode, VethPeer, Vxlan};
use crate::plan::LinkChange;

impl Applier<'_> {
    pub(super) fn add_link(&mut self, name: LinkName, link: &Link) -> io::Result<Request> {
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
    pub(super) fn add_link_in(
        &mut self,
        netns: &Path,
        name: LinkName,
        link: &Link,
    ) -> io::Result<Request> {
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

    pub(super) fn set_link(&mut self, name: LinkName, change: &LinkChange) -> io::Result<Request> {
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

pub(super) fn del_link(name: LinkName) -> Request {
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
