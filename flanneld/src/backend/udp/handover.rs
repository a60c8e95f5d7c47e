//! Queues and sockets outlive the program where a supervisor keeps them (`sd_pid_notify_with_fds`
//! and `sd_listen_fds` of systemd, file descriptor store): packets wait in them meanwhile.
//!
//! Without such a supervisor the device stays all the same, and packets are lost until the program
//! is back.

#![expect(unsafe_code, reason = "descriptors come from the supervisor as numbers")]

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket,
};

const QUEUE: &str = "udp-queue";
const SOCKET: &str = "udp-socket";

/// What the supervisor kept for us.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) queues: Vec<OwnedFd>,
    pub(super) sockets: Vec<OwnedFd>,
}

/// Returns what the supervisor kept; nothing the second time.
pub(super) fn take() -> Kept {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let mut kept = Kept::default();
    if TAKEN.swap(true, Ordering::Relaxed) {
        return kept;
    }
    for (fd, name) in sd_notify::listen_fds_with_names().into_iter().flatten() {
        // SAFETY: the supervisor passed the descriptor to this process, and nobody took it before.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let _stays_open = fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        match name.as_str() {
            QUEUE => kept.queues.push(fd),
            SOCKET => kept.sockets.push(fd),
            _ => {}
        }
    }
    kept
}

/// Asks the supervisor to keep these from now on, instead of what it kept before.
pub(super) fn keep<'a>(
    queues: impl Iterator<Item = BorrowedFd<'a>>,
    sockets: impl Iterator<Item = BorrowedFd<'a>>,
) {
    let Some(supervisor) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let queues = queues.map(|fd| (QUEUE, fd));
    let done = || -> io::Result<()> {
        for name in [QUEUE, SOCKET] {
            tell(&supervisor, &format!("FDSTOREREMOVE=1\nFDNAME={name}"), None)?;
        }
        for (name, fd) in queues.chain(sockets.map(|fd| (SOCKET, fd))) {
            tell(&supervisor, &format!("FDSTORE=1\nFDNAME={name}"), Some(fd))?;
        }
        Ok(())
    };
    if let Err(error) = done() {
        tracing::debug!(%error, "the supervisor could not be asked to keep queues and sockets");
    }
}

fn tell(supervisor: &OsString, text: &str, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let address = match supervisor.as_bytes() {
        [b'@', name @ ..] => UnixAddr::new_abstract(name)?,
        path => UnixAddr::new(path)?,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    let fds: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &[][..] } else { &rights };
    let text = [IoSlice::new(text.as_bytes())];
    sendmsg(socket.as_raw_fd(), &text, rights, MsgFlags::empty(), Some(&address))?;
    Ok(())
}
