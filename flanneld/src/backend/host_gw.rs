//! Packets between nodes as they are: each node routes the subnets of the others to their
//! addresses. It takes a network between nodes without routers in between.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use fabric::link_name::LinkName;
use fabric::mtu::Mtu;
use fabric::netlink::{Adopted, Routes, Scope};
use fabric::netstate::{ROUTE_PROTOCOL, Route, RouteKey};
use ipnetwork::IpNetwork;
use serde_json::Value;

use super::peers::{This, admit};
use super::{Backend, BackendError, Desired, Peer};
use crate::external_interface::ExternalInterface;
use crate::lease::LeaseKey;

/// The backend, configured for this node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HostGw {
    network: IpNetwork,
    interface: LinkName,
    mtu: Mtu,
    public_ip: Ipv4Addr,
}

impl HostGw {
    pub(super) fn configure(
        network: IpNetwork,
        interface: &ExternalInterface,
    ) -> Result<Self, BackendError> {
        let ExternalInterface { name, mtu, ip, public_ip } = *interface;
        // Peers send to the public address without any NAT in between.
        if ip != public_ip {
            return Err(BackendError::NotDirect { ip, public_ip });
        }
        Ok(Self { network, interface: name, mtu, public_ip })
    }
}

impl Backend for HostGw {
    fn published(&self) -> (&'static str, Option<Value>) {
        ("host-gw", None)
    }

    fn pod_mtu(&self) -> Mtu {
        self.mtu
    }

    fn device(&self) -> Option<LinkName> {
        None
    }

    fn scope(&self, peers: &[Peer<'_>]) -> Scope {
        let gateways = peers.iter().map(|peer| IpAddr::V4(peer.attributes.public_ip));
        Scope {
            routes: Routes::OnLinksAndMarked,
            networks: vec![self.network],
            adopted: Some(Adopted {
                link: self.interface,
                gateways: gateways.collect::<BTreeSet<_>>(),
            }),
            ..Scope::default()
        }
    }

    fn desired(&self, own: &LeaseKey, peers: &[Peer<'_>]) -> Desired {
        let Self { network, public_ip, .. } = *self;
        let this = This { network, own, public_ip, backend_type: "host-gw" };
        let admitted = admit(this, peers, |_| Ok(()));
        let mut desired = Desired { left_out: admitted.left_out, ..Desired::default() };
        for (peer, ()) in admitted.peers {
            let via = Some(IpAddr::V4(peer.attributes.public_ip));
            let route = Route {
                link: self.interface,
                via,
                onlink: false,
                protocol: ROUTE_PROTOCOL,
                source: None,
            };
            desired.state.routes.insert(RouteKey::main(peer.subnet.subnet4()), route);
        }
        desired
    }
}

#[cfg(test)]
mod tests {
    use fabric::netstate::NetState;
    use fabric::plan::diff;

    use super::*;
    use crate::lease::wire;

    fn interface(public_ip: [u8; 4]) -> ExternalInterface {
        ExternalInterface {
            name: "eth0".parse().unwrap(),
            mtu: Mtu::new(1500).unwrap(),
            ip: [198, 51, 100, 1].into(),
            public_ip: public_ip.into(),
        }
    }

    fn host_gw() -> HostGw {
        HostGw::configure("10.244.0.0/16".parse().unwrap(), &interface([198, 51, 100, 1])).unwrap()
    }

    #[test]
    fn a_peer_is_one_route_and_pods_have_the_mtu_of_the_interface() {
        let backend = host_gw();
        let own = LeaseKey::parse("10.244.1.0-24").unwrap();
        let subnet = LeaseKey::parse("10.244.2.0-24").unwrap();
        let json = br#"{"PublicIP":"198.51.100.2","BackendType":"host-gw"}"#;
        let attributes = wire::decode(json).unwrap();
        let peers = [Peer { subnet: &subnet, attributes: &attributes }];
        let plan = diff(&backend.desired(&own, &peers).state, &NetState::default());
        assert_eq!(
            plan.to_string(),
            "ip route add 10.244.2.0/24 via 198.51.100.2 dev eth0 proto 199\n"
        );
        assert_eq!(backend.pod_mtu(), Mtu::new(1500).unwrap());
        assert_eq!(backend.published(), ("host-gw", None));
        let adopted = backend.scope(&peers).adopted.unwrap();
        assert!(adopted.gateways.contains(&IpAddr::from([198, 51, 100, 2])));
    }

    #[test]
    fn a_node_behind_a_nat_is_refused() {
        let network = "10.244.0.0/16".parse().unwrap();
        let error = HostGw::configure(network, &interface([203, 0, 113, 1])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "host-gw cannot work behind a NAT: other nodes send to 203.0.113.1, but the interface \
             has 198.51.100.1; use vxlan"
        );
    }
}
