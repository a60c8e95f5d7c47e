//! Operations as requests to nf_tables, and its answers as what is observed.

use netlink_packet_core::{
    DecodeError, DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NlasIterator,
    Parseable,
};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainFlags, ChainMessage, GenAttribute, GenMessage, Hook as HookAttribute,
    HookNumber, InetHookNumber, NfTablesMessage, RuleAttribute, RuleMessage, TableAttribute,
    TableFlags, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    NetfilterSubsystem,
};

use super::expression;
use crate::packet_filter::{Family, Hook, ObservedHook, ObservedRule, Operation, Rule, TableId};

// linux/netfilter/nfnetlink.h
const NFNL_MSG_BATCH_BEGIN: u8 = 16;
const NFNL_BATCH_GENID: u16 = 1;
// linux/netfilter.h
const NF_ACCEPT: u32 = 1;
// linux/netfilter_ipv4.h
const NF_IP_PRI_RAW: i32 = -300;
const NF_IP_PRI_NAT_DST: i32 = -100;
const NF_IP_PRI_FILTER: i32 = 0;
const NF_IP_PRI_NAT_SRC: i32 = 100;
// linux/netfilter/nf_tables.h
const NFTA_RULE_EXPRESSIONS: u16 = 4;
// libnftnl/udata.h: NFTNL_UDATA_TABLE_COMMENT, NFTNL_UDATA_RULE_COMMENT
const UDATA_COMMENT: u8 = 0;

/// A request and how the kernel shall take it.
pub(super) struct Request {
    pub(super) message: NetfilterMessage,
    pub(super) flags: u16,
}

impl Request {
    /// A request about a table. Without one it is about all tables.
    fn new(family: Option<Family>, flags: u16, message: NfTablesMessage) -> Self {
        let family = match family {
            None => NetfilterProtoFamily::Unspec,
            Some(Family::Ip) => NetfilterProtoFamily::IPv4,
            Some(Family::Ip6) => NetfilterProtoFamily::IPv6,
            Some(Family::Inet) => NetfilterProtoFamily::Inet,
            Some(Family::Bridge) => NetfilterProtoFamily::Bridge,
        };
        Self { message: NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message), flags }
    }

    /// Begins a transaction that takes place only if nothing was changed since `generation`.
    pub(super) fn begin(generation: u32) -> Self {
        let generation = DefaultNla::new(NFNL_BATCH_GENID, generation.to_be_bytes().to_vec());
        Self::control(ControlMessage::Other {
            message_type: NFNL_MSG_BATCH_BEGIN,
            attributes: vec![generation],
        })
    }

    /// Ends a transaction.
    pub(super) fn end() -> Self {
        Self::control(ControlMessage::BatchEnd)
    }

    fn control(message: ControlMessage) -> Self {
        let subsystem = u8::from(NetfilterSubsystem::NfTables).into();
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, subsystem);
        Self {
            message: NetfilterMessage::new(header, NetfilterMessageInner::None(message)),
            flags: 0,
        }
    }

    /// Asks for the generation.
    pub(super) fn generation() -> Self {
        let attributes = Vec::new();
        Self::new(None, NLM_F_ACK, NfTablesMessage::GetGen(GenMessage { attributes }))
    }

    /// Asks for a table.
    pub(super) fn table(table: &TableId) -> Self {
        let attributes = vec![TableAttribute::Name(table.name.clone())];
        let message = NfTablesMessage::GetTable(TableMessage { attributes });
        Self::new(Some(table.family), NLM_F_ACK, message)
    }

    /// Asks for a chain.
    pub(super) fn chain(table: &TableId, chain: &str) -> Self {
        let attributes =
            vec![ChainAttribute::Table(table.name.clone()), ChainAttribute::Name(chain.to_owned())];
        let message = NfTablesMessage::GetChain(ChainMessage { attributes });
        Self::new(Some(table.family), NLM_F_ACK, message)
    }

    /// Asks for all rules of a table.
    pub(super) fn rules(table: &TableId) -> Self {
        let attributes = vec![RuleAttribute::Table(table.name.clone())];
        let message = NfTablesMessage::GetRule(RuleMessage { attributes });
        Self::new(Some(table.family), NLM_F_DUMP, message)
    }

    /// Returns the request for an operation, or `None` if a comment of it is too long.
    pub(super) fn operation(operation: &Operation) -> Option<Self> {
        let (table, flags, message) = match operation {
            Operation::AddTable { table, comment } => {
                let attributes = new_table(table, comment.as_deref())?;
                (table, NLM_F_CREATE, NfTablesMessage::NewTable(TableMessage { attributes }))
            }
            Operation::AddChain { table, chain, hook } => {
                let attributes = new_chain(table, chain, *hook);
                (table, NLM_F_CREATE, NfTablesMessage::NewChain(ChainMessage { attributes }))
            }
            Operation::AddRule { table, chain, before, rule } => {
                let attributes = new_rule(table, chain, *before, rule)?;
                let place = if before.is_some() { 0 } else { NLM_F_APPEND };
                let message = NfTablesMessage::NewRule(RuleMessage { attributes });
                (table, NLM_F_CREATE | place, message)
            }
            Operation::DeleteRule { table, chain, handle } => {
                let attributes = vec![
                    RuleAttribute::Table(table.name.clone()),
                    RuleAttribute::Chain(chain.clone()),
                    RuleAttribute::Handle(*handle),
                ];
                (table, 0, NfTablesMessage::DeleteRule(RuleMessage { attributes }))
            }
            Operation::DeleteChain { table, chain } => {
                let attributes = vec![
                    ChainAttribute::Table(table.name.clone()),
                    ChainAttribute::Name(chain.clone()),
                ];
                (table, 0, NfTablesMessage::DeleteChain(ChainMessage { attributes }))
            }
            Operation::DeleteTable { table } => {
                let attributes = vec![TableAttribute::Name(table.name.clone())];
                (table, 0, NfTablesMessage::DeleteTable(TableMessage { attributes }))
            }
        };
        Some(Self::new(Some(table.family), flags, message))
    }
}

