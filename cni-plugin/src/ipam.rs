//! Addresses for attachments, kept as the `host-local` plugin keeps them, so that either program can
//! give back what the other one took.

pub mod config;
pub mod fixed;
pub mod held;
pub mod range;
pub mod resolv_conf;
pub mod source;
pub mod store;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::invocation::{Attachment, Id};
use crate::result::{Dns, Ip};
use config::HostLocal;
use held::Held;
use range::{Range, RangeSet};
use store::{LockedStore, Owner, Reservation, Store, StoreError};

/// Why there is no address to be had.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// A subnet does not give one.
    #[error("failed to allocate for range {index}")]
    Range {
        /// Which one, as configured.
        index: usize,
        /// Why it does not.
        #[source]
        reason: NoAddress,
    },
    /// Addresses were asked for that no subnet has.
    #[error("failed to allocate all requested IPs: {}", join(.0))]
    Requested(Vec<IpAddr>),
    /// The name servers are not known.
    #[error("open {}", path.display())]
    ResolvConf {
        /// The file that should say.
        path: PathBuf,
        /// Why it does not.
        #[source]
        source: io::Error,
    },
    /// The directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn join(addresses: &[IpAddr]) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ")
}

/// Why a subnet does not give an address.
#[derive(Debug, thiserror::Error)]
pub enum NoAddress {
    /// All are taken.
    #[error("no IP addresses available in range set: {0}")]
    Exhausted(RangeSet),
    /// Somebody has the one that was asked for.
    #[error("requested IP address {0} is not available in range set {1}")]
    Taken(IpAddr, RangeSet),
    /// The one that was asked for is no pod's to have.
    #[error("requested ip {0} is subnet's gateway")]
    Gateway(IpAddr),
    /// The attachment has one already.
    #[error("{address} has been allocated to {container}, duplicate allocation is not allowed")]
    Duplicate {
        /// The address that it has.
        address: IpAddr,
        /// The container that has it.
        container: Id,
    },
    /// The address cannot be taken.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Addresses for an attachment, given back when dropped.
#[derive(Debug, Default)]
pub struct Allocation<'a> {
    /// One for each range set, with its gateway.
    pub ips: Vec<Ip>,
    reservations: Vec<Reservation>,
    held: Option<Held<'a>>,
}

impl<'a> Allocation<'a> {
    /// Addresses that nobody else can take.
    pub const fn of(ips: Vec<Ip>) -> Self {
        Self { ips, reservations: Vec::new(), held: None }
    }

    /// Addresses that somebody else's plugin gave.
    pub const fn held(ips: Vec<Ip>, held: Held<'a>) -> Self {
        Self { ips, reservations: Vec::new(), held: Some(held) }
    }

    /// Keeps the addresses.
    pub fn commit(self) -> Vec<Ip> {
        self.held.into_iter().for_each(Held::commit);
        self.reservations.into_iter().for_each(Reservation::commit);
        self.ips
    }
}

/// Takes an address for the attachment from each range set.
///
/// To find out whether the attachment has an address already costs reading all reservations. A
/// caller who knows that it cannot have one says that it is `fresh`.
///
/// # Errors
/// If a range set has none left, if the attachment has one already, or if an address was asked for
/// that cannot be had. Nothing is taken then.
pub fn allocate<'a>(
    ipam: &HostLocal,
    attachment: &Attachment,
    fresh: bool,
) -> Result<Allocation<'a>, IpamError> {
    let store = Store::open(&ipam.data_dir, &attachment.network)?;
    let owner = Owner::of(attachment);
    let mut requested = ipam.requested.clone();
    let mut allocation = Allocation::default();
    for (index, set) in ipam.sets.iter().enumerate() {
        let wanted = requested.iter().position(|ip| set.find(*ip).is_some());
        let wanted = wanted.map(|place| requested.remove(place));
        let taken = take(&store, index, set, &owner, wanted, fresh);
        let (ip, reservation) = taken.map_err(|reason| IpamError::Range { index, reason })?;
        allocation.ips.push(ip);
        allocation.reservations.push(reservation);
    }
    if requested.is_empty() { Ok(allocation) } else { Err(IpamError::Requested(requested)) }
}

