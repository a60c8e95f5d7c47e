//! The rules of attachments in the kernel's packet filter, whatever they are for, and the flows that
//! went by them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fabric::netlink::{Inventory, NetlinkError, Socket};
use fabric::packet_filter::nft::{Flow, Nft, forget_udp_flows};
use fabric::packet_filter::{self, Change, Error, PacketFilter, Ruleset};

use crate::invocation::Attachment;
use crate::masquerade;
use crate::portmap::{self, PortMap};

/// Makes the rules of an attachment true.
///
/// # Errors
/// If the kernel refuses.
pub fn ensure(rules: &Ruleset) -> Result<(), Error> {
    packet_filter::ensure(&mut Nft::open()?, rules).map(drop)
}

/// Returns what would make the rules true.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn missing(rules: &Ruleset) -> Result<Change, Error> {
    let observed = Nft::open()?.observe(rules)?;
    Ok(packet_filter::diff(rules, &observed))
}

/// Removes the rules of an attachment, those that the Go plugins made too, and returns whether there
/// were any.
///
/// # Errors
/// If the kernel refuses.
pub fn remove(attachment: &Attachment) -> Result<bool, Error> {
    let mark = masquerade::mark(attachment);
    // Thus the Go plugin marks the ports of a container.
    let container = attachment.container.as_str();
    remove_stale(|comment| comment.starts_with(&mark) || comment == container)
}

/// Removes the rules whose comment `is_stale`, and returns whether there were any.
///
/// # Errors
/// If the kernel refuses.
pub fn remove_stale(is_stale: impl Fn(&str) -> bool) -> Result<bool, Error> {
    let mut filter = match Nft::open() {
        // Then there are no rules either.
        Err(Error::Unavailable(_)) => return Ok(false),
        filter => filter?,
    };
    let tables = masquerade::tables().tables.into_iter().chain(portmap::tables().tables).collect();
    let change = packet_filter::remove_rules(&mut filter, &Ruleset { tables }, is_stale)?;
    Ok(!change.is_empty())
}

/// Forgets the UDP flows to the ports of an attachment that lead elsewhere, for example to the pod
/// that had a port before, or to the node while nobody had it. Best effort: such a flow ends by
/// itself when its client rests.
pub fn forget_earlier_flows(ports: &PortMap, pod: &[IpAddr]) {
    let ports: BTreeSet<u16> = ports.udp_ports().collect();
    if ports.is_empty() {
        return;
    }
    let Ok(local) = local_addresses() else { return };
    let is_stale = |flow: &Flow| {
        let to = flow.destination.ip();
        let is_local = to.is_loopback() || local.contains(&to);
        is_local && ports.contains(&flow.destination.port()) && !pod.contains(&flow.answered_by)
    };
    let _best_effort = forget_udp_flows(is_stale);
}

/// Forgets the UDP flows that a pod with these addresses answered. Best effort, as above.
pub fn forget_flows_to(pod: &BTreeSet<IpAddr>) {
    let _best_effort = forget_udp_flows(|flow| pod.contains(&flow.answered_by));
}

fn local_addresses() -> Result<BTreeSet<IpAddr>, NetlinkError> {
    let interfaces = Inventory::take(&mut Socket::open()?)?.interfaces;
    let addresses = interfaces.iter().flat_map(|interface| &interface.addresses);
    Ok(addresses.map(|address| address.ip).collect())
}
