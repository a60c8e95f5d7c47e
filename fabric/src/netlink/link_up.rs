//! Waits until a link carries packets.
//!
//! Bringing a link up only starts it: the kernel declares it operational a moment later
//! (`net/core/link_watch.c`), and a bridge drops what comes in before.

use std::io;
use std::time::{Duration, Instant};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, State};

use super::monitor::{Event, Monitor};
use super::observe::name;
use super::socket::{NetlinkError, Socket};
use crate::link_name::LinkName;

/// `RTNLGRP_LINK` of the kernel's `linux/rtnetlink.h`.
const LINK_GROUP: u32 = 1;

/// Receives what happens to links, from the moment of its creation on.
pub struct LinkMonitor(Monitor);

impl LinkMonitor {
    /// Starts to listen in the network namespace of this thread.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn open() -> io::Result<Self> {
        Monitor::open(LINK_GROUP).map(Self)
    }

    /// Waits until the link is operational; returns false if it is not after `patience`.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub fn wait_until_up(
        &self,
        socket: &mut Socket,
        link: LinkName,
        patience: Duration,
    ) -> Result<bool, NetlinkError> {
        let deadline = Instant::now() + patience;
        let mut is_up_now = || -> Result<bool, NetlinkError> {
            Ok(socket.link_by_name(link)?.is_some_and(|message| is_up(&message)))
        };
        if is_up_now()? {
            return Ok(true);
        }
        while let Some(event) = self.0.next(deadline)? {
            let is_up = match event {
                Event::Message(bytes) => says_up(&bytes, link),
                Event::Lost => is_up_now()?,
            };
            if is_up {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn says_up(bytes: &[u8], link: LinkName) -> bool {
    let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) else {
        return false;
    };
    match message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message)) => {
            name(&message) == Some(link) && is_up(&message)
        }
        _ => false,
    }
}

fn is_up(message: &LinkMessage) -> bool {
    message.attributes.iter().any(|a| matches!(a, LinkAttribute::OperState(State::Up)))
}
