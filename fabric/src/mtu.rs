//! Sizes of packets.

use std::fmt;

/// The largest packet a link carries, in bytes, link-layer header not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mtu(u32);

impl Mtu {
    /// Every IPv4 link carries at least this (RFC 791, section 3.2).
    pub const MIN: u32 = 68;
    /// Every IPv6 link carries at least this (RFC 8200, section 5); a link that cannot has no IPv6 on
    /// Linux, and the kernel does not cut VXLAN packets into fragments over IPv6.
    pub const MIN_IPV6: u32 = 1280;
    /// No IP packet is longer; the loopback link says one more.
    pub const MAX: u32 = 65_536;

    /// Returns `None` outside of [`Mtu::MIN`] to [`Mtu::MAX`].
    pub const fn new(bytes: u32) -> Option<Self> {
        if Self::MIN <= bytes && bytes <= Self::MAX { Some(Self(bytes)) } else { None }
    }

    /// Returns the number of bytes.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Returns what is left for the inner packet when every packet gets `overhead` bytes added, or
    /// `None` if that is less than [`Mtu::MIN`].
    pub const fn inside(self, overhead: u32) -> Option<Self> {
        Self::new(self.0.saturating_sub(overhead))
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_what_a_link_can_have() {
        assert_eq!(Mtu::new(67), None);
        assert_eq!(Mtu::new(65_537), None);
        assert_eq!(Mtu::new(1500).and_then(|mtu| mtu.inside(50)), Mtu::new(1450));
        assert_eq!(Mtu::new(100).and_then(|mtu| mtu.inside(50)), None);
    }
}
