//! What must be done to get from the state that is to the state that shall be.
//!
//! [`diff`] is pure. A [`Plan`] prints as the `ip` and `bridge` commands that would do the same, so
//! that the text serves as log, dry run and golden file.

mod bridge;
mod links;
mod shaping;
mod side_by_side;
mod text;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;

use crate::link_name::LinkName;
use crate::mac::MacAddr;
use crate::mtu::Mtu;
use crate::netstate::{Address, Link, NetState, PortVlan, Route, RouteKey, Sysctl, TokenBucket};

use links::rebuilt_links;
use side_by_side::side_by_side;

/// Operations in an order that the kernel accepts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be done one after the other.
    pub ops: Vec<Op>,
}

/// One request to the kernel. Links are in boxes: there are few of them, and thousands of the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Make a link. It is down at first.
    AddLink(LinkName, Box<Link>),
    /// Remove a link, and all that hangs on it.
    DelLink(LinkName),
    /// Change a link in place.
    SetLink(LinkName, LinkChange),
    /// Set a kernel parameter.
    SetSysctl(Sysctl, String),
    /// Let a link leave checksums to be computed further down, or not.
    SetTxChecksum(LinkName, bool),
    /// Make a link that lives in the namespace at this path, on a link of this one. It is down at
    /// first. No plan for a state does so.
    AddLinkIn(PathBuf, LinkName, Box<Link>),
    /// Give a link an address.
    ReplaceAddress(Address),
    /// Give a link an address without a route to its subnet.
    ReplaceUnroutedAddress(Address),
    /// Give a link an IPv6 address that is only used when no duplicate was found.
    ProbeAddress(Address),
    /// Take an address from a link.
    DelAddress(Address),
    /// Say who has an address.
    ReplaceNeighbour(LinkName, IpAddr, MacAddr),
    /// Forget who has an address.
    DelNeighbour(LinkName, IpAddr),
    /// Say behind which VTEP an Ethernet address lives.
    ReplaceFdbEntry(LinkName, MacAddr, IpAddr),
    /// Forget where an Ethernet address lives.
    DelFdbEntry(LinkName, MacAddr, IpAddr),
    /// Let a bridge port belong to a VLAN.
    ReplaceVlan(LinkName, u16, PortVlan),
    /// Let it belong to a VLAN no more.
    DelVlan(LinkName, u16),
    /// Let it belong to no VLAN.
    ClearVlans(LinkName),
    /// Lead a destination somewhere, unless somebody else's route does.
    AddRoute(RouteKey, Route),
    /// Lead a destination somewhere else.
    ReplaceRoute(RouteKey, Route),
    /// Remove a route.
    DelRoute(RouteKey, Route),
    /// Let packets to a destination vanish.
    AddBlackhole(RouteKey),
    /// Let them no longer vanish.
    DelBlackhole(RouteKey),
    /// Limit how much a link sends.
    ReplaceShaper(LinkName, TokenBucket),
    /// Let a link send as much as it can.
    DelShaper(LinkName),
    /// Look at what comes in by a link, for the redirection that follows.
    AddIngress(LinkName),
    /// Send on what comes in by a link by another one.
    AddRedirect(LinkName, LinkName),
    /// Look no more at what comes in by a link, and redirect nothing.
    DelIngress(LinkName),
}

/// A property of a link that can be changed in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkChange {
    /// Bring it up.
    Up,
    /// Take it down. No plan for a state does so.
    Down,
    /// Give it another MTU.
    Mtu(Mtu),
    /// Give it another Ethernet address.
    Mac(MacAddr),
    /// Make it a port of a bridge.
    Master(LinkName),
    /// Let frames leave by the bridge port that they came from, or not.
    Hairpin(bool),
    /// Let frames not reach other isolated bridge ports, or let them.
    Isolated(bool),
    /// Let a bridge keep VLANs apart, or not.
    VlanFiltering(bool),
    /// Give it another remark.
    Alias(String),
    /// Let it take in what is not for it, or not.
    Promiscuous(bool),
    /// Let it take in all multicast, or not.
    AllMulticast(bool),
    /// Let as many packets wait to be sent.
    QueueLength(u32),
    /// Give a tunnel another source address.
    VxlanLocal(IpAddr),
    /// Let the outer packets leave by another link.
    VxlanUnderlay(LinkName),
    /// Let a tunnel learn peers from what it receives, or not.
    VxlanLearning(bool),
}

