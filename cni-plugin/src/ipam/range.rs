//! Which address comes next. Pure: what is taken is an argument.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnetwork::IpNetwork;

/// The addresses of one subnet that pods can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    subnet: IpNetwork,
    first: u128,
    last: u128,
    gateway: IpAddr,
}

/// Why a subnet is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Besides the network, the gateway and the broadcast address there must be one for a pod.
    #[error("Network {0} too small to allocate from")]
    TooSmall(IpNetwork),
    /// It names an address, not a subnet.
    #[error(
        "Network has host bits set. \
         For a subnet mask of length {length} the network address is {network}"
    )]
    HostBits {
        /// The length of the prefix.
        length: u8,
        /// What the address should have been.
        network: IpAddr,
    },
    /// A subnet is no subnet.
    #[error("invalid CIDR address: {0}")]
    Cidr(String),
    /// An address is no address.
    #[error("invalid IP address: {0}")]
    Address(String),
    /// The first address is not in the subnet, or behind the last.
    #[error("RangeStart {0} not in network {1}")]
    Start(IpAddr, IpNetwork),
    /// The last address is not in the subnet.
    #[error("RangeEnd {0} not in network {1}")]
    End(IpAddr, IpNetwork),
}

impl Range {
    /// Returns all of a subnet but the address of the network, and for IPv4 the broadcast address.
    ///
    /// # Errors
    /// If that leaves nothing, or if `subnet` is not one.
    pub fn of(subnet: IpNetwork) -> Result<Self, RangeError> {
        let (bits, broadcasts) = if subnet.is_ipv4() { (32, 1) } else { (128, 0) };
        if subnet.prefix() > bits - 2 {
            return Err(RangeError::TooSmall(subnet));
        }
        if subnet.ip() != subnet.network() {
            let (length, network) = (subnet.prefix(), subnet.network());
            return Err(RangeError::HostBits { length, network });
        }
        let base = number(subnet.network());
        let size = 1_u128.checked_shl(u32::from(bits - subnet.prefix())).unwrap_or(0);
        let end = base.wrapping_add(size).wrapping_sub(1);
        let mut range =
            Self { subnet, first: base + 1, last: end - broadcasts, gateway: subnet.network() };
        range.gateway = range.address(range.first);
        Ok(range)
    }

    /// Returns the part of it between two addresses. The first may be that of the network.
    ///
    /// # Errors
    /// If an address is not in the subnet, or if they are in the wrong order.
    pub fn between(self, start: Option<IpAddr>, end: Option<IpAddr>) -> Result<Self, RangeError> {
        let subnet = self.subnet;
        let mut range = self;
        if let Some(start) = start {
            let ordered = end.is_none_or(|end| start.is_ipv4() == end.is_ipv4() && start <= end);
            if !subnet.contains(start) || !ordered {
                return Err(RangeError::Start(start, subnet));
            }
            range.first = number(start);
        }
        if let Some(end) = end {
            if !subnet.contains(end) {
                return Err(RangeError::End(end, subnet));
            }
            range.last = number(end);
        }
        Ok(range)
    }

    /// Returns it with another gateway, which may be anywhere.
    pub const fn with_gateway(self, gateway: IpAddr) -> Self {
        Self { gateway, ..self }
    }

    /// Whether it has addresses in common with another one.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.subnet.is_ipv4() == other.subnet.is_ipv4()
            && self.first <= other.last
            && other.first <= self.last
    }

    /// Whether its addresses are IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.subnet.is_ipv4()
    }

    /// Returns the gateway; the first address unless it was said otherwise.
    pub const fn gateway(&self) -> IpAddr {
        self.gateway
    }

    /// Returns `ip` with the length of the subnet.
    pub fn in_subnet(&self, ip: IpAddr) -> IpNetwork {
        IpNetwork::new(ip, self.subnet.prefix()).expect("the prefix is one of this family")
    }

    fn contains(&self, ip: IpAddr) -> bool {
        self.subnet.contains(ip) && (self.first..=self.last).contains(&number(ip))
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.subnet {
            IpNetwork::V4(_) => {
                let bits = u32::try_from(number).expect("an IPv4 range ends below 2^32");
                IpAddr::V4(Ipv4Addr::from(bits))
            }
            IpNetwork::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
        }
    }
}

