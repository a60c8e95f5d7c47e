//! Interfaces whose packets this program reads and writes, as simple as can be: without offloads,
//! and gone with their descriptor (`Documentation/networking/tuntap.rst` of the kernel).

#![expect(unsafe_code, reason = "TUN and TAP devices are made by ioctl")]

use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// What is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// IP packets: a TUN device.
    Ip,
    /// Ethernet frames: a TAP device.
    Ethernet,
}

/// Makes an interface in the namespace of the calling thread: `ip tuntap add dev NAME mode tun`.
///
/// Reading from it does not wait.
///
/// # Errors
/// If there is an interface of that name, or no `/dev/net/tun`.
pub fn open(name: &str, layer: Layer) -> Result<File> {
    let device = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: the structure is of integers and unions of such, for all of which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let kind = match layer {
        Layer::Ip => libc::IFF_TUN,
        Layer::Ethernet => libc::IFF_TAP,
    };
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(kind | libc::IFF_NO_PI).expect("small flags");
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives until the call returns.
    match unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(device),
        _ => Err(Error::last_os_error()),
    }
}
