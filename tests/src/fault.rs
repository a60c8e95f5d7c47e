//! Kills a program at a system call of one's choice, whatever it is, also inside a thread; and counts
//! the programs and processes that one starts.

#![expect(unsafe_code, reason = "a child asks to be traced between fork and exec")]

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// How a traced program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was killed before it entered the system call.
    Killed,
    /// It made fewer system calls than that, and returned this status.
    Exited(i32),
}

/// Runs a command with this text on its stdin to its end, and returns how many programs and processes
/// it started itself.
///
/// # Panics
/// If it cannot be started or traced, or fails.
pub fn started_by(command: &mut Command, stdin: &str) -> usize {
    let process = start(command, stdin);
    let options = Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(process, options).expect("it is stopped");
    ptrace::cont(process, None).expect("it is stopped");
    let mut started = 0;
    loop {
        let (thread, signal) = match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(thread, status)) if thread == process => {
                assert_eq!(status, 0, "{command:?}");
                return started;
            }
            Ok(WaitStatus::PtraceEvent(thread, ..)) => {
                started += 1;
                (thread, None)
            }
            Ok(WaitStatus::Stopped(thread, Signal::SIGSTOP)) => (thread, None),
            Ok(WaitStatus::Stopped(thread, signal)) => (thread, Some(signal)),
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => continue,
            status => panic!("the traced program: {status:?}"),
        };
        match ptrace::cont(thread, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => panic!("a traced thread: {errno}"),
        }
    }
}

/// Runs a command with this text on its stdin, and kills it where it would make its system call
/// number `count`, counted from zero over all its threads.
///
/// # Panics
/// If it cannot be started or traced.
pub fn run_killed_at(command: &mut Command, stdin: &str, count: usize) -> End {
    let process = start(command, stdin);
    let options =
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(process, options).expect("it is stopped");
    ptrace::syscall(process, None).expect("it is stopped");
    trace(process, count)
}

/// Starts a command that is traced, and stops it before its first instruction.
fn start(command: &mut Command, stdin: &str) -> Pid {
    // The text fits into a pipe before anybody reads it.
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    writer.write_all(stdin.as_bytes()).expect("the reader is open");
    drop(writer);
    command.stdin(reader).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: the closure makes one system call and does not allocate.
    unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
    #[expect(clippy::zombie_processes, reason = "who traces it waits for all its threads")]
    let child = command.spawn().expect("the program can be started");
    let process = Pid::from_raw(child.id().try_into().expect("a process number is positive"));
    let first = waitpid(process, None).expect("it is our child");
    assert!(matches!(first, WaitStatus::Stopped(_, Signal::SIGTRAP)), "{first:?}");
    process
}

fn trace(process: Pid, count: usize) -> End {
    let mut entered = 0;
    // Threads that are inside of a system call.
    let mut inside = Vec::new();
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL)).expect("the program is our child") {
            WaitStatus::PtraceSyscall(thread) => {
                match inside.iter().position(|one| *one == thread) {
                    Some(place) => drop(inside.swap_remove(place)),
                    None if entered == count => return end(process),
                    None => {
                        entered += 1;
                        inside.push(thread);
                    }
                }
                proceed(thread, None);
            }
            WaitStatus::Exited(thread, status) if thread == process => return End::Exited(status),
            // The first stop of a thread and the stop of its maker are not for the program.
            WaitStatus::Stopped(thread, Signal::SIGSTOP) => proceed(thread, None),
            WaitStatus::PtraceEvent(thread, ..) => proceed(thread, None),
            WaitStatus::Stopped(thread, signal) => proceed(thread, Some(signal)),
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {}
            status => panic!("the traced program: {status:?}"),
        }
    }
}

fn end(process: Pid) -> End {
    kill(process, Signal::SIGKILL).expect("it is our child");
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Signaled(thread, ..)) if thread == process => return End::Killed,
            Ok(_) => {}
            Err(errno) => panic!("the killed program: {errno}"),
        }
    }
}

/// Lets a thread go on. One that was killed meanwhile is no failure.
fn proceed(thread: Pid, signal: Option<Signal>) {
    match ptrace::syscall(thread, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(errno) => panic!("a traced thread: {errno}"),
    }
}
