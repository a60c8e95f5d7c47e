//! A crowd: nodes that hold a lease and do not exist otherwise, to make a cluster large.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use crate::cluster::{ETCD_PREFIX, LeaseStore};
use crate::etcd::Etcd;
use crate::underlay::Underlay;

/// A network with room for all of them.
pub const NETWORK: &str = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#;

/// A node that holds a lease.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The first address of its subnet.
    pub base: Ipv4Addr,
    /// Where the others send to.
    pub address: Ipv4Addr,
    /// The Ethernet address of its tunnel.
    pub mac: String,
}

impl Peer {
    /// Number `number`, from 0 and at most 60,000, with an address of the network for benchmarks
    /// (RFC 2544).
    pub fn new(number: u32) -> Self {
        Self::at(number, Ipv4Addr::from_bits((198 << 24) + (18 << 16) + number))
    }

    /// The same with this address.
    pub fn at(number: u32, address: Ipv4Addr) -> Self {
        let [_, _, high, low] = number.to_be_bytes();
        let base = Ipv4Addr::from_bits((10 << 24) + (1 << 16) + (number << 8));
        Self { base, address, mac: format!("02:00:00:00:{high:02x}:{low:02x}") }
    }

    /// So many different ones.
    pub fn several(count: u32) -> Vec<Self> {
        (0..count).map(Self::new).collect()
    }

    /// Key and value of its lease.
    pub fn lease(&self) -> (String, String) {
        let Self { base, address, mac } = self;
        let value = format!(
            r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        );
        (format!("{base}-24"), value)
    }
}

/// A directory with the leases of all of them.
///
/// # Panics
/// If it cannot be written.
pub fn in_directory(path: &Path, peers: &[Peer]) -> LeaseStore {
    let store = LeaseStore::in_directory(path);
    store.configure(NETWORK);
    for (key, lease) in peers.iter().map(Peer::lease) {
        fs::write(path.join("subnets").join(key), lease).expect("the sandbox is writable");
    }
    store
}

/// An etcd with the leases of all of them.
pub fn in_etcd(underlay: &Underlay, peers: &[Peer]) -> LeaseStore {
    let etcd = Etcd::running(underlay);
    let leases: BTreeMap<_, _> = peers.iter().map(Peer::lease).collect();
    let keys = leases.iter();
    let keys = keys.map(|(key, lease)| (format!("{ETCD_PREFIX}/subnets/{key}"), lease.clone()));
    if !leases.is_empty() {
        etcd.put_all(&keys.collect(), 86_400);
    }
    let store = LeaseStore::Etcd(etcd);
    store.configure(NETWORK);
    store
}
