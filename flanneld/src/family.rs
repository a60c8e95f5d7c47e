//! The two address families as values, so that nothing has to be written once for each.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// In the order in which everything is done and shown.
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub(crate) const fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The family of a network.
    pub(crate) fn of_network(network: IpNetwork) -> Self {
        if network.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The length of an address, in bits.
    pub(crate) const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A value for each family that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PerFamily<T> {
    pub(crate) ipv4: Option<T>,
    pub(crate) ipv6: Option<T>,
}

impl<T> Default for PerFamily<T> {
    fn default() -> Self {
        Self { ipv4: None, ipv6: None }
    }
}

impl<T> PerFamily<T> {
    /// Asks for the value of each family.
    pub(crate) fn from_fn(mut value: impl FnMut(Family) -> Option<T>) -> Self {
        Self { ipv4: value(Family::V4), ipv6: value(Family::V6) }
    }

    /// Asks for the value of each family, until one fails.
    pub(crate) fn try_from_fn<E>(
        mut value: impl FnMut(Family) -> Result<Option<T>, E>,
    ) -> Result<Self, E> {
        Ok(Self { ipv4: value(Family::V4)?, ipv6: value(Family::V6)? })
    }

    /// Returns the value of a family, if it is in use.
    pub(crate) const fn get(&self, family: Family) -> Option<&T> {
        match family {
            Family::V4 => self.ipv4.as_ref(),
            Family::V6 => self.ipv6.as_ref(),
        }
    }

    /// Returns the values of the families in use, IPv4 first.
    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.ipv4.iter().chain(&self.ipv6)
    }

    /// Returns the families in use with their values, IPv4 first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Family, &T)> {
        Family::ALL.into_iter().filter_map(|family| Some((family, self.get(family)?)))
    }

    /// Returns the families in use, IPv4 first.
    pub(crate) fn families(&self) -> impl Iterator<Item = Family> {
        self.iter().map(|(family, _)| family)
    }
}
