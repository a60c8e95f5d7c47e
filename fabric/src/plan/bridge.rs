//! What bridges and their ports need beside being made.

use std::collections::BTreeSet;
use std::fmt;

use super::{Diff, LinkChange, Op};
use crate::link_name::LinkName;
use crate::netstate::{BridgePort, Link, LinkKind, PortVlan};

impl Diff<'_> {
    /// Whether a link comes into being as the other end of one that is made in this namespace.
    pub(super) fn is_born_with_peer(&self, name: LinkName) -> bool {
        let is_peer = |(other, link): (&LinkName, &Link)| match &link.kind {
            LinkKind::Veth(Some(peer)) if peer.netns.is_none() => {
                peer.name == name && self.kept(other).is_none()
            }
            _ => false,
        };
        self.kept(&name).is_none() && self.desired.links.iter().any(is_peer)
    }

    /// Ports whose VLANs are desired have these and no others.
    pub(super) fn replace_vlans(&self, ops: &mut Vec<Op>) {
        let ports: BTreeSet<_> = self.desired.vlans.keys().map(|(link, _)| *link).collect();
        for port in ports {
            let is_new = self.is_new_port(port);
            if is_new {
                // The bridge has given it one.
                ops.push(Op::ClearVlans(port));
            }
            for ((_, vid), vlan) in self.desired.vlans.range((port, 0)..=(port, u16::MAX)) {
                if is_new || self.observed.vlans.get(&(port, *vid)) != Some(vlan) {
                    ops.push(Op::ReplaceVlan(port, *vid, *vlan));
                }
            }
            let present = self.observed.vlans.range((port, 0)..=(port, u16::MAX));
            let surplus =
                present.filter(|(key, _)| !is_new && !self.desired.vlans.contains_key(key));
            ops.extend(surplus.map(|((port, vid), _)| Op::DelVlan(*port, *vid)));
        }
    }

    /// Whether a link is going to be made a port of its bridge.
    fn is_new_port(&self, name: LinkName) -> bool {
        let bridge = |link: Option<&Link>| Some(link?.port?.bridge);
        let wanted = bridge(self.desired.links.get(&name));
        let now = bridge(self.kept(&name)).filter(|bridge| self.survives(bridge));
        wanted.is_some() && now != wanted
    }
}

/// What the kernel does not take when it makes a port.
pub(super) fn new_port_changes(port: BridgePort) -> Vec<LinkChange> {
    let new = BridgePort { hairpin: false, isolated: false, ..port };
    port_changes(Some(new), port)
}

pub(super) fn port_changes(now: Option<BridgePort>, wanted: BridgePort) -> Vec<LinkChange> {
    let now = now.filter(|now| now.bridge == wanted.bridge);
    let mut changes = Vec::new();
    if now.is_none() {
        changes.push(LinkChange::Master(wanted.bridge));
    }
    if now.is_some_and(|now| now.hairpin) != wanted.hairpin {
        changes.push(LinkChange::Hairpin(wanted.hairpin));
    }
    if now.is_some_and(|now| now.isolated) != wanted.isolated {
        changes.push(LinkChange::Isolated(wanted.isolated));
    }
    changes
}

/// As `bridge vlan add vid NUMBER dev NAME` continues.
impl fmt::Display for PortVlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.pvid { " pvid" } else { "" })?;
        f.write_str(if self.untagged { " untagged" } else { "" })
    }
}
