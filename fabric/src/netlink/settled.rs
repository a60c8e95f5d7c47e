//! Waits until the addresses of a link can be used: until the kernel has looked for duplicates of
//! them (RFC 4862, section 5.4), which takes a second or two.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressHeaderFlags;

use super::addresses::{addresses_on, local_address};
use super::monitor::Monitor;
use super::socket::{NetlinkError, Socket};
use crate::link_name::LinkName;

/// `RTNLGRP_IPV6_IFADDR` of the kernel's `linux/rtnetlink.h`.
const ADDRESS_GROUP: u32 = 9;

/// Receives what happens to IPv6 addresses, from the moment of its creation on.
pub struct AddressMonitor(Monitor);

/// What became of the addresses of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// All can be used.
    Usable,
    /// Somebody else has this one.
    Duplicate(IpAddr),
    /// It is still not known of this one whether somebody else has it.
    Unknown(IpAddr),
}

impl AddressMonitor {
    /// Starts to listen in the network namespace of this thread.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn open() -> io::Result<Self> {
        Monitor::open(ADDRESS_GROUP).map(Self)
    }

    /// Waits until all addresses of the link can be used or one cannot, or until `patience` is over.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub fn wait_until_settled(
        &self,
        socket: &mut Socket,
        link: LinkName,
        patience: Duration,
    ) -> Result<Settled, NetlinkError> {
        let deadline = Instant::now() + patience;
        loop {
            let state = state(socket, link)?;
            let is_final = !matches!(state, Settled::Unknown(_));
            if is_final || self.0.next(deadline)?.is_none() {
                return Ok(state);
            }
        }
    }
}

fn state(socket: &mut Socket, link: LinkName) -> Result<Settled, NetlinkError> {
    let Some(message) = socket.link_by_name(link)? else { return Ok(Settled::Usable) };
    let rows = socket.dump("addresses", &addresses_on(message.header.index))?;
    let mut state = Settled::Usable;
    for row in &rows {
        let RouteNetlinkMessage::NewAddress(message) = row else { continue };
        let Some(ip) = local_address(&message.attributes) else { continue };
        if message.header.flags.contains(AddressHeaderFlags::Dadfailed) {
            return Ok(Settled::Duplicate(ip));
        }
        if message.header.flags.contains(AddressHeaderFlags::Tentative) {
            state = Settled::Unknown(ip);
        }
    }
    Ok(state)
}
