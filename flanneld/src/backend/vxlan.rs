//! Packets between nodes as VXLAN (RFC 7348), with one tunnel device and no flooding.
//!
//! A peer takes three entries: who has the base address of its subnet (a neighbour), behind which
//! node that Ethernet address lives (a forwarding entry), and that the subnet is reached by way of
//! the base address (a route). Nothing is learned and nobody is asked.
//!
//! With `DirectRouting`, a peer on the network of the interface takes only a route to its address;
//! which of the two it is, is decided anew whenever routes change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fabric::link_name::LinkName;
use fabric::mac::MacAddr;
use fabric::mtu::Mtu;
use fabric::netlink::{Routes, Scope};
use fabric::netstate::{
    Address, Link, LinkKind, NetState, Route, RouteKey, Sysctl, Vxlan as Tunnel, route_protocol,
};
use fabric::sysctl;
use fabric::vni::Vni;
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Value, json};

use super::peers::{Admitted, This, admit};
use super::{Backend, BackendError, Desired, Peer, Reason, adopted, plain_route};
use crate::external_interface::Underlay;
use crate::family::Family;
use crate::kernel_release;
use crate::lease::BackendData;

/// Outer IP, UDP, VXLAN and inner Ethernet headers: 20 + 8 + 8 + 14 bytes, with IPv6 20 more.
const fn overhead(underlay: Family) -> u32 {
    match underlay {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

/// What Linux takes when no port is given; older than the one assigned by IANA.
const DEFAULT_PORT: u16 = 8472;

/// The backend, configured for this node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Vxlan {
    network: IpNetwork,
    device: LinkName,
    link: Link,
    mtu: Mtu,
    mac: MacAddr,
    underlay: Underlay,
    /// Whether peers on the network of the interface get a plain route instead.
    direct_routing: bool,
    vni: Vni,
    port: u16,
    /// Whether checksums are left to be computed behind the device; `None` to leave that alone.
    tx_checksum: Option<bool>,
    /// Without IPv6, the device does not have the parameter.
    has_ipv6: bool,
}

/// How packets get to a peer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Path {
    /// Through the tunnel, to the device with this Ethernet address.
    Tunnel(MacAddr),
    /// As they are.
    Direct(Route),
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Options {
    #[serde(rename = "VNI")]
    vni: Option<i64>,
    #[serde(rename = "Port")]
    port: Option<i64>,
    #[serde(rename = "TxChecksum")]
    tx_checksum: String,
    #[serde(rename = "MTU")]
    mtu: Option<i64>,
    #[serde(rename = "GBP")]
    gbp: bool,
    #[serde(rename = "Learning")]
    learning: bool,
    #[serde(rename = "DirectRouting")]
    direct_routing: bool,
}

impl Vxlan {
    pub(super) fn configure(
        options: &Value,
        network: IpNetwork,
        underlay: Underlay,
        device_mac: impl FnOnce(Family, LinkName) -> MacAddr,
    ) -> Result<Self, BackendError> {
        let options: Options = fabric::json::from_value(options.clone())?;
        let family = Family::of_network(network);
        let vni = options.vni();
        let vni_range = || options.out_of_range("VNI", options.vni, vni_range(family));
        let vni = vni.ok_or_else(vni_range)?;
        let port = options.port();
        let port = port.ok_or(options.out_of_range("Port", options.port, "0 to 65535"))?;
        let carried = options.underlay_mtu(underlay.mtu)?;
        let overhead = overhead(family);
        let room = BackendError::Mtu { mtu: carried.get(), overhead };
        let mtu = carried.inside(overhead).ok_or(room)?;
        if family == Family::V6 && mtu.get() < Mtu::MIN_IPV6 {
            return Err(BackendError::Ipv6Mtu { mtu: carried.get(), overhead });
        }
        let device = device_name(family, vni).ok_or_else(vni_range)?;
        let mac = device_mac(family, device);
        let kind = LinkKind::Vxlan(Tunnel {
            vni,
            port,
            // The address of the interface: behind a NAT the host does not own the public one.
            local: Some(underlay.ip),
            underlay: Some(underlay.link),
            learning: options.learning,
            gbp: options.gbp,
        });
        let link = Link { mac: Some(mac), mtu: Some(mtu), ..Link::up(kind) };
        let has_ipv6 = sysctl::has_ipv6(mtu);
        let tx_checksum = options.tx_checksum(&kernel_release::running())?;
        let direct_routing = options.direct_routing;
        Ok(Self {
            network,
            device,
            link,
            mtu,
            mac,
            underlay,
            direct_routing,
            vni,
            port,
            tx_checksum,
            has_ipv6,
        })
    }

    /// Returns how packets get to a peer.
    fn path_to(
        &self,
        peer: &Peer<'_>,
        public_ip: IpAddr,
        taken: &mut BTreeMap<MacAddr, IpNetwork>,
    ) -> Result<Path, Reason> {
        let direct = || {
            let protocol = self.protocol_to(peer.subnet);
            plain_route(&self.underlay, public_ip, protocol).map(Path::Direct)
        };
        // One that changes to host-gw takes nothing else any more; one that changes to vxlan has
        // published its device.
        if peer.backend_type == "host-gw" {
            return direct();
        }
        let mac = self.mac_of(peer, taken)?;
        taken.insert(mac, peer.subnet);
        if self.direct_routing && self.underlay.on_link.reaches(public_ip) {
            return direct();
        }
        Ok(Path::Tunnel(mac))
    }

    fn protocol_to(&self, subnet: IpNetwork) -> u8 {
        route_protocol::to_peer(self.network, subnet)
    }

    /// Returns a peer's Ethernet address, if no other has it.
    fn mac_of(
        &self,
        peer: &Peer<'_>,
        taken: &BTreeMap<MacAddr, IpNetwork>,
    ) -> Result<MacAddr, Reason> {
        let mac = decode_mac(peer.data).map_err(Reason::BackendData)?;
        if mac == self.mac {
            return Err(Reason::SameMac("this node".to_owned()));
        }
        taken.get(&mac).map_or(Ok(mac), |other| Err(Reason::SameMac(other.to_string())))
    }
}

impl Options {
    fn vni(&self) -> Option<Vni> {
        u32::try_from(self.vni.unwrap_or(1)).ok().and_then(Vni::new)
    }

    fn port(&self) -> Option<u16> {
        match self.port {
            None | Some(0) => Some(DEFAULT_PORT),
            Some(port) => u16::try_from(port).ok(),
        }
    }

    /// Before 5.7, the kernel wrote wrong checksums into outer packets that were masqueraded while
    /// those of the inner ones were still to be computed, as happens behind kube-proxy; the peer
    /// drops them.
    fn tx_checksum(&self, release: &str) -> Result<Option<bool>, BackendError> {
        match self.tx_checksum.as_str() {
            "" | "auto" => Ok(kernel_release::is_before(release, (5, 7)).then_some(false)),
            "off" => Ok(Some(false)),
            "on" => Ok(Some(true)),
            other => Err(BackendError::TxChecksum(other.to_owned())),
        }
    }

    /// The option is the MTU of the network between nodes, not that of pods. What the interface
    /// cannot carry would be lost, so that it counts where it is smaller.
    fn underlay_mtu(&self, interface: Mtu) -> Result<Mtu, BackendError> {
        match self.mtu {
            None | Some(0) => Ok(interface),
            Some(mtu) => {
                let wrong = self.out_of_range("MTU", Some(mtu), "118 to 65535");
                let mtu = u32::try_from(mtu).ok().and_then(Mtu::new).ok_or(wrong)?;
                Ok(mtu.min(interface))
            }
        }
    }

    fn out_of_range(
        &self,
        key: &'static str,
        value: Option<i64>,
        expected: &'static str,
    ) -> BackendError {
        BackendError::Range { key, value: value.unwrap_or_default(), expected }
    }
}

impl Backend for Vxlan {
    fn published(&self) -> (&'static str, Option<Value>) {
        ("vxlan", Some(json!({ "VNI": self.vni.get(), "VtepMAC": self.mac.to_string() })))
    }

    fn pod_mtu(&self) -> Mtu {
        self.mtu
    }

    fn device(&self) -> Option<LinkName> {
        Some(self.device)
    }

    fn tunnel_port(&self) -> Option<u16> {
        Some(self.port)
    }

    fn scope(&self, peers: &[Peer<'_>]) -> Scope {
        Scope {
            links: BTreeSet::from([self.device]),
            macs: BTreeSet::from([self.mac]),
            addresses: true,
            neighbours: true,
            fdb: true,
            routes: Routes::OnLinksAndMarked,
            networks: vec![self.network],
            adopted: vec![adopted(&self.underlay, peers)],
            tx_checksum: self.tx_checksum.is_some(),
            sysctls: self.sysctls().into_keys().collect(),
            ..Scope::default()
        }
    }

    fn desired(&self, own: IpNetwork, peers: &[Peer<'_>]) -> Desired {
        let (network, public_ip) = (self.network, self.underlay.public_ip);
        let this = This { network, own, public_ip, backend_types: &["vxlan", "host-gw"] };
        let mut taken = BTreeMap::new();
        let (admitted, left_out) =
            admit(this, peers, |peer, public_ip| self.path_to(peer, public_ip, &mut taken));
        let mut state = self.state_of(&admitted);
        self.add_device(own, &mut state);
        Desired { state, left_out, ..Desired::default() }
    }

    fn remains(&self, own: IpNetwork, peers: &[Peer<'_>]) -> NetState {
        let may_send = |peer: &Peer<'_>| {
            peer.backend_type == "vxlan" && peer_vni(peer).is_none_or(|vni| vni == self.vni)
        };
        let mut state = NetState::default();
        if peers.iter().any(may_send) {
            self.add_device(own, &mut state);
        }
        state
    }
}

impl Vxlan {
    /// What peers take in the kernel.
    fn state_of(&self, peers: &[Admitted<Path>]) -> NetState {
        let link = self.device;
        let tunnels = || {
            peers.iter().filter_map(|peer| match peer.found {
                Path::Tunnel(mac) => Some((peer.subnet.network(), mac, peer.public_ip)),
                Path::Direct(_) => None,
            })
        };
        let route = |peer: &Admitted<Path>| match peer.found {
            Path::Direct(route) => route,
            Path::Tunnel(_) => Route {
                link,
                via: Some(peer.subnet.network()),
                onlink: true,
                protocol: self.protocol_to(peer.subnet),
                source: None,
            },
        };
        NetState {
            neighbours: tunnels().map(|(gateway, mac, _)| ((link, gateway), mac)).collect(),
            fdb: tunnels().map(|(_, mac, vtep)| ((link, mac), vtep)).collect(),
            routes: peers.iter().map(|peer| (RouteKey::main(peer.subnet), route(peer))).collect(),
            ..NetState::default()
        }
    }

    fn add_device(&self, own: IpNetwork, state: &mut NetState) {
        state.links.insert(self.device, self.link.clone());
        let ip = IpNetwork::from(own.network());
        state.addresses.insert(Address { link: self.device, ip });
        state.tx_checksum.extend(self.tx_checksum.map(|on| (self.device, on)));
        state.sysctls = self.sysctls();
    }

    fn sysctls(&self) -> BTreeMap<Sysctl, String> {
        // What another node sends through the tunnel is no router advertisement for this one.
        let accept_ra = (Sysctl::ipv6(self.device, "accept_ra"), "0".to_owned());
        self.has_ipv6.then_some(accept_ra).into_iter().collect()
    }
}

/// Returns the tunnel device that a family has with these options.
pub(super) fn device(options: &Value, family: Family) -> Option<LinkName> {
    let options: Options = fabric::json::from_value(options.clone()).ok()?;
    device_name(family, options.vni()?)
}

/// Returns the tunnel device that a peer sends to, as far as it says so.
pub(super) fn peer_device(family: Family, peer: &Peer<'_>) -> Option<LinkName> {
    let is_vxlan = peer.backend_type == "vxlan";
    device_name(family, is_vxlan.then(|| peer_vni(peer))??)
}

/// Old versions of flannel do not publish it.
fn peer_vni(peer: &Peer<'_>) -> Option<Vni> {
    peer.data?.field("VNI").ok().flatten().and_then(Vni::new)
}

/// The name of the tunnel device, as flannel has it, unless it is too long for a link.
fn device_name(family: Family, vni: Vni) -> Option<LinkName> {
    format!("{}{vni}", device_prefix(family)).parse().ok()
}

const fn device_prefix(family: Family) -> &'static str {
    match family {
        Family::V4 => "flannel.",
        Family::V6 => "flannel-v6.",
    }
}

/// Whether this is the name of a tunnel device of some network.
pub(super) fn is_device(name: &str) -> bool {
    let vni = Family::ALL.iter().find_map(|family| name.strip_prefix(device_prefix(*family)));
    vni.is_some_and(|vni| !vni.is_empty() && vni.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The network identifiers with which the name of the device is one of a link.
const fn vni_range(family: Family) -> &'static str {
    match family {
        Family::V4 => "0 to 9999999",
        Family::V6 => "0 to 9999 with IPv6",
    }
}

/// Reads the Ethernet address out of what a node publishes.
pub(super) fn decode_mac(data: Option<&BackendData>) -> Result<MacAddr, String> {
    let data = data.ok_or("there is none")?;
    let mac: Option<String> = data.field("VtepMAC").map_err(|error| error.to_string())?;
    let mac = mac.ok_or("there is no VtepMAC")?;
    let mac: MacAddr = mac.parse().map_err(|error| format!("VtepMAC {error}"))?;
    if mac.is_unicast() { Ok(mac) } else { Err(format!("VtepMAC {mac} is not of one station")) }
}

#[cfg(test)]
mod tests;
