//! Which interface carries the traffic between nodes, and by which address.
//!
//! The choice is a pure function of what was asked for and what the host has. It keeps the reason
//! for every candidate that was turned down, because "no suitable interface" helps nobody.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use fabric::link_name::LinkName;
use fabric::mtu::Mtu;
use fabric::netlink::{Interface, InterfaceAddress, Inventory};
use regex_lite::Regex;

use crate::cli::InterfaceOptions;

/// The interface between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExternalInterface {
    /// Its name.
    pub(crate) name: LinkName,
    /// Its MTU.
    pub(crate) mtu: Mtu,
    /// The address that packets leave from.
    pub(crate) ip: Ipv4Addr,
    /// The address that other nodes send to; differs behind a NAT.
    pub(crate) public_ip: Ipv4Addr,
}

impl ExternalInterface {
    /// Returns the interface as it is now, if it is there and still has the address.
    pub(crate) fn as_in(&self, inventory: &Inventory) -> Option<Self> {
        let now = inventory.interfaces.iter().find(|interface| interface.name == self.name)?;
        let has_address = now.addresses.iter().any(|address| address.ip == self.ip);
        has_address.then_some(Self { mtu: Mtu::new(now.mtu)?, ..self.clone() })
    }
}

/// What the kernel says about the way to the address of `--iface-can-reach`.
pub(crate) type Reach = Option<(LinkName, Option<IpAddr>)>;

/// No interface fits.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no interface for the traffic between nodes: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub(crate) struct NoInterface(pub(crate) Vec<Rejection>);

/// Why one candidate was turned down.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    candidate: String,
    reason: String,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.candidate, self.reason)
    }
}

/// Chooses: every name in order, then every pattern, then the way to an address; without any of
/// these the owner of the public address, or the default route.
///
/// # Errors
/// If no candidate fits.
pub(crate) fn choose(
    options: &InterfaceOptions,
    inventory: &Inventory,
    reach: Reach,
) -> Result<ExternalInterface, NoInterface> {
    let host = Host { inventory, public_ip: options.public_ip };
    let candidates = candidates(options);
    let mut rejections = Vec::new();
    for candidate in candidates {
        let found = match &candidate {
            Candidate::Name(name) => host.by_name_or_address(name),
            Candidate::Regex(pattern) => host.by_regex(pattern),
            Candidate::CanReach(_) => host.by_reach(reach),
            Candidate::PublicIp(ip) => host.by_address(*ip),
            Candidate::DefaultRoute => host.by_default_route(),
        };
        match found {
            Ok(interface) => return Ok(interface),
            Err(reason) => {
                rejections.push(Rejection { candidate: candidate.to_string(), reason });
            }
        }
    }
    Err(NoInterface(rejections))
}

enum Candidate<'a> {
    Name(&'a str),
    Regex(&'a str),
    CanReach(IpAddr),
    PublicIp(Ipv4Addr),
    DefaultRoute,
}

impl fmt::Display for Candidate<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "--iface={name}"),
            Self::Regex(pattern) => write!(f, "--iface-regex={pattern}"),
            Self::CanReach(ip) => write!(f, "--iface-can-reach={ip}"),
            Self::PublicIp(ip) => write!(f, "--public-ip={ip}"),
            Self::DefaultRoute => f.write_str("default route"),
        }
    }
}

fn candidates(options: &InterfaceOptions) -> Vec<Candidate<'_>> {
    let names = options.names.iter().map(|name| Candidate::Name(name));
    let regexes = options.regexes.iter().map(|pattern| Candidate::Regex(pattern));
    let reach = options.can_reach.map(Candidate::CanReach);
    let mut candidates: Vec<_> = names.chain(regexes).chain(reach).collect();
    if candidates.is_empty() {
        let default = options.public_ip.map_or(Candidate::DefaultRoute, Candidate::PublicIp);
        candidates.push(default);
    }
    candidates
}

struct Host<'a> {
    inventory: &'a Inventory,
    public_ip: Option<Ipv4Addr>,
}

