//! A look at what nobody tells about: the kernel does not say when its parameters change, nor the
//! file system when a file goes.
//!
//! ```text
//! reconciler ──Expected──▶ Glances ──disturbed()──▶ reconciler
//! ```
//!
//! A thread of its own looks, because it wakes up once for each look; a timer of the runtime, whose
//! wheels turn in steps, takes three times as many, and they are most of what an idle agent costs.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use fabric::netstate::Sysctl;
use fabric::sysctl;
use tokio::sync::Notify;

/// Leaves time to put right within a second what was found.
const INTERVAL: Duration = Duration::from_millis(800);

/// What the last pass left, of what nobody tells about.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    /// The kernel parameters. One that does not exist has gone with its link, which is told.
    pub(crate) sysctls: BTreeMap<Sysctl, String>,
    /// A file that shall be there.
    pub(crate) file: Option<PathBuf>,
}

impl Expected {
    fn is_empty(&self) -> bool {
        self.sysctls.is_empty() && self.file.is_none()
    }

    fn is_disturbed(&self) -> bool {
        let differs =
            |(key, value): (&Sysctl, &String)| sysctl::read(key).is_ok_and(|now| now != *value);
        self.sysctls.iter().any(differs) || self.file.as_ref().is_some_and(|file| !file.exists())
    }
}

/// The way to the thread that looks.
pub(crate) struct Glances {
    expectations: Sender<Expected>,
    disturbed: Arc<Notify>,
}

impl Glances {
    /// Starts the thread, in the network namespace of this one. It ends with this value.
    ///
    /// # Errors
    /// If there can be no more threads.
    pub(crate) fn start() -> io::Result<Self> {
        let (expectations, queue) = mpsc::channel();
        let disturbed = Arc::new(Notify::new());
        let found = Arc::clone(&disturbed);
        let look = move || look(&queue, &found);
        thread::Builder::new().name("glance".to_owned()).spawn(look)?;
        Ok(Self { expectations, disturbed })
    }

    /// Looks for this from now on, and no more for what was expected before.
    ///
    /// It takes too much to look at parameters that wait for links; what a change of them brings about
    /// is told.
    pub(crate) fn expect(&self, mut expected: Expected) {
        expected.sysctls.retain(|key, _| !key.waits_for_links());
        // The thread only ends with this value.
        let _sent = self.expectations.send(expected);
    }

    /// Waits until something is not as expected. It is told once.
    pub(crate) async fn disturbed(&self) {
        self.disturbed.notified().await;
    }
}

fn look(queue: &Receiver<Expected>, disturbed: &Notify) {
    while let Ok(mut expected) = queue.recv() {
        while !expected.is_empty() {
            match queue.recv_timeout(INTERVAL) {
                Ok(next) => expected = next,
                Err(RecvTimeoutError::Timeout) if expected.is_disturbed() => {
                    disturbed.notify_one();
                    expected = Expected::default();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_that_wait_for_links_are_not_looked_at() {
        let (expectations, queue) = mpsc::channel();
        let glances = Glances { expectations, disturbed: Arc::default() };
        let link = "flannel0".parse().unwrap();
        let names = ["addr_gen_mode", "accept_ra"];
        let sysctls = names.map(|name| (Sysctl::ipv6(link, name), "1".to_owned())).into();
        glances.expect(Expected { sysctls, file: None });
        let left: Vec<_> = queue.recv().unwrap().sysctls.into_keys().collect();
        assert_eq!(left, [Sysctl::ipv6(link, "accept_ra")]);
    }
}
