//! Rules as the expressions that the kernel evaluates, the way nft(8) writes them.
//!
//! Each match loads something into a register and compares it. The decoder follows what a register
//! holds and gives up on everything that we do not write ourselves, so that a rule is either
//! understood wholly or not at all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netlink_packet_core::{
    DefaultNla, NLA_HEADER_SIZE, NLA_TYPE_MASK, Nla, NlaBuffer, NlasIterator, Parseable,
};
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, Meta,
    MetaKey, Operator, Payload, Register, Verdict as Code, VerdictAttribute,
};

use crate::packet_filter::{Family, Match, Verdict};

/// One element of `NFTA_RULE_EXPRESSIONS`.
pub(super) type Expression = ListAttribute<ExpressionAttribute>;

// linux/netfilter.h
const NF_ACCEPT: u32 = 1;
// linux/netfilter/nf_tables.h
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_BITWISE_MASK_XOR: u32 = 0;
const NFTA_MASQ_FLAGS: u16 = 1;
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
            Family::Inet => None,
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
        };
        let protocol = Protocol::of(network);
        if checked.replace(protocol) != Some(protocol) {
            expressions.extend(match_protocol(protocol));
        }
        expressions.extend(match_address(side, network, equal));
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
        vec![load_header(offset, length), compare(equal, value)]
    } else {
        let length = protocol.length();
        vec![load_header(offset, length), mask(octets(network.mask())), compare(equal, value)]
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

fn load_header(offset: u32, length: u8) -> Expression {
    Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(NFT_PAYLOAD_NETWORK_HEADER),
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
        Verdict::Goto(chain) => immediate(vec![
            VerdictAttribute::Code(Code::Goto),
            VerdictAttribute::Chain(chain.clone()),
        ]),
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

/// Returns what a rule in a table of `family` says that has these `NFTA_RULE_EXPRESSIONS`, or `None`
/// if we have no words for it.
///
/// The list is taken apart here and not by `RuleAttribute`, which for each element formats the whole
/// list for an error that does not occur: 25 ms instead of 1 ms for 500 rules.
pub(super) fn decode(family: Family, expressions: &[u8]) -> Option<(Vec<Match>, Verdict)> {
    let mut decoder = Decoder {
        protocol: Protocol::implied_by(family),
        protocol_alone: false,
        register: None,
        matches: Vec::new(),
        verdict: None,
    };
    for expression in NlasIterator::new(expressions) {
        let (mut name, mut attributes) = (None, None);
        for part in NlasIterator::new(value(expression.ok()?)) {
            let part = part.ok()?;
            match part.kind() {
                NFTA_EXPR_NAME => name = Some(value(part)),
                NFTA_EXPR_DATA => attributes = Some(value(part)),
                _ => return None,
            }
        }
        decoder.follow(name?, attributes?)?;
    }
    let complete = decoder.register.is_none() && !decoder.protocol_alone;
    complete.then_some((decoder.matches, decoder.verdict?))
}

fn value(attribute: NlaBuffer<&[u8]>) -> &[u8] {
    let end = usize::from(attribute.length());
    &attribute.into_inner()[NLA_HEADER_SIZE..end]
}

/// Reads attributes and sorts them by type, because their order means nothing and kernels may differ
/// in it.
fn sorted<T>(attributes: &[u8]) -> Option<Vec<T>>
where
    T: Nla + for<'a> Parseable<NlaBuffer<&'a [u8]>>,
{
    let attributes = NlasIterator::new(attributes).map(|attribute| T::parse(&attribute.ok()?).ok());
    let mut attributes = attributes.collect::<Option<Vec<T>>>()?;
    attributes.sort_by_key(|attribute| attribute.kind() & NLA_TYPE_MASK);
    Some(attributes)
}

/// What is known of a packet, one expression after another.
struct Decoder {
    /// The protocol that it must have to come this far.
    protocol: Option<Protocol>,
    /// Whether that was checked but not for the sake of an address, which is more than we can say.
    protocol_alone: bool,
    /// What register 1 holds.
    register: Option<Loaded>,
    /// The conditions so far.
    matches: Vec<Match>,
    /// What the rule decides; nothing may follow it.
    verdict: Option<Verdict>,
}

/// What a register holds.
struct Loaded {
    from: Origin,
    mask: Option<Vec<u8>>,
}

/// Where the content of a register is from.
enum Origin {
    Mark,
    Protocol,
    NetworkHeader { offset: u32, length: u32 },
}

impl Decoder {
    fn follow(&mut self, name: &[u8], attributes: &[u8]) -> Option<()> {
        if self.verdict.is_some() {
            return None;
        }
        match name {
            b"meta\0" => self.load(meta_origin(&sorted(attributes)?)?),
            b"payload\0" => self.load(payload_origin(&sorted(attributes)?)?),
            b"bitwise\0" => self.mask(&sorted(attributes)?),
            b"cmp\0" => self.compare(&sorted(attributes)?),
            b"immediate\0" => {
                self.verdict = Some(immediate_verdict(&sorted(attributes)?)?);
                Some(())
            }
            b"masq\0" => {
                self.verdict = Some(masquerade(&sorted(attributes)?)?);
                Some(())
            }
            _ => None,
        }
    }

    fn load(&mut self, from: Origin) -> Option<()> {
        self.register.replace(Loaded { from, mask: None }).is_none().then_some(())
    }

    fn mask(&mut self, attributes: &[Bitwise]) -> Option<()> {
        // Kernels before 5.6 know no other operation and do not name it.
        let ([operands @ .., Bitwise::Op(NFT_BITWISE_MASK_XOR)] | operands) = attributes;
        let [
            Bitwise::SourceRegister(Register::Reg1),
            Bitwise::DestinationRegister(Register::Reg1),
            Bitwise::Length(_),
            Bitwise::Mask(DataAttribute::Value(mask)),
            Bitwise::Xor(DataAttribute::Value(xor)),
        ] = operands
        else {
            return None;
        };
        let masked = self.register.as_mut()?.mask.replace(mask.clone());
        (masked.is_none() && xor.iter().all(|&byte| byte == 0)).then_some(())
    }

    fn compare(&mut self, attributes: &[Cmp]) -> Option<()> {
        let [Cmp::SourceRegister(Register::Reg1), Cmp::Op(operator), Cmp::Data(data)] = attributes
        else {
            return None;
        };
        let DataAttribute::Value(value) = data else { return None };
        let equal = match operator {
            Operator::Equal => true,
            Operator::NotEqual => false,
            _ => return None,
        };
        let Loaded { from, mask } = self.register.take()?;
        match from {
            Origin::Mark => self.compare_mark(equal, mask?, value),
            Origin::Protocol => mask.is_none().then(|| self.compare_protocol(equal, value))?,
            Origin::NetworkHeader { offset, length } => {
                let mask = mask.unwrap_or_else(|| vec![0xff; value.len()]);
                let whole = u32::try_from(value.len()) == Ok(length) && mask.len() == value.len();
                whole.then(|| self.compare_address(offset, equal, &mask, value))?
            }
        }
    }

    fn compare_mark(&mut self, equal: bool, mask: Vec<u8>, value: &[u8]) -> Option<()> {
        let bits = u32::from_ne_bytes(value.try_into().ok()?);
        self.matches.push(Match::Mark(bits));
        (equal && mask == value).then_some(())
    }

    fn compare_protocol(&mut self, equal: bool, value: &[u8]) -> Option<()> {
        let protocol = [Protocol::V4, Protocol::V6].into_iter().find(|p| [p.number()] == value)?;
        self.protocol_alone = true;
        (equal && self.protocol.replace(protocol) != Some(protocol)).then_some(())
    }

    fn compare_address(
        &mut self,
        offset: u32,
        equal: bool,
        mask: &[u8],
        value: &[u8],
    ) -> Option<()> {
        let protocol = self.protocol?;
        let network = network(protocol, mask, value)?;
        self.protocol_alone = false;
        self.matches.push(if offset == protocol.offset(Side::Source) {
            Match::Source(network, equal)
        } else if offset == protocol.offset(Side::Destination) {
            Match::Destination(network, equal)
        } else {
            return None;
        });
        Some(())
    }
}

/// Returns the network of the addresses that begin with `value` where `mask` has ones.
fn network(protocol: Protocol, mask: &[u8], value: &[u8]) -> Option<IpNetwork> {
    let address = |bytes: &[u8]| -> Option<IpAddr> {
        let mut bytes = bytes.to_vec();
        let fits = bytes.len() <= protocol.length().into();
        bytes.resize(protocol.length().into(), 0);
        fits.then_some(match protocol {
            Protocol::V4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
            Protocol::V6 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
        })
    };
    let network = IpNetwork::with_netmask(address(value)?, address(mask)?).ok()?;
    // Bits behind the mask make the comparison fail for every packet.
    (network.ip() == network.network()).then_some(network)
}

fn meta_origin(attributes: &[Meta]) -> Option<Origin> {
    let [Meta::DestinationRegister(Register::Reg1), Meta::Key(key)] = attributes else {
        return None;
    };
    match key {
        MetaKey::Mark => Some(Origin::Mark),
        MetaKey::Nfproto => Some(Origin::Protocol),
        _ => None,
    }
}

fn payload_origin(attributes: &[Payload]) -> Option<Origin> {
    let [
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(NFT_PAYLOAD_NETWORK_HEADER),
        Payload::Offset(offset),
        Payload::Len(length),
    ] = *attributes
    else {
        return None;
    };
    Some(Origin::NetworkHeader { offset, length })
}

fn immediate_verdict(attributes: &[Immediate]) -> Option<Verdict> {
    let [
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(verdict)),
    ] = attributes
    else {
        return None;
    };
    match &verdict[..] {
        [VerdictAttribute::Code(Code::Other(NF_ACCEPT))] => Some(Verdict::Accept),
        [VerdictAttribute::Code(Code::Return)] => Some(Verdict::Return),
        [VerdictAttribute::Code(Code::Goto), VerdictAttribute::Chain(chain)] => {
            Some(Verdict::Goto(chain.clone()))
        }
        _ => None,
    }
}

fn masquerade(attributes: &[DefaultNla]) -> Option<Verdict> {
    if attributes.is_empty() {
        Some(Verdict::Masquerade { fully_random: false })
    } else if *attributes == [masquerade_flags(NF_NAT_RANGE_PROTO_RANDOM_FULLY)] {
        Some(Verdict::Masquerade { fully_random: true })
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;
    use proptest::prelude::*;

    use super::*;
    use crate::packet_filter::examples::net;

    #[test]
    fn other_protocol_is_checked_even_where_it_cannot_occur() {
        let matches = [Match::Source(net("fd00::/64"), false)];
        let expressions = encode(Family::Ip, &matches, &Verdict::Accept);
        assert_eq!(expressions[..2], match_protocol(Protocol::V6));
        assert_eq!(encode(Family::Ip6, &matches, &Verdict::Accept), expressions[2..]);
    }

    #[test]
    fn comparison_with_more_or_less_than_was_loaded_is_foreign() {
        for length in [1, 3, 4] {
            let expressions = vec![
                load_header(12, length),
                compare(true, vec![10, 1]),
                conclude(&Verdict::Accept),
            ];
            assert_eq!(decode(Family::Ip, &emitted(&expressions)), None, "{length}");
        }
    }

    #[test]
    fn unfinished_or_continued_rule_is_foreign() {
        let accept = || conclude(&Verdict::Accept);
        let [load, check] = match_protocol(Protocol::V4);
        for expressions in [
            vec![],
            vec![load.clone(), accept()],
            vec![load.clone(), check.clone(), accept()],
            vec![load_header(12, 1), compare(true, vec![10]), accept()],
            vec![accept(), load, check],
        ] {
            assert_eq!(decode(Family::Inet, &emitted(&expressions)), None, "{expressions:?}");
        }
    }

    #[test]
    fn host_bits_are_left_out() {
        let encoded =
            |text| encode(Family::Ip, &[Match::Source(net(text), true)], &Verdict::Accept);
        assert_eq!(encoded("10.1.2.3/15"), encoded("10.0.0.0/15"));
        assert_eq!(encoded("10.1.2.3/16"), encoded("10.1.0.0/16"));
    }

    proptest! {
        #[test]
        fn decoder_understands_the_encoder(
            family in prop_oneof![Just(Family::Ip), Just(Family::Ip6), Just(Family::Inet)],
            matches in any_matches(),
            verdict in any_verdict(),
        ) {
            let expressions = encode(family, &matches, &verdict);
            prop_assert_eq!(decode(family, &emitted(&expressions)), Some((matches, verdict)));
        }
    }

    fn emitted(expressions: &[Expression]) -> Vec<u8> {
        let mut bytes = vec![0; expressions.buffer_len()];
        expressions.emit(&mut bytes);
        bytes
    }

    fn any_matches() -> impl Strategy<Value = Vec<Match>> {
        let v4 = (any::<[u8; 4]>().prop_map(IpAddr::from), 0..=32u8);
        let v6 = (any::<[u8; 16]>().prop_map(IpAddr::from), 0..=128u8);
        let network = || {
            let network = prop_oneof![v4.clone().boxed(), v6.clone().boxed()];
            network.prop_map(|(ip, prefix)| IpNetwork::new(ip, prefix).unwrap())
        };
        let one = prop_oneof![
            any::<u32>().prop_map(Match::Mark),
            (network(), any::<bool>()).prop_map(|(network, equal)| Match::Source(network, equal)),
            (network(), any::<bool>())
                .prop_map(|(network, equal)| Match::Destination(network, equal)),
        ];
        prop::collection::vec(one, 0..4)
    }

    fn any_verdict() -> impl Strategy<Value = Verdict> {
        prop_oneof![
            Just(Verdict::Accept),
            Just(Verdict::Return),
            "[a-z]{1,9}".prop_map(Verdict::Goto),
            any::<bool>().prop_map(|fully_random| Verdict::Masquerade { fully_random }),
        ]
    }
}
