//! How packets travel between nodes: what a node publishes, and what its kernel shall look like.

mod host_gw;
mod peers;
pub(crate) mod udp;
mod vxlan;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use fabric::link_name::LinkName;
use fabric::mac::MacAddr;
use fabric::mtu::Mtu;
use fabric::netlink::{Adopted, Scope};
use fabric::netstate::{NetState, Route};
use ipnetwork::IpNetwork;
use serde_json::Value;

use crate::config::BackendConfig;
use crate::external_interface::{ExternalInterface, Underlay};
use crate::family::{Family, PerFamily};
use crate::lease::{Attributes, BackendData, LeaseKey};

use host_gw::HostGw;
use udp::Udp;
use udp::datapath::Forwarding;
use vxlan::Vxlan;

/// One way for the packets of one family to travel, over an underlay of the same family. Everything
/// here is pure.
pub(crate) trait Backend {
    /// Returns the type and the data to publish in the node's lease.
    fn published(&self) -> (&'static str, Option<Value>);

    /// Returns the MTU that pods get.
    fn pod_mtu(&self) -> Mtu;

    /// Returns the link that the backend makes, if it makes one.
    fn device(&self) -> Option<LinkName>;

    /// Returns the UDP port to which the kernel sends what it wraps, marks of the packet inside
    /// included.
    fn tunnel_port(&self) -> Option<u16> {
        None
    }

    /// Returns what belongs to the backend in the kernel.
    fn scope(&self, peers: &[Peer<'_>]) -> Scope;

    /// Returns the state that shall be, for a node that holds `own`.
    fn desired(&self, own: IpNetwork, peers: &[Peer<'_>]) -> Desired;

    /// Returns what must stay of it when another backend has taken its place, because peers may
    /// still send the old way.
    fn remains(&self, _own: IpNetwork, _peers: &[Peer<'_>]) -> NetState {
        NetState::default()
    }
}

/// Another node, as one family sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer<'a> {
    /// What it leases; host bits are kept.
    pub(crate) subnet: IpNetwork,
    /// Its underlay address.
    pub(crate) public_ip: Option<IpAddr>,
    /// Its backend.
    pub(crate) backend_type: &'a str,
    /// What its backend published for this family.
    pub(crate) data: Option<&'a BackendData>,
}

impl<'a> Peer<'a> {
    /// Returns `None` if the lease has no subnet of this family.
    pub(crate) fn of(family: Family, key: &LeaseKey, attributes: &'a Attributes) -> Option<Self> {
        Some(Self {
            subnet: key.subnet(family)?,
            public_ip: attributes.public(family),
            backend_type: &attributes.backend_type,
            data: attributes.data(family),
        })
    }
}

/// What shall be, and the peers that had to be left out.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Desired {
    pub(crate) state: NetState,
    pub(crate) left_out: Vec<(IpNetwork, Reason)>,
    /// What this program carries itself, if the kernel does not.
    pub(crate) forwarding: Vec<Forwarding>,
}

/// The backend of each family that packets between nodes can have; there is one at least.
pub(crate) struct Backends {
    by_family: PerFamily<Box<dyn Backend>>,
    /// The devices of families that were switched off, if there are any still.
    obsolete: BTreeSet<LinkName>,
}

impl Backends {
    /// Adds what is to be published to what the lease says.
    pub(crate) fn attributes(&self, interface: &ExternalInterface) -> Attributes {
        let published = |family| self.by_family.get(family).map(|backend| backend.published());
        let public_ip = |family| Some(interface.addresses.get(family)?.public_ip);
        let kinds = Family::ALL.into_iter().filter_map(published);
        let backend_type = kinds.map(|(kind, _)| kind).next().unwrap_or_default().to_owned();
        let data = |family| published(family).and_then(|(_, data)| data);
        let (public_ip, public_ipv6) = match (public_ip(Family::V4), public_ip(Family::V6)) {
            (Some(IpAddr::V4(ipv4)), Some(IpAddr::V6(ipv6))) => (ipv4, Some(ipv6)),
            (Some(IpAddr::V4(ipv4)), _) => (ipv4, None),
            (_, Some(IpAddr::V6(ipv6))) => (Ipv4Addr::UNSPECIFIED, Some(ipv6)),
            _ => (Ipv4Addr::UNSPECIFIED, None),
        };
        Attributes {
            public_ip,
            public_ipv6,
            backend_type,
            backend_data: data(Family::V4).map(Into::into),
            backend_v6_data: data(Family::V6).map(Into::into),
        }
    }

    /// Returns the MTU that pods get: what every family can carry.
    pub(crate) fn pod_mtu(&self) -> Mtu {
        let carried = self.by_family.values().map(|backend| backend.pod_mtu());
        carried.min().expect("there is a backend for one family at least")
    }

    /// Returns the links that the backends make.
    pub(crate) fn devices(&self) -> BTreeSet<LinkName> {
        self.by_family.values().filter_map(|backend| backend.device()).collect()
    }

    /// Returns the UDP ports to which the kernel sends what it wraps.
    pub(crate) fn tunnel_ports(&self) -> PerFamily<u16> {
        PerFamily::from_fn(|family| self.by_family.get(family)?.tunnel_port())
    }

    /// Returns what belongs to the backends in the kernel, for a node that holds `own`.
    pub(crate) fn scope(&self, own: &LeaseKey, leases: &[(&LeaseKey, &Attributes)]) -> Scope {
        let of = |family| {
            let backend = self.by_family.get(family).filter(|_| own.subnet(family).is_some())?;
            Some(backend.scope(&peers(family, leases)))
        };
        let obsolete = Scope { links: self.obsolete.clone(), ..Scope::default() };
        Family::ALL.into_iter().filter_map(of).fold(obsolete, Scope::join)
    }

    /// Returns the state that shall be, for a node that holds `own`.
    pub(crate) fn desired(&self, own: &LeaseKey, leases: &[(&LeaseKey, &Attributes)]) -> Desired {
        let of = |family| {
            let backend = self.by_family.get(family)?;
            Some(backend.desired(own.subnet(family)?, &peers(family, leases)))
        };
        Family::ALL.into_iter().filter_map(of).fold(Desired::default(), Desired::join)
    }

    /// Returns what must stay of them when others have taken their place.
    pub(crate) fn remains(&self, own: &LeaseKey, leases: &[(&LeaseKey, &Attributes)]) -> NetState {
        let mut state = NetState::default();
        for (family, backend) in self.by_family.iter() {
            let subnet = own.subnet(family);
            let of = |subnet| backend.remains(subnet, &peers(family, leases));
            state.extend(subnet.map(of).unwrap_or_default());
        }
        state
    }
}

/// Returns the tunnels of the kernel that these nodes may send to; they have the same names everywhere.
pub(crate) fn tunnels_in_use(leases: &[(&LeaseKey, &Attributes)]) -> BTreeSet<LinkName> {
    let of = |family| {
        peers(family, leases).into_iter().filter_map(move |peer| vxlan::peer_device(family, &peer))
    };
    Family::ALL.into_iter().flat_map(of).collect()
}

fn peers<'a>(family: Family, leases: &[(&LeaseKey, &'a Attributes)]) -> Vec<Peer<'a>> {
    leases.iter().filter_map(|(key, attributes)| Peer::of(family, key, attributes)).collect()
}