fn take(
    store: &Store,
    index: usize,
    set: &RangeSet,
    owner: &Owner,
    wanted: Option<IpAddr>,
    fresh: bool,
) -> Result<(Ip, Reservation), NoAddress> {
    let store = store.lock()?;
    store.forget_earlier_boots()?;
    let (range, ip) = match wanted {
        Some(ip) => requested(&store, set, ip)?,
        None => next(&store, index, set, owner, fresh)?,
    };
    let reservation = store.reserve(ip, owner, index)?;
    let gateway = Some(range.gateway());
    Ok((Ip { interface: None, address: range.in_subnet(ip), gateway }, reservation))
}

fn requested(
    store: &LockedStore<'_>,
    set: &RangeSet,
    ip: IpAddr,
) -> Result<(Range, IpAddr), NoAddress> {
    let not_available = || NoAddress::Taken(ip, set.clone());
    let range = set.find(ip).ok_or_else(not_available)?;
    if range.gateway() == ip {
        return Err(NoAddress::Gateway(ip));
    }
    if store.taken()?.contains(&ip) { Err(not_available()) } else { Ok((range, ip)) }
}

fn next(
    store: &LockedStore<'_>,
    index: usize,
    set: &RangeSet,
    owner: &Owner,
    fresh: bool,
) -> Result<(Range, IpAddr), NoAddress> {
    if !fresh {
        let mut held = store.addresses_of(owner)?.into_iter();
        if let Some(address) = held.find(|ip| set.find(*ip).is_some()) {
            return Err(NoAddress::Duplicate { address, container: owner.container().clone() });
        }
    }
    let previous = store.last_reserved(index);
    // Mostly nobody has the next one, which is found out faster than who has all the others.
    let next = set.choose(&BTreeSet::new(), previous);
    if let Some(chosen) = next.filter(|(_, ip)| !store.is_taken(*ip)) {
        return Ok(chosen);
    }
    if let Some(chosen) = set.choose(&store.taken()?, previous) {
        return Ok(chosen);
    }
    // What a power loss made of reservations is nobody's; there is no hurry to find that out before.
    store.release_damaged()?;
    set.choose(&store.taken()?, previous).ok_or_else(|| NoAddress::Exhausted(set.clone()))
}

/// Returns what the sandbox is told about name servers.
///
/// # Errors
/// If the file that says so cannot be read.
pub fn dns(ipam: &HostLocal) -> Result<Dns, IpamError> {
    let Some(path) = &ipam.resolv_conf else { return Ok(Dns::default()) };
    let text = fs::read_to_string(path);
    let text = text.map_err(|source| IpamError::ResolvConf { path: path.clone(), source })?;
    Ok(resolv_conf::parse(&text))
}

