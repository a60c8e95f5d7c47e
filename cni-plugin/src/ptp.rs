//! A pod that is connected to its node by a pair of its own, without a bridge. Pure.
//!
//! The gateway's address stands on the host's end of every pair. The pod sends everything there, also
//! what is for its own subnet, so that nothing has to be on the same link.

use std::net::IpAddr;
use std::path::Path;

use fabric::json;
use fabric::mac::MacAddr;
use fabric::mtu::Mtu;
use fabric::netstate::{
    Address, Link, LinkKind, NetState, ROUTE_PROTOCOL, Route, RouteKey, Sysctl, VethPeer,
};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::args::Args;
use crate::attachment::{self, Desired, host_veth, mac_of};
use crate::bridge::{BridgeError, masquerade_engine, mtu, says_dns};
use crate::filter::{Engine, Rules};
use crate::invocation::Attachment;
use crate::ipam::source::{Source, SourceError};
use crate::masquerade;
use crate::result::{self, Dns, Ip};

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ptp {
    /// The MTU of both ends; `None` for the kernel's default.
    pub mtu: Option<Mtu>,
    /// What hides what leaves the subnet behind the node's address; `None` if nothing does.
    pub masquerade: Option<Engine>,
    /// What the result says about name servers; `None` for what `ipam` says.
    pub dns: Option<Dns>,
    /// Where addresses come from.
    pub ipam: Source,
}

