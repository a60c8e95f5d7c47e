//! Waits until a link carries packets.
//!
//! Bringing a link up only starts it: the kernel declares it operational a moment later
//! (`net/core/link_watch.c`), and a bridge drops what comes in before.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, State};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::observe::name;
use super::socket::{NetlinkError, Socket};
use crate::link_name::LinkName;

/// `RTNLGRP_LINK` of the kernel's `linux/rtnetlink.h`.
const LINK_GROUP: u32 = 1;

/// Receives what happens to links, from the moment of its creation on.
pub struct LinkMonitor(netlink_sys::Socket);

impl LinkMonitor {
    /// Starts to listen in the network namespace of this thread.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn open() -> io::Result<Self> {
        let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.add_membership(LINK_GROUP)?;
        socket.set_non_blocking(true)?;
        Ok(Self(socket))
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
        if socket.link_by_name(link)?.is_some_and(|message| is_up(&message)) {
            return Ok(true);
        }
        while self.wait(deadline)? {
            match self.0.recv_from_full() {
                Ok((bytes, _)) => {
                    if says_up(&bytes, link) {
                        return Ok(true);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Notifications were lost; the state itself is still there to be read.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    if socket.link_by_name(link)?.is_some_and(|message| is_up(&message)) {
                        return Ok(true);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }

    fn wait(&self, deadline: Instant) -> io::Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut descriptors = [PollFd::new(self.descriptor(), PollFlags::POLLIN)];
        match poll(&mut descriptors, timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => Ok(true),
            Err(errno) => Err(errno.into()),
        }
    }

    #[expect(unsafe_code, reason = "netlink-sys does not implement AsFd")]
    fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket owns the descriptor and lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
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