fn new_table(table: &TableId, comment: Option<&str>) -> Option<Vec<TableAttribute>> {
    let mut attributes = vec![TableAttribute::Name(table.name.clone())];
    if let Some(comment) = comment {
        attributes.push(TableAttribute::UserData(user_data(comment)?));
    }
    Some(attributes)
}

fn new_chain(table: &TableId, chain: &str, hook: Option<Hook>) -> Vec<ChainAttribute> {
    let mut attributes =
        vec![ChainAttribute::Table(table.name.clone()), ChainAttribute::Name(chain.to_owned())];
    if let Some(hook) = hook {
        let (kind, number, priority) = hook_parameters(hook);
        attributes.extend([
            ChainAttribute::Hook(vec![
                HookAttribute::Number(HookNumber::Inet(number)),
                HookAttribute::Priority(priority),
            ]),
            ChainAttribute::Policy(NF_ACCEPT),
            ChainAttribute::Type(kind.to_owned()),
        ]);
    }
    attributes
}

/// The type of chain, the hook and the priority, of which the kernel takes the bits.
const fn hook_parameters(hook: Hook) -> (&'static str, InetHookNumber, u32) {
    let (kind, number, priority) = match hook {
        Hook::FilterForward => ("filter", InetHookNumber::Forward, NF_IP_PRI_FILTER),
        Hook::NatPostrouting => ("nat", InetHookNumber::PostRouting, NF_IP_PRI_NAT_SRC),
        Hook::NatPrerouting => ("nat", InetHookNumber::PreRouting, NF_IP_PRI_NAT_DST),
        Hook::NatOutput => ("nat", InetHookNumber::LocalOut, NF_IP_PRI_NAT_DST),
        Hook::FilterPrerouting => ("filter", InetHookNumber::PreRouting, NF_IP_PRI_RAW),
        Hook::FilterOutput => ("filter", InetHookNumber::LocalOut, NF_IP_PRI_RAW),
    };
    (kind, number, priority.cast_unsigned())
}

fn new_rule(
    table: &TableId,
    chain: &str,
    before: Option<u64>,
    rule: &Rule,
) -> Option<Vec<RuleAttribute>> {
    let mut attributes = vec![
        RuleAttribute::Table(table.name.clone()),
        RuleAttribute::Chain(chain.to_owned()),
        RuleAttribute::Expressions(expression::encode(table.family, &rule.matches, &rule.verdict)),
    ];
    attributes.extend(before.map(RuleAttribute::Position));
    if let Some(comment) = &rule.comment {
        attributes.push(RuleAttribute::UserData(user_data(comment)?));
    }
    Some(attributes)
}

