//! Named network namespaces: `/run/netns/<name>`, as `ip netns` makes them.

#![expect(unsafe_code, reason = "namespaces are entered between fork and exec")]

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread::{self, JoinHandle};

use nix::sched::{CloneFlags, setns};

use crate::{program, wait};

/// A named network namespace; it stays until it is deleted or the sandbox ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace with its loopback interface up: `ip netns add NAME`.
    pub fn create(name: &str) -> Self {
        program::run(program::installed("ip").args(["netns", "add", name]));
        let namespace = Self { name: name.to_owned() };
        namespace.ip("link set lo up");
        namespace
    }

    /// One that somebody else made.
    pub fn existing(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    /// Removes the name; the namespace goes when nothing else holds it: `ip netns delete NAME`.
    pub fn delete(&self) {
        program::run(program::installed("ip").args(["netns", "delete", &self.name]));
    }

    /// The name, as in `ip netns exec NAME`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the namespace is mounted: what a runtime passes as `CNI_NETNS`.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs `ip -n NAME ARGUMENTS`, with arguments separated by blanks, and returns its output.
    ///
    /// # Panics
    /// If `ip` fails.
    #[track_caller]
    pub fn ip(&self, arguments: &str) -> String {
        let mut ip = program::installed("ip");
        program::run(ip.args(["-n", &self.name]).args(arguments.split_whitespace()))
    }

    /// Runs `ip` as [`Self::ip`] does, where it may fail: for things that may not be there.
    ///
    /// # Errors
    /// What `ip` wrote about it.
    pub fn try_ip(&self, arguments: &str) -> Result<String, String> {
        self.attempt("ip", arguments)
    }

    /// Runs `bridge` as [`Self::bridge`] does, where it may fail.
    ///
    /// # Errors
    /// What `bridge` wrote about it.
    pub fn try_bridge(&self, arguments: &str) -> Result<String, String> {
        self.attempt("bridge", arguments)
    }

    /// Runs `bridge -n NAME ARGUMENTS` and returns its output.
    ///
    /// # Panics
    /// If `bridge` fails.
    #[track_caller]
    pub fn bridge(&self, arguments: &str) -> String {
        let mut bridge = program::installed("bridge");
        program::run(bridge.args(["-n", &self.name]).args(arguments.split_whitespace()))
    }

    /// Waits until the kernel has noted that a link carries packets, which it does a moment after the
    /// link is up (`net/core/link_watch.c`): until then some are dropped.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn wait_until_operational(&self, link: &str) {
        wait::until(&format!("{link} in {} carries packets", self.name), || {
            let text = self.ip(&format!("-brief link show {link}"));
            // UNKNOWN is the state of devices that never tell.
            if [" UP ", " UNKNOWN "].iter().any(|state| text.contains(state)) {
                Ok(())
            } else {
                Err(text)
            }
        });
    }

    /// A command for an installed program that will run in this namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = program::installed(program);
        let namespace = self.open();
        let enter = move || Ok(setns(&namespace, CloneFlags::CLONE_NEWNET)?);
        // SAFETY: the closure makes one system call and does not allocate.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs `work` on a thread of its own in this namespace.
    ///
    /// Sockets that it opens belong to this namespace for good.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let namespace = self.open();
        let name = self.name.clone();
        let enter = move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("a sandbox owns its namespaces");
            work()
        };
        thread::Builder::new().name(name).spawn(enter).expect("a thread can be started")
    }

    /// Runs `work` in this namespace and waits for it.
    ///
    /// # Panics
    /// If `work` does.
    pub fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self.spawn(work).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    fn attempt(&self, program: &str, arguments: &str) -> Result<String, String> {
        let mut command = program::installed(program);
        command.args(["-n", &self.name]).args(arguments.split_whitespace());
        let output = program::outcome(&mut command);
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    pub(crate) fn open(&self) -> File {
        File::open(self.path()).unwrap_or_else(|e| panic!("{}: {e}", self.path().display()))
    }
}