impl Host<'_> {
    fn by_name_or_address(&self, text: &str) -> Result<ExternalInterface, String> {
        match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(ip)) => self.by_address(ip),
            Ok(IpAddr::V6(_)) => Err("an IPv6 address, but the network is IPv4".to_owned()),
            Err(_) => {
                let named = |interface: &&Interface| interface.name.as_str() == text;
                let found = self.inventory.interfaces.iter().find(named);
                self.with_best_address(found.ok_or_else(|| self.unknown("interface"))?)
            }
        }
    }

    fn by_address(&self, ip: Ipv4Addr) -> Result<ExternalInterface, String> {
        let owns = |interface: &&Interface| interface.addresses.iter().any(|a| a.ip == ip);
        let owner = self.inventory.interfaces.iter().find(owns);
        let owner = owner
            .ok_or_else(|| "no interface has this address; behind a NAT, add --iface".to_owned())?;
        self.with_address(owner, ip)
    }

    /// First the addresses are matched, then the names.
    fn by_regex(&self, pattern: &str) -> Result<ExternalInterface, String> {
        let regex = Regex::new(pattern).map_err(|error| format!("not a pattern: {error}"))?;
        for interface in &self.inventory.interfaces {
            let matching = usable(interface).into_iter().find(|ip| regex.is_match(&ip.to_string()));
            if let Some(ip) = matching {
                return self.with_address(interface, ip);
            }
        }
        let named = |interface: &&Interface| regex.is_match(interface.name.as_str());
        let found = self.inventory.interfaces.iter().find(named);
        self.with_best_address(found.ok_or_else(|| self.unknown("matching interface"))?)
    }

    fn by_reach(&self, reach: Reach) -> Result<ExternalInterface, String> {
        let (name, source) = reach.ok_or_else(|| "no route to this address".to_owned())?;
        let interface = self.interface(name)?;
        match source {
            Some(IpAddr::V4(ip)) => self.with_address(interface, ip),
            _ => self.with_best_address(interface),
        }
    }

    fn by_default_route(&self) -> Result<ExternalInterface, String> {
        let route = self.inventory.default_routes.iter().find(|route| !route.ipv6);
        let route = route
            .ok_or_else(|| "there is none for IPv4; name the interface with --iface".to_owned())?;
        self.with_best_address(self.interface(route.interface)?)
    }

    fn interface(&self, name: LinkName) -> Result<&Interface, String> {
        let found = self.inventory.interfaces.iter().find(|interface| interface.name == name);
        found.ok_or_else(|| format!("{name} is gone"))
    }

    fn with_best_address(&self, interface: &Interface) -> Result<ExternalInterface, String> {
        let best = usable(interface).into_iter().next();
        self.with_address(interface, best.ok_or("it has no usable IPv4 address")?)
    }

    fn with_address(
        &self,
        interface: &Interface,
        ip: Ipv4Addr,
    ) -> Result<ExternalInterface, String> {
        let mtu = Mtu::new(interface.mtu).ok_or("it has no MTU")?;
        let public_ip = self.public_ip.unwrap_or(ip);
        Ok(ExternalInterface { name: interface.name, mtu, ip, public_ip })
    }

    fn unknown(&self, what: &str) -> String {
        let names = self.inventory.interfaces.iter().map(|interface| interface.name.as_str());
        format!("no such {what}; there are {}", names.collect::<Vec<_>>().join(", "))
    }
}

/// The addresses that may be used, the best first: those valid beyond the link, then those set by
/// hand, then the first of a subnet.
fn usable(interface: &Interface) -> Vec<Ipv4Addr> {
    let mut usable: Vec<(&InterfaceAddress, Ipv4Addr)> = interface
        .addresses
        .iter()
        .filter(|address| !address.deprecated)
        .filter_map(|address| match address.ip {
            IpAddr::V4(ip) => Some((address, ip)),
            IpAddr::V6(_) => None,
        })
        .filter(|(_, ip)| !ip.is_loopback() && !ip.is_multicast() && !ip.is_unspecified())
        .collect();
    usable.sort_by_key(|(address, ip)| {
        (address.link_scope || ip.is_link_local(), !address.permanent, address.temporary)
    });
    usable.into_iter().map(|(_, ip)| ip).collect()
}

#[cfg(test)]
mod tests {
    use fabric::netlink::DefaultRoute;

    use super::*;

    fn address(ip: [u8; 4]) -> InterfaceAddress {
        InterfaceAddress {
            ip: ip.into(),
            link_scope: false,
            permanent: true,
            deprecated: false,
            temporary: false,
        }
    }

    fn interface(name: &str, addresses: Vec<InterfaceAddress>) -> Interface {
        Interface { name: name.parse().unwrap(), mtu: 1500, up: true, addresses }
    }