/// Why a configuration cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum PtpError {
    /// It has a value of the wrong type.
    #[error("failed to load netconf")]
    Json(#[source] json::Error),
    /// A value makes no sense, as for a bridge.
    #[error(transparent)]
    Value(#[from] BridgeError),
    /// Addresses cannot be handed out as configured.
    #[error(transparent)]
    Ipam(#[from] SourceError),
    /// Without addresses there is nothing to route.
    #[error("no plugin name provided")]
    NoIpam,
    /// The pod would have nowhere to send to.
    #[error("the address {0} has no gateway")]
    NoGateway(IpNetwork),
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawPtp {
    ip_masq: bool,
    ip_masq_backend: String,
    mtu: i64,
    dns: Option<Dns>,
}

impl Ptp {
    /// Checks the configuration of the plugin `ptp` together with the `CNI_ARGS` of an attachment.
    ///
    /// # Errors
    /// If it cannot be understood.
    pub fn new(config: &Map<String, Value>, args: &str) -> Result<Self, PtpError> {
        let args = Args::parse(args).map_err(BridgeError::from)?;
        let raw: RawPtp = json::from_value(config.clone().into()).map_err(PtpError::Json)?;
        let engine = masquerade_engine(&raw.ip_masq_backend)?;
        Ok(Self {
            mtu: mtu(raw.mtu)?,
            masquerade: raw.ip_masq.then_some(engine),
            dns: raw.dns.filter(|_| says_dns(config)),
            ipam: Source::of(config, &args)?.ok_or(PtpError::NoIpam)?,
        })
    }
}

/// Returns what shall be for an attachment with these addresses and routes, whose sandbox is at
/// `netns`.
///
/// # Errors
/// If an address has no gateway.
pub fn desired(
    attachment: &Attachment,
    netns: &Path,
    ptp: &Ptp,
    ips: &[Ip],
    routes: &[result::Route],
) -> Result<Desired, PtpError> {
    let mut ends = Vec::new();
    for ip in ips {
        let gateway = ip.gateway.ok_or(PtpError::NoGateway(ip.address))?;
        ends.push((ip.address, gateway));
    }
    let addresses: Vec<_> = ips.iter().map(|ip| ip.address).collect();
    Ok(Desired {
        host: host(attachment, netns, ptp, &ends),
        sandbox: sandbox(attachment, ptp, ips, &ends, routes),
        filter: ptp.masquerade.map_or_else(Rules::default, |engine| {
            masquerade::rules(attachment, engine, &addresses)
        }),
    })
}

fn host(
    attachment: &Attachment,
    netns: &Path,
    ptp: &Ptp,
    ends: &[(IpNetwork, IpAddr)],
) -> NetState {
    let link = host_veth(attachment);
    let peer = VethPeer {
        name: attachment.if_name,
        netns: Some(netns.to_owned()),
        mac: pod_mac(ends),
        mtu: ptp.mtu,
    };
    let veth = Link {
        mac: Some(attachment::host_mac(attachment)),
        mtu: ptp.mtu,
        alias: Some(attachment::alias(attachment)),
        ..Link::up(LinkKind::Veth(Some(peer)))
    };
    let mut state = NetState::default();
    state.links.insert(link, veth);
    for (address, gateway) in ends {
        state.addresses.insert(Address { link, ip: IpNetwork::from(*gateway) });
        let route =
            Route { link, via: None, onlink: false, protocol: ROUTE_PROTOCOL, source: None };
        state.routes.insert(RouteKey::main(IpNetwork::from(address.ip())), route);
        let forwarding = match address {
            IpNetwork::V4(_) => Sysctl::ipv4_forwarding(),
            IpNetwork::V6(_) => Sysctl::ipv6_forwarding(),
        };
        state.sysctls.insert(forwarding, "1".to_owned());
    }
    // A pod must not configure the node. And until the kernel has found out that nobody else has the
    // link-local address, which takes seconds, it would not ask for the pod's neighbour entry.
    for parameter in ["accept_ra", "accept_dad"] {
        state.sysctls.insert(Sysctl::ipv6(link, parameter), "0".to_owned());
    }
    state
}

fn sandbox(
    attachment: &Attachment,
    ptp: &Ptp,
    ips: &[Ip],
    ends: &[(IpNetwork, IpAddr)],
    routes: &[result::Route],
) -> NetState {
    let link = attachment.if_name;
    let interface = Link { mac: pod_mac(ends), mtu: ptp.mtu, ..Link::up(LinkKind::Veth(None)) };
    let mut state = attachment::inside(link, interface, ips, routes);
    state.unrouted = state.addresses.clone();
    state.sysctls.insert(Sysctl::ipv6(link, "accept_dad"), "0".to_owned());
    for (address, gateway) in ends {
        let source = Some(address.ip());
        let to = |via| Route { link, via, onlink: false, protocol: ROUTE_PROTOCOL, source };
        state.routes.insert(RouteKey::main(IpNetwork::from(*gateway)), to(None));
        let subnet = RouteKey::main(attachment::network(*address));
        state.routes.insert(subnet, to(Some(*gateway)));
    }
    state
}

fn pod_mac(ends: &[(IpNetwork, IpAddr)]) -> Option<MacAddr> {
    ends.first().map(|(address, _)| mac_of(address.ip()))
}

#[cfg(test)]
mod tests {
    use fabric::plan::diff;
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_goes_through_the_gateway_on_the_pair() {
        let conf = json!({"ipMasq": true, "mtu": 1400,
            "ipam": {"type": "host-local", "subnet": "10.1.2.0/24"}});
        let ptp = Ptp::new(conf.as_object().unwrap(), "").unwrap();
        let attachment = Attachment::named("cbr0", "one", "eth0");
        let ip = |gateway| Ip { interface: None, address: "10.1.2.5/24".parse().unwrap(), gateway };
        let ips = [ip(Some("10.1.2.1".parse().unwrap()))];
        let routes = [result::Route::to("0.0.0.0/0".parse().unwrap())];
        let netns = Path::new("/run/netns/x");
        let desired_for = |ips| desired(&attachment, netns, &ptp, ips, &routes);
        let desired = desired_for(&ips).unwrap();
        let expected = "\
ip link add veth50419296 address f6:b9:19:3b:2f:b7 mtu 1400 type veth peer name eth0 \
netns /run/netns/x address 0a:58:0a:01:02:05 mtu 1400
ip link set veth50419296 alias \"one/eth0/cbr0\"
sysctl -w net/ipv4/ip_forward=1
sysctl -w net/ipv6/conf/veth50419296/accept_dad=0
sysctl -w net/ipv6/conf/veth50419296/accept_ra=0
ip address replace 10.1.2.1/32 dev veth50419296
ip link set veth50419296 up
ip route add 10.1.2.5/32 dev veth50419296 proto 199
";
        assert_eq!(diff(&desired.host, &NetState::default()).to_string(), expected);
        let text = diff(&desired.sandbox, &NetState::default()).to_string();
        let expected = "\
ip address replace 10.1.2.5/24 dev eth0 noprefixroute
ip link set eth0 up
ip link set lo up
sysctl -w net/ipv4/conf/eth0/arp_notify=1
ip route add 10.1.2.1/32 dev eth0 proto 199 src 10.1.2.5
ip route add 0.0.0.0/0 via 10.1.2.1 dev eth0 proto 199
ip route add 10.1.2.0/24 via 10.1.2.1 dev eth0 proto 199 src 10.1.2.5
";
        assert!(text.ends_with(expected), "{text}");
        assert!(!desired.filter.is_empty());
        let error = desired_for(&[ip(None)]).unwrap_err();
        assert_eq!(error.to_string(), "the address 10.1.2.5/24 has no gateway");
    }

    #[test]
    fn addresses_are_needed() {
        let error = |conf: Value| Ptp::new(conf.as_object().unwrap(), "").unwrap_err().to_string();
        assert_eq!(error(json!({})), "no plugin name provided");
        assert_eq!(error(json!({"mtu": 1})), "mtu: 1 is not from 68 to 65536");
        assert_eq!(error(json!({"ipMasqBackend": "x"})), "unknown ipmasq backend \"x\"");
    }
}
