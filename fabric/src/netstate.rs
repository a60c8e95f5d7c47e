//! The network state of one namespace, as data.
//!
//! The same type says what shall be and what is. What shall be may leave a property open (`None`:
//! whatever the kernel chose is right); what is has every property that the kernel told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;

use crate::link_name::LinkName;
use crate::mac::MacAddr;
use crate::mtu::Mtu;
use crate::vni::Vni;

/// Marks the routes that we made (`rtm_protocol`; rtnetlink(7)). Numbers above 192 are not assigned
/// by iproute2's `rt_protos`.
pub const ROUTE_PROTOCOL: u8 = 199;

/// Links and what hangs on them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetState {
    /// Interfaces by name.
    pub links: BTreeMap<LinkName, Link>,
    /// Addresses of interfaces, those of link and host scope left out.
    pub addresses: BTreeSet<Address>,
    /// Permanent neighbours: who has the address on that link.
    pub neighbours: BTreeMap<(LinkName, IpAddr), MacAddr>,
    /// Forwarding database of VXLAN links: behind which VTEP an Ethernet address lives.
    pub fdb: BTreeMap<(LinkName, MacAddr), IpAddr>,
    /// Unicast routes with one next hop.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Kernel parameters. They are set, never restored.
    pub sysctls: BTreeMap<Sysctl, String>,
}

impl NetState {
    /// Adds everything of another state; where both speak of the same, the other one is right.
    pub fn extend(&mut self, other: Self) {
        let Self { links, addresses, neighbours, fdb, routes, sysctls } = other;
        self.links.extend(links);
        self.addresses.extend(addresses);
        self.neighbours.extend(neighbours);
        self.fdb.extend(fdb);
        self.routes.extend(routes);
        self.sysctls.extend(sysctls);
    }
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// What it is; a link cannot change its kind.
    pub kind: LinkKind,
    /// Its Ethernet address; `None` if any will do.
    pub mac: Option<MacAddr>,
    /// Its MTU; `None` if any will do.
    pub mtu: Option<Mtu>,
    /// Whether it is administratively up. A link is brought up, never down.
    pub up: bool,
    /// Its place in a bridge; `None` if that does not matter.
    pub port: Option<BridgePort>,
    /// A remark, at most 255 bytes; `None` if any will do.
    pub alias: Option<String>,
}

impl Link {
    /// Returns a link that is up and leaves everything else to the kernel.
    pub const fn up(kind: LinkKind) -> Self {
        Self { kind, mac: None, mtu: None, up: true, port: None, alias: None }
    }
}

/// What an interface is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// The loopback interface; always there.
    Loopback,
    /// An Ethernet bridge.
    Bridge,
    /// One end of a pair. The peer is needed to make the pair and cannot be observed; without it,
    /// the link is the end that comes into being with the other one.
    Veth(Option<VethPeer>),
    /// A VXLAN tunnel.
    Vxlan(Vxlan),
    /// A persistent TUN device with several queues, for a program that carries its packets
    /// ([`crate::tun`]).
    Tun,
    /// Anything that we do not make.
    Other(String),
}

impl LinkKind {
    /// Returns the name that `ip link` has for the kind.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Loopback => "loopback",
            Self::Bridge => "bridge",
            Self::Veth(_) => "veth",
            Self::Vxlan(_) => "vxlan",
            Self::Tun => "tun",
            Self::Other(kind) => kind,
        }
    }
}

/// The other end of a veth pair, in the namespace where it shall live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VethPeer {
    /// Its name there.
    pub name: LinkName,
    /// The path of that namespace.
    pub netns: PathBuf,
    /// Its Ethernet address; `None` if any will do.
    pub mac: Option<MacAddr>,
    /// Its MTU; `None` for the kernel's default.
    pub mtu: Option<Mtu>,
}

/// The properties of a VXLAN tunnel (`ip link add … type vxlan`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// Network identifier.
    pub vni: Vni,
    /// UDP port, here and at the peers.
    pub port: u16,
    /// Source address of the outer packets.
    pub local: Option<IpAddr>,
    /// The link that the outer packets leave by.
    pub underlay: Option<LinkName>,
    /// Whether it learns peers from what it receives.
    pub learning: bool,
    /// Whether the group policy extension is on.
    pub gbp: bool,
}

/// The membership of a link in a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BridgePort {
    /// The bridge.
    pub bridge: LinkName,
    /// Whether frames may leave by the port that they came from.
    pub hairpin: bool,
}

/// An address of an interface, with the length of the prefix that is on the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The interface.
    pub link: LinkName,
    /// The address itself, host bits kept.
    pub ip: IpNetwork,
}

/// What the kernel tells routes apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// Routing table; 254 is `main`.
    pub table: u32,
    /// Destination.
    pub destination: IpNetwork,
    /// Metric; the lowest wins.
    pub metric: u32,
}

impl RouteKey {
    /// The routing table that is used when no rule says otherwise.
    pub const TABLE_MAIN: u32 = 254;

    /// A route of the main table with the kernel's default metric: 0 for IPv4, 1024 for IPv6.
    pub fn main(destination: IpNetwork) -> Self {
        let metric = if destination.is_ipv4() { 0 } else { 1024 };
        Self { table: Self::TABLE_MAIN, destination, metric }
    }
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The link it leaves by.
    pub link: LinkName,
    /// The next hop; `None` if the destination is on the link.
    pub via: Option<IpAddr>,
    /// Whether the next hop counts as on the link although no address says so.
    pub onlink: bool,
    /// Who made it: [`ROUTE_PROTOCOL`] for ours, 3 is `boot`.
    pub protocol: u8,
}

/// The name of a kernel parameter, with slashes: `net/ipv4/ip_forward`.
///
/// Slashes, because the names of links may hold dots.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sysctl(String);

impl Sysctl {
    /// `net.ipv4.ip_forward`
    pub fn ipv4_forwarding() -> Self {
        Self("net/ipv4/ip_forward".to_owned())
    }

    /// `net.ipv6.conf.all.forwarding`
    pub fn ipv6_forwarding() -> Self {
        Self("net/ipv6/conf/all/forwarding".to_owned())
    }

    /// `net.ipv4.conf.LINK.NAME`
    pub fn ipv4(link: LinkName, name: &str) -> Self {
        Self(format!("net/ipv4/conf/{link}/{name}"))
    }

    /// `net.ipv6.conf.LINK.NAME`
    pub fn ipv6(link: LinkName, name: &str) -> Self {
        Self(format!("net/ipv6/conf/{link}/{name}"))
    }

    /// Returns the path below `/proc/sys`.
    pub fn as_path(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
