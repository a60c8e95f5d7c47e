//! Living with others: what is there already and not ours to remove, and what is in the way. Pure.
//!
//! The bridge, the sandbox and its loopback interface are shared, with other attachments, with other
//! plugins of the list, with the administrator. Whatever is observed there and not desired stays.

use fabric::link_name::LinkName;
use fabric::netstate::{Address, LinkKind, NetState, Route, RouteKey};
use ipnetwork::IpNetwork;

use crate::bandwidth;
use crate::invocation::Attachment;

/// Something that is there and should not be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// The name of the bridge belongs to something else.
    #[error("\"{0}\" already exists but is not a bridge")]
    NotABridge(LinkName),
    /// The bridge is in another subnet, for example that of an earlier lease of this node.
    #[error("\"{bridge}\" already has an IP address different from {wanted}: {present}")]
    OtherAddress {
        /// The bridge.
        bridge: LinkName,
        /// The address that it should have.
        wanted: IpNetwork,
        /// The one that it has.
        present: IpNetwork,
    },
    /// There is such an attachment already.
    #[error("the host's end \"{0}\" of this attachment already exists")]
    HostVeth(LinkName),
    /// The name of the link for what comes from the pod belongs to something else.
    #[error("\"{0}\" already exists but is not for what comes from this attachment")]
    Ifb(LinkName),
    /// The sandbox has such an interface already.
    #[error("interface \"{0}\" already exists in the sandbox")]
    Interface(LinkName),
}

/// Finds out whether the name of the interface is free in a sandbox.
///
/// # Errors
/// If it is not.
pub fn check_sandbox(if_name: LinkName, observed: &NetState) -> Result<(), Conflict> {
    let taken = observed.links.contains_key(&if_name);
    if taken { Err(Conflict::Interface(if_name)) } else { Ok(()) }
}

/// Finds out whether the name of the link for what comes from the pod is free, or that link is there.
///
/// # Errors
/// If something else has the name.
pub fn check_ifb(attachment: &Attachment, observed: &NetState) -> Result<(), Conflict> {
    let name = bandwidth::ifb(attachment);
    let is_ours = |link| bandwidth::is_ifb_of(attachment, name, link);
    if observed.links.get(&name).is_none_or(is_ours) { Ok(()) } else { Err(Conflict::Ifb(name)) }
}

/// Finds what on the host is in the way of `desired`, of which `veth` is not shared, with or without
/// leave to `force` addresses off the bridge.
///
/// # Errors
/// If something is.
pub fn check_host(
    veth: LinkName,
    desired: &NetState,
    observed: &NetState,
    force: bool,
) -> Result<(), Conflict> {
    for (name, link) in &desired.links {
        match (&link.kind, observed.links.get(name)) {
            (LinkKind::Bridge, Some(present)) if present.kind != LinkKind::Bridge => {
                return Err(Conflict::NotABridge(*name));
            }
            (LinkKind::Veth(_), Some(_)) if *name == veth => {
                return Err(Conflict::HostVeth(*name));
            }
            _ => {}
        }
    }
    match opposing_addresses(desired, observed).next() {
        Some((wanted, present)) if !force => Err(Conflict::OtherAddress {
            bridge: wanted.link,
            wanted: wanted.ip,
            present: present.ip,
        }),
        _ => Ok(()),
    }
}

/// Returns `desired` together with all that is observed and may stay: everything but addresses that
/// oppose desired ones. A bridge that is there keeps its properties too.
pub fn among_others(desired: &NetState, observed: &NetState) -> NetState {
    let mut state = desired.clone();
    for (name, present) in &observed.links {
        let link = state.links.entry(*name).or_insert_with(|| present.clone());
        if link.kind == LinkKind::Bridge {
            // A new Ethernet address would have to be learned by every pod.
            (link.mac, link.mtu) = (None, None);
        }
    }
    let opposing: Vec<_> =
        opposing_addresses(desired, observed).map(|(_, present)| present).collect();
    let addresses = observed.addresses.iter().filter(|address| !opposing.contains(address));
    state.addresses.extend(addresses);
    state
        .routes
        .retain(|key, route| !observed.routes.iter().any(|other| serves(other, (key, route))));
    for (key, route) in &observed.routes {
        state.routes.entry(*key).or_insert(*route);
    }
    for (link, bucket) in &observed.shapers {
        state.shapers.entry(*link).or_insert(*bucket);
    }
    for (link, to) in &observed.redirects {
        state.redirects.entry(*link).or_insert(*to);
    }
    state
}

/// Whether a route does what a desired one would do. Whoever made it may have given it another metric
/// or table, and a default route may lead anywhere.
fn serves(present: (&RouteKey, &Route), wanted: (&RouteKey, &Route)) -> bool {
    let to_all = wanted.0.destination.prefix() == 0;
    present.0.destination == wanted.0.destination && (to_all || present.1.via == wanted.1.via)
}

