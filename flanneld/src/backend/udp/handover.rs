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
use std::sync::{LazyLock, Mutex, PoisonError};

use fabric::link_name::LinkName;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket,
};

/// What the supervisor kept for us, of one device.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) queues: Vec<OwnedFd>,
    pub(super) sockets: Vec<OwnedFd>,
}

/// The names that descriptors are kept under: `flannel0-queue`, `flannel0-socket`.
fn names(device: LinkName) -> [String; 2] {
    ["queue", "socket"].map(|what| format!("{device}-{what}"))
}

/// Returns what the supervisor kept of a device; nothing the second time.
pub(super) fn take(device: LinkName) -> Kept {
    static INHERITED: LazyLock<Mutex<Vec<(OwnedFd, String)>>> =
        LazyLock::new(|| Mutex::new(inherited()));
    let mut inherited = INHERITED.lock().unwrap_or_else(PoisonError::into_inner);
    let [queues, sockets] = names(device).map(|wanted| {
        let mine = inherited.extract_if(.., |(_, name)| *name == wanted);
        mine.map(|(fd, _)| fd).collect()
    });
    Kept { queues, sockets }
}

fn inherited() -> Vec<(OwnedFd, String)> {
    let owned = |(fd, name)| {
        // SAFETY: the supervisor passed the descriptor to this process, and this runs only once.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let _stays_open = fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        (fd, name)
    };
    sd_notify::listen_fds_with_names().into_iter().flatten().map(owned).collect()
}

/// Asks the supervisor to keep these from now on, instead of what it kept before of the device.
pub(super) fn keep<'a>(
    device: LinkName,
    queues: impl Iterator<Item = BorrowedFd<'a>>,
    sockets: impl Iterator<Item = BorrowedFd<'a>>,
) {
    let Some(supervisor) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let [queue, socket] = names(device);
    let done = || -> io::Result<()> {
        for name in [&queue, &socket] {
            tell(&supervisor, &format!("FDSTOREREMOVE=1\nFDNAME={name}"), None)?;
        }
        let queues = queues.map(|fd| (&queue, fd));
        for (name, fd) in queues.chain(sockets.map(|fd| (&socket, fd))) {
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
