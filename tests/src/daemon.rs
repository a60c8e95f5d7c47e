//! A program in the background whose log is kept and shown when a test fails.

#![expect(clippy::print_stderr, reason = "the test harness captures it")]

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

/// Where the logs are, inside the sandbox.
pub const LOG_DIRECTORY: &str = "/run/log";

/// A running program; it is killed when this goes out of scope.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
    /// Where in the file the log of this run begins.
    log_start: usize,
}

impl Daemon {
    /// Starts `command` with both its outputs appended to `/run/log/<name>.log`.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(name: &str, command: &mut Command) -> Self {
        let log = Path::new(LOG_DIRECTORY).join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).expect("/run is ours");
        let log_start = file.metadata().map_or(0, |m| usize::try_from(m.len()).unwrap_or(0));
        let second = file.try_clone().expect("a descriptor can be duplicated");
        // A group of its own keeps the terminal's Ctrl-C away; whoever started it decides.
        command.stdin(Stdio::null()).stdout(file).stderr(second).process_group(0);
        let child = command.spawn().unwrap_or_else(|e| panic!("{name} cannot be started: {e}"));
        Self { name: name.to_owned(), child, log, log_start }
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(text.get(self.log_start..).unwrap_or_default()).into_owned()
    }

    /// Its exit status, if it has ended.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is our child")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("it is our child");
    }

    /// Its process identifier.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("process identifiers are positive"))
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// If it does not, within [`wait::PATIENCE`].
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        wait::until(&format!("{} ends", self.name), || {
            self.child.try_wait().expect("it is our child").ok_or_else(|| {
                format!("it runs; its log ends with: {}", self.log().lines().last().unwrap_or("-"))
            })
        })
    }

    /// Asks it to stop with SIGTERM; returns how it ended and how long that took.
    ///
    /// # Panics
    /// If it does not stop.
    #[track_caller]
    pub fn terminate(&mut self) -> (ExitStatus, Duration) {
        let start = Instant::now();
        self.signal(Signal::SIGTERM);
        (self.wait(), start.elapsed())
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if thread::panicking() {
            eprintln!("--- log of {} ---\n{}", self.name, self.log().trim_end());
        }
    }
}

/// Everything that daemons of this sandbox have written.
pub fn all_logs() -> String {
    let mut text = String::new();
    for entry in fs::read_dir(LOG_DIRECTORY).into_iter().flatten().flatten() {
        let log = fs::read(entry.path()).unwrap_or_default();
        let name = entry.file_name();
        let log = String::from_utf8_lossy(&log);
        let _ = writeln!(text, "--- {} ---\n{}", name.to_string_lossy(), log.trim_end());
    }
    text
}
