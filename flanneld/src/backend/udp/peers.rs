//! Who has which subnet: a table that is replaced whole, never changed.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::counters::Traffic;

/// Another node, as the data path knows it.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// What it leases.
    pub(crate) subnet: IpNetwork,
    /// Where its packets are sent to and come from.
    pub(crate) address: SocketAddr,
    /// What passed; carried over from table to table.
    pub(crate) traffic: Arc<Traffic>,
}

/// All other nodes, to be looked up by inner address: the longest prefix wins.
#[derive(Debug, Default)]
pub(crate) struct PeerTable {
    /// Ordered by subnet, IPv4 first.
    endpoints: Vec<Endpoint>,
    ipv4: Ranges,
    ipv6: Ranges,
    /// All underlay addresses, ascending, each with one who has it.
    addresses: Vec<(SocketAddr, u32)>,
}

impl PeerTable {
    /// Builds the table.
    pub(crate) fn new(mut endpoints: Vec<Endpoint>) -> Self {
        endpoints.sort_by_key(|endpoint| key(endpoint.subnet));
        endpoints.dedup_by_key(|endpoint| key(endpoint.subnet));
        let mut addresses: Vec<_> =
            endpoints.iter().map(|endpoint| endpoint.address).zip(0_u32..).collect();
        addresses.sort_unstable();
        addresses.dedup_by_key(|(address, _)| *address);
        let ranges = |is_ipv4: bool| {
            let numbered = endpoints.iter().zip(0_u32..);
            let mine = numbered.filter(|(endpoint, _)| endpoint.subnet.is_ipv4() == is_ipv4);
            Ranges::new(mine.map(|(Endpoint { subnet, .. }, index)| {
                (number(subnet.network()), number(subnet.broadcast()), index)
            }))
        };
        Self { ipv4: ranges(true), ipv6: ranges(false), endpoints, addresses }
    }

    /// Returns who has an inner address.
    pub(super) fn owner(&self, address: IpAddr) -> Option<&Endpoint> {
        let ranges = if address.is_ipv4() { &self.ipv4 } else { &self.ipv6 };
        self.endpoint(ranges.owner(number(address))?)
    }

    /// Returns who leases a subnet.
    pub(super) fn get(&self, subnet: IpNetwork) -> Option<&Endpoint> {
        let index =
            self.endpoints.binary_search_by_key(&key(subnet), |one| key(one.subnet)).ok()?;
        self.endpoints.get(index)
    }

    /// Returns a node that has this underlay address.
    pub(super) fn at(&self, address: SocketAddr) -> Option<&Endpoint> {
        let index = self.addresses.binary_search_by_key(&address, |(one, _)| *one).ok()?;
        self.endpoint(self.addresses[index].1)
    }

    /// All peers, in the order of their subnets.
    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    fn endpoint(&self, index: u32) -> Option<&Endpoint> {
        self.endpoints.get(usize::try_from(index).ok()?)
    }
}

fn key(subnet: IpNetwork) -> (IpAddr, u8) {
    (subnet.network(), subnet.prefix())
}

/// Addresses of one family, as numbers.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// Who has which addresses of one family. Ranges do not overlap: where subnets do, the smaller one
/// was cut out of the larger.
#[derive(Debug, Default)]
struct Ranges {
    /// The first address of each, ascending.
    starts: Vec<u128>,
    owners: Vec<Option<u32>>,
}

impl Ranges {
    /// Builds the ranges from subnets, given by first and last address, the larger one first where
    /// several begin with the same.
    fn new(subnets: impl Iterator<Item = (u128, u128, u32)>) -> Self {
        let mut ranges = Self::default();
        // Those that contain the current address, the innermost last.
        let mut open: Vec<(u128, u32)> = Vec::new();
        for (first, last, owner) in subnets {
            ranges.close(&mut open, Some(first));
            ranges.start(first, Some(owner));
            open.push((last, owner));
        }
        ranges.close(&mut open, None);
        ranges
    }

