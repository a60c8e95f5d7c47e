//! Connections that the kernel tracks (`conntrack(8)`), to forget those that lead to the wrong place.
//!
//! Rules that translate addresses only see the first packet of a flow. UDP has no end of a flow but
//! a time without packets, so a client that keeps on sending keeps on sending to where the rules led
//! at first.

use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{DefaultNla, NLA_TYPE_MASK, NLM_F_ACK, NLM_F_DUMP, NlasIterator};
use netlink_packet_netfilter::conntrack::ConntrackMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use super::connection::{Connection, Failure};
use super::message::Request;
use super::{error, is_absent};
use crate::packet_filter::Error;

// linux/netfilter/nfnetlink_conntrack.h
const IPCTNL_MSG_CT_GET: u8 = 1;
const IPCTNL_MSG_CT_DELETE: u8 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const UDP: u8 = 17;

/// A flow of UDP packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Where its first packet was sent to.
    pub destination: SocketAddr,
    /// Who answers.
    pub answered_by: IpAddr,
}

/// Forgets the UDP flows that are `stale` (`conntrack -D -p udp`), and returns how many they were.
///
/// # Errors
/// If the kernel cannot be asked or refuses. A flow that ended meanwhile is no error.
pub fn forget_udp_flows(stale: impl Fn(&Flow) -> bool) -> Result<usize, Error> {
    let mut connection = Connection::open().map_err(Error::Socket)?;
    let mut count = 0;
    for family in [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::IPv6] {
        let list = request(family, IPCTNL_MSG_CT_GET, Vec::new(), NLM_F_DUMP);
        let refused = |failure| error(failure, format_args!("list connections"));
        for entry in connection.ask(list).map_err(refused)? {
            let Some((flow, original)) = decode(&entry) else { continue };
            if !stale(&flow) {
                continue;
            }
            let original = vec![DefaultNla::new(CTA_TUPLE_ORIG, original.to_vec())];
            match connection.ask(request(family, IPCTNL_MSG_CT_DELETE, original, NLM_F_ACK)) {
                Err(Failure::Refused { errno, .. }) if is_absent(&errno) => {}
                answer => {
                    let refused = |failure| error(failure, format_args!("delete a connection"));
                    answer.map_err(refused)?;
                    count += 1;
                }
            }
        }
    }
    Ok(count)
}

fn request(
    family: NetfilterProtoFamily,
    message_type: u8,
    attributes: Vec<DefaultNla>,
    flags: u16,
) -> Request {
    let message = ConntrackMessage::Other { message_type, attributes };
    Request { message: NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message), flags }
}

/// Returns the flow and the attribute that identifies it, if it is one of UDP.
fn decode(entry: &[u8]) -> Option<(Flow, &[u8])> {
    let (original, reply) = (attribute(entry, CTA_TUPLE_ORIG)?, attribute(entry, CTA_TUPLE_REPLY)?);
    let protocol = attribute(original, CTA_TUPLE_PROTO)?;
    if attribute(protocol, CTA_PROTO_NUM)? != [UDP] {
        return None;
    }
    let port = attribute(protocol, CTA_PROTO_DST_PORT)?.try_into().ok()?;
    let address = attribute(original, CTA_TUPLE_IP)?;
    let address = ip(address, CTA_IP_V4_DST, CTA_IP_V6_DST)?;
    let answered_by = ip(attribute(reply, CTA_TUPLE_IP)?, CTA_IP_V4_SRC, CTA_IP_V6_SRC)?;
    let destination = SocketAddr::new(address, u16::from_be_bytes(port));
    Some((Flow { destination, answered_by }, original))
}

fn ip(addresses: &[u8], v4: u16, v6: u16) -> Option<IpAddr> {
    match attribute(addresses, v4) {
        Some(bytes) => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
        None => Some(<[u8; 16]>::try_from(attribute(addresses, v6)?).ok()?.into()),
    }
}

fn attribute(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let mut attributes = NlasIterator::new(attributes).flatten();
    let found = attributes.find(|attribute| attribute.kind() & NLA_TYPE_MASK == kind)?;
    Some(super::expression::value(found))
}
