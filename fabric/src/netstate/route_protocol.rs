//! Numbers that tell who made a route (`rtm_protocol`; rtnetlink(7)).

use std::ops::Range;

use ipnetwork::IpNetwork;

/// Marks the routes that we made. iproute2's `rt_protos` assigns numbers up to 192, and FRR has its
/// own up to 198.
pub const ROUTE_PROTOCOL: u8 = 199;

/// Mark routes to peers.
const TO_PEERS: Range<u8> = ROUTE_PROTOCOL..ROUTE_PROTOCOL + 56;

/// Whether a route with this number is ours.
pub fn is_ours(protocol: u8) -> bool {
    TO_PEERS.contains(&protocol)
}

/// Returns the number for the route to a peer that has this subnet of the network: one for each 256
/// subnets next to each other, so that in a network of /16 with nodes of /24 all have
/// [`ROUTE_PROTOCOL`].
///
/// Linux compares what a new route of IPv4 leads to with that of all others of the same link and
/// number, one after the other (`fib_find_info` in net/ipv4/fib_semantics.c). With a single number,
/// that takes most of the time of a cluster with 10,000 nodes.
pub fn to_peer(network: IpNetwork, subnet: IpNetwork) -> u8 {
    let (IpNetwork::V4(network), IpNetwork::V4(subnet)) = (network, subnet) else {
        return ROUTE_PROTOCOL;
    };
    let offset = u64::from(subnet.network().to_bits() ^ network.network().to_bits());
    let [.., group, _] = (offset >> (32 - subnet.prefix())).to_be_bytes();
    TO_PEERS.start + group % (TO_PEERS.end - TO_PEERS.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_next_to_each_other_share_a_number() {
        for (network, subnet, protocol) in [
            ("10.244.0.0/16", "10.244.0.0/24", 199),
            ("10.244.0.0/16", "10.244.255.0/24", 199),
            ("10.0.0.0/8", "10.0.255.0/24", 199),
            ("10.0.0.0/8", "10.1.0.0/24", 200),
            ("10.0.0.0/8", "10.55.0.0/24", 254),
            ("10.0.0.0/8", "10.56.0.0/24", 199),
            ("10.244.0.0/16", "10.244.16.0/28", 200),
            ("0.0.0.0/0", "0.0.0.0/0", 199),
            ("2001:db8::/32", "2001:db8:99::/64", 199),
        ] {
            assert_eq!(to_peer(network.parse().unwrap(), subnet.parse().unwrap()), protocol);
            assert!(is_ours(protocol));
        }
        assert!(!is_ours(198) && !is_ours(255));
    }
}
