//! Traffic control: queueing disciplines, and the filter that redirects what comes in (tc(8)).

use std::collections::BTreeMap;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_REPLACE, Nla, NlaBuffer, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key,
    TcU32Selector, TcU32SelectorFlags,
};

use super::socket::{NetlinkError, Request, Socket};
use crate::link_name::LinkName;
use crate::netstate::TokenBucket;

/// `ffff:`, the handle of what looks at incoming packets.
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0 };

/// `tc qdisc replace dev LINK root handle 1: tbf …`
pub(super) fn replace_shaper(index: u32, bucket: &TokenBucket) -> Request {
    let mut message = message(index, TcHandle::ROOT, "tbf");
    message.header.handle = TcHandle { major: 1, minor: 0 };
    let mut options = vec![option(TBF_PARAMETERS, &parameters(bucket))];
    if u32::try_from(bucket.rate).is_err() {
        options.push(option(TBF_RATE64, &bucket.rate.to_ne_bytes()));
    }
    message.attributes.push(TcAttribute::Options(options));
    Request {
        message: RouteNetlinkMessage::NewQueueDiscipline(message),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
    }
}

/// `tc qdisc del dev LINK root`
pub(super) fn del_shaper(index: u32) -> Request {
    del_discipline(index, TcHandle::ROOT, "tbf")
}

/// `tc qdisc add dev LINK handle ffff: ingress`; one that is there stays.
pub(super) fn add_ingress(index: u32) -> Request {
    let mut message = message(index, TcHandle::INGRESS, "ingress");
    message.header.handle = INGRESS;
    Request { message: RouteNetlinkMessage::NewQueueDiscipline(message), flags: NLM_F_CREATE }
}

/// `tc qdisc del dev LINK ingress`
pub(super) fn del_ingress(index: u32) -> Request {
    del_discipline(index, TcHandle::INGRESS, "ingress")
}

/// `tc filter add dev LINK parent ffff: … action mirred egress redirect dev TO`
pub(super) fn add_redirect(index: u32, to: u32) -> Request {
    const PRIORITY: u32 = 1;
    // ETH_P_ALL, in the byte order of the wire.
    let all_protocols = u32::from(3_u16.to_be());
    let mut message = message(index, INGRESS, "u32");
    message.header.info = PRIORITY << 16 | all_protocols;
    let mut everything = TcU32Selector::default();
    everything.flags = TcU32SelectorFlags::Terminal;
    everything.nkeys = 1;
    everything.keys = vec![TcU32Key::default()];
    let mut mirror = TcMirror::default();
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    mirror.generic.action = TcActionType::Stolen;
    let mirror = TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror));
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind("mirred".to_owned()),
        TcActionAttribute::Options(vec![mirror]),
    ];
    message.attributes.push(TcAttribute::Options(vec![
        TcOption::U32(TcFilterU32Option::Selector(everything)),
        TcOption::U32(TcFilterU32Option::Action(vec![action])),
    ]));
    Request { message: RouteNetlinkMessage::NewTrafficFilter(message), flags: NLM_F_CREATE }
}

/// Returns the token buckets at the roots of these links.
pub(super) fn observe_shapers(
    socket: &mut Socket,
    names: &BTreeMap<u32, LinkName>,
) -> Result<BTreeMap<LinkName, TokenBucket>, NetlinkError> {
    let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    let rows = socket.dump("queueing disciplines", &request)?;
    let shaper = |row: &RouteNetlinkMessage| {
        let RouteNetlinkMessage::NewQueueDiscipline(message) = row else { return None };
        let link = names.get(&u32::try_from(message.header.index).ok()?)?;
        let is_root = message.header.parent == TcHandle::ROOT;
        is_root.then_some((*link, decode_bucket(message)?))
    };
    Ok(rows.iter().filter_map(shaper).collect())
}

