//! How packets travel between nodes: what a node publishes, and what its kernel shall look like.

mod host_gw;
mod peers;
pub(crate) mod udp;
mod vxlan;

use std::net::Ipv4Addr;

use fabric::link_name::LinkName;
use fabric::mtu::Mtu;
use fabric::netlink::Scope;
use fabric::netstate::NetState;
use ipnetwork::IpNetwork;
use serde_json::Value;

use crate::config::BackendConfig;
use crate::external_interface::ExternalInterface;
use crate::lease::{Attributes, LeaseKey};

use host_gw::HostGw;
use udp::Udp;
use udp::datapath::Forwarding;
use vxlan::Vxlan;

/// One way for packets to travel. Everything here is pure.
pub(crate) trait Backend {
    /// Returns the type and the data to publish in the node's lease.
    fn published(&self) -> (&'static str, Option<Value>);

    /// Returns the MTU that pods get.
    fn pod_mtu(&self) -> Mtu;

    /// Returns the link that the backend makes, if it makes one.
    fn device(&self) -> Option<LinkName>;

    /// Returns what belongs to the backend in the kernel.
    fn scope(&self, peers: &[Peer<'_>]) -> Scope;

    /// Returns the state that shall be, for a node that holds `own`.
    fn desired(&self, own: &LeaseKey, peers: &[Peer<'_>]) -> Desired;
}

/// Another node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer<'a> {
    pub(crate) subnet: &'a LeaseKey,
    pub(crate) attributes: &'a Attributes,
}

/// What shall be, and the peers that had to be left out.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Desired {
    pub(crate) state: NetState,
    pub(crate) left_out: Vec<(LeaseKey, Reason)>,
    /// What this program carries itself, if the kernel does not.
    pub(crate) forwarding: Option<Forwarding>,
}

/// Why a peer is left out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub(crate) enum Reason {
    #[error("its subnet is not inside the network {0}")]
    OutsideNetwork(IpNetwork),
    #[error("its subnet overlaps our own")]
    OverlapsOwn,
    #[error("its subnet overlaps that of {0}")]
    OverlapsPeer(LeaseKey),
    #[error("its key has host bits")]
    HostBits,
    #[error("its public address {0} cannot be that of a node")]
    PublicIp(Ipv4Addr),
    #[error("its public address {0} is ours")]
    OurPublicIp(Ipv4Addr),
    #[error("its backend is {theirs:?}, not {ours:?}")]
    BackendType { theirs: String, ours: &'static str },
    #[error("its backend data does not decode: {0}")]
    BackendData(String),
    #[error("its Ethernet address is that of {0}")]
    SameMac(String),
}

/// Why the configuration of a backend cannot be used.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum BackendError {
    #[error("Backend.Type {0:?} is not available: want vxlan, host-gw or udp")]
    Unknown(String),
    #[error("the options of Backend do not decode")]
    Json(#[from] fabric::json::Error),
    #[error("Backend.{key} {value} is out of range: want {expected}")]
    Range { key: &'static str, value: i64, expected: &'static str },
    #[error("Backend.DirectRouting is not available: leave it out or set it to false")]
    DirectRouting,
    #[error(
        "host-gw cannot work behind a NAT: other nodes send to {public_ip}, but the interface has \
         {ip}; use vxlan"
    )]
    NotDirect { ip: Ipv4Addr, public_ip: Ipv4Addr },
    #[error("MTU {mtu} leaves no room for pods: {overhead} bytes are added to every packet")]
    Mtu { mtu: u32, overhead: u32 },
}

/// Checks the configuration of the backend for a node with this interface.
///
/// `device_mac` is asked for the Ethernet address of a device that this node has already.
pub(crate) fn configure(
    config: &BackendConfig,
    network: IpNetwork,
    interface: &ExternalInterface,
    device_mac: impl FnOnce(LinkName) -> fabric::mac::MacAddr,
) -> Result<Box<dyn Backend>, BackendError> {
    Ok(match config.kind.as_str() {
        "vxlan" => Box::new(Vxlan::configure(&config.options, network, interface, device_mac)?),
        "host-gw" => Box::new(HostGw::configure(network, interface)?),
        "udp" => Box::new(Udp::configure(&config.options, network, interface)?),
        other => return Err(BackendError::Unknown(other.to_owned())),
    })
}
