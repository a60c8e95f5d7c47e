//! A private machine for one test: own user, network, mount and process namespaces.
//!
//! The test binary executes itself again inside the namespaces, running just the one test, so that
//! tests stay parallel and names such as `flannel.1` or `/run/flannel` are free in each of them.
//! When the test ends, however it ends, the kernel removes every link, mount and process of it.

#![expect(unsafe_code, reason = "namespaces are entered between fork and exec")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the test harness captures both")]

use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::panic::{self, PanicHookInfo};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;
use std::{env, fs, thread};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Uid, fork, getgid, getuid};

use crate::{daemon, program};

/// Holds the network namespace outside of the sandbox, so that the inside can tell that it left it.
const OUTSIDE: &str = "FLANNEL_SANDBOX_OUTSIDE";

/// Holds the user outside of the sandbox; inside everybody is root.
const OUTSIDE_USER: &str = "FLANNEL_SANDBOX_OUTSIDE_USER";

/// Says that the users inside are those outside: for programs that need a real root.
const REAL_USERS: &str = "FLANNEL_SANDBOX_REAL_USERS";

/// A test that takes longer hangs. Generous, as the machine may be busy with other things.
const TEST_TIME_MAX: Duration = Duration::from_secs(600);

/// Runs `test` in a sandbox of its own; call it first and only once in a `#[test]` function.
///
/// # Panics
/// If the sandbox cannot be made, or with the output of `test` if that panicked.
pub fn sandboxed<F: FnOnce()>(test: F) {
    sandboxed_for(TEST_TIME_MAX, test);
}

/// Runs `test` as [`sandboxed`] does, and lets it take as long as that.
///
/// # Panics
/// If the sandbox cannot be made, or with the output of `test` if that panicked.
pub fn sandboxed_for<F: FnOnce()>(time_max: Duration, test: F) {
    sandboxed_by(sandbox_command("/proc/self/exe"), time_max, test);
}

/// Runs `test` as [`sandboxed`] does, but with the users and the control groups of the machine:
/// container runtimes need them.
///
/// # Panics
/// As [`sandboxed`], or if this is not root.
pub fn sandboxed_as_root<F: FnOnce()>(test: F) {
    assert!(getuid().is_root(), "container runtimes need root; run this test with sudo");
    let mut command = isolated_command("/proc/self/exe", false);
    command.env(REAL_USERS, "1");
    sandboxed_by(command, TEST_TIME_MAX, test);
}

fn sandboxed_by<F: FnOnce()>(mut command: Command, time_max: Duration, test: F) {
    if env::var_os(OUTSIDE).is_some() {
        enter().expect("the sandbox can be furnished");
        return within(time_max, test);
    }
    // The type of a closure is named after the function it stands in: `krate::module::test::{{closure}}`.
    let closure = std::any::type_name::<F>();
    let path = closure.trim_end_matches("::{{closure}}");
    let name = path.split_once("::").map_or(path, |(_krate, name)| name);
    let output = command
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|refused| panic!("{}", explain(&refused)));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    print!("{stdout}");
    eprint!("{stderr}");
    assert!(stdout.contains("1 passed"), "{name} failed in its sandbox ({})", output.status);
}

/// A command that will run `program` as the first process of a new sandbox.
///
/// The program must call [`enter`] before it does anything else.
/// The sandbox ends when that process ends, or when the thread that started it does.
pub fn sandbox_command(program: impl AsRef<Path>) -> Command {
    isolated_command(program, true)
}

fn isolated_command(program: impl AsRef<Path>, own_users: bool) -> Command {
    let (uid, gid) = (getuid(), getgid());
    let mut command = Command::new(program.as_ref());
    command.env(OUTSIDE, network_namespace().unwrap_or_default());
    command.env(OUTSIDE_USER, uid.to_string());
    let isolate = move || -> Result<()> {
        die_with_parent()?;
        let private = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID;
        let users = if own_users { CloneFlags::CLONE_NEWUSER } else { CloneFlags::empty() };
        match unshare(private | users) {
            Ok(()) if !own_users => {}
            Ok(()) => {
                fs::write("/proc/self/setgroups", "deny")?;
                fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
                fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
            }
            // Root can do without a user namespace where these are switched off.
            Err(_) if uid.is_root() => unshare(private)?,
            Err(refused) => return Err(refused.into()),
        }
        // Only a child enters the new process namespace; this process waits for it.
        // SAFETY: between fork and exec the process has one thread, so the child may go on.
        match unsafe { fork() }? {
            ForkResult::Child => die_with_parent(),
            ForkResult::Parent { child } => {
                // The pipes of other tests came along with the fork. This process never executes a
                // program, which would close them, and those tests would wait for it to end.
                // SAFETY: nothing of this process uses a descriptor any more.
                unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
                let code = loop {
                    match waitpid(child, None) {
                        Ok(WaitStatus::Exited(_, code)) => break code,
                        Err(Errno::EINTR) => {}
                        _ => break 101,
                    }
                };
                // SAFETY: nothing of the forked copy of the parent may run, so no destructors.
                unsafe { libc::_exit(code) }
            }
        }
    };
    // SAFETY: the closure only makes system calls and allocates, in a process of one thread.
    unsafe { command.pre_exec(isolate) };
    command
}

