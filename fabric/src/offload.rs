//! Offloads of a link: what the kernel leaves to the device. See ethtool(8), `-k` and `-K`.

#![expect(unsafe_code, reason = "offloads are read and changed by ioctl")]

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use crate::link_name::LinkName;

// linux/ethtool.h
const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_STXCSUM: u32 = 0x17;

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    value: u32,
}

/// Tells whether packets leave the link with checksums yet to be computed: `ethtool -k LINK`.
///
/// # Errors
/// If there is no such link, or if it knows no offloads.
pub fn tx_checksum(link: LinkName) -> io::Result<bool> {
    ask(link, EthtoolValue { command: ETHTOOL_GTXCSUM, value: 0 }).map(|answer| answer.value != 0)
}

/// Switches that on or off: `ethtool -K LINK tx on|off`.
///
/// # Errors
/// If there is no such link, or if it cannot be switched.
pub fn set_tx_checksum(link: LinkName, on: bool) -> io::Result<()> {
    ask(link, EthtoolValue { command: ETHTOOL_STXCSUM, value: on.into() }).map(drop)
}

fn ask(link: LinkName, mut request: EthtoolValue) -> io::Result<EthtoolValue> {
    // A socket of any kind will do; it stands for the network namespace.
    let socket = UnixDatagram::unbound()?;
    // SAFETY: the structure is of integers and unions of such, for all of which zero is valid.
    let mut name: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in name.ifr_name.iter_mut().zip(link.as_str().bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    name.ifr_ifru.ifru_data = (&raw mut request).cast();
    // SAFETY: SIOCETHTOOL reads and writes one ifreq and the ethtool_value that it points to, the
    // structure of both commands; both live until the call returns.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut name) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(request)
}
