//! What of a namespace is looked at, and what of it counts as ours.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_route::route::RouteProtocol;

use super::rows::RouteRow;
use crate::link_name::LinkName;
use crate::mac::MacAddr;
use crate::netstate::{NetState, ROUTE_PROTOCOL, Route, RouteKey, Sysctl, route_protocol};

/// What of a namespace is looked at. What is found there counts as ours: whoever wants to leave
/// some of it alone takes it out of the result.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// The links.
    pub links: BTreeSet<LinkName>,
    /// The Ethernet addresses of tunnels of ours: one that somebody renamed is known by it.
    pub macs: BTreeSet<MacAddr>,
    /// Whether to read the addresses of these links.
    pub addresses: bool,
    /// Whether to read the permanent neighbours on these links.
    pub neighbours: bool,
    /// Whether to read the forwarding databases of these links.
    pub fdb: bool,
    /// Whether to read the VLANs of these links.
    pub vlans: bool,
    /// Whether to read how much these links may send and where what comes in by them goes.
    pub shaping: bool,
    /// Whether to read which checksums links compute.
    pub tx_checksum: bool,
    /// Which routes to read.
    pub routes: Routes,
    /// The networks outside of which addresses and routes are somebody else's, unless a route on
    /// one of the links carries our mark. None means that everything is ours.
    pub networks: Vec<IpNetwork>,
    /// Routes of somebody else that count as ours.
    pub adopted: Vec<Adopted>,
    /// The kernel parameters.
    pub sysctls: BTreeSet<Sysctl>,
}

/// Routes as the predecessor made them: of protocol `boot`, inside the networks of the scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// The link they leave by.
    pub link: LinkName,
    /// The next hops they may have.
    pub gateways: BTreeSet<IpAddr>,
}

impl Adopted {
    fn covers(&self, route: &Route) -> bool {
        const BOOT: u8 = 3;
        route.link == self.link
            && route.protocol == BOOT
            && route.via.is_some_and(|via| self.gateways.contains(&via))
    }
}

/// Which routes to read. Those that the kernel made itself are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Routes {
    /// None.
    #[default]
    None,
    /// Those that leave by the links of the scope.
    OnLinks,
    /// Those, and whatever carries our mark ([`route_protocol`]) and leads to a next hop on any link:
    /// what leads to a pod of this node is the plugin's.
    OnLinksAndMarked,
}

impl Scope {
    /// Everything that `desired` speaks of.
    pub fn of(desired: &NetState) -> Self {
        Self {
            links: desired.links.keys().copied().collect(),
            macs: BTreeSet::new(),
            addresses: !desired.addresses.is_empty(),
            neighbours: !desired.neighbours.is_empty(),
            fdb: !desired.fdb.is_empty(),
            vlans: !desired.vlans.is_empty(),
            shaping: !(desired.shapers.is_empty() && desired.redirects.is_empty()),
            tx_checksum: !desired.tx_checksum.is_empty(),
            routes: if desired.routes.is_empty() { Routes::None } else { Routes::OnLinks },
            networks: Vec::new(),
            adopted: Vec::new(),
            sysctls: desired.sysctls.keys().cloned().collect(),
        }
    }

    /// Everything that is in one or the other. Each of them has networks, or neither.
    pub fn join(mut self, other: Self) -> Self {
        let Self {
            links,
            macs,
            addresses,
            neighbours,
            fdb,
            vlans,
            shaping,
            tx_checksum,
            routes,
            networks,
            adopted,
            sysctls,
        } = other;
        self.macs.extend(macs);
        self.links.extend(links);
        self.addresses |= addresses;
        self.neighbours |= neighbours;
        self.fdb |= fdb;
        self.vlans |= vlans;
        self.shaping |= shaping;
        self.tx_checksum |= tx_checksum;
        self.routes = self.routes.max(routes);
        self.networks.extend(networks);
        self.adopted.extend(adopted);
        self.sysctls.extend(sysctls);
        self
    }

    /// Whether a route can be of interest although it leaves by another link.
    pub(super) fn may_be_elsewhere(&self, row: &RouteRow) -> bool {
        match row.protocol {
            RouteProtocol::Boot => !self.adopted.is_empty(),
            other => {
                self.routes == Routes::OnLinksAndMarked && route_protocol::is_ours(other.into())
            }
        }
    }

    pub(super) fn has(&self, key: &RouteKey, route: &Route) -> bool {
        let on_link = self.links.contains(&route.link);
        let marked = route_protocol::is_ours(route.protocol);
        let to_next_hop = marked && route.via.is_some();
        let adopted = || self.adopted.iter().any(|adopted| adopted.covers(route));
        match self.is_inside(key.destination) {
            true => on_link || to_next_hop || adopted(),
            false => on_link && marked,
        }
    }

    /// Only those with our mark are ours, because nothing else tells them apart.
    pub(super) fn has_blackhole(&self, row: &RouteRow) -> bool {
        self.routes == Routes::OnLinksAndMarked
            && u8::from(row.protocol) == ROUTE_PROTOCOL
            && self.is_inside(row.key.destination)
    }

    pub(super) fn is_inside(&self, network: IpNetwork) -> bool {
        let contains = |ours: &IpNetwork| {
            ours.is_ipv4() == network.is_ipv4()
                && ours.contains(network.ip())
                && ours.prefix() <= network.prefix()
        };
        self.networks.is_empty() || self.networks.iter().any(contains)
    }
}