/// As `10.1.2.1-10.1.2.254`.
impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.address(self.first), self.address(self.last))
    }
}

/// Ranges of which one address is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(pub Vec<Range>);

impl RangeSet {
    /// Returns the range that a pod could have the address from.
    pub fn find(&self, ip: IpAddr) -> Option<Range> {
        self.0.iter().copied().find(|range| range.contains(ip))
    }

    /// Whether one of its ranges has addresses in common with one of another set.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().any(|range| other.0.iter().any(|other| range.overlaps(other)))
    }

    /// Chooses the next address that is neither a gateway nor `taken`, and its range.
    ///
    /// Goes round from `previous`, the address that was handed out before, so that an address rests
    /// as long as possible before somebody else has it.
    pub fn choose(
        &self,
        taken: &BTreeSet<IpAddr>,
        previous: Option<IpAddr>,
    ) -> Option<(Range, IpAddr)> {
        let free = |(range, ip): &(Range, IpAddr)| *ip != range.gateway() && !taken.contains(ip);
        self.round(previous).into_iter().flat_map(addresses).find(free)
    }

    /// All addresses in the order in which they are tried: `previous` is the last.
    fn round(&self, previous: Option<IpAddr>) -> Vec<(Range, RangeInclusive<u128>)> {
        let whole = |range: &Range| (*range, range.first..=range.last);
        let current = |ip| Some((self.0.iter().position(|range| range.contains(ip))?, ip));
        let Some((index, ip)) = previous.and_then(current) else {
            return self.0.iter().map(whole).collect();
        };
        let (before, after) = (&self.0[..index], &self.0[index + 1..]);
        let (range, previous) = (self.0[index], number(ip));
        let mut round = vec![(range, previous + 1..=range.last)];
        round.extend(after.iter().chain(before).map(whole));
        round.push((range, range.first..=previous));
        round
    }
}

fn addresses(
    (range, numbers): (Range, RangeInclusive<u128>),
) -> impl Iterator<Item = (Range, IpAddr)> {
    numbers.map(move |number| (range, range.address(number)))
}

