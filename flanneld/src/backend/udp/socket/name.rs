//! Addresses as the kernel reads and writes them (`struct sockaddr` of bind(2)).

#![expect(unsafe_code, reason = "the kernel tells families apart by the first field of a union")]

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use nix::sys::socket::{SockaddrIn, SockaddrIn6};

/// An address and port of either family.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) union Name {
    ipv4: libc::sockaddr_in,
    ipv6: libc::sockaddr_in6,
}

impl Name {
    /// One that is to be written.
    pub(super) fn nobody() -> Self {
        // SAFETY: both structures are of integers only, for which zero is valid.
        unsafe { std::mem::zeroed() }
    }

    /// What a header must say about an address that is to be read or written.
    pub(super) const fn len(address: Option<SocketAddr>) -> libc::socklen_t {
        let len = match address {
            Some(SocketAddr::V4(_)) => size_of::<libc::sockaddr_in>(),
            Some(SocketAddr::V6(_)) => size_of::<libc::sockaddr_in6>(),
            None => size_of::<Self>(),
        };
        #[expect(clippy::cast_possible_truncation, reason = "at most 28 bytes")]
        let len = len as libc::socklen_t;
        len
    }

    /// Returns the address; one of another family is that of nobody.
    pub(super) fn address(&self) -> SocketAddr {
        // SAFETY: every byte of the union was written, and both structures are of integers only.
        // The family is at the same place in both.
        let (ipv4, ipv6) = unsafe { (self.ipv4, self.ipv6) };
        match libc::c_int::from(ipv4.sin_family) {
            libc::AF_INET => SockaddrIn::from(ipv4).into(),
            libc::AF_INET6 => SockaddrIn6::from(ipv6).into(),
            _ => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0).into(),
        }
    }
}

impl From<SocketAddr> for Name {
    fn from(address: SocketAddr) -> Self {
        // The larger one first, so that no byte stays unwritten.
        let mut name = Self::nobody();
        match address {
            SocketAddr::V4(address) => name.ipv4 = *SockaddrIn::from(address).as_ref(),
            SocketAddr::V6(address) => name.ipv6 = *SockaddrIn6::from(address).as_ref(),
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_survive() {
        for text in ["198.51.100.1:8285", "[2001:db8::1]:8285"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(Name::from(address).address(), address);
        }
        assert!(Name::nobody().address().ip().is_unspecified());
    }
}
