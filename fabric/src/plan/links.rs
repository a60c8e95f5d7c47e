//! Links: which are made, changed in place, made anew, brought up and removed.

use std::collections::BTreeSet;

use super::bridge::{new_port_changes, port_changes};
use super::{Diff, LinkChange, Op};
use crate::link_name::LinkName;
use crate::netstate::{Link, LinkKind, NetState, Vxlan};

/// Returns the links that can only become what they shall be by making them anew.
pub(super) fn rebuilt_links(desired: &NetState, observed: &NetState) -> BTreeSet<LinkName> {
    let is_rebuilt = |(name, link): (&LinkName, &Link)| {
        let now = observed.links.get(name)?;
        (!can_become(&now.kind, &link.kind)).then_some(*name)
    };
    desired.links.iter().filter_map(is_rebuilt).collect()
}

fn can_become(now: &LinkKind, wanted: &LinkKind) -> bool {
    match (now, wanted) {
        (LinkKind::Vxlan(now), LinkKind::Vxlan(wanted)) => {
            now.vni == wanted.vni
                && now.port == wanted.port
                && now.gbp == wanted.gbp
                && (wanted.local.is_none() || family(now) == family(wanted))
        }
        (LinkKind::Veth(_), LinkKind::Veth(_)) => true,
        // Where the parent is in another namespace, it cannot be told.
        (LinkKind::Macvlan(now), LinkKind::Macvlan(wanted)) => {
            let same = now.parent.zip(wanted.parent).is_none_or(|(now, wanted)| now == wanted);
            now.mode == wanted.mode && same
        }
        _ => now == wanted,
    }
}

impl Diff<'_> {
    /// Whether a link goes because another one can only be made without it: the kernel refuses two
    /// tunnels of one kind, as a renamed one and its successor are.
    fn is_in_the_way(&self, name: &LinkName) -> bool {
        let Some(Link { kind: LinkKind::Vxlan(now), .. }) = self.observed.links.get(name) else {
            return false;
        };
        let collides = |link: &Link| match &link.kind {
            LinkKind::Vxlan(wanted) => {
                (now.vni, now.port, family(now)) == (wanted.vni, wanted.port, family(wanted))
            }
            _ => false,
        };
        !self.desired.links.contains_key(name) && self.desired.links.values().any(collides)
    }

    pub(super) fn add_links(&self, ops: &mut Vec<Op>) {
        ops.extend(self.rebuilt.iter().map(|name| Op::DelLink(*name)));
        let in_the_way = self.observed.links.keys().filter(|name| self.is_in_the_way(name));
        ops.extend(in_the_way.map(|name| Op::DelLink(*name)));
        let is_missing = |name: &LinkName| self.kept(name).is_none();
        let mut missing: Vec<_> = self.desired.links.iter().collect();
        missing.retain(|(name, _)| is_missing(name) && !self.is_born_with_peer(**name));
        // A port can only be made when its bridge is there, and a tunnel when its underlay is.
        missing.sort_by_key(|(_, link)| (link.port.is_some(), underlay(link).is_some()));
        for (name, link) in missing {
            ops.push(Op::AddLink(*name, Box::new(link.clone())));
            // The kernel takes no remark when it makes the link. In the same send it follows for
            // sure, so that there is never one whose maker cannot be told.
            let alias = link.alias.clone();
            ops.extend(alias.map(|alias| Op::SetLink(*name, LinkChange::Alias(alias))));
        }
    }

    pub(super) fn change_links(&self, ops: &mut Vec<Op>) {
        for (name, link) in &self.desired.links {
            let change = |change| Op::SetLink(*name, change);
            match self.kept(name) {
                Some(now) => ops.extend(self.changes(now, link).into_iter().map(change)),
                // Nothing was said of it but its name.
                None if self.is_born_with_peer(*name) => {
                    let now = Link { up: false, ..Link::up(link.kind.clone()) };
                    ops.extend(self.changes(&now, link).into_iter().map(change));
                }
                // The kernel takes none of these when it makes the link.
                None => {
                    let mtu = link.mtu.filter(|_| link.kind == LinkKind::Tun);
                    ops.extend(mtu.map(|mtu| change(LinkChange::Mtu(mtu))));
                    let port = link.port.map_or_else(Vec::new, new_port_changes);
                    ops.extend(port.into_iter().map(change));
                    ops.extend(flag_changes(None, link).into_iter().map(change));
                }
            }
        }
    }

    fn changes(&self, now: &Link, wanted: &Link) -> Vec<LinkChange> {
        let mut changes = Vec::new();
        if let (LinkKind::Vxlan(now), LinkKind::Vxlan(wanted)) = (&now.kind, &wanted.kind) {
            changes.extend(vxlan_changes(now, wanted));
        }
        changes.extend(wanted.mtu.filter(|_| now.mtu != wanted.mtu).map(LinkChange::Mtu));
        changes.extend(wanted.mac.filter(|_| now.mac != wanted.mac).map(LinkChange::Mac));
        if let Some(port) = wanted.port {
            changes.extend(port_changes(now.port.filter(|port| self.survives(&port.bridge)), port));
        }
        let filtering =
            wanted.vlan_filtering.filter(|_| now.vlan_filtering != wanted.vlan_filtering);
        changes.extend(filtering.map(LinkChange::VlanFiltering));
        let alias = wanted.alias.clone().filter(|_| now.alias != wanted.alias);
        changes.extend(alias.map(LinkChange::Alias));
        changes.extend(flag_changes(Some(now), wanted));
        let length = wanted.queue_length.filter(|_| now.queue_length != wanted.queue_length);
        changes.extend(length.map(LinkChange::QueueLength));
        changes
    }

    pub(super) fn bring_links_up(&self, ops: &mut Vec<Op>) {
        let down = |(name, link): &(&LinkName, &Link)| {
            link.up && !self.kept(name).is_some_and(|now| now.up)
        };
        let down = self.desired.links.iter().filter(down);
        ops.extend(down.map(|(name, _)| Op::SetLink(*name, LinkChange::Up)));
    }

    pub(super) fn del_links(&self, ops: &mut Vec<Op>) {
        for (name, link) in self.observed.links.iter().rev() {
            let gone = self.desired.links.contains_key(name) || self.is_in_the_way(name);
            if !gone && link.kind != LinkKind::Loopback {
                ops.push(Op::DelLink(*name));
            }
        }
    }
}

