//! A lane: one queue of the device, one socket for each family, and the thread that carries packets
//! between them.

use std::io::{self, ErrorKind};
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::counters::Drops;
use super::inbound::Inbound;
use super::outbound::Outbound;
use super::packet::Version;
use super::tun::Queue;

/// After an error that may stay: the device is gone until it is made anew.
const ERROR_PAUSE: Duration = Duration::from_millis(5);

/// What the halves of a lane share.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) queue: Queue,
    /// One for each family that the underlay has; at least one.
    pub(super) sockets: Vec<(Version, UdpSocket)>,
    pub(super) drops: Arc<Drops>,
}

impl Lane {
    /// Carries packets as long as the program runs, in all directions in turn.
    ///
    /// One thread for all, because replies usually follow requests: it is awake already, and on
    /// the right processor.
    pub(super) fn carry(&self, mut outbound: Outbound, mut inbound: Vec<Inbound>) {
        let mut fds: Vec<_> =
            self.fds().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        loop {
            let there = outbound.step();
            let back = inbound.iter_mut().map(Inbound::step);
            match back.fold(there, better) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // What is there is found by reading; what is wrong too.
                    let _readiness = poll(&mut fds, PollTimeout::NONE);
                }
                Err(_) => thread::park_timeout(ERROR_PAUSE),
            }
        }
    }

    /// Returns the socket for a family of the underlay.
    pub(super) fn socket(&self, version: Version) -> Option<&UdpSocket> {
        self.sockets.iter().find(|(other, _)| *other == version).map(|(_, socket)| socket)
    }

    fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let sockets = self.sockets.iter().map(|(_, socket)| socket.as_fd());
        std::iter::once(self.queue.as_fd()).chain(sockets)
    }
}

/// Progress counts for more than a failure, and a failure for more than nothing to do.
fn better(one: io::Result<()>, other: io::Result<()>) -> io::Result<()> {
    match (one, other) {
        (Ok(()), _) | (_, Ok(())) => Ok(()),
        (Err(one), Err(other)) if one.kind() == ErrorKind::WouldBlock => Err(other),
        (Err(one), Err(_)) => Err(one),
    }
}