/// Returns what turns `observed` into `desired`, making before breaking: whatever is in both stays
/// untouched, and what is new is there before what is old goes.
pub fn diff(desired: &NetState, observed: &NetState) -> Plan {
    let diff = Diff { desired, observed, rebuilt: rebuilt_links(desired, observed) };
    let flushed = diff.flushed_subnets();
    let mut ops = Vec::new();
    diff.add_links(&mut ops);
    diff.change_links(&mut ops);
    diff.replace_vlans(&mut ops);
    diff.set_sysctls(|key| !key.is_announcement(), &mut ops);
    diff.set_offloads(&mut ops);
    diff.replace_addresses(&flushed, &mut ops);
    diff.bring_links_up(&mut ops);
    // Not what comes up now: a new link has nothing to announce that anybody remembers otherwise, and
    // every port of its bridge would get a copy.
    diff.set_sysctls(Sysctl::is_announcement, &mut ops);
    diff.replace_neighbours(&mut ops);
    diff.replace_fdb_entries(&mut ops);
    diff.replace_routes(&flushed, &mut ops);
    diff.shape(&mut ops);
    diff.unshape(&mut ops);
    diff.change_blackholes(&mut ops);
    diff.del_routes(&mut ops);
    diff.del_fdb_entries(&mut ops);
    diff.del_neighbours(&mut ops);
    diff.del_addresses(&flushed, &mut ops);
    diff.del_links(&mut ops);
    Plan { ops }
}

/// A subnet on a link in which the kernel may drop addresses that we want to keep: it removes the
/// secondary IPv4 addresses of a subnet together with the primary one, and all IPv4 routes of a link
/// together with its last address (`__inet_del_ifa`, `fib_del_ifaddr`).
type Flushed = BTreeSet<(LinkName, IpNetwork)>;

struct Diff<'a> {
    desired: &'a NetState,
    observed: &'a NetState,
    /// Links that can only become what they shall be by making them anew; all on them is lost.
    rebuilt: BTreeSet<LinkName>,
}

