//! What a process takes: time of the processors, and memory, as `/proc` tells.

use std::fs;
use std::time::Duration;

use nix::unistd::Pid;

/// The time that all threads of a process have run so far (`schedstat` of proc(5), in nanoseconds).
///
/// # Panics
/// If there is no such process.
pub fn cpu_time(pid: Pid) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    let nanoseconds = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(" ").next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(threads.flatten().filter_map(nanoseconds).sum())
}

/// Memory of a process, in kibibytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What it has now (`VmRSS`).
    pub resident: u64,
    /// The most that it ever had (`VmHWM`).
    pub peak: u64,
    /// What of the present is not also in its files (`RssAnon`).
    pub anonymous: u64,
}

impl Memory {
    /// What a process has.
    ///
    /// # Panics
    /// If there is no such process.
    pub fn of(pid: Pid) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let value = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
            value.unwrap_or_else(|| panic!("{name} of process {pid}"))
        };
        Self { resident: value("VmRSS"), peak: value("VmHWM"), anonymous: value("RssAnon") }
    }
}