/// Pairs each desired address with the observed ones that must not be on the same link.
///
/// A bridge has one IPv4 address, since it answers for one subnet; IPv6 has many, so only those in
/// the same subnet are in the way. Nothing is when the desired address is there.
fn opposing_addresses<'a>(
    desired: &'a NetState,
    observed: &'a NetState,
) -> impl Iterator<Item = (&'a Address, &'a Address)> {
    // The other kind of gateway is that of a VLAN.
    let is_gateway = |link| {
        let link = desired.links.get(link);
        link.is_some_and(|l| matches!(l.kind, LinkKind::Bridge | LinkKind::Veth(Some(_))))
    };
    let missing = desired.addresses.difference(&observed.addresses);
    let missing = missing.filter(move |wanted| is_gateway(&wanted.link));
    missing.flat_map(|wanted| {
        let opposes =
            |present: &&Address| present.link == wanted.link && oppose(present.ip, wanted.ip);
        observed.addresses.iter().filter(opposes).map(move |present| (wanted, present))
    })
}

fn oppose(present: IpNetwork, wanted: IpNetwork) -> bool {
    match (present, wanted) {
        (IpNetwork::V4(_), IpNetwork::V4(_)) => true,
        (IpNetwork::V6(present), IpNetwork::V6(wanted)) => {
            present.contains(wanted.ip()) || wanted.contains(present.ip())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use fabric::netstate::Link;

    use super::*;

    fn name(name: &str) -> LinkName {
        name.parse().unwrap()
    }

    fn state(links: &[(&str, LinkKind)], addresses: &[(&str, &str)]) -> NetState {
        let link = |(link, kind): &(&str, LinkKind)| (name(link), Link::up(kind.clone()));
        let address =
            |(link, ip): &(&str, &str)| Address { link: name(link), ip: ip.parse().unwrap() };
        NetState {
            links: links.iter().map(link).collect(),
            addresses: addresses.iter().map(address).collect(),
            ..NetState::default()
        }
    }

    fn desired() -> NetState {
        let links = [("cni0", LinkKind::Bridge), ("veth1", LinkKind::Veth(None))];
        state(&links, &[("cni0", "10.1.2.1/24"), ("cni0", "fd00::1/64")])
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let bridge = [("cni0", LinkKind::Bridge)];
        let table = [
            (state(&[], &[]), None),
            (state(&bridge, &[]), None),
            (state(&bridge, &[("cni0", "10.1.2.1/24")]), None),
            (state(&bridge, &[("cni0", "10.1.2.1/24"), ("cni0", "10.9.0.1/24")]), None),
            (state(&bridge, &[("cni0", "fd00:1::1/64"), ("cni0", "fe80::1/64")]), None),
            (
                state(&[("cni0", LinkKind::Other("dummy".to_owned()))], &[]),
                Some("\"cni0\" already exists but is not a bridge"),
            ),
            (
                state(&bridge, &[("cni0", "10.1.9.1/24")]),
                Some("\"cni0\" already has an IP address different from 10.1.2.1/24: 10.1.9.1/24"),
            ),
            (
                state(&bridge, &[("cni0", "10.1.2.1/16")]),
                Some("\"cni0\" already has an IP address different from 10.1.2.1/24: 10.1.2.1/16"),
            ),
            (
                state(&bridge, &[("cni0", "fd00::2/64")]),
                Some("\"cni0\" already has an IP address different from fd00::1/64: fd00::2/64"),
            ),
            (
                state(&[("veth1", LinkKind::Veth(None))], &[]),
                Some("the host's end \"veth1\" of this attachment already exists"),
            ),
        ];
        for (observed, expected) in table {
            let conflict = check_host(name("veth1"), &desired(), &observed, false).err();
            assert_eq!(conflict.map(|c| c.to_string()).as_deref(), expected, "{observed:?}");
        }
        let observed = state(&bridge, &[("cni0", "10.1.9.1/24")]);
        assert_eq!(check_host(name("veth1"), &desired(), &observed, true), Ok(()));
    }

    #[test]
    fn what_is_there_stays_unless_it_is_in_the_way() {
        let present = [("cni0", "10.1.9.1/24"), ("cni0", "fd00:1::1/64"), ("lo", "10.9.9.9/32")];
        let mut observed = state(&[("cni0", LinkKind::Bridge)], &present);
        let mut desired = desired();
        for (state, mac) in
            [(&mut desired, "02:00:00:00:00:01"), (&mut observed, "02:00:00:00:00:02")]
        {
            state.links.get_mut(&name("cni0")).unwrap().mac = Some(mac.parse().unwrap());
        }
        let together = among_others(&desired, &observed);
        let expected = [&present[1..], &[("cni0", "10.1.2.1/24"), ("cni0", "fd00::1/64")]].concat();
        assert_eq!(together.addresses, state(&[], &expected).addresses);
        assert_eq!(together.links[&name("cni0")].mac, None);
    }
}
