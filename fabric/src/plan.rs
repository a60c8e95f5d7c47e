//! What must be done to get from the state that is to the state that shall be.
//!
//! [`diff`] is pure. A [`Plan`] prints as the `ip` and `bridge` commands that would do the same, so
//! that the text serves as log, dry run and golden file.

mod bridge;
mod shaping;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;

use crate::link_name::LinkName;
use crate::mac::MacAddr;
use crate::mtu::Mtu;
use crate::netstate::{
    Address, Link, LinkKind, NetState, PortVlan, ROUTE_PROTOCOL, Route, RouteKey, Sysctl,
    TokenBucket, Vxlan,
};

use bridge::{new_port_changes, port_changes};

/// Operations in an order that the kernel accepts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be done one after the other.
    pub ops: Vec<Op>,
}

/// One request to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Make a link. It is down at first.
    AddLink(LinkName, Link),
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
    AddLinkIn(PathBuf, LinkName, Link),
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
    diff.set_sysctls(&mut ops);
    diff.set_offloads(&mut ops);
    diff.replace_addresses(&flushed, &mut ops);
    diff.bring_links_up(&mut ops);
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

fn rebuilt_links(desired: &NetState, observed: &NetState) -> BTreeSet<LinkName> {
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

    fn add_links(&self, ops: &mut Vec<Op>) {
        ops.extend(self.rebuilt.iter().map(|name| Op::DelLink(*name)));
        let in_the_way = self.observed.links.keys().filter(|name| self.is_in_the_way(name));
        ops.extend(in_the_way.map(|name| Op::DelLink(*name)));
        let is_missing = |name: &LinkName| self.kept(name).is_none();
        let mut missing: Vec<_> = self.desired.links.iter().collect();
        missing.retain(|(name, _)| is_missing(name) && !self.is_born_with_peer(**name));
        // A port can only be made when its bridge is there, and a tunnel when its underlay is.
        missing.sort_by_key(|(_, link)| (link.port.is_some(), underlay(link).is_some()));
        for (name, link) in missing {
            ops.push(Op::AddLink(*name, link.clone()));
            // The kernel takes no remark when it makes the link. In the same send it follows for
            // sure, so that there is never one whose maker cannot be told.
            let alias = link.alias.clone();
            ops.extend(alias.map(|alias| Op::SetLink(*name, LinkChange::Alias(alias))));
        }
    }

    fn change_links(&self, ops: &mut Vec<Op>) {
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

    fn set_sysctls(&self, ops: &mut Vec<Op>) {
        for (key, value) in &self.desired.sysctls {
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

    fn bring_links_up(&self, ops: &mut Vec<Op>) {
        let down = |(name, link): &(&LinkName, &Link)| {
            link.up && !self.kept(name).is_some_and(|now| now.up)
        };
        let down = self.desired.links.iter().filter(down);
        ops.extend(down.map(|(name, _)| Op::SetLink(*name, LinkChange::Up)));
    }

    fn replace_neighbours(&self, ops: &mut Vec<Op>) {
        for ((link, ip), mac) in &self.desired.neighbours {
            let now = self.observed.neighbours.get(&(*link, *ip));
            if now != Some(mac) || !self.survives(link) {
                ops.push(Op::ReplaceNeighbour(*link, *ip, *mac));
            }
        }
    }

    fn replace_fdb_entries(&self, ops: &mut Vec<Op>) {
        for ((link, mac), vtep) in &self.desired.fdb {
            if self.observed.fdb.get(&(*link, *mac)) != Some(vtep) || !self.survives(link) {
                ops.push(Op::ReplaceFdbEntry(*link, *mac, *vtep));
            }
        }
    }

    fn replace_routes(&self, flushed: &Flushed, ops: &mut Vec<Op>) {
        let links: BTreeSet<LinkName> = flushed.iter().map(|(link, _)| *link).collect();
        // The next hop of one may only be reached by another.
        let mut routes: Vec<_> = self.desired.routes.iter().collect();
        routes.sort_by_key(|(_, route)| route.via.is_some());
        for (key, route) in routes {
            let lost = !self.survives(&route.link) || links.contains(&route.link);
            match self.observed.routes.get(key) {
                None => ops.push(Op::AddRoute(*key, *route)),
                Some(now) if now != route || lost => ops.push(Op::ReplaceRoute(*key, *route)),
                Some(_) => {}
            }
        }
    }

    fn change_blackholes(&self, ops: &mut Vec<Op>) {
        let (desired, observed) = (&self.desired.blackholes, &self.observed.blackholes);
        ops.extend(desired.difference(observed).copied().map(Op::AddBlackhole));
        ops.extend(observed.difference(desired).copied().map(Op::DelBlackhole));
    }

    fn del_routes(&self, ops: &mut Vec<Op>) {
        for (key, route) in &self.observed.routes {
            if !self.desired.routes.contains_key(key) && !self.goes(&route.link) {
                ops.push(Op::DelRoute(*key, *route));
            }
        }
    }

    fn del_fdb_entries(&self, ops: &mut Vec<Op>) {
        for ((link, mac), vtep) in &self.observed.fdb {
            if !self.desired.fdb.contains_key(&(*link, *mac)) && !self.goes(link) {
                ops.push(Op::DelFdbEntry(*link, *mac, *vtep));
            }
        }
    }

    fn del_neighbours(&self, ops: &mut Vec<Op>) {
        for (link, ip) in self.observed.neighbours.keys() {
            if !self.desired.neighbours.contains_key(&(*link, *ip)) && !self.goes(link) {
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

    fn del_links(&self, ops: &mut Vec<Op>) {
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
fn underlay(link: &Link) -> Option<LinkName> {
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

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ops.iter().try_for_each(|op| writeln!(f, "{op}"))
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddLink(name, Link { kind: LinkKind::Tun, .. }) => {
                write!(f, "ip tuntap add dev {name} mode tun multi_queue vnet_hdr")
            }
            Self::AddLink(name, link) => write!(f, "ip link add {name}{link}"),
            Self::AddLinkIn(netns, name, link) => {
                write!(f, "ip link add {name} netns {}{link}", netns.display())
            }
            Self::DelLink(name) => write!(f, "ip link del {name}"),
            Self::SetLink(name, LinkChange::Hairpin(on)) => {
                write!(f, "bridge link set dev {name} hairpin {}", on_off(*on))
            }
            Self::SetLink(name, LinkChange::Isolated(on)) => {
                write!(f, "bridge link set dev {name} isolated {}", on_off(*on))
            }
            Self::SetLink(name, change) => write!(f, "ip link set {name} {change}"),
            Self::SetSysctl(key, value) => write!(f, "sysctl -w {key}={value}"),
            Self::SetTxChecksum(link, on) => write!(f, "ethtool -K {link} tx {}", on_off(*on)),
            Self::ReplaceAddress(Address { link, ip }) => {
                write!(f, "ip address replace {ip} dev {link}")
            }
            Self::ReplaceUnroutedAddress(Address { link, ip }) => {
                write!(f, "ip address replace {ip} dev {link} noprefixroute")
            }
            Self::ProbeAddress(Address { link, ip }) => {
                write!(f, "ip address replace {ip} dev {link} # after duplicate address detection")
            }
            Self::DelAddress(Address { link, ip }) => write!(f, "ip address del {ip} dev {link}"),
            Self::ReplaceNeighbour(link, ip, mac) => {
                write!(f, "ip neigh replace {ip} lladdr {mac} dev {link} nud permanent")
            }
            Self::DelNeighbour(link, ip) => write!(f, "ip neigh del {ip} dev {link}"),
            Self::ReplaceFdbEntry(link, mac, vtep) => {
                write!(f, "bridge fdb replace {mac} dev {link} dst {vtep} self permanent")
            }
            Self::DelFdbEntry(link, mac, vtep) => {
                write!(f, "bridge fdb del {mac} dev {link} dst {vtep} self")
            }
            Self::ReplaceVlan(link, vid, vlan) => {
                write!(f, "bridge vlan add vid {vid} dev {link}{vlan}")
            }
            Self::DelVlan(link, vid) => write!(f, "bridge vlan del vid {vid} dev {link}"),
            Self::ClearVlans(link) => write!(f, "bridge vlan del vid 1-4094 dev {link}"),
            Self::AddRoute(key, route) => write!(f, "ip route add {}", RouteText(key, route)),
            Self::ReplaceRoute(key, route) => {
                write!(f, "ip route replace {}", RouteText(key, route))
            }
            Self::DelRoute(key, route) => write!(f, "ip route del {}", RouteText(key, route)),
            Self::AddBlackhole(key) => write!(f, "ip route add blackhole {}", KeyText(key)),
            Self::DelBlackhole(key) => write!(f, "ip route del blackhole {}", KeyText(key)),
            Self::ReplaceShaper(link, bucket) => {
                write!(f, "tc qdisc replace dev {link} root handle 1: tbf{bucket}")
            }
            Self::DelShaper(link) => write!(f, "tc qdisc del dev {link} root"),
            Self::AddIngress(link) => write!(f, "tc qdisc add dev {link} handle ffff: ingress"),
            Self::AddRedirect(link, to) => write!(
                f,
                "tc filter add dev {link} parent ffff: protocol all prio 1 u32 match u32 0 0 \
                 action mirred egress redirect dev {to}"
            ),
            Self::DelIngress(link) => write!(f, "tc qdisc del dev {link} ingress"),
        }
    }
}

/// As `ip link add NAME` continues.
impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(mac) = self.mac {
            write!(f, " address {mac}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        if let Some(port) = self.port {
            write!(f, " master {}", port.bridge)?;
        }
        if let Some(parent) = underlay(self).filter(|_| matches!(self.kind, LinkKind::Macvlan(_))) {
            write!(f, " link {parent}")?;
        }
        if let Some(length) = self.queue_length {
            write!(f, " txqueuelen {length}")?;
        }
        write!(f, " type {}", self.kind.as_str())?;
        if let Some(on) = self.vlan_filtering {
            write!(f, " vlan_filtering {}", u8::from(on))?;
        }
        match &self.kind {
            LinkKind::Vxlan(vxlan) => write!(f, "{vxlan}"),
            LinkKind::Veth(Some(peer)) => {
                write!(f, " peer name {}", peer.name)?;
                if let Some(netns) = &peer.netns {
                    write!(f, " netns {}", netns.display())?;
                }
                if let Some(mac) = peer.mac {
                    write!(f, " address {mac}")?;
                }
                peer.mtu.map_or(Ok(()), |mtu| write!(f, " mtu {mtu}"))
            }
            LinkKind::Macvlan(macvlan) => {
                write!(f, " mode {}", macvlan.mode.as_str())?;
                macvlan.broadcast_queue.map_or(Ok(()), |length| write!(f, " bcqueuelen {length}"))
            }
            LinkKind::Loopback
            | LinkKind::Ifb
            | LinkKind::Bridge
            | LinkKind::Veth(None)
            | LinkKind::Tun
            | LinkKind::Other(_) => Ok(()),
        }
    }
}

/// As `ip link add NAME type vxlan` continues.
impl fmt::Display for Vxlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " id {}", self.vni)?;
        if let Some(local) = self.local {
            write!(f, " local {local}")?;
        }
        if let Some(underlay) = self.underlay {
            write!(f, " dev {underlay}")?;
        }
        write!(f, " dstport {}", self.port)?;
        f.write_str(if self.learning { " learning" } else { " nolearning" })?;
        f.write_str(if self.gbp { " gbp" } else { "" })
    }
}

/// As `ip link set NAME` continues.
impl fmt::Display for LinkChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up => f.write_str("up"),
            Self::Down => f.write_str("down"),
            Self::Mtu(mtu) => write!(f, "mtu {mtu}"),
            Self::Mac(mac) => write!(f, "address {mac}"),
            Self::Master(bridge) => write!(f, "master {bridge}"),
            Self::Hairpin(on) => write!(f, "type bridge_slave hairpin {}", on_off(*on)),
            Self::Isolated(on) => write!(f, "type bridge_slave isolated {}", on_off(*on)),
            Self::VlanFiltering(on) => write!(f, "type bridge vlan_filtering {}", u8::from(*on)),
            Self::Alias(alias) => write!(f, "alias {alias:?}"),
            Self::Promiscuous(on) => write!(f, "promisc {}", on_off(*on)),
            Self::AllMulticast(on) => write!(f, "allmulticast {}", on_off(*on)),
            Self::QueueLength(length) => write!(f, "txqueuelen {length}"),
            Self::VxlanLocal(local) => write!(f, "type vxlan local {local}"),
            Self::VxlanUnderlay(underlay) => write!(f, "type vxlan dev {underlay}"),
            Self::VxlanLearning(true) => f.write_str("type vxlan learning"),
            Self::VxlanLearning(false) => f.write_str("type vxlan nolearning"),
        }
    }
}

const fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// A marked route that leads nowhere.
struct KeyText<'a>(&'a RouteKey);

impl fmt::Display for KeyText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RouteKey { table, destination, metric } = self.0;
        write!(f, "{destination} table {table} proto {ROUTE_PROTOCOL} metric {metric}")
    }
}

struct RouteText<'a>(&'a RouteKey, &'a Route);

impl fmt::Display for RouteText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(key, route) = self;
        write!(f, "{}", key.destination)?;
        if let Some(via) = route.via {
            write!(f, " via {via}")?;
        }
        write!(f, " dev {}", route.link)?;
        if key.table != RouteKey::TABLE_MAIN {
            write!(f, " table {}", key.table)?;
        }
        write!(f, " proto {}", route.protocol)?;
        if key.metric != RouteKey::main(key.destination).metric {
            write!(f, " metric {}", key.metric)?;
        }
        if let Some(source) = route.source {
            write!(f, " src {source}")?;
        }
        f.write_str(if route.onlink { " onlink" } else { "" })
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
