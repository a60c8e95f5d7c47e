//! A kernel small enough to be obviously right: it refuses what Linux refuses, and drops what Linux
//! drops.

use std::net::IpAddr;

use crate::link_name::LinkName;
use crate::netstate::{Address, BridgePort, Link, LinkKind, NetState, PortVlan, Route, RouteKey};
use crate::plan::{LinkChange, Op, Plan};

/// Why the model refused an operation; the names are those of errno(3).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Eexist,
    Enodev,
    Enoent,
    Enetdown,
    Enetunreach,
    Eopnotsupp,
}

/// Does the plan on a copy of `state`.
pub(super) fn run(state: &NetState, plan: &Plan) -> Result<NetState, Box<(Op, Refusal)>> {
    let mut model = Model(state.clone());
    for op in &plan.ops {
        model.run(op).map_err(|refusal| Box::new((op.clone(), refusal)))?;
    }
    Ok(model.0)
}

struct Model(NetState);

impl Model {
    fn run(&mut self, op: &Op) -> Result<(), Refusal> {
        match op {
            Op::AddLink(name, link) => return self.add_link(*name, link),
            Op::DelLink(name) => return self.del_link(*name),
            Op::SetLink(name, change) => return self.set_link(*name, change),
            Op::SetTxChecksum(link, on) => {
                self.link(*link)?;
                self.0.tx_checksum.insert(*link, *on);
            }
            Op::SetSysctl(key, value) => {
                self.0.sysctls.insert(key.clone(), value.clone());
            }
            Op::AddLinkIn(_, name, link) => return self.add_link(*name, link),
            Op::ReplaceAddress(address)
            | Op::ReplaceUnroutedAddress(address)
            | Op::ProbeAddress(address) => {
                self.link(address.link)?;
                self.0.addresses.insert(*address);
            }
            Op::DelAddress(address) => return self.del_address(*address),
            Op::ReplaceNeighbour(link, ip, mac) => {
                self.link_that_is_up(*link)?;
                self.0.neighbours.insert((*link, *ip), *mac);
            }
            Op::DelNeighbour(link, ip) => {
                self.0.neighbours.remove(&(*link, *ip)).ok_or(Refusal::Enoent)?;
            }
            Op::ReplaceFdbEntry(link, mac, vtep) => {
                if !matches!(self.link(*link)?.kind, LinkKind::Vxlan(_)) {
                    return Err(Refusal::Eopnotsupp);
                }
                self.0.fdb.insert((*link, *mac), *vtep);
            }
            Op::DelFdbEntry(link, mac, _) => {
                self.0.fdb.remove(&(*link, *mac)).ok_or(Refusal::Enoent)?;
            }
            Op::AddRoute(key, _) if self.0.routes.contains_key(key) => return Err(Refusal::Eexist),
            Op::AddRoute(key, route) | Op::ReplaceRoute(key, route) => {
                return self.replace_route(*key, *route);
            }
            Op::AddBlackhole(key) => {
                self.0.blackholes.insert(*key).then_some(()).ok_or(Refusal::Eexist)?;
            }
            Op::DelBlackhole(key) => {
                self.0.blackholes.remove(key).then_some(()).ok_or(Refusal::Enoent)?;
            }
            Op::DelRoute(key, _) => {
                self.0.routes.remove(key).ok_or(Refusal::Enoent)?;
            }
            Op::ReplaceVlan(link, vid, vlan) => return self.replace_vlan(*link, *vid, *vlan),
            Op::DelVlan(link, vid) => {
                self.0.vlans.remove(&(*link, *vid)).ok_or(Refusal::Enoent)?;
            }
            Op::ClearVlans(link) => {
                self.link(*link)?.port.ok_or(Refusal::Eopnotsupp)?;
                self.0.vlans.retain(|(port, _), _| port != link);
            }
            Op::ReplaceShaper(link, bucket) => {
                self.link(*link)?;
                self.0.shapers.insert(*link, *bucket);
            }
            Op::DelShaper(link) => drop(self.0.shapers.remove(link).ok_or(Refusal::Enoent)?),
            Op::AddIngress(link) => drop(self.link(*link)?),
            Op::AddRedirect(link, to) => {
                self.link(*link)?;
                self.link(*to)?;
                // The kernel would add a second one behind the first.
                if self.0.redirects.insert(*link, *to).is_some() {
                    return Err(Refusal::Eexist);
                }
            }
            Op::DelIngress(link) => drop(self.0.redirects.remove(link).ok_or(Refusal::Enoent)?),
        }
        Ok(())
    }

    fn link(&self, name: LinkName) -> Result<&Link, Refusal> {
        self.0.links.get(&name).ok_or(Refusal::Enodev)
    }

    fn link_that_is_up(&self, name: LinkName) -> Result<(), Refusal> {
        if self.link(name)?.up { Ok(()) } else { Err(Refusal::Enetdown) }
    }

    fn add_link(&mut self, name: LinkName, link: &Link) -> Result<(), Refusal> {
        if self.0.links.contains_key(&name) {
            return Err(Refusal::Eexist);
        }
        if let Some(port) = link.port {
            self.link(port.bridge)?;
        }
        let flag = |wanted: Option<bool>| wanted.map(|_| false);
        let mut link = Link {
            up: false,
            alias: None,
            promiscuous: flag(link.promiscuous),
            all_multicast: flag(link.all_multicast),
            ..link.clone()
        };
        if link.kind == LinkKind::Tun {
            link.mtu = None;
        }
        if let Some(port) = &mut link.port {
            (port.hairpin, port.isolated) = (false, false);
            self.give_default_vlan(name);
        }
        if let LinkKind::Veth(Some(peer)) = &link.kind
            && peer.netns.is_none()
        {
            let peer_link = Link { up: false, ..Link::up(LinkKind::Veth(None)) };
            self.0.links.insert(peer.name, peer_link);
        }
        self.0.links.insert(name, link);
        Ok(())
    }

