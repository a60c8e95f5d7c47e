//! Names of network interfaces.

use std::fmt;
use std::str::FromStr;

/// The name of a network interface: 1 to 15 bytes without `/`, `:` and white space, and not `.` or
/// `..` (`dev_valid_name` in the kernel's `net/core/dev.c`).
///
/// Such a name is also safe as one component of a path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName([u8; LinkName::MAX]);

impl LinkName {
    /// The kernel keeps 16 bytes, one of them for the end.
    const MAX: usize = 15;

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(Self::MAX);
        std::str::from_utf8(&self.0[..end]).expect("a name is only made of text")
    }
}

/// Why a text is not the name of an interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLinkName {
    /// It has no characters.
    #[error("interface name is empty")]
    Empty,
    /// It has more than 15 bytes.
    #[error("interface name {0:?} is too long: at most 15 bytes")]
    TooLong(String),
    /// It names a directory.
    #[error("interface name is . or ..")]
    Dots,
    /// It has a character that the kernel refuses.
    #[error("interface name {0:?} contains / or : or whitespace characters")]
    Character(String),
}

impl FromStr for LinkName {
    type Err = InvalidLinkName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if name.is_empty() {
            return Err(InvalidLinkName::Empty);
        }
        if name.len() > Self::MAX {
            return Err(InvalidLinkName::TooLong(name.to_owned()));
        }
        if name == "." || name == ".." {
            return Err(InvalidLinkName::Dots);
        }
        let refused = |c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace();
        if name.contains(refused) {
            return Err(InvalidLinkName::Character(name.to_owned()));
        }
        let mut bytes = [0; Self::MAX];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Ok(Self(bytes))
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_the_kernel_accepts() {
        for name in ["lo", "flannel.1", "cni0", "eth0.100", "fifteen-letters"] {
            assert_eq!(name.parse::<LinkName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn refuses_the_rest() {
        assert_eq!("".parse::<LinkName>(), Err(InvalidLinkName::Empty));
        assert_eq!("..".parse::<LinkName>(), Err(InvalidLinkName::Dots));
        for name in ["a/b", "eth0:1", "a b", "a\n", "a\0b"] {
            assert!(
                matches!(name.parse::<LinkName>(), Err(InvalidLinkName::Character(_))),
                "{name}"
            );
        }
        let long = "sixteen--letters".parse::<LinkName>();
        assert!(matches!(long, Err(InvalidLinkName::TooLong(_))));
    }
}