/// Runs `inside` in a sandbox, in a copy of this program: for programs that do nothing else.
///
/// Call it first in `main`. What `inside` reports by panicking is printed, and the status is 1.
pub fn main_in_sandbox(inside: impl FnOnce()) -> ExitCode {
    if env::var_os(OUTSIDE).is_some() {
        panic::set_hook(Box::new(print_and_exit));
        if let Err(refused) = enter() {
            eprintln!("{}", explain(&refused));
            return ExitCode::FAILURE;
        }
        inside();
        return ExitCode::SUCCESS;
    }
    match sandbox_command("/proc/self/exe").args(env::args_os().skip(1)).status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(refused) => {
            eprintln!("{}", explain(&refused));
            ExitCode::FAILURE
        }
    }
}

/// A panic hook for programs: fixtures say by a panic what went wrong, and that is the last word.
#[expect(clippy::exit, reason = "a sandbox ends with its first process")]
pub fn print_and_exit(panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("unknown");
    eprintln!("\nfailed: {text}");
    std::process::exit(1)
}

/// Furnishes the sandbox from inside: private mounts, `/proc` and `/sys` of its own, an empty
/// `/run`, and no trace of the host's CNI state.
///
/// # Errors
/// If this is not a fresh sandbox, or if the kernel refuses a mount.
pub fn enter() -> Result<()> {
    let outside = env::var(OUTSIDE).map_err(Error::other)?;
    if network_namespace()? == outside || std::process::id() != 1 {
        return Err(Error::other("not a sandbox: refusing to mount or configure anything"));
    }
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none)?;
    mount_tmpfs("/run")?;
    let keeps_control_groups = env::var_os(REAL_USERS).is_some();
    if keeps_control_groups {
        bind(CONTROL_GROUPS, "/run/cgroup")?;
    }
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)?;
    if keeps_control_groups {
        bind("/run/cgroup", CONTROL_GROUPS)?;
    }
    fs::create_dir(daemon::LOG_DIRECTORY)?;
    cover("/etc", &["cni", "kube-flannel"])?;
    cover("/var/lib", &["cni"])?;
    program::run(program::installed("ip").args(["link", "set", "lo", "up"]));
    Ok(())
}

/// Whether this process runs in a sandbox made by this module.
pub fn is_inside() -> bool {
    env::var(OUTSIDE).is_ok_and(|outside| network_namespace().is_ok_and(|inside| inside != outside))
}

/// Says what to do about a system that refused to make or furnish a sandbox.
pub fn explain(refused: &Error) -> String {
    // ENOSPC stands for a limit of zero namespaces.
    let restricted = refused.kind() == ErrorKind::PermissionDenied
        || refused.raw_os_error() == Some(libc::ENOSPC);
    let user = env::var(OUTSIDE_USER).unwrap_or_else(|_| Uid::effective().to_string());
    if restricted && user != "0" {
        "this system restricts unprivileged user namespaces; run this as root, for example with \
         sudo: it still touches nothing outside of its own namespaces"
            .to_owned()
    } else {
        format!("cannot make a sandbox: {refused}")
    }
}

/// Runs `test`, and ends the sandbox if that takes longer than `time_max`.
#[expect(clippy::exit, reason = "a thread that hangs in a system call cannot be asked to stop")]
fn within(time_max: Duration, test: impl FnOnce()) {
    let (finished, wait) = channel::<()>();
    thread::spawn(move || {
        if wait.recv_timeout(time_max) == Err(RecvTimeoutError::Timeout) {
            eprintln!("the test hung: no end after {time_max:?}\n{}", daemon::all_logs());
            std::process::exit(101);
        }
    });
    test();
    drop(finished);
}

const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

/// Shows a directory, with all that is mounted in it, in another place too.
fn bind(from: &str, to: &str) -> Result<()> {
    let none: Option<&str> = None;
    fs::create_dir_all(to)?;
    Ok(mount(Some(from), to, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?)
}

/// Makes `directory` writable and hides some of its entries: a tmpfs with links to all others.
fn cover(directory: &str, hidden: &[&str]) -> Result<()> {
    let original = Path::new("/run/outside").join(directory.trim_start_matches('/'));
    fs::create_dir_all(&original)?;
    let none: Option<&str> = None;
    mount(Some(directory), &original, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    mount_tmpfs(directory)?;
    for entry in fs::read_dir(&original)? {
        let name = entry?.file_name();
        if !hidden.iter().any(|hidden| name == **hidden) {
            symlink(original.join(&name), Path::new(directory).join(&name))?;
        }
    }
    Ok(())
}

fn mount_tmpfs(directory: &str) -> Result<()> {
    Ok(mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?)
}

fn network_namespace() -> Result<String> {
    Ok(fs::read_link("/proc/self/ns/net")?.to_string_lossy().into_owned())
}

fn die_with_parent() -> Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}