impl Desired {
    fn join(mut self, other: Self) -> Self {
        self.state.extend(other.state);
        self.left_out.extend(other.left_out);
        self.forwarding.extend(other.forwarding);
        self
    }
}

/// Returns the route to a peer that needs no tunnel. Peers of vxlan and of host-gw take plain
/// packets alike, so that a cluster can change from one to the other, node by node.
///
/// # Errors
/// If there is a router in between.
fn plain_route(underlay: &Underlay, public_ip: IpAddr, protocol: u8) -> Result<Route, Reason> {
    if underlay.on_link.excludes(public_ip) {
        return Err(Reason::NotOnLink(public_ip, underlay.link));
    }
    Ok(Route { link: underlay.link, via: Some(public_ip), onlink: false, protocol, source: None })
}

/// Returns the routes to peers on the interface between nodes that count as ours although flannel
/// made them.
fn adopted(underlay: &Underlay, peers: &[Peer<'_>]) -> Adopted {
    let gateways = peers.iter().filter_map(|peer| peer.public_ip).collect();
    Adopted { link: underlay.link, gateways }
}

/// Why a peer is left out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub(crate) enum Reason {
    #[error("its subnet is not inside the network {0}")]
    OutsideNetwork(IpNetwork),
    #[error("its subnet overlaps our own")]
    OverlapsOwn,
    #[error("its subnet overlaps that of {0}")]
    OverlapsPeer(IpNetwork),
    #[error("its key has host bits")]
    HostBits,
    #[error("it has no public {0} address")]
    NoPublicIp(Family),
    #[error("its public address {0} cannot be that of a node")]
    PublicIp(IpAddr),
    #[error("its public address {0} is ours")]
    OurPublicIp(IpAddr),
    #[error("its backend is {theirs:?}, not {ours:?}")]
    BackendType { theirs: String, ours: &'static str },
    #[error("its backend data does not decode: {0}")]
    BackendData(String),
    #[error("its Ethernet address is that of {0}")]
    SameMac(String),
    #[error("it does not carry IPv6 over udp")]
    NoIpv6OverUdp,
    #[error(
        "its public address {0} is behind a router, where only a tunnel reaches, not on the network of {1}"
    )]
    NotOnLink(IpAddr, LinkName),
}

