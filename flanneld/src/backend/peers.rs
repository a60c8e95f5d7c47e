//! Checks of what other nodes publish, before anything of it reaches the kernel.
//!
//! Whoever can write to the store can write anything. A peer that makes no sense is left out with a
//! reason; where two want the same subnet, the one with the lower key has it.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Peer, Reason};
use crate::family::Family;

/// The node that looks at its peers.
#[derive(Clone, Copy, Debug)]
pub(super) struct This {
    pub(super) network: IpNetwork,
    pub(super) own: IpNetwork,
    pub(super) public_ip: IpAddr,
    /// The backend types that peers may have, ours first.
    pub(super) backend_types: &'static [&'static str],
}

/// A peer that can be used, with what the backend found in its data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Admitted<T> {
    pub(super) subnet: IpNetwork,
    pub(super) public_ip: IpAddr,
    pub(super) found: T,
}

/// Sorts out the peers, in the order of their subnets, so that an overlapping one follows what it
/// overlaps. `inspect` is asked for what is particular to the backend, with the address of the peer.
pub(super) fn admit<T>(
    this: This,
    peers: &[Peer<'_>],
    mut inspect: impl FnMut(&Peer<'_>, IpAddr) -> Result<T, Reason>,
) -> (Vec<Admitted<T>>, Vec<(IpNetwork, Reason)>) {
    let mut peers: Vec<_> = peers.iter().collect();
    // Stable, and all but one are in order already, as a rule.
    peers.sort_by_key(|peer| (peer.subnet.network(), peer.subnet.prefix()));
    let (mut admitted, mut left_out) = (Vec::<Admitted<T>>::with_capacity(peers.len()), Vec::new());
    for peer in peers {
        let checked =
            this.check(peer).and_then(|public_ip| match admitted.last().map(|last| last.subnet) {
                Some(last) if overlap(last, peer.subnet) => Err(Reason::OverlapsPeer(last)),
                _ => Ok(public_ip),
            });
        let subnet = peer.subnet;
        match checked.and_then(|public_ip| Ok((public_ip, inspect(peer, public_ip)?))) {
            Ok((public_ip, found)) => admitted.push(Admitted { subnet, public_ip, found }),
            Err(reason) => left_out.push((subnet, reason)),
        }
    }
    (admitted, left_out)
}

impl This {
    /// Returns the public address of a peer that can be used.
    fn check(&self, peer: &Peer<'_>) -> Result<IpAddr, Reason> {
        let subnet = peer.subnet;
        let is_inside =
            self.network.contains(subnet.network()) && self.network.prefix() <= subnet.prefix();
        if !is_inside {
            return Err(Reason::OutsideNetwork(self.network));
        }
        if subnet.ip() != subnet.network() {
            return Err(Reason::HostBits);
        }
        if overlap(subnet, self.own) {
            return Err(Reason::OverlapsOwn);
        }
        if !self.backend_types.contains(&peer.backend_type) {
            let (theirs, ours) = (peer.backend_type.to_owned(), self.backend_types[0]);
            return Err(Reason::BackendType { theirs, ours });
        }
        let family = Family::of_network(subnet);
        let public_ip = peer.public_ip.ok_or(Reason::NoPublicIp(family))?;
        if public_ip == self.public_ip {
            return Err(Reason::OurPublicIp(public_ip));
        }
        if can_be_a_node(public_ip) { Ok(public_ip) } else { Err(Reason::PublicIp(public_ip)) }
    }
}

/// Both are of one family.
fn overlap(one: IpNetwork, other: IpNetwork) -> bool {
    one.contains(other.network()) || other.contains(one.network())
}

fn can_be_a_node(ip: IpAddr) -> bool {
    let is_broadcast = ip == IpAddr::from([255; 4]);
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || is_broadcast)
}
