//! One queue of the TUN device: packets come and go one per call, each behind a header that says
//! what is left to do for it.

#![expect(unsafe_code, reason = "ioctl and writev on a TUN queue")]

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use fabric::link_name::LinkName;
use fabric::tun::{self, PacketHeader};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::descriptor::replace;
use super::merge::PACKETS_MAX;
use super::offload::{Transport, VNET_HEADER, VnetHeader};

/// Cut and checksum offload for both families; the kernel knows USO only for both together
/// (`set_offload` in its `drivers/net/tun.c`).
const CUT_ALL: libc::c_uint = CUT_TCP | libc::TUN_F_USO4 | libc::TUN_F_USO6;
const CUT_TCP: libc::c_uint =
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
/// The header and the pieces of the longest run; the kernel takes 1024 (`UIO_MAXIOV`).
const PIECES_MAX: usize = 1 + PACKETS_MAX;
/// Nearly every packet that is no segment needs no more.
const FEW: usize = 4;

/// What the kernel leaves to us, and takes from us in return; the better, the smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Offload {
    /// Segments of TCP and UDP.
    TcpAndUdp,
    /// Segments of TCP (kernels before 6.2).
    Tcp,
    /// Nothing.
    None,
    /// Nothing, and packets come without a header that could say so.
    Bare,
}

impl Offload {
    const fn header(self) -> PacketHeader {
        match self {
            Self::TcpAndUdp | Self::Tcp | Self::None => PacketHeader::VirtioNet,
            Self::Bare => PacketHeader::None,
        }
    }

    const fn flags(self) -> libc::c_uint {
        match self {
            Self::TcpAndUdp => CUT_ALL,
            Self::Tcp => CUT_TCP,
            Self::None | Self::Bare => 0,
        }
    }
}

/// A queue of the device. Its descriptor stays the same when the device is made anew.
#[derive(Debug)]
pub(super) struct Queue {
    fd: OwnedFd,
    offload: Offload,
}

impl Queue {
    /// Opens a queue of a device that is there, with the best that the kernel has from `wish` on.
    pub(super) fn open(device: LinkName, wish: Offload) -> io::Result<Self> {
        Self::prepare(tun::open_queue(device, wish.header())?, wish)
    }

    /// Takes over a queue from our predecessor, if it is one of this device.
    pub(super) fn adopt(fd: OwnedFd, device: LinkName, wish: Offload) -> io::Result<Self> {
        let queue = Self::prepare(fd, wish)?;
        let is_ours = queue.is_of(device);
        if is_ours { Ok(queue) } else { Err(io::Error::from_raw_os_error(libc::EBADFD)) }
    }

    fn prepare(fd: OwnedFd, wish: Offload) -> io::Result<Self> {
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let mut queue = Self { fd, offload: Offload::Bare };
        if queue.has_header()? {
            let len = libc::c_int::try_from(VNET_HEADER).expect("ten is a small number");
            // SAFETY: TUNSETVNETHDRSZ reads one int, which lives until the call returns.
            check(unsafe {
                libc::ioctl(queue.fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len)
            })?;
            let levels = [Offload::TcpAndUdp, Offload::Tcp];
            let found = levels.into_iter().find(|level| *level >= wish && queue.accepts(*level));
            queue.offload = found.unwrap_or(Offload::None);
        }
        if queue.offload >= Offload::None {
            // What an earlier owner asked for is not asked for by us.
            let _nothing_to_take_back = queue.accepts(Offload::None);
        }
        Ok(queue)
    }

    fn accepts(&self, offload: Offload) -> bool {
        let flags = libc::c_ulong::from(offload.flags());
        // SAFETY: TUNSETOFFLOAD takes its argument as a number and touches no memory.
        unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETOFFLOAD, flags) == 0 }
    }

    /// Returns what the kernel does for us.
    pub(super) const fn offload(&self) -> Offload {
        self.offload
    }

    /// Whether segments can be written.
    pub(super) fn takes(&self, transport: Transport) -> bool {
        match transport {
            Transport::Tcp => self.offload <= Offload::Tcp,
            Transport::Udp => self.offload <= Offload::TcpAndUdp,
        }
    }

    /// Whether the device is still there, and still has this name.
    pub(super) fn is_of(&self, device: LinkName) -> bool {
        self.device() == Some(device)
    }

    fn device(&self) -> Option<LinkName> {
        let name = self.interface().ok()?.ifr_name.map(|byte| byte.to_ne_bytes()[0]);
        let name = name.split(|byte| *byte == 0).next()?;
        std::str::from_utf8(name).ok()?.parse().ok()
    }

    fn has_header(&self) -> io::Result<bool> {
        let request = self.interface()?;
        // SAFETY: TUNGETIFF has written the flags.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        Ok(libc::c_int::from(flags) & libc::IFF_VNET_HDR != 0)
    }

    fn interface(&self) -> io::Result<libc::ifreq> {
        // SAFETY: the structure is of integers and unions of such, for all of which zero is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: TUNGETIFF writes one ifreq, which lives until the call returns.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
        Ok(request)
    }

    /// Becomes a queue of the device that is there now, for every thread that uses this one.
    pub(super) fn reattach(&self, device: LinkName) -> io::Result<()> {
        // One that was renamed vanishes with its last queue; there is none to tell if it was deleted.
        // SAFETY: TUNSETPERSIST takes its argument as a number and touches no memory.
        let _best_effort =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETPERSIST, 0 as libc::c_ulong) };
        replace(&self.fd, &Self::open(device, self.offload)?.fd)
    }

    /// Reads a packet behind its header into `buffer`, and returns the length of both; fails with
    /// `WouldBlock` if there is none.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.offload != Offload::Bare {
            return Ok(nix::unistd::read(&self.fd, buffer)?);
        }
        let (header, packet) = buffer.split_at_mut(VNET_HEADER);
        header.copy_from_slice(&VnetHeader::default().encode());
        Ok(VNET_HEADER + nix::unistd::read(&self.fd, packet)?)
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
        let header = (self.offload != Offload::Bare).then_some(&header[..]);
        let mut vector = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; N];
        let slices = pieces.iter().map(|piece| &bytes[piece.clone()]);
        let slices = header.into_iter().chain(slices);
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
