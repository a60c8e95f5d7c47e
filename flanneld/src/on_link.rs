//! Which addresses are on the network of the interface between nodes, without a router in between.
//!
//! Packets to a peer there need no tunnel. Pure: the routes are a value, and a new one is made
//! whenever they change.

use std::net::IpAddr;

use fabric::link_name::LinkName;
use fabric::netlink::Way;
use ipnetwork::IpNetwork;

/// The routes that leave by the interface, the one that wins first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OnLink(Vec<(IpNetwork, bool)>);

impl OnLink {
    /// Picks the routes of an interface.
    pub(crate) fn by(interface: LinkName, ways: &[Way]) -> Self {
        let ways = || ways.iter().filter(|way| way.interface == interface);
        // The host may be a router with a hundred thousand routes: those matter that are exceptions.
        let contains = |way: &&Way| {
            ways().any(|wide| {
                wide.on_link
                    && wide.destination.is_ipv4() == way.destination.is_ipv4()
                    && wide.destination.contains(way.destination.ip())
            })
        };
        let mut ways: Vec<_> = ways().filter(|way| way.on_link || contains(way)).collect();
        ways.sort_by_key(|way| (u8::MAX - way.destination.prefix(), way.metric, **way));
        Self(ways.into_iter().map(|way| (way.destination, way.on_link)).collect())
    }

    /// Whether the address is reached without a router, as far as this interface goes.
    pub(crate) fn reaches(&self, ip: IpAddr) -> bool {
        let best = self.0.iter().find(|(destination, _)| destination.contains(ip));
        best.is_some_and(|(_, on_link)| *on_link)
    }

    /// Whether a router is in between for certain. While the interface has no network at all, as
    /// in the middle of a change of its address, nothing is certain.
    pub(crate) fn excludes(&self, ip: IpAddr) -> bool {
        let of_family =
            |(to, on_link): &(IpNetwork, bool)| *on_link && to.is_ipv4() == ip.is_ipv4();
        self.0.iter().any(of_family) && !self.reaches(ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_link(ways: &[(&str, u32, &str, bool)]) -> OnLink {
        let way = |&(to, metric, by, on_link): &(&str, u32, &str, bool)| Way {
            destination: to.parse().unwrap(),
            metric,
            interface: by.parse().unwrap(),
            on_link,
        };
        let ways: Vec<_> = ways.iter().map(way).collect();
        OnLink::by("eth0".parse().unwrap(), &ways)
    }

    #[test]
    fn the_longest_route_decides_and_then_the_lowest_metric() {
        let routes = on_link(&[
            ("0.0.0.0/0", 0, "eth0", false),
            ("198.51.100.0/24", 100, "eth0", true),
            ("198.51.100.64/26", 0, "eth0", false),
            ("203.0.113.0/24", 200, "eth0", false),
            ("203.0.113.0/24", 100, "eth0", true),
            ("192.0.2.0/24", 0, "eth1", true),
            ("fd99::/64", 256, "eth0", true),
        ]);
        for (ip, reached) in [
            ("198.51.100.2", true),
            ("198.51.100.65", false),
            ("203.0.113.9", true),
            ("192.0.2.1", false),
            ("8.8.8.8", false),
            ("fd99::2", true),
            ("fd98::2", false),
        ] {
            let ip = ip.parse().unwrap();
            assert_eq!(routes.reaches(ip), reached, "{ip}");
            assert_eq!(routes.excludes(ip), !reached, "{ip}");
        }
    }

    #[test]
    fn without_a_network_nothing_is_certain() {
        let routes = on_link(&[("198.51.100.0/24", 0, "eth0", true)]);
        let ip = "fd99::2".parse().unwrap();
        assert!(!routes.reaches(ip) && !routes.excludes(ip));
    }
}