    /// Ends the open subnets that do not reach `next`; what surrounds them goes on behind them.
    fn close(&mut self, open: &mut Vec<(u128, u32)>, next: Option<u128>) {
        while let Some((last, _)) = open.last().copied()
            && next.is_none_or(|next| last < next)
        {
            open.pop();
            if let Some(behind) = last.checked_add(1) {
                self.start(behind, open.last().map(|(_, owner)| *owner));
            }
        }
    }

    fn start(&mut self, first: u128, owner: Option<u32>) {
        // Several subnets may begin or end at the same address; the last one said is right.
        if self.starts.last() == Some(&first) {
            self.owners.pop();
            self.starts.pop();
        }
        self.starts.push(first);
        self.owners.push(owner);
    }

    fn owner(&self, address: u128) -> Option<u32> {
        let behind = self.starts.partition_point(|start| *start <= address);
        self.owners[behind.checked_sub(1)?]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoint(subnet: IpNetwork, number: u32) -> Endpoint {
        let address = (std::net::Ipv4Addr::from(number), 8285).into();
        Endpoint { subnet, address, traffic: Arc::default() }
    }

    fn naive(endpoints: &[Endpoint], address: IpAddr) -> Option<&Endpoint> {
        let containing = endpoints.iter().filter(|endpoint| endpoint.subnet.contains(address));
        containing.max_by_key(|endpoint| endpoint.subnet.prefix())
    }

    /// Where subnets are, and what is asked for.
    const BASES: [&str; 6] = [
        "10.0.0.0",
        "0.0.0.0",
        "255.255.255.0",
        "2001:db8::",
        "::",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00",
    ];

    /// One of the 256 addresses from a base on.
    fn address(base: usize, low: u8) -> IpAddr {
        match BASES[base].parse().unwrap() {
            IpAddr::V4(ip) => std::net::Ipv4Addr::from(u32::from(ip) | u32::from(low)).into(),
            IpAddr::V6(ip) => std::net::Ipv6Addr::from(u128::from(ip) | u128::from(low)).into(),
        }
    }

    /// Close to each other, so that they often meet; some are everything.
    fn subnets() -> impl Strategy<Value = Vec<IpNetwork>> {
        let host_bits = prop_oneof![9 => 0_u8..=12, 1 => Just(32_u8)];
        let subnet = (0..BASES.len(), any::<u8>(), host_bits).prop_map(|(base, low, host_bits)| {
            let address = address(base, low);
            let prefix = if address.is_ipv4() { 32 - host_bits } else { 128 - host_bits * 4 };
            let subnet = IpNetwork::new(address, prefix).unwrap();
            IpNetwork::new(subnet.network(), prefix).unwrap()
        });
        prop::collection::vec(subnet, 0..16)
    }

    proptest! {
        #[test]
        fn lookups_agree_with_a_naive_one(subnets in subnets()) {
            let mut endpoints: Vec<Endpoint> = Vec::new();
            for (number, subnet) in (1..).zip(subnets) {
                if endpoints.iter().all(|other| other.subnet != subnet) {
                    endpoints.push(endpoint(subnet, number));
                }
            }
            let table = PeerTable::new(endpoints.clone());
            for (base, low) in (0..BASES.len()).flat_map(|base| (0..=255).map(move |low| (base, low))) {
                let address = address(base, low);
                let found = table.owner(address).map(|endpoint| endpoint.address);
                let expected = naive(&endpoints, address).map(|endpoint| endpoint.address);
                prop_assert_eq!(found, expected, "{}", address);
            }
            for endpoint in &endpoints {
                prop_assert_eq!(table.get(endpoint.subnet).unwrap().address, endpoint.address);
            }
        }
    }

    #[test]
    fn underlay_addresses_are_known() {
        let subnets = ["10.1.0.0/24", "2001:db8:1::/64"].map(|subnet| subnet.parse().unwrap());
        let table = PeerTable::new(subnets.map(|subnet| endpoint(subnet, 7)).into());
        let at = |number: u32, port: u16| table.at((std::net::Ipv4Addr::from(number), port).into());
        assert_eq!(at(7, 8285).unwrap().subnet, subnets[0]);
        assert!(at(8, 8285).is_none());
        assert!(at(7, 8286).is_none());
        assert!(PeerTable::default().owner(address(0, 0)).is_none());
    }
}
