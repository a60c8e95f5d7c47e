//! The kernel's messages about one kind of thing, for somebody who waits for one of them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Instant;

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Receives messages from the moment of its creation on.
pub(super) struct Monitor(netlink_sys::Socket);

/// What happened.
pub(super) enum Event {
    /// The kernel said this.
    Message(Vec<u8>),
    /// It said something, but there was no room for it: what matters must be asked for.
    Lost,
}

impl Monitor {
    /// Starts to listen in the network namespace of this thread to a group of `RTNLGRP_*` of the
    /// kernel's `linux/rtnetlink.h`.
    pub(super) fn open(group: u32) -> io::Result<Self> {
        let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.add_membership(group)?;
        socket.set_non_blocking(true)?;
        Ok(Self(socket))
    }

    /// Waits for something to happen; returns `None` if nothing did before `deadline`.
    pub(super) fn next(&self, deadline: Instant) -> io::Result<Option<Event>> {
        while self.wait(deadline)? {
            match self.0.recv_from_full() {
                Ok((bytes, _)) => return Ok(Some(Event::Message(bytes))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Ok(Some(Event::Lost));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
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
