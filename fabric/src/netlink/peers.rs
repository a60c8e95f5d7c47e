//! Which link belongs to which, across namespaces: by number.

use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

use super::links::name;
use super::socket::{NetlinkError, Socket};
use crate::link_name::LinkName;

/// Returns the number that the other end of a veth pair has in its namespace; `None` if the link is
/// not such an end, or not there.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn peer_of(socket: &mut Socket, link: LinkName) -> Result<Option<u32>, NetlinkError> {
    let Some(message) = socket.link_by_name(link)? else { return Ok(None) };
    let peer = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    });
    Ok(peer.filter(|_| is_veth(&message)))
}

/// Returns the name of the link with this number.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn link_of_index(socket: &mut Socket, index: u32) -> Result<Option<LinkName>, NetlinkError> {
    Ok(socket.link_by_index(index)?.and_then(|message| name(&message)))
}

fn is_veth(message: &LinkMessage) -> bool {
    message.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Veth)),
        _ => false,
    })
}