fn family(vxlan: &Vxlan) -> Option<bool> {
    vxlan.local.map(|ip| ip.is_ipv4())
}

/// The link that this one is on.
pub(super) fn underlay(link: &Link) -> Option<LinkName> {
    match &link.kind {
        LinkKind::Vxlan(vxlan) => vxlan.underlay,
        LinkKind::Macvlan(macvlan) => macvlan.parent,
        _ => None,
    }
}

fn vxlan_changes(now: &Vxlan, wanted: &Vxlan) -> Vec<LinkChange> {
    let mut changes = Vec::new();
    let local = wanted.local.filter(|_| now.local != wanted.local);
    changes.extend(local.map(LinkChange::VxlanLocal));
    let underlay = wanted.underlay.filter(|_| now.underlay != wanted.underlay);
    changes.extend(underlay.map(LinkChange::VxlanUnderlay));
    if now.learning != wanted.learning {
        changes.push(LinkChange::VxlanLearning(wanted.learning));
    }
    changes
}

/// A new link is neither promiscuous nor does it take in all multicast.
fn flag_changes(now: Option<&Link>, wanted: &Link) -> Vec<LinkChange> {
    let differs = |now: Option<Option<bool>>, wanted: Option<bool>| {
        wanted.filter(|on| now.unwrap_or(Some(false)) != Some(*on))
    };
    let promiscuous = differs(now.map(|now| now.promiscuous), wanted.promiscuous);
    let all_multicast = differs(now.map(|now| now.all_multicast), wanted.all_multicast);
    let changes = promiscuous.map(LinkChange::Promiscuous).into_iter();
    changes.chain(all_multicast.map(LinkChange::AllMulticast)).collect()
}