/// Wraps a comment the way libnftnl does: type, length, text with a final NUL.
fn user_data(comment: &str) -> Option<Vec<u8>> {
    let length = u8::try_from(comment.len() + 1).ok()?;
    Some([&[UDATA_COMMENT, length], comment.as_bytes(), &[0]].concat())
}

/// Finds the comment in user data.
fn comment(mut user_data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = user_data {
        let (value, rest) = rest.split_at_checked((*length).into())?;
        if *kind == UDATA_COMMENT {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        user_data = rest;
    }
    None
}

/// Reads the generation.
pub(super) fn generation(payload: &[u8]) -> Result<u32, DecodeError> {
    let id = |attribute| match attribute {
        GenAttribute::Id(id) => Some(id),
        _ => None,
    };
    let found = GenMessage::parse(payload)?.attributes.into_iter().find_map(id);
    found.ok_or_else(|| DecodeError::from("no generation"))
}

/// What a table tells of itself.
pub(super) struct TableFacts {
    /// How many chains, sets and other objects it has.
    pub(super) objects: usize,
    pub(super) dormant: bool,
}

/// Reads a table.
pub(super) fn table(payload: &[u8]) -> Result<TableFacts, DecodeError> {
    let mut facts = TableFacts { objects: 0, dormant: false };
    for attribute in TableMessage::parse(payload)?.attributes {
        match attribute {
            TableAttribute::Use(count) => facts.objects = count.try_into().unwrap_or(usize::MAX),
            TableAttribute::Flags(flags) => facts.dormant = flags.contains(TableFlags::Dormant),
            _ => {}
        }
    }
    Ok(facts)
}

/// Reads where packets enter a chain.
pub(super) fn hook(payload: &[u8]) -> Result<ObservedHook, DecodeError> {
    let mut found = None;
    let (mut kind, mut policy, mut flags) = (String::new(), NF_ACCEPT, ChainFlags::empty());
    for attribute in ChainMessage::parse(payload)?.attributes {
        match attribute {
            ChainAttribute::Hook(attributes) => found = Some(attributes),
            ChainAttribute::Type(name) => kind = name,
            ChainAttribute::Policy(code) => policy = code,
            ChainAttribute::Flags(set) => flags = set,
            _ => {}
        }
    }
    let Some(found) = found else { return Ok(ObservedHook::Absent) };
    let is = |hook: &Hook| {
        let (type_name, number, priority) = hook_parameters(*hook);
        let number = HookAttribute::Number(HookNumber::Inet(number));
        kind == type_name
            && found.contains(&number)
            && found.contains(&HookAttribute::Priority(priority))
            && found.len() == 2
    };
    let plain = policy == NF_ACCEPT && !flags.contains(ChainFlags::HwOffload);
    let known = Hook::ALL.into_iter().find(is);
    Ok(known.filter(|_| plain).map_or(ObservedHook::Foreign, ObservedHook::Known))
}

/// Reads a rule and the chain that has it. An attribute that cannot be read is taken as absent, so
/// that a strange rule of somebody else does not hide all others.
pub(super) fn rule(family: Family, payload: &[u8]) -> Result<(String, ObservedRule), DecodeError> {
    let (mut chain, mut handle, mut text, mut content) = (None, None, None, None);
    for attribute in NlasIterator::new(payload) {
        let attribute = attribute?;
        if attribute.kind() == NFTA_RULE_EXPRESSIONS {
            content = expression::decode(family, attribute.value());
            continue;
        }
        match RuleAttribute::parse(&attribute) {
            Ok(RuleAttribute::Chain(name)) => chain = Some(name),
            Ok(RuleAttribute::Handle(number)) => handle = Some(number),
            Ok(RuleAttribute::UserData(bytes)) => text = comment(&bytes),
            _ => {}
        }
    }
    let (Some(chain), Some(handle)) = (chain, handle) else {
        return Err(DecodeError::from("a rule without chain or handle"));
    };
    let rule = content.map(|(matches, verdict)| Rule { matches, verdict, comment: text.clone() });
    Ok((chain, ObservedRule { handle, comment: text, rule }))
}
