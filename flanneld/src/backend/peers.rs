//! Checks of what other nodes publish, before anything of it reaches the kernel.
//!
//! Whoever can write to the store can write anything. A peer that makes no sense is left out with a
//! reason; where two want the same subnet, the one with the lower key has it.

use std::net::Ipv4Addr;

use ipnetwork::IpNetwork;

use super::{Peer, Reason};
use crate::lease::LeaseKey;

/// The node that looks at its peers.
#[derive(Clone, Copy, Debug)]
pub(super) struct This<'a> {
    pub(super) network: IpNetwork,
    pub(super) own: &'a LeaseKey,
    pub(super) public_ip: Ipv4Addr,
    /// The backend type that peers must have.
    pub(super) backend_type: &'static str,
}

/// Peers that can be used, each with what the backend found in its data, and the others.
pub(super) struct Admitted<'a, T> {
    pub(super) peers: Vec<(Peer<'a>, T)>,
    pub(super) left_out: Vec<(LeaseKey, Reason)>,
}

/// Sorts out the peers. They come in the order of their keys, so that an overlapping one follows
/// what it overlaps. `inspect` is asked for what is particular to the backend.
pub(super) fn admit<'a, T>(
    this: This<'_>,
    peers: &[Peer<'a>],
    mut inspect: impl FnMut(&Peer<'a>) -> Result<T, Reason>,
) -> Admitted<'a, T> {
    let mut admitted = Admitted { peers: Vec::with_capacity(peers.len()), left_out: Vec::new() };
    for peer in peers {
        let last = admitted.peers.last().map(|(last, _)| last.subnet);
        let checked = this.check(peer).and_then(|()| match last {
            Some(last) if last.overlaps(peer.subnet) => Err(Reason::OverlapsPeer(*last)),
            _ => Ok(()),
        });
        match checked.and_then(|()| inspect(peer)) {
            Ok(found) => admitted.peers.push((*peer, found)),
            Err(reason) => admitted.left_out.push((*peer.subnet, reason)),
        }
    }
    admitted
}

impl This<'_> {
    fn check(&self, peer: &Peer<'_>) -> Result<(), Reason> {
        let subnet = peer.subnet.ipv4;
        let public_ip = peer.attributes.public_ip;
        let is_inside = self.network.contains(subnet.network().into())
            && self.network.prefix() <= subnet.prefix();
        if !is_inside {
            return Err(Reason::OutsideNetwork(self.network));
        }
        if !peer.subnet.is_network() {
            return Err(Reason::HostBits);
        }
        if peer.subnet.overlaps(self.own) {
            return Err(Reason::OverlapsOwn);
        }
        if peer.attributes.backend_type != self.backend_type {
            let theirs = peer.attributes.backend_type.clone();
            return Err(Reason::BackendType { theirs, ours: self.backend_type });
        }
        if public_ip == self.public_ip {
            return Err(Reason::OurPublicIp(public_ip));
        }
        if can_be_a_node(public_ip) { Ok(()) } else { Err(Reason::PublicIp(public_ip)) }
    }
}

fn can_be_a_node(ip: Ipv4Addr) -> bool {
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast())
}
