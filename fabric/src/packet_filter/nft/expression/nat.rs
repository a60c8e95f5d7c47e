//! The expressions that lead ports of the node to pods.

use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{DefaultNla, Nla};
use netlink_packet_netfilter::nftables::{
    DataAttribute, Expressions, Immediate, MetaKey, Register,
};

use super::decode::Origin;
use super::{
    Expression, NFT_PAYLOAD_TRANSPORT_HEADER, Protocol, compare, load_header, load_meta, octets,
};
use crate::link_name::LinkName;
use crate::packet_filter::Transport;

/// Where the port lies in the header of all three protocols.
pub(super) const DESTINATION_PORT: u32 = 2;
/// Bytes of a port.
pub(super) const PORT_LENGTH: u32 = 2;

// linux/netfilter/nf_tables.h
const NFT_REG_1: u32 = 1;
const NFT_REG_2: u32 = 2;
const NFTA_FIB_DREG: u16 = 1;
const NFTA_FIB_RESULT: u16 = 2;
const NFTA_FIB_FLAGS: u16 = 3;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_DADDR: u32 = 1 << 1;
const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
const NFTA_NAT_REG_ADDR_MAX: u16 = 4;
const NFTA_NAT_REG_PROTO_MIN: u16 = 5;
const NFTA_NAT_REG_PROTO_MAX: u16 = 6;
const NFTA_NAT_FLAGS: u16 = 7;
const NFT_NAT_DNAT: u32 = 1;
// linux/netfilter/nf_nat.h: NF_NAT_RANGE_MAP_IPS and NF_NAT_RANGE_PROTO_SPECIFIED, which follow from
// the registers.
const IMPLIED_FLAGS: u32 = 3;
// linux/rtnetlink.h
const RTN_LOCAL: u32 = 2;
/// Bytes of the name of an interface (`IFNAMSIZ`).
const IFNAMSIZ: usize = 16;

const fn number(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp => 6,
        Transport::Udp => 17,
        Transport::Sctp => 132,
    }
}

fn word(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

fn other(name: &str, attributes: Vec<DefaultNla>) -> Expression {
    Expressions::Other { expression_type: name.to_owned(), attributes }.into()
}

pub(super) fn match_local_destination() -> [Expression; 2] {
    let load = other(
        "fib",
        vec![
            word(NFTA_FIB_DREG, NFT_REG_1),
            word(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE),
            word(NFTA_FIB_FLAGS, NFTA_FIB_F_DADDR),
        ],
    );
    [load, compare(true, RTN_LOCAL.to_ne_bytes().to_vec())]
}

pub(super) fn match_port(transport: Transport, port: u16) -> [Expression; 4] {
    const LENGTH: u8 = 2;
    [
        load_meta(MetaKey::L4Proto),
        compare(true, vec![number(transport)]),
        load_header(NFT_PAYLOAD_TRANSPORT_HEADER, DESTINATION_PORT, LENGTH),
        compare(true, port.to_be_bytes().to_vec()),
    ]
}

pub(super) fn match_input_interface(link: LinkName) -> [Expression; 2] {
    let mut name = link.as_str().as_bytes().to_vec();
    name.resize(IFNAMSIZ, 0);
    [load_meta(MetaKey::Iifname), compare(true, name)]
}

/// Loads address and port into the first registers.
pub(super) fn load_destination(to: SocketAddr) -> [Expression; 2] {
    let load = |register, value| {
        Expressions::Immediate(vec![
            Immediate::DestinationRegister(register),
            Immediate::Data(DataAttribute::Value(value)),
        ])
        .into()
    };
    [load(Register::Reg1, octets(to.ip())), load(Register::Reg2, to.port().to_be_bytes().to_vec())]
}

/// Translates to what the first registers hold.
pub(super) fn translate(to: SocketAddr) -> Expression {
    let protocol = if to.is_ipv4() { Protocol::V4 } else { Protocol::V6 };
    other(
        "nat",
        vec![
            word(NFTA_NAT_TYPE, NFT_NAT_DNAT),
            word(NFTA_NAT_FAMILY, protocol.number().into()),
            word(NFTA_NAT_REG_ADDR_MIN, NFT_REG_1),
            word(NFTA_NAT_REG_PROTO_MIN, NFT_REG_2),
        ],
    )
}

pub(super) fn fib_origin(attributes: &[DefaultNla]) -> Option<Origin> {
    let expected = [
        word(NFTA_FIB_DREG, NFT_REG_1),
        word(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE),
        word(NFTA_FIB_FLAGS, NFTA_FIB_F_DADDR),
    ];
    (*attributes == expected).then_some(Origin::AddressType)
}

/// Returns what is loaded into which register, if it is not a verdict.
pub(super) fn loaded(attributes: &[Immediate]) -> Option<(Register, Vec<u8>)> {
    match attributes {
        [
            Immediate::DestinationRegister(register),
            Immediate::Data(DataAttribute::Value(value)),
        ] => Some((*register, value.clone())),
        _ => None,
    }
}

/// Returns where a translation leads to that finds address and port in the registers.
pub(super) fn destination(
    protocol: Protocol,
    attributes: &[DefaultNla],
    registers: &[Vec<u8>],
) -> Option<SocketAddr> {
    let is_as_written = |attribute: &DefaultNla| {
        let is = |value| *attribute == word(attribute.kind(), value);
        match attribute.kind() {
            NFTA_NAT_TYPE => is(NFT_NAT_DNAT),
            NFTA_NAT_FAMILY => is(protocol.number().into()),
            NFTA_NAT_REG_ADDR_MIN | NFTA_NAT_REG_ADDR_MAX => is(NFT_REG_1),
            NFTA_NAT_REG_PROTO_MIN | NFTA_NAT_REG_PROTO_MAX => is(NFT_REG_2),
            NFTA_NAT_FLAGS => (0..=IMPLIED_FLAGS).any(is),
            _ => false,
        }
    };
    let needed = [NFTA_NAT_TYPE, NFTA_NAT_FAMILY, NFTA_NAT_REG_ADDR_MIN, NFTA_NAT_REG_PROTO_MIN];
    let has = |kind: &u16| attributes.iter().any(|attribute| attribute.kind() == *kind);
    if !attributes.iter().all(is_as_written) || !needed.iter().all(has) {
        return None;
    }
    let [address, port] = registers else { return None };
    let address: IpAddr = match protocol {
        Protocol::V4 => <[u8; 4]>::try_from(address.as_slice()).ok()?.into(),
        Protocol::V6 => <[u8; 16]>::try_from(address.as_slice()).ok()?.into(),
    };
    Some((address, u16::from_be_bytes(port.as_slice().try_into().ok()?)).into())
}

pub(super) fn transport(value: &[u8]) -> Option<Transport> {
    Transport::ALL.into_iter().find(|transport| value == [number(*transport)])
}

pub(super) fn is_local(value: &[u8]) -> bool {
    value == RTN_LOCAL.to_ne_bytes()
}

/// A name that is compared as a whole; without its final zero it would be a prefix.
pub(super) fn link_name(value: &[u8]) -> Option<LinkName> {
    let end = value.iter().position(|byte| *byte == 0)?;
    let whole = value.len() == IFNAMSIZ && value[end..].iter().all(|byte| *byte == 0);
    std::str::from_utf8(&value[..end]).ok()?.parse().ok().filter(|_| whole)
}
