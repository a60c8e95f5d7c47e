//! The network state of one namespace, as data.
//!
//! The same type says what shall be and what is. What shall be may leave a property open (`None`:
//! whatever the kernel chose is right); what is has every property that the kernel told.

pub mod route_protocol;
mod shaping;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;

use crate::link_name::LinkName;
use crate::mac::MacAddr;
use crate::mtu::Mtu;
use crate::vni::Vni;

pub use route_protocol::ROUTE_PROTOCOL;
pub use shaping::TokenBucket;

/// Links and what hangs on them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetState {
    /// Interfaces by name.
    pub links: BTreeMap<LinkName, Link>,
    /// Addresses of interfaces, those of link and host scope left out.
    pub addresses: BTreeSet<Address>,
    /// Those of the addresses whose subnet is not to be reached by their link, so that they bring no
    /// route with them. Not observed.
    pub unrouted: BTreeSet<Address>,
    /// Those of the IPv6 addresses that are only used when no duplicate was found (RFC 4862, section
    /// 5.4). Not observed.
    pub probed: BTreeSet<Address>,
    /// Permanent neighbours: who has the address on that link.
    pub neighbours: BTreeMap<(LinkName, IpAddr), MacAddr>,
    /// Forwarding database of VXLAN links: behind which VTEP an Ethernet address lives.
    pub fdb: BTreeMap<(LinkName, MacAddr), IpAddr>,
    /// VLANs of bridge ports, by their number. A port without any here keeps those that it has.
    pub vlans: BTreeMap<(LinkName, u16), PortVlan>,
    /// Unicast routes with one next hop.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Destinations to which packets vanish, unless a better route exists.
    pub blackholes: BTreeSet<RouteKey>,
    /// How much links may send.
    pub shapers: BTreeMap<LinkName, TokenBucket>,
    /// By which other link everything leaves that comes in by a link.
    pub redirects: BTreeMap<LinkName, LinkName>,
    /// Whether links leave the checksums of what they send to be computed further down. Set, never
    /// restored.
    pub tx_checksum: BTreeMap<LinkName, bool>,
    /// Kernel parameters. They are set, never restored.
    pub sysctls: BTreeMap<Sysctl, String>,
}

impl NetState {
    /// Adds everything of another state; where both speak of the same, the other one is right.
    pub fn extend(&mut self, mut other: Self) {
        let Self {
            links,
            addresses,
            neighbours,
            fdb,
            routes,
            blackholes,
            unrouted,
            probed,
            vlans,
            shapers,
            redirects,
            tx_checksum,
            sysctls,
        } = &mut other;
        self.links.append(links);
        self.addresses.append(addresses);
        self.neighbours.append(neighbours);
        self.fdb.append(fdb);
        self.routes.append(routes);
        self.blackholes.append(blackholes);
        self.unrouted.append(unrouted);
        self.probed.append(probed);
        self.vlans.append(vlans);
        self.shapers.append(shapers);
        self.redirects.append(redirects);
        self.tx_checksum.append(tx_checksum);
        self.sysctls.append(sysctls);
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
    /// Whether it takes in what is not for it; `None` if that does not matter.
    pub promiscuous: Option<bool>,
    /// Whether it takes in all multicast; `None` if that does not matter.
    pub all_multicast: Option<bool>,
    /// How many packets may wait to be sent; `None` for the kernel's default.
    pub queue_length: Option<u32>,
    /// Of a bridge: whether it keeps VLANs apart; `None` if that does not matter.
    pub vlan_filtering: Option<bool>,
}

impl Link {
    /// Returns a link that is up and leaves everything else to the kernel.
    pub const fn up(kind: LinkKind) -> Self {
        Self {
            kind,
            mac: None,
            mtu: None,
            up: true,
            port: None,
            alias: None,
            promiscuous: None,
            all_multicast: None,
            queue_length: None,
            vlan_filtering: None,
        }
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
    /// A link that sends out again what others redirect to it.
    Ifb,
    /// A link on another one, with an Ethernet address of its own.
    Macvlan(Macvlan),
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
            Self::Ifb => "ifb",
            Self::Macvlan(_) => "macvlan",
            Self::Other(kind) => kind,
        }
    }
}

