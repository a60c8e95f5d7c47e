//! Packets between nodes as plain UDP: every datagram is one bare IPv4 packet.
//!
//! The kernel routes the whole network to a TUN device. What comes out of it is sent to the node
//! that leases the destination, by the threads of the [`datapath`]; nothing is asked of the
//! underlay and of the kernel but UDP and TUN. Here is what is decided; the modules below carry.

pub(crate) mod datapath;

mod counters;
mod handover;
mod peers;
mod routing;

mod inbound;
mod outbound;

mod batch;
mod icmp;
mod merge;
mod offload;
mod packet;

mod socket;
mod tun;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddrV4};

use fabric::link_name::LinkName;
use fabric::mtu::Mtu;
use fabric::netlink::{Routes, Scope};
use fabric::netstate::{Address, Link, LinkKind, ROUTE_PROTOCOL, Route, RouteKey, Sysctl};
use fabric::sysctl;
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::Value;

use self::datapath::Forwarding;
use super::peers::{Admitted, This, admit};
use super::{Backend, BackendError, Desired, Peer};
use crate::external_interface::Underlay;

/// Outer IPv4 and UDP headers: 20 + 8 bytes.
const OVERHEAD: u32 = 28;
const DEFAULT_PORT: u16 = 8285;
const DEVICE: &str = "flannel0";

/// The backend, configured for this node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Udp {
    network: IpNetwork,
    device: LinkName,
    mtu: Mtu,
    public_ip: IpAddr,
    listen: SocketAddrV4,
    /// Kernels without IPv6 do not have the parameter.
    has_ipv6: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Options {
    #[serde(rename = "Port")]
    port: Option<i64>,
}

impl Udp {
    /// Returns `None` for IPv6, which this backend does not carry.
    pub(super) fn configure(
        options: &Value,
        network: IpNetwork,
        underlay: Underlay,
    ) -> Result<Option<Self>, BackendError> {
        let IpAddr::V4(ip) = underlay.ip else { return Ok(None) };
        let options: Options = match options {
            // A configuration without a backend means this one.
            Value::Null => Options::default(),
            options => fabric::json::from_value(options.clone())?,
        };
        let port = match options.port {
            None | Some(0) => DEFAULT_PORT,
            Some(value) => u16::try_from(value).map_err(|_| BackendError::Range {
                key: "Port",
                value,
                expected: "0 to 65535",
            })?,
        };
        let room = BackendError::Mtu { mtu: underlay.mtu.get(), overhead: OVERHEAD };
        Ok(Some(Self {
            network,
            device: DEVICE.parse().expect("it is the name of a link"),
            mtu: underlay.mtu.inside(OVERHEAD).ok_or(room)?,
            public_ip: underlay.public_ip,
            // The address of the interface: behind a NAT the host does not own the public one.
            listen: SocketAddrV4::new(ip, port),
            has_ipv6: sysctl::has_ipv6(),
        }))
    }

    fn sysctls(&self) -> BTreeMap<Sysctl, String> {
        let set = |key, value: &str| (key, value.to_owned());
        // Without an address (mode 1 is none), the kernel looks for no IPv6 routers in the tunnel.
        let no_address = set(Sysctl::ipv6(self.device, "addr_gen_mode"), "1");
        // What we tell senders by ICMP comes from the address of the device. Packets of others with
        // that source do not get this far.
        let own_address = set(Sysctl::ipv4(self.device, "accept_local"), "1");
        self.has_ipv6.then_some(no_address).into_iter().chain([own_address]).collect()
    }
}

impl Backend for Udp {
    fn published(&self) -> (&'static str, Option<Value>) {
        ("", None)
    }

    fn pod_mtu(&self) -> Mtu {
        self.mtu
    }

    fn device(&self) -> Option<LinkName> {
        Some(self.device)
    }

    fn scope(&self, _peers: &[Peer<'_>]) -> Scope {
        Scope {
            links: BTreeSet::from([self.device]),
            addresses: true,
            routes: Routes::OnLinksAndMarked,
            networks: vec![self.network],
            sysctls: self.sysctls().into_keys().collect(),
            ..Scope::default()
        }
    }

    fn desired(&self, own: IpNetwork, peers: &[Peer<'_>]) -> Desired {
        let Self { network, device: link, public_ip, listen, .. } = *self;
        // The lease of this backend names no type.
        let this = This { network, own, public_ip, backend_types: &[""] };
        let (admitted, left_out) = admit(this, peers, |_, _| Ok(()));
        let mut desired = Desired { left_out, ..Desired::default() };
        let peers = admitted.into_iter().filter_map(|peer| match peer {
            Admitted { subnet: IpNetwork::V4(subnet), public_ip: IpAddr::V4(ip), .. } => {
                Some((subnet, ip))
            }
            _ => None,
        });
        let own4 = if let IpNetwork::V4(own) = own { Some(own) } else { None };
        let peers = peers.collect();
        desired.forwarding = own4.map(|own| Forwarding { device: link, listen, own, peers });
        let device = Link { mtu: Some(self.mtu), ..Link::up(LinkKind::Tun) };
        desired.state.links.insert(link, device);
        let ip = IpNetwork::from(own.network());
        desired.state.addresses.insert(Address { link, ip });
        let route =
            Route { link, via: None, onlink: false, protocol: ROUTE_PROTOCOL, source: None };
        desired.state.routes.insert(RouteKey::main(network), route);
        desired.state.sysctls = self.sysctls();
        desired
    }
}

#[cfg(test)]
mod tests;