impl Diff<'_> {
    /// The observed link, unless it has to be made anew.
    fn kept(&self, name: &LinkName) -> Option<&Link> {
        self.observed.links.get(name).filter(|_| !self.rebuilt.contains(name))
    }

    /// Whether what is observed on this link will still be there.
    fn survives(&self, name: &LinkName) -> bool {
        !self.rebuilt.contains(name)
    }

    /// Whether the link goes at the end, and what is on it by itself.
    fn goes(&self, name: &LinkName) -> bool {
        self.rebuilt.contains(name)
            || (self.observed.links.contains_key(name) && !self.desired.links.contains_key(name))
    }

    fn set_sysctls(&self, wanted: impl Fn(&Sysctl) -> bool, ops: &mut Vec<Op>) {
        for (key, value) in self.desired.sysctls.iter().filter(|(key, _)| wanted(key)) {
            // A new link starts with default parameters.
            if self.observed.sysctls.get(key) != Some(value) || !self.rebuilt.is_empty() {
                ops.push(Op::SetSysctl(key.clone(), value.clone()));
            }
        }
    }

    fn set_offloads(&self, ops: &mut Vec<Op>) {
        for (link, on) in &self.desired.tx_checksum {
            if self.observed.tx_checksum.get(link) != Some(on) || !self.survives(link) {
                ops.push(Op::SetTxChecksum(*link, *on));
            }
        }
    }

    fn flushed_subnets(&self) -> Flushed {
        let obsolete = self.observed.addresses.difference(&self.desired.addresses);
        let subnet_of = |address: &Address| (address.link, subnet(address.ip));
        let wanted: Flushed = self.desired.addresses.iter().map(subnet_of).collect();
        obsolete
            .filter(|address| address.ip.is_ipv4() && !self.goes(&address.link))
            .map(subnet_of)
            .filter(|subnet| wanted.contains(subnet))
            .collect()
    }

    fn replace_addresses(&self, flushed: &Flushed, ops: &mut Vec<Op>) {
        let is_flushed = |a: &Address| flushed.contains(&(a.link, subnet(a.ip)));
        let obsolete = self.observed.addresses.difference(&self.desired.addresses);
        ops.extend(obsolete.filter(|a| is_flushed(a)).map(|a| Op::DelAddress(*a)));
        let missing = self.desired.addresses.iter().filter(|address| {
            !self.observed.addresses.contains(address)
                || !self.survives(&address.link)
                || is_flushed(address)
        });
        let Self { desired: NetState { unrouted, probed, .. }, .. } = self;
        ops.extend(missing.map(|address| match address {
            address if unrouted.contains(address) => Op::ReplaceUnroutedAddress(*address),
            address if probed.contains(address) => Op::ProbeAddress(*address),
            address => Op::ReplaceAddress(*address),
        }));
    }

    fn replace_neighbours(&self, ops: &mut Vec<Op>) {
        let Self { desired, observed, .. } = self;
        for ((link, ip), mac, now) in side_by_side(&desired.neighbours, &observed.neighbours) {
            if let Some(mac) = mac
                && (now != Some(mac) || !self.survives(link))
            {
                ops.push(Op::ReplaceNeighbour(*link, *ip, *mac));
            }
        }
    }

    fn replace_fdb_entries(&self, ops: &mut Vec<Op>) {
        for ((link, mac), vtep, now) in side_by_side(&self.desired.fdb, &self.observed.fdb) {
            if let Some(vtep) = vtep
                && (now != Some(vtep) || !self.survives(link))
            {
                ops.push(Op::ReplaceFdbEntry(*link, *mac, *vtep));
            }
        }
    }

    fn replace_routes(&self, flushed: &Flushed, ops: &mut Vec<Op>) {
        let links: BTreeSet<LinkName> = flushed.iter().map(|(link, _)| *link).collect();
        let mut routes = Vec::new();
        for (key, route, now) in side_by_side(&self.desired.routes, &self.observed.routes) {
            let Some(route) = route else { continue };
            let lost = || !self.survives(&route.link) || links.contains(&route.link);
            match now {
                None => routes.push((route.via, Op::AddRoute(*key, *route))),
                Some(now) if now != route || lost() => {
                    routes.push((route.via, Op::ReplaceRoute(*key, *route)));
                }
                Some(_) => {}
            }
        }
        // The next hop of one may only be reached by another.
        routes.sort_by_key(|(via, _)| via.is_some());
        ops.extend(routes.into_iter().map(|(_, op)| op));
    }

    fn change_blackholes(&self, ops: &mut Vec<Op>) {
        let (desired, observed) = (&self.desired.blackholes, &self.observed.blackholes);
        ops.extend(desired.difference(observed).copied().map(Op::AddBlackhole));
        ops.extend(observed.difference(desired).copied().map(Op::DelBlackhole));
    }

    fn del_routes(&self, ops: &mut Vec<Op>) {
        for (key, wanted, now) in side_by_side(&self.desired.routes, &self.observed.routes) {
            if let (None, Some(route)) = (wanted, now)
                && !self.goes(&route.link)
            {
                ops.push(Op::DelRoute(*key, *route));
            }
        }
    }

    fn del_fdb_entries(&self, ops: &mut Vec<Op>) {
        for ((link, mac), wanted, now) in side_by_side(&self.desired.fdb, &self.observed.fdb) {
            if let (None, Some(vtep)) = (wanted, now)
                && !self.goes(link)
            {
                ops.push(Op::DelFdbEntry(*link, *mac, *vtep));
            }
        }
    }

    fn del_neighbours(&self, ops: &mut Vec<Op>) {
        let Self { desired, observed, .. } = self;
        for ((link, ip), wanted, _) in side_by_side(&desired.neighbours, &observed.neighbours) {
            if wanted.is_none() && !self.goes(link) {
                ops.push(Op::DelNeighbour(*link, *ip));
            }
        }
    }

    fn del_addresses(&self, flushed: &Flushed, ops: &mut Vec<Op>) {
        for address in self.observed.addresses.difference(&self.desired.addresses) {
            let done = flushed.contains(&(address.link, subnet(address.ip)));
            if !done && !self.goes(&address.link) {
                ops.push(Op::DelAddress(*address));
            }
        }
    }
}

fn subnet(ip: IpNetwork) -> IpNetwork {
    IpNetwork::new(ip.network(), ip.prefix()).expect("the prefix of a network is valid")
}

impl Op {
    /// Whether it takes something away.
    pub const fn is_removal(&self) -> bool {
        matches!(
            self,
            Self::DelLink(_)
                | Self::DelAddress(_)
                | Self::DelNeighbour(..)
                | Self::DelFdbEntry(..)
                | Self::DelRoute(..)
                | Self::DelVlan(..)
                | Self::DelBlackhole(_)
                | Self::DelShaper(_)
                | Self::DelIngress(_)
        )
    }

    /// Whether it concerns a single peer or destination, so that the rest works without it.
    pub const fn is_per_peer(&self) -> bool {
        matches!(
            self,
            Self::ReplaceNeighbour(..)
                | Self::DelNeighbour(..)
                | Self::ReplaceFdbEntry(..)
                | Self::DelFdbEntry(..)
                | Self::AddRoute(..)
                | Self::ReplaceRoute(..)
                | Self::DelRoute(..)
        )
    }
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
