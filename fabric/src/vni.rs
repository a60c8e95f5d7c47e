//! VXLAN network identifiers.

use std::fmt;

/// A VXLAN network identifier: 24 bits on the wire (RFC 7348, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vni(u32);

impl Vni {
    /// Returns `None` if `id` does not fit 24 bits.
    pub const fn new(id: u32) -> Option<Self> {
        if id < 1 << 24 { Some(Self(id)) } else { None }
    }

    /// Returns the number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_24_bits() {
        assert_eq!(Vni::new(16_777_215).map(Vni::get), Some(16_777_215));
        assert_eq!(Vni::new(16_777_216), None);
    }
}
