//! Who has which subnet: a table that is replaced whole, never changed.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ipnetwork::Ipv4Network;

/// Another node, as the data path knows it.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// What it leases.
    pub(crate) subnet: Ipv4Network,
    /// Where its packets are sent to and come from.
    pub(crate) address: Ipv4Addr,
    /// What passed; carried over from table to table.
    pub(crate) traffic: Arc<Traffic>,
}

/// Packets and bytes to and from one peer, inner headers included.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(super) sent_packets: AtomicU64,
    pub(super) sent_bytes: AtomicU64,
    pub(super) received_packets: AtomicU64,
    pub(super) received_bytes: AtomicU64,
}

impl Traffic {
    pub(super) fn count_sent(&self, packets: usize, bytes: usize) {
        self.sent_packets.fetch_add(packets as u64, Ordering::Relaxed);
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn count_received(&self, packets: usize, bytes: usize) {
        self.received_packets.fetch_add(packets as u64, Ordering::Relaxed);
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (packets, bytes) = (get(&self.sent_packets), get(&self.sent_bytes));
        write!(f, "{packets} packets with {bytes} bytes sent, ")?;
        let (packets, bytes) = (get(&self.received_packets), get(&self.received_bytes));
        write!(f, "{packets} packets with {bytes} bytes received")
    }
}

/// All other nodes, to be looked up by inner address: the longest prefix wins.
#[derive(Debug, Default)]
pub(crate) struct PeerTable {
    endpoints: Vec<Endpoint>,
    /// The first address of each range, ascending, and who has it. Ranges do not overlap: where
    /// subnets do, the smaller one was cut out of the larger.
    starts: Vec<u32>,
    owners: Vec<Option<u32>>,
    /// All underlay addresses, ascending.
    addresses: Vec<Ipv4Addr>,
}

impl PeerTable {
    /// Builds the table.
    pub(crate) fn new(mut endpoints: Vec<Endpoint>) -> Self {
        endpoints.sort_by_key(|endpoint| (endpoint.subnet.network(), endpoint.subnet.prefix()));
        endpoints.dedup_by_key(|endpoint| (endpoint.subnet.network(), endpoint.subnet.prefix()));
        let mut addresses: Vec<_> = endpoints.iter().map(|endpoint| endpoint.address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let mut table = Self { addresses, ..Self::default() };
        // Those that contain the current address, the innermost last.
        let mut open: Vec<(u32, u32)> = Vec::new();
        for (endpoint, index) in endpoints.iter().zip(0_u32..) {
            let first = u32::from(endpoint.subnet.network());
            table.close(&mut open, Some(first));
            table.start(first, Some(index));
            open.push((u32::from(endpoint.subnet.broadcast()), index));
        }
        table.close(&mut open, None);
        table.endpoints = endpoints;
        table
    }

    /// Ends the open subnets that do not reach `next`; what surrounds them goes on behind them.
    fn close(&mut self, open: &mut Vec<(u32, u32)>, next: Option<u32>) {
        while let Some((last, _)) = open.last().copied()
            && next.is_none_or(|next| last < next)
        {
            open.pop();
            if let Some(behind) = last.checked_add(1) {
                self.start(behind, open.last().map(|(_, index)| *index));
            }
        }
    }

    fn start(&mut self, first: u32, owner: Option<u32>) {
        // Several subnets may begin or end at the same address; the last one said is right.
        if self.starts.last() == Some(&first) {
            self.owners.pop();
            self.starts.pop();
        }
        self.starts.push(first);
        self.owners.push(owner);
    }

    /// Returns who has an inner address.
    pub(super) fn owner(&self, address: Ipv4Addr) -> Option<&Endpoint> {
        let behind = self.starts.partition_point(|start| *start <= u32::from(address));
        let index = self.owners[behind.checked_sub(1)?]?;
        self.endpoints.get(usize::try_from(index).ok()?)
    }

    /// Returns who leases a subnet.
    pub(super) fn get(&self, subnet: Ipv4Network) -> Option<&Endpoint> {
        let key = |endpoint: &Endpoint| (endpoint.subnet.network(), endpoint.subnet.prefix());
        let wanted = (subnet.network(), subnet.prefix());
        let index = self.endpoints.binary_search_by_key(&wanted, key).ok()?;
        self.endpoints.get(index)
    }

    /// Whether a node has this underlay address.
    pub(super) fn knows(&self, address: Ipv4Addr) -> bool {
        self.addresses.binary_search(&address).is_ok()
    }

    /// All peers, in the order of their subnets.
    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoint(subnet: Ipv4Network, address: u32) -> Endpoint {
        Endpoint { subnet, address: address.into(), traffic: Arc::default() }
    }

    fn naive(endpoints: &[Endpoint], address: Ipv4Addr) -> Option<&Endpoint> {
        let containing = endpoints.iter().filter(|endpoint| endpoint.subnet.contains(address));
        containing.max_by_key(|endpoint| endpoint.subnet.prefix())
    }

    /// Subnets close to each other, so that they often meet.
    fn subnets() -> impl Strategy<Value = Vec<(u32, u8)>> {
        let base = prop_oneof![Just(0x0a00_0000), Just(0), Just(0xffff_ff00_u32)];
        prop::collection::vec((base, 0_u32..256, 20_u8..=32), 0..12).prop_map(|subnets| {
            subnets.into_iter().map(|(base, low, prefix)| (base | low, prefix)).collect()
        })
    }

    proptest! {
        #[test]
        fn lookups_agree_with_a_naive_one(subnets in subnets()) {
            let mut endpoints: Vec<Endpoint> = Vec::new();
            for (number, (base, prefix)) in (1..).zip(subnets) {
                let subnet = Ipv4Network::new(base.into(), prefix).unwrap();
                let subnet = Ipv4Network::new(subnet.network(), prefix).unwrap();
                if endpoints.iter().all(|other| other.subnet != subnet) {
                    endpoints.push(endpoint(subnet, number));
                }
            }
            let table = PeerTable::new(endpoints.clone());
            for base in [0x0a00_0000, 0, 0xffff_ff00_u32] {
                for address in (0..256).map(|low| Ipv4Addr::from(base | low)) {
                    let found = table.owner(address).map(|endpoint| endpoint.address);
                    let expected = naive(&endpoints, address).map(|endpoint| endpoint.address);
                    prop_assert_eq!(found, expected, "{}", address);
                }
            }
        }
    }

    #[test]
    fn underlay_addresses_are_known() {
        let table = PeerTable::new(vec![endpoint("10.1.0.0/24".parse().unwrap(), 7)]);
        assert!(table.knows(Ipv4Addr::from(7)));
        assert!(!table.knows(Ipv4Addr::from(8)));
        assert!(PeerTable::default().owner(Ipv4Addr::LOCALHOST).is_none());
    }
}
