//! Rules as the expressions that the kernel evaluates, the way nft(8) writes them.
//!
//! Each match loads something into a register and compares it.

mod decode;
mod nat;

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, Meta,
    MetaKey, Operator, Payload, Register, Verdict as Code, VerdictAttribute,
};

pub(super) use decode::{decode, value};

use crate::packet_filter::{Family, Match, Verdict};

/// One element of `NFTA_RULE_EXPRESSIONS`.
pub(super) type Expression = ListAttribute<ExpressionAttribute>;

// linux/netfilter.h
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
// linux/netfilter/nf_tables.h
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFT_PAYLOAD_LINK_HEADER: u32 = 0;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
const NFT_BITWISE_MASK_XOR: u32 = 0;
const NFTA_MASQ_FLAGS: u16 = 1;
/// Where the source lies in the header of an Ethernet frame (IEEE 802.3), and its bytes.
const ETHER_SOURCE: (u32, u8) = (6, 6);
// linux/netfilter/nf_nat.h
const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 1 << 4;

/// The protocol of a network header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    V4,
    V6,
}

/// Whose address it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

impl Protocol {
    const fn of(network: &IpNetwork) -> Self {
        match network {
            IpNetwork::V4(_) => Self::V4,
            IpNetwork::V6(_) => Self::V6,
        }
    }

    /// The protocol that all packets have that a table sees.
    const fn implied_by(family: Family) -> Option<Self> {
        match family {
            Family::Ip => Some(Self::V4),
            Family::Ip6 => Some(Self::V6),
            Family::Inet | Family::Bridge => None,
        }
    }

    /// `NFPROTO_IPV4` and `NFPROTO_IPV6` of linux/netfilter.h.
    const fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    /// Bytes of an address.
    const fn length(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    /// Where an address lies in the header: RFC 791, section 3.1, and RFC 8200, section 3.
    const fn offset(self, side: Side) -> u32 {
        match (self, side) {
            (Self::V4, Side::Source) => 12,
            (Self::V4, Side::Destination) => 16,
            (Self::V6, Side::Source) => 8,
            (Self::V6, Side::Destination) => 24,
        }
    }
}

/// Returns the expressions for a rule in a table of `family`.
pub(super) fn encode(family: Family, matches: &[Match], verdict: &Verdict) -> Vec<Expression> {
    let mut expressions = Vec::new();
    let mut checked = Protocol::implied_by(family);
    for condition in matches {
        let (side, network, equal) = match condition {
            Match::Source(network, equal) => (Side::Source, network, *equal),
            Match::Destination(network, equal) => (Side::Destination, network, *equal),
            Match::Mark(bits) => {
                expressions.extend(match_mark(*bits));
                continue;
            }
            Match::LocalDestination => {
                expressions.extend(nat::match_local_destination());
                continue;
            }
            Match::DestinationPort(transport, port) => {
                expressions.extend(nat::match_port(*transport, *port));
                continue;
            }
            Match::InputInterface(link) => {
                expressions.extend(nat::match_input_interface(*link));
                continue;
            }
            Match::EtherSource(mac) => {
                let (offset, length) = ETHER_SOURCE;
                expressions.push(load_header(NFT_PAYLOAD_LINK_HEADER, offset, length));
                expressions.push(compare(true, mac.0.to_vec()));
                continue;
            }
        };
        let protocol = Protocol::of(network);
        if checked.replace(protocol) != Some(protocol) {
            expressions.extend(match_protocol(protocol));
        }
        expressions.extend(match_address(side, network, equal));
    }
    if let Verdict::DestinationNat(to) = verdict {
        expressions.extend(nat::load_destination(*to));
    }
    if let Verdict::ClearMark(bits) = verdict {
        expressions.extend([load_meta(MetaKey::Mark), mask((!bits).to_ne_bytes().to_vec())]);
    }
    expressions.push(conclude(verdict));
    expressions
}

fn match_mark(bits: u32) -> [Expression; 3] {
    let bits = bits.to_ne_bytes().to_vec();
    [load_meta(MetaKey::Mark), mask(bits.clone()), compare(true, bits)]
}

fn match_protocol(protocol: Protocol) -> [Expression; 2] {
    [load_meta(MetaKey::Nfproto), compare(true, vec![protocol.number()])]
}

/// A prefix of whole bytes is loaded alone and needs no mask, just as nft(8) does.
fn match_address(side: Side, network: &IpNetwork, equal: bool) -> Vec<Expression> {
    let protocol = Protocol::of(network);
    let offset = protocol.offset(side);
    let mut value = octets(network.network());
    if network.prefix() > 0 && network.prefix().is_multiple_of(8) {
        let length = network.prefix() / 8;
        value.truncate(length.into());
        vec![load_network(offset, length), compare(equal, value)]
    } else {
        let length = protocol.length();
        vec![load_network(offset, length), mask(octets(network.mask())), compare(equal, value)]
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn load_meta(key: MetaKey) -> Expression {
    Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(Register::Reg1)]).into()
}

fn load_network(offset: u32, length: u8) -> Expression {
    load_header(NFT_PAYLOAD_NETWORK_HEADER, offset, length)
}

fn load_header(base: u32, offset: u32, length: u8) -> Expression {
    Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length.into()),
    ])
    .into()
}

fn mask(mask: Vec<u8>) -> Expression {
    let length = u32::try_from(mask.len()).expect("an address has at most 16 bytes");
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(length),
        Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
        Bitwise::Mask(DataAttribute::Value(mask)),
    ])
    .into()
}

fn compare(equal: bool, value: Vec<u8>) -> Expression {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(if equal { Operator::Equal } else { Operator::NotEqual }),
        Cmp::Data(DataAttribute::Value(value)),
    ])
    .into()
}

fn conclude(verdict: &Verdict) -> Expression {
    let code = |code| vec![VerdictAttribute::Code(code)];
    match verdict {
        Verdict::Accept => immediate(code(Code::Other(NF_ACCEPT))),
        Verdict::Return => immediate(code(Code::Return)),
        Verdict::Drop => immediate(code(Code::Other(NF_DROP))),
        Verdict::Goto(chain) => lead(Code::Goto, chain),
        Verdict::Jump(chain) => lead(Code::Jump, chain),
        Verdict::DestinationNat(to) => nat::translate(*to),
        Verdict::ClearMark(_) => {
            Expressions::Meta(vec![Meta::Key(MetaKey::Mark), Meta::SourceRegister(Register::Reg1)])
                .into()
        }
        Verdict::Masquerade { fully_random } => {
            let flags = fully_random.then(|| masquerade_flags(NF_NAT_RANGE_PROTO_RANDOM_FULLY));
            Expressions::Other {
                expression_type: "masq".to_owned(),
                attributes: flags.into_iter().collect(),
            }
            .into()
        }
    }
}

fn lead(code: Code, chain: &str) -> Expression {
    immediate(vec![VerdictAttribute::Code(code), VerdictAttribute::Chain(chain.to_owned())])
}

fn immediate(verdict: Vec<VerdictAttribute>) -> Expression {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(verdict)),
    ])
    .into()
}

fn masquerade_flags(flags: u32) -> DefaultNla {
    DefaultNla::new(NFTA_MASQ_FLAGS, flags.to_be_bytes().to_vec())
}

#[cfg(test)]
mod tests;