    /// The number of the VLAN is that of new bridges.
    fn give_default_vlan(&mut self, port: LinkName) {
        self.0.vlans.insert((port, 1), PortVlan { pvid: true, untagged: true });
    }

    /// Only one VLAN gets what comes in without a tag.
    fn replace_vlan(&mut self, port: LinkName, vid: u16, vlan: PortVlan) -> Result<(), Refusal> {
        self.link(port)?.port.ok_or(Refusal::Eopnotsupp)?;
        if vlan.pvid {
            let others = self.0.vlans.range_mut((port, 0)..=(port, u16::MAX));
            others.for_each(|(_, other)| other.pvid = false);
        }
        self.0.vlans.insert((port, vid), vlan);
        Ok(())
    }

    fn del_link(&mut self, name: LinkName) -> Result<(), Refusal> {
        self.0.links.remove(&name).ok_or(Refusal::Enodev)?;
        for link in self.0.links.values_mut() {
            link.port = link.port.filter(|port| port.bridge != name);
        }
        self.0.addresses.retain(|address| address.link != name);
        self.0.neighbours.retain(|(link, _), _| *link != name);
        self.0.fdb.retain(|(link, _), _| *link != name);
        self.0.routes.retain(|_, route| route.link != name);
        self.0.tx_checksum.remove(&name);
        self.0.shapers.retain(|link, _| *link != name);
        let links = &self.0.links;
        self.0.vlans.retain(|(link, _), _| links.get(link).is_some_and(|link| link.port.is_some()));
        self.0.redirects.retain(|link, _| *link != name);
        Ok(())
    }

    fn set_link(&mut self, name: LinkName, change: &LinkChange) -> Result<(), Refusal> {
        if let LinkChange::Master(bridge) = change {
            self.link(*bridge)?;
        }
        let link = self.0.links.get_mut(&name).ok_or(Refusal::Enodev)?;
        match (change, &mut link.kind) {
            (LinkChange::Up, _) => link.up = true,
            (LinkChange::Down, _) => link.up = false,
            (LinkChange::Mtu(mtu), _) => link.mtu = Some(*mtu),
            (LinkChange::Mac(mac), _) => link.mac = Some(*mac),
            (LinkChange::Alias(alias), _) => link.alias = Some(alias.clone()),
            (LinkChange::Promiscuous(on), _) => link.promiscuous = Some(*on),
            (LinkChange::AllMulticast(on), _) => link.all_multicast = Some(*on),
            (LinkChange::QueueLength(length), _) => link.queue_length = Some(*length),
            (LinkChange::Master(bridge), _) => {
                let (bridge, hairpin, isolated) = (*bridge, false, false);
                link.port = Some(BridgePort { bridge, hairpin, isolated });
                self.give_default_vlan(name);
            }
            (LinkChange::Isolated(on), _) => {
                link.port.as_mut().ok_or(Refusal::Eopnotsupp)?.isolated = *on;
            }
            (LinkChange::VlanFiltering(on), LinkKind::Bridge) => link.vlan_filtering = Some(*on),
            (LinkChange::Hairpin(on), _) => {
                link.port.as_mut().ok_or(Refusal::Eopnotsupp)?.hairpin = *on;
            }
            (LinkChange::VxlanLocal(ip), LinkKind::Vxlan(vxlan)) => vxlan.local = Some(*ip),
            (LinkChange::VxlanUnderlay(link), LinkKind::Vxlan(vxlan)) => {
                vxlan.underlay = Some(*link);
            }
            (LinkChange::VxlanLearning(on), LinkKind::Vxlan(vxlan)) => vxlan.learning = *on,
            _ => return Err(Refusal::Eopnotsupp),
        }
        Ok(())
    }

    /// The kernel may take any address of the same IPv4 subnet along, and all IPv4 routes with the
    /// last address; the model always does.
    fn del_address(&mut self, address: Address) -> Result<(), Refusal> {
        self.link(address.link)?;
        // It may have gone with another one of its subnet, which is no failure.
        if !self.0.addresses.remove(&address) || !address.ip.is_ipv4() {
            return Ok(());
        }
        let subnet = |a: &Address| (a.link, a.ip.network(), a.ip.prefix());
        self.0.addresses.retain(|other| subnet(other) != subnet(&address));
        let is_v4_here = |a: &Address| a.link == address.link && a.ip.is_ipv4();
        if !self.0.addresses.iter().any(is_v4_here) {
            let is_v4 = |key: &RouteKey| key.destination.is_ipv4();
            self.0.routes.retain(|key, route| route.link != address.link || !is_v4(key));
        }
        Ok(())
    }

    fn replace_route(&mut self, key: RouteKey, route: Route) -> Result<(), Refusal> {
        self.link_that_is_up(route.link)?;
        if let Some(via) = route.via {
            self.reach(route, via)?;
        }
        self.0.routes.insert(key, route);
        Ok(())
    }

    fn reach(&self, route: Route, via: IpAddr) -> Result<(), Refusal> {
        let mut here = self.0.addresses.iter().filter(|a| a.link == route.link);
        let reached =
            here.any(|a| a.ip.is_ipv4() == via.is_ipv4() && (route.onlink || a.ip.contains(via)));
        if reached { Ok(()) } else { Err(Refusal::Enetunreach) }
    }
}
