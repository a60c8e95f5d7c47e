//! A lane: one queue of the device, one socket, and the thread that carries packets between them.

use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fabric::link_name::LinkName;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::counters::Drops;
use super::inbound::Inbound;
use super::outbound::Outbound;
use super::socket;
use super::tun::Queue;

/// After an error that may stay: the device is gone until it is made anew.
const ERROR_PAUSE: Duration = Duration::from_millis(5);

/// What both halves of a lane share.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) queue: Queue,
    pub(super) socket: UdpSocket,
    pub(super) drops: Arc<Drops>,
    /// Wakes the thread.
    waker: PipeWriter,
    woken: PipeReader,
}

impl Lane {
    pub(super) fn new(queue: Queue, socket: UdpSocket, drops: Arc<Drops>) -> io::Result<Self> {
        let (woken, waker) = io::pipe()?;
        Ok(Self { queue, socket, drops, waker, woken })
    }

    /// Receives at another address from now on.
    pub(super) fn rebind(&self, address: SocketAddr) -> io::Result<()> {
        socket::rebind(&self.socket, address)?;
        self.wake()
    }

    /// Carries packets of the device that has this name now.
    pub(super) fn reattach(&self, device: LinkName) -> io::Result<()> {
        self.queue.reattach(device)?;
        self.wake()
    }

    /// Otherwise the thread would go on to wait for packets of what it had before, and to keep it.
    fn wake(&self) -> io::Result<()> {
        (&self.waker).write_all(&[1])
    }

    /// Carries packets as long as the program runs, in both directions in turn.
    ///
    /// One thread for both, because replies usually follow requests: it is awake already, and on
    /// the right processor.
    pub(super) fn carry(&self, mut outbound: Outbound, mut inbound: Inbound) {
        let mut patience = Patience::default();
        loop {
            match (outbound.step(), inbound.step()) {
                (Err(there), Err(back)) => {
                    let nothing = [there, back].iter().all(|e| e.kind() == ErrorKind::WouldBlock);
                    if nothing {
                        patience.wait(|| self.sleep());
                    } else {
                        thread::park_timeout(ERROR_PAUSE);
                    }
                }
                _ => patience.rewarded(),
            }
        }
    }

    fn sleep(&self) {
        let interest = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = [self.queue.as_fd(), self.socket.as_fd(), self.woken.as_fd()].map(interest);
        // What is there is found by reading; what is wrong too.
        let _readiness = poll(&mut fds, PollTimeout::NONE);
        if fds[2].any() == Some(true) {
            let _once = (&self.woken).read(&mut [0]);
        }
    }
}

/// For how long a thread without packets looks for more before it sleeps. Being woken takes longer
/// than carrying a packet, so that it pays to look where the next one comes soon; where it does
/// not, nothing is spent on it. The kernel decides so about virtual processors
/// (`Documentation/virt/kvm/halt-polling.rst`).
#[derive(Debug, Default)]
struct Patience {
    window: Duration,
    since: Option<Instant>,
}

impl Patience {
    const FIRST: Duration = Duration::from_micros(10);
    const MAX: Duration = Duration::from_micros(100);

    /// Notes that there was something.
    const fn rewarded(&mut self) {
        self.since = None;
    }

    /// Gives way to others once, or sleeps if that was done for long enough.
    fn wait(&mut self, sleep: impl FnOnce()) {
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() < self.window {
            thread::yield_now();
        } else {
            sleep();
            self.learn(since.elapsed());
            self.since = None;
        }
    }

    /// Takes note that nothing came for so long.
    fn learn(&mut self, silence: Duration) {
        self.window = if silence > Self::MAX {
            Duration::ZERO
        } else {
            (self.window * 2).clamp(Self::FIRST, Self::MAX)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_for_packets_is_worth_it_only_where_they_come_soon() {
        let mut patience = Patience::default();
        let windows: Vec<_> = (0..5)
            .map(|_| {
                patience.learn(Duration::from_micros(60));
                patience.window.as_micros()
            })
            .collect();
        assert_eq!(windows, [10, 20, 40, 80, 100]);
        patience.learn(Duration::from_millis(1));
        assert_eq!(patience.window, Duration::ZERO);
        let mut slept = false;
        patience.wait(|| slept = true);
        assert!(slept);
    }
}
