//! TUN devices: network interfaces whose packets a program reads and writes
//! (`Documentation/networking/tuntap.rst` of the kernel).
//!
//! A persistent device is a link like any other: it stays when the program that made it ends, with
//! its addresses and routes. Packets pass while somebody has one of its queues open.

#![expect(unsafe_code, reason = "TUN devices are made and opened by ioctl")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::link_name::LinkName;

/// IP packets without Ethernet header and without the four bytes of `tun_pi`; each preceded by a
/// `virtio_net_hdr`; as many queues as are opened.
const FLAGS: libc::c_int =
    libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;

/// What stands before each packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketHeader {
    /// Nothing.
    None,
    /// A `virtio_net_hdr` (`linux/virtio_net.h`), where the kernel has it.
    VirtioNet,
}

/// Makes a persistent device: `ip tuntap add dev NAME mode tun multi_queue vnet_hdr`.
///
/// # Errors
/// With `EEXIST` if there is a link of that name, or if `/dev/net/tun` cannot be used.
pub fn create(name: LinkName) -> io::Result<()> {
    // Without this flag, a device that is there already would be opened.
    let device = attach(name, FLAGS | libc::IFF_TUN_EXCL).map_err(|error| {
        let exists = error.raw_os_error() == Some(libc::EBUSY);
        if exists { io::Error::from_raw_os_error(libc::EEXIST) } else { error }
    })?;
    // SAFETY: TUNSETPERSIST takes its argument as a number and touches no memory.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETPERSIST, 1 as libc::c_ulong) })
}

/// Opens one more queue of a device that [`create`] made, or the only one of a device that
/// somebody else made for one program. The queue ends with the descriptor.
///
/// # Errors
/// If there is no such device, or if it is of another kind; with `EBUSY` if it has no other queue.
pub fn open_queue(name: LinkName, header: PacketHeader) -> io::Result<OwnedFd> {
    // Attaching would make a device that is not there, and that one would vanish with us.
    nix::net::if_::if_nametoindex(name.as_str())?;
    let flags = match header {
        PacketHeader::VirtioNet => FLAGS,
        PacketHeader::None => FLAGS & !libc::IFF_VNET_HDR,
    };
    attach(name, flags).or_else(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => attach(name, flags & !libc::IFF_MULTI_QUEUE),
        _ => Err(error),
    })
}

fn attach(name: LinkName, flags: libc::c_int) -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: the structure is of integers and unions of such, for all of which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let flags = flags & (features(&device)? | libc::IFF_TUN_EXCL);
    // The kernel reads the flags as unsigned.
    let [low, high, ..] = flags.to_le_bytes();
    request.ifr_ifru.ifru_flags = libc::c_short::from_le_bytes([low, high]);
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives until the call returns.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(device.into())
}

/// Returns the flags that this kernel knows.
fn features(device: &File) -> io::Result<libc::c_int> {
    let mut features: libc::c_uint = 0;
    // SAFETY: TUNGETFEATURES writes one unsigned int, which lives until the call returns.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNGETFEATURES, &raw mut features) })?;
    Ok(libc::c_int::from_ne_bytes(features.to_ne_bytes()))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