/// Gives back whatever the attachment has, and returns it.
///
/// # Errors
/// If the store cannot be used.
pub fn release(data_dir: &Path, attachment: &Attachment) -> Result<BTreeSet<IpAddr>, StoreError> {
    match Store::existing(data_dir, &attachment.network) {
        Some(store) => {
            let store = store.lock()?;
            store.remove_leftover();
            store.release(&Owner::of(attachment))
        }
        None => Ok(BTreeSet::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use range::Range;

    fn ipam(data_dir: &Path) -> HostLocal {
        let set = |subnet: &str| RangeSet(vec![Range::of(subnet.parse().unwrap()).unwrap()]);
        let sets = vec![set("10.0.0.0/29"), set("fd00::/64")];
        HostLocal {
            data_dir: data_dir.to_owned(),
            sets,
            requested: Vec::new(),
            routes: Vec::new(),
            resolv_conf: None,
        }
    }

    fn attachment(container: &str) -> Attachment {
        Attachment::named("cbr0", container, "eth0")
    }

    fn addresses(allocation: &Allocation<'_>) -> Vec<String> {
        allocation.ips.iter().map(|ip| ip.address.to_string()).collect()
    }

    #[test]
    fn each_set_gives_one_address() {
        let directory = tempfile::tempdir().unwrap();
        let ipam = ipam(directory.path());
        let one = allocate(&ipam, &attachment("one"), true).unwrap();
        assert_eq!(addresses(&one), ["10.0.0.2/29", "fd00::2/64"]);
        assert_eq!(one.ips[0].gateway, Some("10.0.0.1".parse().unwrap()));
        one.commit();
        let two = allocate(&ipam, &attachment("two"), false).unwrap();
        assert_eq!(addresses(&two), ["10.0.0.3/29", "fd00::3/64"]);
        drop(two);
        let three = allocate(&ipam, &attachment("three"), true).unwrap();
        assert_eq!(addresses(&three), ["10.0.0.4/29", "fd00::4/64"], "addresses rest");
        three.commit();
        release(directory.path(), &attachment("one")).unwrap();
        let store = Store::existing(directory.path(), &attachment("one").network).unwrap();
        let left = ["10.0.0.4", "fd00::4"].map(|ip| ip.parse::<IpAddr>().unwrap());
        assert_eq!(store.lock().unwrap().taken().unwrap(), left.into());
    }

    #[test]
    fn an_attachment_has_one_address_of_a_set() {
        let directory = tempfile::tempdir().unwrap();
        let ipam = ipam(directory.path());
        allocate(&ipam, &attachment("one"), false).unwrap().commit();
        let error = allocate(&ipam, &attachment("one"), false).unwrap_err();
        let expected = "failed to allocate for range 0: 10.0.0.2 has been allocated to one, \
                        duplicate allocation is not allowed";
        assert_eq!(crate::error::chain(&error), expected);
    }

    #[test]
    fn exhaustion_is_told_and_nothing_stays_taken() {
        let directory = tempfile::tempdir().unwrap();
        let mut ipam = ipam(directory.path());
        ipam.sets.reverse();
        for container in ["a", "b", "c", "d", "e"] {
            allocate(&ipam, &attachment(container), true).unwrap().commit();
        }
        let error = allocate(&ipam, &attachment("f"), true).unwrap_err();
        let expected = "failed to allocate for range 1: \
                        no IP addresses available in range set: 10.0.0.1-10.0.0.6";
        assert_eq!(crate::error::chain(&error), expected);
        let store = Store::existing(directory.path(), &attachment("f").network).unwrap();
        assert_eq!(store.lock().unwrap().taken().unwrap().len(), 10);
    }

    #[test]
    fn to_release_nothing_is_fine() {
        let directory = tempfile::tempdir().unwrap();
        release(directory.path(), &attachment("one")).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_address_that_is_asked_for_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let mut ipam = ipam(directory.path());
        let ask = |ipam: &mut HostLocal, ips: &[&str]| {
            ipam.requested = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        };
        ask(&mut ipam, &["fd00::77", "10.0.0.5"]);
        let one = allocate(&ipam, &attachment("one"), true).unwrap();
        assert_eq!(addresses(&one), ["10.0.0.5/29", "fd00::77/64"]);
        one.commit();
        let refused = [
            (
                "10.0.0.5",
                "failed to allocate for range 0: requested IP address 10.0.0.5 is not available \
                 in range set 10.0.0.1-10.0.0.6",
            ),
            (
                "10.0.0.1",
                "failed to allocate for range 0: requested ip 10.0.0.1 is subnet's gateway",
            ),
            ("10.9.9.9", "failed to allocate all requested IPs: 10.9.9.9"),
        ];
        for (ip, expected) in refused {
            ask(&mut ipam, &[ip]);
            let error = allocate(&ipam, &attachment("two"), true).unwrap_err();
            assert_eq!(crate::error::chain(&error), expected);
        }
        let store = Store::existing(directory.path(), &attachment("one").network).unwrap();
        assert_eq!(store.lock().unwrap().taken().unwrap().len(), 2);
    }

    #[test]
    fn what_lost_its_owner_is_used_again_before_none_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let ipam = ipam(directory.path());
        for container in ["a", "b", "c", "d", "e"] {
            allocate(&ipam, &attachment(container), true).unwrap().commit();
        }
        let lost = directory.path().join("cbr0/10.0.0.4");
        std::fs::write(&lost, "\0\0\0\0").unwrap();
        let f = allocate(&ipam, &attachment("f"), true).unwrap();
        assert_eq!(f.ips[0].address.to_string(), "10.0.0.4/29");
    }
}