    fn host() -> Inventory {
        let dynamic = InterfaceAddress { permanent: false, ..address([10, 9, 0, 5]) };
        Inventory {
            interfaces: vec![
                interface("lo", vec![address([127, 0, 0, 1])]),
                interface("eth0", vec![dynamic, address([10, 0, 2, 15])]),
                interface("eth1", vec![address([169, 254, 7, 7]), address([198, 51, 100, 1])]),
                interface("eth2", vec![]),
            ],
            default_routes: vec![DefaultRoute {
                ipv6: false,
                metric: 0,
                interface: "eth0".parse().unwrap(),
            }],
        }
    }

    fn options() -> InterfaceOptions {
        InterfaceOptions::default()
    }

    fn names(names: &[&str]) -> InterfaceOptions {
        InterfaceOptions { names: names.iter().map(|n| (*n).to_owned()).collect(), ..options() }
    }

    fn regex(pattern: &str) -> InterfaceOptions {
        InterfaceOptions { regexes: vec![pattern.to_owned()], ..options() }
    }

    fn public(ip: [u8; 4], options: InterfaceOptions) -> InterfaceOptions {
        InterfaceOptions { public_ip: Some(ip.into()), ..options }
    }

    #[test]
    fn choices() {
        let cases = [
            ("default route", options(), "eth0", [10, 0, 2, 15], [10, 0, 2, 15]),
            ("by name", names(&["eth1"]), "eth1", [198, 51, 100, 1], [198, 51, 100, 1]),
            ("by address", names(&["10.9.0.5"]), "eth0", [10, 9, 0, 5], [10, 9, 0, 5]),
            (
                "next name",
                names(&["eth9", "eth2", "eth1"]),
                "eth1",
                [198, 51, 100, 1],
                [198, 51, 100, 1],
            ),
            ("pattern of address", regex("^198\\."), "eth1", [198, 51, 100, 1], [198, 51, 100, 1]),
            ("pattern of name", regex("th1"), "eth1", [198, 51, 100, 1], [198, 51, 100, 1]),
            (
                "public address",
                public([198, 51, 100, 1], options()),
                "eth1",
                [198, 51, 100, 1],
                [198, 51, 100, 1],
            ),
            (
                "behind a NAT",
                public([203, 0, 113, 9], names(&["eth1"])),
                "eth1",
                [198, 51, 100, 1],
                [203, 0, 113, 9],
            ),
        ];
        for (case, options, name, ip, public_ip) in cases {
            let expected = ExternalInterface {
                name: name.parse().unwrap(),
                mtu: Mtu::new(1500).unwrap(),
                ip: ip.into(),
                public_ip: public_ip.into(),
            };
            assert_eq!(choose(&options, &host(), None), Ok(expected), "{case}");
        }
    }

    #[test]
    fn the_way_to_an_address_gives_interface_and_source() {
        let options = InterfaceOptions { can_reach: Some([8, 8, 8, 8].into()), ..options() };
        let reach = Some(("eth0".parse().unwrap(), Some([10, 9, 0, 5].into())));
        assert_eq!(choose(&options, &host(), reach).unwrap().ip, Ipv4Addr::new(10, 9, 0, 5));
    }

    #[test]
    fn every_rejected_candidate_is_named_with_the_reason() {
        let mut options = names(&["eth9", "eth2", "10.1.1.1"]);
        options.regexes = vec!["wlan".to_owned(), "(".to_owned()];
        options.can_reach = Some([8, 8, 8, 8].into());
        let NoInterface(rejections) = choose(&options, &host(), None).unwrap_err();
        let text: Vec<_> = rejections.iter().map(ToString::to_string).collect();
        assert_eq!(text[0], "--iface=eth9: no such interface; there are lo, eth0, eth1, eth2");
        assert_eq!(text[1], "--iface=eth2: it has no usable IPv4 address");
        assert_eq!(
            text[2],
            "--iface=10.1.1.1: no interface has this address; behind a NAT, add --iface"
        );
        assert!(text[3].starts_with("--iface-regex=wlan: no such matching interface"));
        assert!(text[4].starts_with("--iface-regex=(: not a pattern"), "{}", text[4]);
        assert_eq!(text[5], "--iface-can-reach=8.8.8.8: no route to this address");
    }

    #[test]
    fn no_default_route_says_what_to_do() {
        let mut host = host();
        host.default_routes.clear();
        assert_eq!(
            choose(&options(), &host, None).unwrap_err().to_string(),
            "no interface for the traffic between nodes: default route: there is none for IPv4; \
             name the interface with --iface"
        );
    }
}