/// The other end of a veth pair, in the namespace where it shall live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VethPeer {
    /// Its name there.
    pub name: LinkName,
    /// The path of that namespace; `None` for the one that the pair is made in.
    pub netns: Option<PathBuf>,
    /// Its Ethernet address; `None` if any will do.
    pub mac: Option<MacAddr>,
    /// Its MTU; `None` for the kernel's default.
    pub mtu: Option<Mtu>,
}

/// The properties of a macvlan link (`ip link add … type macvlan`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Macvlan {
    /// The link it is on; `None` if that is in another namespace than it is observed in.
    pub parent: Option<LinkName>,
    /// What it has to do with others on the same link.
    pub mode: MacvlanMode,
    /// How many broadcasts may wait; `None` for the kernel's default. Not observed.
    pub broadcast_queue: Option<u32>,
}

/// What macvlan links on the same link have to do with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MacvlanMode {
    /// They reach each other directly.
    Bridge,
    /// They do not reach each other.
    Private,
    /// They reach each other by a switch outside that sends packets back.
    Vepa,
    /// There is only one.
    Passthru,
}

impl MacvlanMode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Bridge, Self::Private, Self::Vepa, Self::Passthru];

    /// Returns the name that `ip link` has for the mode.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Private => "private",
            Self::Vepa => "vepa",
            Self::Passthru => "passthru",
        }
    }
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
    /// Whether frames do not reach other isolated ports.
    pub isolated: bool,
}

/// How a bridge port belongs to a VLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortVlan {
    /// Whether frames that come in without a tag belong to it.
    pub pvid: bool,
    /// Whether its frames leave without a tag.
    pub untagged: bool,
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

    /// A route of the main table that counts where nobody has another one.
    pub fn last_resort(network: IpNetwork) -> Self {
        let destination = IpNetwork::new(network.network(), network.prefix())
            .expect("the prefix of a network is valid");
        // Above what the kernel and the managers of networks give to theirs.
        Self { table: Self::TABLE_MAIN, destination, metric: 1 << 30 }
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
    /// Who made it: see [`route_protocol`] for ours; 3 is `boot`.
    pub protocol: u8,
    /// The address that packets of this machine have as source; `None` to leave it to the kernel.
    pub source: Option<IpAddr>,
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

    /// Returns the parameter of this name, which must be one of networking: the kernel has those of
    /// each namespace. `None` if it leads elsewhere.
    pub fn of_network(path: &str) -> Option<Self> {
        let mut parts = path.split('/');
        let is_safe = parts.next() == Some("net")
            && parts.clone().next().is_some()
            && parts.all(|part| !matches!(part, "" | "." | "..") && !part.contains('\0'));
        is_safe.then(|| Self(path.to_owned()))
    }

    /// Returns `ipv4` or `ipv6`, the link and the name of a parameter that a link has.
    pub fn of_link(&self) -> Option<(&str, LinkName, &str)> {
        let mut parts = self.0.strip_prefix("net/")?.split('/');
        let (family, conf, link, name) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_of_link = conf == "conf" && !matches!(link, "all" | "default");
        (is_of_link && parts.next().is_none()).then_some((family, link.parse().ok()?, name))
    }

    /// Whether it lets a link tell its neighbours of its addresses when it comes up or gets another
    /// Ethernet address (`arp_notify`).
    pub fn is_announcement(&self) -> bool {
        self.of_link().is_some_and(|(_, _, name)| name == "arp_notify")
    }

    /// Whether who reads it while somebody changes links tries again and again until that is done:
    /// `addr_gen_mode`, see `addrconf_sysctl_addr_gen_mode` of Linux's net/ipv6/addrconf.c.
    pub fn waits_for_links(&self) -> bool {
        self.of_link().is_some_and(|(_, _, name)| name == "addr_gen_mode")
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
