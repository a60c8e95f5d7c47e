//! A link between a host and the underlay that loses frames and lets others overtake them.
//!
//! This program carries the frames, so the interface also has none of the offloads that those of
//! real machines have: no checksums, no segments.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::impairment::{Fate, Impairment};

/// The longest Ethernet frame with an MTU of 9000, and more.
const FRAME_MAX: usize = 10_000;

/// The running thread; it ends with this value, and both ends of the link with it.
#[derive(Debug)]
pub struct BadLink {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl BadLink {
    /// Joins two interfaces that this program has opened; both ways are as bad as each other.
    pub(crate) fn between(ends: [File; 2], way: Impairment) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut ways = [Way::new(way), Way::new(way)];
            let [host, port] = &ends;
            while !stopped.load(Ordering::Relaxed) {
                wait(&ends);
                while ways[0].carry(host, port) | ways[1].carry(port, host) {}
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for BadLink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has told already if it failed.
            let _outcome = thread.join();
        }
    }
}

fn wait(ends: &[File; 2]) {
    let mut fds = ends.each_ref().map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
    // Nothing for a while, or interrupted: there is nothing to read then.
    let _readiness = poll(&mut fds, PollTimeout::from(100_u8));
}

/// One of two directions.
struct Way {
    impairment: Impairment,
    number: usize,
    held: Option<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Way {
    fn new(impairment: Impairment) -> Self {
        Self { impairment, number: 0, held: None, buffer: vec![0; FRAME_MAX] }
    }

    /// Carries a frame; false if there is none.
    fn carry(&mut self, mut from: &File, mut to: &File) -> bool {
        let Ok(len) = from.read(&mut self.buffer) else { return false };
        let frame = &self.buffer[..len];
        self.number += 1;
        match self.impairment.fate(self.number) {
            Fate::Lost => {}
            Fate::Waits if self.held.is_none() => self.held = Some(frame.to_vec()),
            Fate::Waits | Fate::Passes => {
                // An interface that is down takes nothing.
                let _lost = to.write(frame);
                if let Some(frame) = self.held.take() {
                    let _lost = to.write(&frame);
                }
            }
        }
        true
    }
}
