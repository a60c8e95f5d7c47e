//! One queue of the TUN device: packets come and go one per call, each behind a header that says
//! what is left to do for it.

#![expect(unsafe_code, reason = "ioctl, writev and dup3 on a TUN queue")]

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use fabric::link_name::LinkName;
use fabric::tun;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::merge::PACKETS_MAX;
use super::offload::{VNET_HEADER, VnetHeader};

/// Cut and checksum offload for IPv4, and for UDP in both families because the kernel knows only
/// both together (`set_offload` in its `drivers/net/tun.c`).
const CUT_ALL: libc::c_uint = CUT_TCP | libc::TUN_F_USO4 | libc::TUN_F_USO6;
const CUT_TCP: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO_ECN;
/// The header and the pieces of the longest run; the kernel takes 1024 (`UIO_MAXIOV`).
const PIECES_MAX: usize = 1 + PACKETS_MAX;
/// Nearly every packet that is no segment needs no more.
const FEW: usize = 4;

/// What the kernel leaves to us, and takes from us in return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offload {
    /// Segments of TCP and UDP.
    TcpAndUdp,
    /// Segments of TCP (kernels before 6.2).
    Tcp,
    /// Nothing.
    None,
}

/// A queue of the device. Its descriptor stays the same when the device is made anew.
#[derive(Debug)]
pub(super) struct Queue {
    fd: OwnedFd,
}

impl Queue {
    /// Opens a queue of a device that is there.
    pub(super) fn open(device: LinkName) -> io::Result<(Self, Offload)> {
        Self::prepare(tun::open_queue(device)?)
    }

    /// Takes over a queue from our predecessor, if it is one of this device.
    pub(super) fn adopt(fd: OwnedFd, device: LinkName) -> io::Result<(Self, Offload)> {
        let (queue, offload) = Self::prepare(fd)?;
        match queue.device() {
            Some(name) if name == device => Ok((queue, offload)),
            _ => Err(io::Error::from_raw_os_error(libc::EBADFD)),
        }
    }

    fn prepare(fd: OwnedFd) -> io::Result<(Self, Offload)> {
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let len = libc::c_int::try_from(VNET_HEADER).expect("ten is a small number");
        // SAFETY: TUNSETVNETHDRSZ reads one int, which lives until the call returns.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) })?;
        let accepted = |(offload, flags): &(Offload, libc::c_uint)| {
            // SAFETY: TUNSETOFFLOAD takes its argument as a number and touches no memory.
            let set = unsafe {
                libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(*flags))
            };
            (set == 0).then_some(*offload)
        };
        let wishes = [(Offload::TcpAndUdp, CUT_ALL), (Offload::Tcp, CUT_TCP)];
        let offload = wishes.iter().find_map(accepted).unwrap_or(Offload::None);
        Ok((Self { fd }, offload))
    }

    /// Whether the device is still there.
    pub(super) fn is_attached(&self) -> bool {
        self.device().is_some()
    }

    fn device(&self) -> Option<LinkName> {
        // SAFETY: the structure is of integers and unions of such, for all of which zero is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: TUNGETIFF writes one ifreq, which lives until the call returns.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })
            .ok()?;
        let name = request.ifr_name.map(|byte| byte.to_ne_bytes()[0]);
        let name = name.split(|byte| *byte == 0).next()?;
        std::str::from_utf8(name).ok()?.parse().ok()
    }

    /// Becomes a queue of the device that is there now, for every thread that uses this one.
    pub(super) fn reattach(&self, device: LinkName) -> io::Result<()> {
        let (new, _offload) = Self::open(device)?;
        // SAFETY: both descriptors are open and stay ours; the old file is closed in the same step.
        check(unsafe { libc::dup3(new.fd.as_raw_fd(), self.fd.as_raw_fd(), libc::O_CLOEXEC) })
    }

    /// Reads a packet behind its header into `buffer`, and returns the length of both; fails with
    /// `WouldBlock` if there is none.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(&self.fd, buffer)?)
    }

    /// Writes the packet whose pieces lie in `bytes`.
    pub(super) fn write(
        &self,
        vnet: VnetHeader,
        bytes: &[u8],
        pieces: &[Range<usize>],
    ) -> io::Result<()> {
        match pieces.len() {
            ..FEW => self.write_pieces::<FEW>(vnet, bytes, pieces),
            _ => self.write_pieces::<PIECES_MAX>(vnet, bytes, pieces),
        }
    }

    fn write_pieces<const N: usize>(
        &self,
        vnet: VnetHeader,
        bytes: &[u8],
        pieces: &[Range<usize>],
    ) -> io::Result<()> {
        let header = vnet.encode();
        let mut vector = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; N];
        let slices = pieces.iter().map(|piece| &bytes[piece.clone()]);
        let slices = std::iter::once(&header[..]).chain(slices);
        let mut count = 0;
        for (to, from) in vector.iter_mut().zip(slices) {
            *to = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: from.len() };
            count += 1;
        }
        // SAFETY: the first `count` entries are slices that live until the call returns, and the
        // kernel only reads them.
        let written = unsafe { libc::writev(self.fd.as_raw_fd(), vector.as_ptr(), count) };
        if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
