//! Bridges and their ports: what plain requests about links cannot say.
//!
//! VLANs of ports are spoken of in messages of the family `AF_BRIDGE` (`net/bridge/br_netlink.c` of
//! the kernel).

use std::collections::BTreeMap;

use netlink_packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, InfoBridge, InfoBridgePort, InfoData,
    InfoPortData, InfoPortKind, LinkAttribute, LinkExtentMask, LinkInfo, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::links::name;
use super::socket::{NetlinkError, Request, Socket};
use crate::link_name::LinkName;
use crate::netstate::PortVlan;

/// The last number of a VLAN (IEEE 802.1Q); the one behind it is reserved.
const VID_MAX: u16 = 4094;

/// A property of a port. It must be set by `RTM_NEWLINK`: `RTM_SETLINK` says yes and does nothing.
pub(super) fn port(property: InfoBridgePort) -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![property])),
    ])
}

/// A property of a bridge.
pub(super) fn vlan_filtering(on: bool) -> LinkInfo {
    LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(on)]))
}

/// What a bridge says of itself.
pub(super) fn observed_vlan_filtering(infos: &[LinkInfo]) -> Option<bool> {
    infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Bridge(properties)) => properties.iter().find_map(|property| {
            if let InfoBridge::VlanFiltering(on) = property { Some(*on) } else { None }
        }),
        _ => None,
    })
}

/// What a port says of itself: whether it sends frames back, and whether it is isolated.
pub(super) fn observed_port(infos: &[LinkInfo]) -> (bool, bool) {
    let properties = infos.iter().find_map(|info| match info {
        LinkInfo::PortData(InfoPortData::BridgePort(properties)) => Some(properties.as_slice()),
        _ => None,
    });
    let has = |wanted| properties.unwrap_or_default().contains(&wanted);
    (has(InfoBridgePort::HairpinMode(true)), has(InfoBridgePort::Isolated(true)))
}

/// `bridge vlan add`
pub(super) fn replace_vlan(index: u32, vid: u16, vlan: PortVlan) -> Request {
    let mut flags = BridgeVlanInfoFlags::empty();
    flags.set(BridgeVlanInfoFlags::Pvid, vlan.pvid);
    flags.set(BridgeVlanInfoFlags::Untagged, vlan.untagged);
    let message = RouteNetlinkMessage::SetLink(vlans(index, &[(vid, flags)]));
    Request { message, flags: 0 }
}

/// `bridge vlan del`
pub(super) fn del_vlan(index: u32, vid: u16) -> Request {
    let message = vlans(index, &[(vid, BridgeVlanInfoFlags::empty())]);
    Request { message: RouteNetlinkMessage::DelLink(message), flags: 0 }
}

/// `bridge vlan del vid 1-4094`: it does not matter which of them there are.
pub(super) fn clear_vlans(index: u32) -> Request {
    let range = [(1, BridgeVlanInfoFlags::RangeBegin), (VID_MAX, BridgeVlanInfoFlags::RangeEnd)];
    Request { message: RouteNetlinkMessage::DelLink(vlans(index, &range)), flags: 0 }
}

fn vlans(index: u32, vlans: &[(u16, BridgeVlanInfoFlags)]) -> LinkMessage {
    let info = |&(vid, flags): &_| AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid });
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = index;
    message.attributes.push(LinkAttribute::AfSpecBridge(vlans.iter().map(info).collect()));
    message
}

/// Returns the ports of a bridge, each with the remark on it (`ip link show master NAME`).
///
/// # Errors
/// If the kernel cannot be asked.
pub fn ports(
    socket: &mut Socket,
    bridge: LinkName,
) -> Result<BTreeMap<LinkName, Option<String>>, NetlinkError> {
    let Some(bridge) = socket.link_by_name(bridge)? else { return Ok(BTreeMap::new()) };
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let rows = socket.dump("links", &RouteNetlinkMessage::GetLink(request))?;
    let port = |row: &RouteNetlinkMessage| {
        let RouteNetlinkMessage::NewLink(message) = row else { return None };
        let attributes = &message.attributes;
        let is_port = attributes.contains(&LinkAttribute::Controller(bridge.header.index));
        let alias = attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfAlias(alias) => Some(alias.clone()),
            _ => None,
        });
        Some((name(message).filter(|_| is_port)?, alias))
    };
    Ok(rows.iter().filter_map(port).collect())
}

/// Reads the VLANs of these ports (`bridge vlan show`).
pub(super) fn observe_vlans(
    socket: &mut Socket,
    names: &BTreeMap<u32, LinkName>,
) -> Result<BTreeMap<(LinkName, u16), PortVlan>, NetlinkError> {
    let mut request = LinkMessage::default();
    request.header.interface_family = AddressFamily::Bridge;
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::Brvlan]));
    let rows = socket.dump("VLANs", &RouteNetlinkMessage::GetLink(request))?;
    let mut vlans = BTreeMap::new();
    for row in &rows {
        let RouteNetlinkMessage::NewLink(message) = row else { continue };
        let Some(name) = names.get(&message.header.index) else { continue };
        let specs = message.attributes.iter().filter_map(|attribute| match attribute {
            LinkAttribute::AfSpecBridge(specs) => Some(specs),
            _ => None,
        });
        for spec in specs.flatten() {
            if let AfSpecBridge::VlanInfo(info) = spec {
                let pvid = info.flags.contains(BridgeVlanInfoFlags::Pvid);
                let untagged = info.flags.contains(BridgeVlanInfoFlags::Untagged);
                vlans.insert((*name, info.vid), PortVlan { pvid, untagged });
            }
        }
    }
    Ok(vlans)
}