/// As `10.1.2.1-10.1.2.254,10.1.3.1-10.1.3.254`.
impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<_> = self.0.iter().map(Range::to_string).collect();
        f.write_str(&ranges.join(","))
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(subnets: &[&str]) -> RangeSet {
        let range = |subnet: &&str| Range::of(subnet.parse().unwrap()).unwrap();
        RangeSet(subnets.iter().map(range).collect())
    }

    fn ips(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn goes_round_from_the_previous_address() {
        let small = &["10.0.0.0/29"][..];
        let two = &["10.0.0.0/30", "10.0.1.0/30"];
        let three = &["10.0.0.0/30", "10.0.1.0/30", "10.0.2.0/30"];
        let all_but_3 = &["10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"][..];
        let full = &["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"];
        type Row<'a> = (&'a [&'a str], &'a [&'a str], &'a str, Option<&'a str>);
        let table: [Row; 15] = [
            (small, &[], "", Some("10.0.0.2")),
            (small, &["10.0.0.2"], "", Some("10.0.0.3")),
            (small, &[], "10.0.0.5", Some("10.0.0.6")),
            (small, &["10.0.0.6"], "10.0.0.5", Some("10.0.0.2")),
            (small, &[], "10.0.0.6", Some("10.0.0.2")),
            (small, &["10.0.0.2"], "10.9.9.9", Some("10.0.0.3")),
            (small, &[], "fd00::3", Some("10.0.0.2")),
            (small, all_but_3, "10.0.0.3", Some("10.0.0.3")),
            (small, full, "10.0.0.3", None),
            (small, full, "", None),
            (two, &[], "10.0.0.2", Some("10.0.1.2")),
            (two, &["10.0.0.2", "10.0.1.2"], "", None),
            (three, &[], "10.0.2.2", Some("10.0.0.2")),
            (three, &["10.0.0.2"], "10.0.2.2", Some("10.0.1.2")),
            (&["2001:db8:1::/64"], &[], "", Some("2001:db8:1::2")),
        ];
        for (subnets, taken, previous, expected) in table {
            let chosen = set(subnets).choose(&ips(taken), previous.parse().ok());
            let expected = expected.map(|ip| ip.parse::<IpAddr>().unwrap());
            assert_eq!(chosen.map(|(_, ip)| ip), expected, "{subnets:?} {taken:?} {previous}");
        }
    }

    #[test]
    fn a_range_has_an_end_and_a_gateway() {
        let table = [
            ("10.1.2.0/24", "10.1.2.1-10.1.2.254"),
            ("10.1.2.4/30", "10.1.2.5-10.1.2.6"),
            ("0.0.0.0/0", "0.0.0.1-255.255.255.254"),
            ("fd00::/126", "fd00::1-fd00::3"),
            ("fd00:0:0:1::/64", "fd00:0:0:1::1-fd00::1:ffff:ffff:ffff:ffff"),
            ("::/0", "::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ];
        for (subnet, expected) in table {
            let range = Range::of(subnet.parse().unwrap()).unwrap();
            assert_eq!(range.to_string(), expected);
            assert_eq!(range.gateway().to_string(), expected.split('-').next().unwrap());
        }
        assert_eq!(
            set(&["10.0.0.0/29", "10.0.1.0/30"]).to_string(),
            "10.0.0.1-10.0.0.6,10.0.1.1-10.0.1.2"
        );
    }

    #[test]
    fn a_subnet_of_no_use_is_named() {
        let table = [
            ("10.1.2.0/31", "Network 10.1.2.0/31 too small to allocate from"),
            ("10.1.2.3/32", "Network 10.1.2.3/32 too small to allocate from"),
            ("fd00::/127", "Network fd00::/127 too small to allocate from"),
            (
                "10.1.2.3/24",
                "Network has host bits set. \
                 For a subnet mask of length 24 the network address is 10.1.2.0",
            ),
        ];
        for (subnet, expected) in table {
            let error = Range::of(subnet.parse().unwrap()).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn a_part_of_a_subnet_may_be_given_out() {
        let ip = |text: &str| text.parse::<IpAddr>().ok();
        let table = [
            ("10.1.2.0/24", "10.1.2.10", "10.1.2.20", Ok("10.1.2.10-10.1.2.20")),
            ("10.1.2.0/24", "10.1.2.0", "", Ok("10.1.2.0-10.1.2.254")),
            ("fd00::/64", "", "fd00::ff", Ok("fd00::1-fd00::ff")),
            ("10.1.2.0/24", "10.1.3.1", "", Err("RangeStart 10.1.3.1 not in network 10.1.2.0/24")),
            ("10.1.2.0/24", "", "10.1.3.1", Err("RangeEnd 10.1.3.1 not in network 10.1.2.0/24")),
            (
                "10.1.2.0/24",
                "10.1.2.9",
                "10.1.2.8",
                Err("RangeStart 10.1.2.9 not in network 10.1.2.0/24"),
            ),
            ("10.1.2.0/24", "fd00::1", "", Err("RangeStart fd00::1 not in network 10.1.2.0/24")),
        ];
        for (subnet, start, end, expected) in table {
            let range = Range::of(subnet.parse().unwrap()).unwrap();
            let range = range.between(ip(start), ip(end)).map(|range| range.to_string());
            let range = range.map_err(|error| error.to_string());
            assert_eq!(range.as_deref().map_err(String::as_str), expected);
        }
    }

    proptest! {
        #[test]
        fn every_address_gets_its_turn_and_none_twice(
            host in 0..64_u32,
            previous in proptest::option::of(0..64_u32),
        ) {
            let set = set(&["10.0.0.0/28", "10.0.0.16/29", "10.0.0.32/30"]);
            let ip = |host: u32| IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + host));
            let mut taken = BTreeSet::from([ip(host)]);
            let mut previous = previous.map(ip);
            let was_free = set.find(ip(host)).is_some_and(|range| range.gateway() != ip(host));
            let mut count = 0;
            while let Some((range, ip)) = set.choose(&taken, previous) {
                prop_assert!(range.contains(ip) && range.gateway() != ip);
                prop_assert!(taken.insert(ip));
                previous = Some(ip);
                count += 1;
            }
            prop_assert_eq!(count, 13 + 5 + 1 - i32::from(was_free));
        }
    }
}
