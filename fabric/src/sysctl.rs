//! Kernel parameters of the network namespace of this thread, in `/proc/sys/net` (proc(5)).

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::mtu::Mtu;
use crate::netstate::Sysctl;

/// Returns the value, without the line end.
///
/// # Errors
/// If there is no such parameter, as on a link that does not exist.
pub fn read(key: &Sysctl) -> io::Result<String> {
    // The kernel tells a value in one piece, and this is asked for again and again.
    let mut value = [0; 256];
    let length = File::open(path(key))?.read(&mut value)?;
    Ok(String::from_utf8_lossy(&value[..length]).trim_end().to_owned())
}

/// Sets the value.
///
/// # Errors
/// If there is no such parameter, or if the kernel refuses the value.
pub fn write(key: &Sysctl, value: &str) -> io::Result<()> {
    fs::write(path(key), value)
}

/// Whether links of this MTU have parameters of IPv6: a kernel without IPv6 has none, and others take
/// it off links that cannot carry what RFC 8200 (section 5) demands.
pub fn has_ipv6(mtu: Mtu) -> bool {
    mtu.get() >= Mtu::MIN_IPV6 && Path::new("/proc/sys/net/ipv6").exists()
}

/// Whether parameters can only be read, as in a container without privileges (a read-only mount of
/// `/proc/sys`).
pub fn is_read_only() -> bool {
    let mount = nix::sys::statvfs::statvfs("/proc/sys/net");
    mount.is_ok_and(|mount| mount.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY))
}

fn path(key: &Sysctl) -> PathBuf {
    Path::new("/proc/sys").join(key.as_path())
}
