//! Waits until a link carries packets.
//!
//! Bringing a link up only starts it: the kernel declares it operational a moment later
//! (`net/core/link_watch.c`), and a bridge drops what comes in before.

use std::time::{Duration, Instant};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, State};

use super::monitor::{Event, Monitor};
use super::socket::{NetlinkError, Socket};
use crate::link_name::LinkName;

/// `RTNLGRP_LINK` of the kernel's `linux/rtnetlink.h`.
const LINK_GROUP: u32 = 1;

/// Waits until the link is operational; returns false if it is not after `patience`, or not there.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn wait_until_up(
    socket: &mut Socket,
    link: LinkName,
    patience: Duration,
) -> Result<bool, NetlinkError> {
    let deadline = Instant::now() + patience;
    let mut now = || socket.link_by_name(link);
    if now()?.is_some_and(|message| is_up(&message)) {
        return Ok(true);
    }
    // Not before it is needed: whoever changes a link makes a copy of the message for each listener.
    let monitor = Monitor::open(LINK_GROUP)?;
    let Some(mut state) = now()? else { return Ok(false) };
    let index = state.header.index;
    while !is_up(&state) {
        let news = match monitor.next(deadline)? {
            Some(Event::Message(bytes)) => said(&bytes, index),
            Some(Event::Lost) => now()?,
            None => return Ok(false),
        };
        state = news.unwrap_or(state);
    }
    Ok(true)
}

/// Returns the message if it is about the link of that number. Most are about others.
fn said(bytes: &[u8], index: u32) -> Option<LinkMessage> {
    // Behind the header of the message and the family and type of the link.
    const INDEX: std::ops::Range<usize> = 20..24;
    if bytes.get(INDEX)? != index.to_ne_bytes() {
        return None;
    }
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes).ok()?.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message)) => Some(message),
        _ => None,
    }
}

fn is_up(message: &LinkMessage) -> bool {
    message.attributes.iter().any(|a| matches!(a, LinkAttribute::OperState(State::Up)))
}
