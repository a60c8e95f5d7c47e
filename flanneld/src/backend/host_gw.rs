//! Packets between nodes as they are: each node routes the subnets of the others to their
//! addresses. It takes a network between nodes without routers in between.

use fabric::link_name::LinkName;
use fabric::mtu::Mtu;
use fabric::netlink::{Routes, Scope};
use fabric::netstate::{NetState, RouteKey, route_protocol};
use ipnetwork::IpNetwork;
use serde_json::Value;

use super::peers::{Admitted, This, admit};
use super::{Backend, BackendError, Desired, Peer, adopted, plain_route};
use crate::external_interface::Underlay;

/// The backend, configured for this node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HostGw {
    network: IpNetwork,
    underlay: Underlay,
}

impl HostGw {
    pub(super) fn configure(network: IpNetwork, underlay: Underlay) -> Result<Self, BackendError> {
        let Underlay { ip, public_ip, .. } = underlay;
        // Peers send to the public address without any NAT in between.
        if ip != public_ip {
            return Err(BackendError::NotDirect { ip, public_ip });
        }
        Ok(Self { network, underlay })
    }
}

impl Backend for HostGw {
    fn published(&self) -> (&'static str, Option<Value>) {
        ("host-gw", None)
    }

    fn pod_mtu(&self) -> Mtu {
        self.underlay.mtu
    }

    fn device(&self) -> Option<LinkName> {
        None
    }

    fn scope(&self, peers: &[Peer<'_>]) -> Scope {
        Scope {
            routes: Routes::OnLinksAndMarked,
            networks: vec![self.network],
            adopted: vec![adopted(&self.underlay, peers)],
            ..Scope::default()
        }
    }

    fn desired(&self, own: IpNetwork, peers: &[Peer<'_>]) -> Desired {
        let Self { network, underlay } = self;
        let this = This {
            network: *network,
            own,
            public_ip: underlay.public_ip,
            backend_types: &["host-gw", "vxlan"],
        };
        let (admitted, left_out) = admit(this, peers, |peer, public_ip| {
            plain_route(underlay, public_ip, route_protocol::to_peer(*network, peer.subnet))
        });
        let route = |Admitted { subnet, found: route, .. }| (RouteKey::main(subnet), route);
        let state =
            NetState { routes: admitted.into_iter().map(route).collect(), ..NetState::default() };
        Desired { state, left_out, ..Desired::default() }
    }
}

#[cfg(test)]
mod tests {
    use fabric::plan::diff;

    use super::*;
    use crate::on_link::OnLink;

    fn underlay(ip: &str, public_ip: &str) -> Underlay {
        Underlay {
            link: "eth0".parse().unwrap(),
            mtu: Mtu::new(1500).unwrap(),
            ip: ip.parse().unwrap(),
            public_ip: public_ip.parse().unwrap(),
            on_link: OnLink::default(),
        }
    }

    /// The plan for a node with one peer, both with a subnet of this network.
    fn plan(network: &str, own: &str, peer: &str, [ours, theirs]: [&str; 2]) -> String {
        let backend = HostGw::configure(network.parse().unwrap(), underlay(ours, ours)).unwrap();
        let peer = Peer {
            subnet: peer.parse().unwrap(),
            public_ip: Some(theirs.parse().unwrap()),
            backend_type: "host-gw",
            data: None,
        };
        assert_eq!(backend.pod_mtu(), Mtu::new(1500).unwrap());
        assert_eq!(backend.published(), ("host-gw", None));
        let adopted = backend.scope(&[peer]).adopted;
        assert!(adopted[0].gateways.contains(&theirs.parse().unwrap()));
        let desired = backend.desired(own.parse().unwrap(), &[peer]);
        diff(&desired.state, &NetState::default()).to_string()
    }

    #[test]
    fn a_peer_is_one_route_and_pods_have_the_mtu_of_the_interface() {
        let addresses = ["198.51.100.1", "198.51.100.2"];
        assert_eq!(
            plan("10.244.0.0/16", "10.244.1.0/24", "10.244.2.0/24", addresses),
            "ip route add 10.244.2.0/24 via 198.51.100.2 dev eth0 proto 199\n"
        );
        let (own, peer) = ("2001:db8:42:1::/64", "2001:db8:42:2::/64");
        assert_eq!(
            plan("2001:db8:42::/56", own, peer, ["fd99::1", "fd99::2"]),
            "ip route add 2001:db8:42:2::/64 via fd99::2 dev eth0 proto 199\n"
        );
    }

    #[test]
    fn a_node_behind_a_nat_is_refused() {
        let network = "10.244.0.0/16".parse().unwrap();
        let error =
            HostGw::configure(network, underlay("198.51.100.1", "203.0.113.1")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "host-gw cannot work behind a NAT: other nodes send to 203.0.113.1, but the interface \
             has 198.51.100.1; use vxlan"
        );
    }
}
