//! Checks of what other nodes publish, before anything of it reaches the kernel.
//!
//! Whoever can write to the store can write anything. A peer that makes no sense is left out with a
//! reason. Where two claim the same addresses, the older one has them: the order of the peers is that
//! of their age.

use std::collections::BTreeMap;
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

/// Sorts out the peers, the oldest first. `inspect` is asked for what is particular to the backend,
/// with the address of the peer.
pub(super) fn admit<T>(
    this: This,
    peers: &[Peer<'_>],
    mut inspect: impl FnMut(&Peer<'_>, IpAddr) -> Result<T, Reason>,
) -> (Vec<Admitted<T>>, Vec<(IpNetwork, Reason)>) {
    let (mut admitted, mut left_out) = (Vec::with_capacity(peers.len()), Vec::new());
    let mut taken = Taken::default();
    for peer in peers {
        let subnet = peer.subnet;
        let inspected = this.check(peer).and_then(|public_ip| match taken.overlapping(subnet) {
            Some(other) => Err(Reason::OverlapsPeer(other)),
            None => Ok((public_ip, inspect(peer, public_ip)?)),
        });
        match inspected {
            Ok((public_ip, found)) => {
                taken.0.insert(subnet.network(), subnet);
                admitted.push(Admitted { subnet, public_ip, found });
            }
            Err(reason) => left_out.push((subnet, reason)),
        }
    }
    (admitted, left_out)
}

/// Subnets of which no two overlap, by their first address.
#[derive(Default)]
struct Taken(BTreeMap<IpAddr, IpNetwork>);

impl Taken {
    /// Returns one of them that overlaps with another subnet of the same family: it begins before
    /// that and reaches into it, or begins inside.
    fn overlapping(&self, subnet: IpNetwork) -> Option<IpNetwork> {
        let before = self.0.range(..=subnet.network()).next_back();
        let after = self.0.range(subnet.network()..).next();
        let mut around = before.into_iter().chain(after).map(|(_, other)| *other);
        around.find(|other| overlap(*other, subnet))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_overlapping_peers_the_older_one_stays_whatever_their_lengths() {
        let this = This {
            network: "10.244.0.0/16".parse().unwrap(),
            own: "10.244.1.0/24".parse().unwrap(),
            public_ip: "198.51.100.1".parse().unwrap(),
            backend_types: &["host-gw"],
        };
        for (by_age, stay) in [
            (&["10.244.5.0/24", "10.244.4.0/22"][..], &["10.244.5.0/24"][..]),
            (&["10.244.4.0/22", "10.244.5.0/24"], &["10.244.4.0/22"]),
            (
                &["10.244.7.0/24", "10.244.4.0/22", "10.244.5.0/24"],
                &["10.244.7.0/24", "10.244.5.0/24"],
            ),
            (
                &["10.244.5.0/24", "10.244.5.0/26", "10.244.6.0/24"],
                &["10.244.5.0/24", "10.244.6.0/24"],
            ),
        ] {
            let peer = |subnet: &&str| Peer {
                subnet: subnet.parse().unwrap(),
                public_ip: "198.51.100.2".parse().ok(),
                backend_type: "host-gw",
                data: None,
            };
            let peers: Vec<_> = by_age.iter().map(peer).collect();
            let (admitted, left_out) = admit(this, &peers, |_, _| Ok(()));
            let admitted: Vec<_> = admitted.iter().map(|peer| peer.subnet.to_string()).collect();
            assert_eq!(admitted, stay, "{by_age:?}");
            assert!(left_out.iter().all(|(_, reason)| reason.is_conflict()), "{left_out:?}");
        }
    }
}
