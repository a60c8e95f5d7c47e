//! Links as rtnetlink describes them (`ip -details link show`).

use std::net::IpAddr;

use netlink_packet_core::Nla;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoMacVlan, InfoTun, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags,
    LinkInfo, LinkLayerType, LinkMessage, MacVlanMode,
};

use super::bridge;
use super::socket::{NetlinkError, Socket};
use crate::link_name::LinkName;
use crate::mac::MacAddr;
use crate::mtu::Mtu;
use crate::netstate::{BridgePort, Link, LinkKind, Macvlan, MacvlanMode, Vxlan};
use crate::vni::Vni;

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
    pub(super) fn tunnels(&mut self) -> Result<Vec<LinkMessage>, NetlinkError> {
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

    pub(super) fn name_of(&mut self, index: u32) -> Result<Option<LinkName>, NetlinkError> {
        Ok(self.link_by_index(index)?.and_then(|link| name(&link)))
    }

    pub(super) fn decode_link(&mut self, message: &LinkMessage) -> Result<Link, NetlinkError> {
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