/// Returns by which link what comes in by this one leaves, if it is redirected.
pub(super) fn observe_redirect(
    socket: &mut Socket,
    index: u32,
) -> Result<Option<u32>, NetlinkError> {
    let mut request = TcMessage::default();
    request.header.index = i32::try_from(index).unwrap_or_default();
    request.header.parent = INGRESS;
    let rows = socket.dump("filters", &RouteNetlinkMessage::GetTrafficFilter(request))?;
    Ok(rows.iter().find_map(|row| match row {
        RouteNetlinkMessage::NewTrafficFilter(message) => redirected_to(message),
        _ => None,
    }))
}

fn message(index: u32, parent: TcHandle, kind: &str) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = i32::try_from(index).unwrap_or_default();
    message.header.parent = parent;
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    message
}

fn del_discipline(index: u32, parent: TcHandle, kind: &str) -> Request {
    let message = message(index, parent, kind);
    Request { message: RouteNetlinkMessage::DelQueueDiscipline(message), flags: 0 }
}

fn redirected_to(filter: &TcMessage) -> Option<u32> {
    let options = filter.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    let actions = options.flatten().filter_map(|option| match option {
        TcOption::U32(TcFilterU32Option::Action(actions)) => Some(actions),
        _ => None,
    });
    actions.flatten().flat_map(|action| &action.attributes).find_map(|attribute| match attribute {
        TcActionAttribute::Options(options) => options.iter().find_map(mirrored_to),
        _ => None,
    })
}

fn mirrored_to(option: &TcActionOption) -> Option<u32> {
    match option {
        TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))
            if mirror.eaction == TcMirrorActionType::EgressRedir =>
        {
            Some(mirror.ifindex)
        }
        _ => None,
    }
}

// The attributes of the discipline (`linux/pkt_sched.h`).
const TBF_PARAMETERS: u16 = 1;
const TBF_RATE64: u16 = 4;
/// Length of `struct tc_tbf_qopt`: two of `struct tc_ratespec`, then limit, buffer and MTU.
const PARAMETER_BYTES: usize = 36;
/// Where the rate is in it, behind what describes the link layer.
const RATE_AT: usize = 8;
const LIMIT_AT: usize = 24;
const BUFFER_AT: usize = 28;

fn parameters(bucket: &TokenBucket) -> [u8; PARAMETER_BYTES] {
    let mut bytes = [0; PARAMETER_BYTES];
    let rate = u32::try_from(bucket.rate).unwrap_or(u32::MAX);
    for (at, number) in [(RATE_AT, rate), (LIMIT_AT, bucket.limit), (BUFFER_AT, bucket.buffer)] {
        bytes[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    }
    bytes
}

fn option(kind: u16, value: &[u8]) -> TcOption {
    TcOption::Other(DefaultNla::new(kind, value.to_vec()))
}

fn decode_bucket(message: &TcMessage) -> Option<TokenBucket> {
    let is_bucket = |one: &TcAttribute| matches!(one, TcAttribute::Kind(kind) if kind == "tbf");
    message.attributes.iter().any(is_bucket).then_some(())?;
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => options.first(),
        _ => None,
    })?;
    let mut bytes = vec![0; options.value_len()];
    options.emit_value(&mut bytes);
    let attributes: Vec<_> = NlasIterator::new(&bytes).filter_map(Result::ok).collect();
    let value = |kind: u16| {
        let found = attributes.iter().find(|attribute: &&NlaBuffer<_>| attribute.kind() == kind);
        found.map(|attribute| attribute.value())
    };
    let parameters = value(TBF_PARAMETERS).filter(|bytes| bytes.len() >= PARAMETER_BYTES)?;
    let number = |at: usize| {
        let bytes = <[u8; 4]>::try_from(&parameters[at..at + 4]);
        u32::from_ne_bytes(bytes.expect("four bytes"))
    };
    let rate64 = value(TBF_RATE64).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
    Some(TokenBucket {
        rate: rate64.map_or_else(|| u64::from(number(RATE_AT)), u64::from_ne_bytes),
        buffer: number(BUFFER_AT),
        limit: number(LIMIT_AT),
    })
}
