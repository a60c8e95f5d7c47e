//! Packets between nodes as plain UDP: every datagram is one bare packet.
//!
//! The kernel routes the whole network to a TUN device. What comes out of it is sent to the node
//! that leases the destination, by the threads of the [`datapath`]; nothing is asked of the
//! underlay and of the kernel but UDP and TUN. Here is what is decided; the modules below carry.
//!
//! IPv4 is as flannel has it. IPv6, which flannel's udp does not know, is carried over IPv6 by
//! another device and other sockets, and only between nodes that say in their lease that they do.

pub(crate) mod datapath;

mod counters;
mod handover;
mod peers;
mod routing;

mod inbound;
mod lane;
mod outbound;

mod batch;
mod checksum;
mod icmp;
mod merge;
mod offload;
mod packet;

#[cfg(any(test, fuzzing))]
pub(crate) mod foreign;

mod descriptor;
mod socket;
mod tun;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use fabric::link_name::LinkName;
use fabric::mtu::Mtu;
use fabric::netlink::{Routes, Scope};
use fabric::netstate::{Address, Link, LinkKind, ROUTE_PROTOCOL, Route, RouteKey, Sysctl};
use fabric::sysctl;
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Value, json};

use self::datapath::Forwarding;
use super::peers::{This, admit};
use super::{Backend, BackendError, Desired, Peer, Reason};
use crate::external_interface::Underlay;
use crate::family::Family;

/// Outer IP and UDP headers: 20 + 8 bytes, with IPv6 20 more.
const fn overhead(underlay: Family) -> u16 {
    match underlay {
        Family::V4 => 28,
        Family::V6 => 48,
    }
}

/// Returns the TUN device: flannel's own name, and one that is ours.
pub(super) fn device(family: Family) -> LinkName {
    let name = match family {
        Family::V4 => "flannel0",
        Family::V6 => "flannel0-v6",
    };
    name.parse().expect("it is the name of a link")
}

/// Whether this is the TUN device of a family.
pub(super) fn is_device(name: &str) -> bool {
    Family::ALL.iter().any(|family| device(*family).as_str() == name)
}

const DEFAULT_PORT: u16 = 8285;

/// The backend, configured for this node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Udp {
    network: IpNetwork,
    device: LinkName,
    mtu: Mtu,
    public_ip: IpAddr,
    listen: SocketAddr,
    /// Without IPv6, the device does not have the parameter.
    has_ipv6: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Options {
    #[serde(rename = "Port")]
    port: Option<i64>,
}

impl Udp {
    pub(super) fn configure(
        options: &Value,
        network: IpNetwork,
        underlay: Underlay,
    ) -> Result<Self, BackendError> {
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
        let family = Family::of_network(network);
        let (mtu, overhead) = (underlay.mtu.get(), overhead(family).into());
        let inner = underlay.mtu.inside(overhead).ok_or(BackendError::Mtu { mtu, overhead })?;
        if family == Family::V6 && inner.get() < Mtu::MIN_IPV6 {
            return Err(BackendError::Ipv6Mtu { mtu, overhead });
        }
        Ok(Self {
            network,
            device: device(family),
            mtu: inner,
            public_ip: underlay.public_ip,
            // The address of the interface: behind a NAT the host does not own the public one.
            listen: SocketAddr::new(underlay.ip, port),
            has_ipv6: sysctl::has_ipv6(inner),
        })
    }

    fn family(&self) -> Family {
        Family::of_network(self.network)
    }

    /// Returns the port where a peer listens.
    fn port_of(&self, peer: &Peer<'_>) -> Result<u16, Reason> {
        match (self.family(), peer.data) {
            // The same for all nodes, and in no lease.
            (Family::V4, _) => Ok(self.listen.port()),
            (Family::V6, None) => Err(Reason::NoIpv6OverUdp),
            (Family::V6, Some(data)) => {
                // What a node that carries IPv6 publishes: the port where it listens over IPv6.
                let port = data.field("Port");
                let port = port.map_err(|error| Reason::BackendData(error.to_string()))?;
                port.ok_or_else(|| Reason::BackendData("there is no Port".to_owned()))
            }
        }
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
        let data = match self.family() {
            Family::V4 => None,
            Family::V6 => Some(json!({ "Port": self.listen.port() })),
        };
        ("", data)
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
        let (admitted, left_out) = admit(this, peers, |peer, _| self.port_of(peer));
        let peers = admitted.iter().map(|peer| (peer.subnet, (peer.public_ip, peer.found).into()));
        let forwarding = Forwarding { device: link, listen, own, peers: peers.collect() };
        let mut desired = Desired { left_out, forwarding: vec![forwarding], ..Desired::default() };
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