impl Reason {
    /// Whether the peer claims what an older peer has, or this node.
    pub(crate) const fn is_conflict(&self) -> bool {
        matches!(
            self,
            Self::OverlapsOwn | Self::OverlapsPeer(_) | Self::OurPublicIp(_) | Self::SameMac(_)
        )
    }

    /// Returns what peers are that are left out for such a reason.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::OutsideNetwork(_) => "outside of the network",
            Self::OverlapsOwn | Self::OverlapsPeer(_) => "overlapping",
            Self::HostBits => "with host bits",
            Self::NoPublicIp(_) | Self::PublicIp(_) => "without a usable address",
            Self::OurPublicIp(_) => "with our address",
            Self::BackendType { .. } => "of another backend",
            Self::BackendData(_) => "with broken data",
            Self::SameMac(_) => "with a used Ethernet address",
            Self::NoIpv6OverUdp => "without IPv6 over udp",
            Self::NotOnLink(..) => "behind a router",
        }
    }
}

/// Why the configuration of a backend cannot be used.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum BackendError {
    #[error("Backend.Type {0:?} is not available: want vxlan, host-gw or udp")]
    Unknown(String),
    #[error("the options of Backend do not decode")]
    Json(#[from] fabric::json::Error),
    #[error("Backend.TxChecksum {0:?} is unknown: want auto, off or on")]
    TxChecksum(String),
    #[error("Backend.{key} {value} is out of range: want {expected}")]
    Range { key: &'static str, value: i64, expected: &'static str },
    #[error(
        "host-gw cannot work behind a NAT: other nodes send to {public_ip}, but the interface has \
         {ip}; use vxlan"
    )]
    NotDirect { ip: IpAddr, public_ip: IpAddr },
    #[error("MTU {mtu} leaves no room for pods: {overhead} bytes are added to every packet")]
    Mtu { mtu: u32, overhead: u32 },
    #[error(
        "MTU {mtu} leaves no room for IPv6 pods: {overhead} bytes are added to every packet, so that \
         {least} are needed; use host-gw, or leave EnableIPv6 out", least = Mtu::MIN_IPV6 + overhead
    )]
    Ipv6Mtu { mtu: u32, overhead: u32 },
}

/// Checks the configuration of the backend for a node with this interface.
///
/// `device_mac` is asked for the Ethernet address of a device that this node has already.
pub(crate) fn configure(
    config: &BackendConfig,
    networks: &PerFamily<IpNetwork>,
    interface: &ExternalInterface,
    device_mac: impl Fn(Family, LinkName) -> MacAddr,
) -> Result<Backends, BackendError> {
    let by_family = PerFamily::try_from_fn(|family| {
        let underlay = networks.get(family).copied().zip(interface.underlay(family));
        let backend =
            |(network, underlay)| configure_family(config, network, underlay, &device_mac);
        underlay.map(backend).transpose()
    })?;
    let off = Family::ALL.into_iter().filter(|family| networks.get(*family).is_none());
    let obsolete = match config.kind.as_str() {
        "vxlan" => off.filter_map(|family| vxlan::device(&config.options, family)).collect(),
        "udp" => off.map(udp::device).collect(),
        _ => BTreeSet::new(),
    };
    Ok(Backends { by_family, obsolete })
}

/// Returns the Ethernet address of the device that a node published, so that the device can have it
/// again and no peer has to learn another one.
pub(crate) fn published_mac(attributes: &Attributes, family: Family) -> Option<MacAddr> {
    vxlan::decode_mac(attributes.data(family)).ok()
}

/// Whether a device of one of the backends may have this name, whatever its options are.
pub(crate) fn is_device(name: &str) -> bool {
    vxlan::is_device(name) || udp::is_device(name)
}

/// Returns the kind of the device of this name, as `ip link` has it.
pub(crate) fn device_kind(name: &str) -> &'static str {
    if udp::is_device(name) { "tun" } else { "vxlan" }
}

fn configure_family(
    config: &BackendConfig,
    network: IpNetwork,
    underlay: Underlay,
    device_mac: impl Fn(Family, LinkName) -> MacAddr,
) -> Result<Box<dyn Backend>, BackendError> {
    let options = &config.options;
    Ok(match config.kind.as_str() {
        "vxlan" => Box::new(Vxlan::configure(options, network, underlay, device_mac)?),
        "host-gw" => Box::new(HostGw::configure(network, underlay)?),
        "udp" => Box::new(Udp::configure(options, network, underlay)?),
        other => return Err(BackendError::Unknown(other.to_owned())),
    })
}
