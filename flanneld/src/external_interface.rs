//! Which interface carries the traffic between nodes, and by which address.
//!
//! The choice is a pure function of what was asked for and what the host has. It keeps the reason
//! for every candidate that was turned down, because "no suitable interface" helps nobody.

use std::fmt;
use std::net::IpAddr;

use fabric::link_name::LinkName;
use fabric::mtu::Mtu;
use fabric::netlink::{Interface, InterfaceAddress, Inventory};
use regex_lite::Regex;

use crate::cli::InterfaceOptions;
use crate::family::{Family, PerFamily};
use crate::on_link::OnLink;

/// The interface between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExternalInterface {
    /// Its name.
    pub(crate) name: LinkName,
    /// Its MTU.
    pub(crate) mtu: Mtu,
    /// Its address for each family that the network has.
    pub(crate) addresses: PerFamily<NodeAddress>,
    /// What is on its network.
    pub(crate) on_link: OnLink,
}

/// The underlay address of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeAddress {
    /// The address that packets leave from.
    pub(crate) ip: IpAddr,
    /// The address that other nodes send to; differs behind a NAT.
    pub(crate) public_ip: IpAddr,
}

/// The interface between nodes, as one family sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Underlay {
    /// The name of the interface.
    pub(crate) link: LinkName,
    /// Its MTU.
    pub(crate) mtu: Mtu,
    /// The address that packets leave from.
    pub(crate) ip: IpAddr,
    /// The address that other nodes send to; differs behind a NAT.
    pub(crate) public_ip: IpAddr,
    /// What is on its network.
    pub(crate) on_link: OnLink,
}

impl ExternalInterface {
    /// Returns what a family sees of it.
    pub(crate) fn underlay(&self, family: Family) -> Option<Underlay> {
        let NodeAddress { ip, public_ip } = *self.addresses.get(family)?;
        let on_link = self.on_link.clone();
        Some(Underlay { link: self.name, mtu: self.mtu, ip, public_ip, on_link })
    }
}

impl fmt::Display for ExternalInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        for NodeAddress { ip, public_ip } in self.addresses.values() {
            write!(f, " {ip}")?;
            if ip != public_ip {
                write!(f, " (published as {public_ip})")?;
            }
        }
        Ok(())
    }
}

impl ExternalInterface {
    /// Returns the interface as it is now, if it is there and still has the addresses.
    pub(crate) fn as_in(&self, inventory: &Inventory) -> Option<Self> {
        let now = inventory.interfaces.iter().find(|interface| interface.name == self.name)?;
        let is_there = |wanted: &NodeAddress| now.addresses.iter().any(|now| now.ip == wanted.ip);
        let mtu = Mtu::new(now.mtu)?;
        let on_link = OnLink::by(self.name, &inventory.ways);
        let now = Self { mtu, on_link, ..self.clone() };
        self.addresses.values().all(is_there).then_some(now)
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
/// these the owner of the public address, or the default route. It must have an address of each of
/// the `families`.
///
/// # Errors
/// If no candidate fits.
pub(crate) fn choose(
    options: &InterfaceOptions,
    families: &[Family],
    inventory: &Inventory,
    reach: Reach,
) -> Result<ExternalInterface, NoInterface> {
    let host = Host { inventory, options, families };
    let mut rejections = Vec::new();
    for candidate in host.candidates() {
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

impl InterfaceOptions {
    /// The address of a family to publish, if one was given.
    fn public(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.public_ip.map(IpAddr::V4),
            Family::V6 => self.public_ipv6.map(IpAddr::V6),
        }
    }
}

enum Candidate<'a> {
    Name(&'a str),
    Regex(&'a str),
    CanReach(IpAddr),
    PublicIp(IpAddr),
    DefaultRoute,
}

impl fmt::Display for Candidate<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "--iface={name}"),
            Self::Regex(pattern) => write!(f, "--iface-regex={pattern}"),
            Self::CanReach(ip) => write!(f, "--iface-can-reach={ip}"),
            Self::PublicIp(ip @ IpAddr::V4(_)) => write!(f, "--public-ip={ip}"),
            Self::PublicIp(ip) => write!(f, "--public-ipv6={ip}"),
            Self::DefaultRoute => f.write_str("default route"),
        }
    }
}

struct Host<'a> {
    inventory: &'a Inventory,
    options: &'a InterfaceOptions,
    families: &'a [Family],
}

impl<'a> Host<'a> {
    fn candidates(&self) -> Vec<Candidate<'a>> {
        let Self { options, families, .. } = *self;
        let names = options.names.iter().map(|name| Candidate::Name(name));
        let regexes = options.regexes.iter().map(|pattern| Candidate::Regex(pattern));
        let reach = options.can_reach.map(Candidate::CanReach);
        let mut candidates: Vec<_> = names.chain(regexes).chain(reach).collect();
        if candidates.is_empty() {
            let public = families.iter().find_map(|family| options.public(*family));
            candidates.push(public.map_or(Candidate::DefaultRoute, Candidate::PublicIp));
        }
        candidates
    }

    fn by_name_or_address(&self, text: &str) -> Result<ExternalInterface, String> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return self.by_address(ip);
        }
        let named = |interface: &&Interface| interface.name.as_str() == text;
        let found = self.inventory.interfaces.iter().find(named);
        self.with_addresses(found.ok_or_else(|| self.unknown("interface"))?, &[])
    }

    fn by_address(&self, ip: IpAddr) -> Result<ExternalInterface, String> {
        if !self.families.contains(&Family::of(ip)) {
            return Err(format!("the network has no {}", Family::of(ip)));
        }
        let owns = |interface: &&Interface| interface.addresses.iter().any(|a| a.ip == ip);
        let owner = self.inventory.interfaces.iter().find(owns);
        let owner = owner
            .ok_or_else(|| "no interface has this address; behind a NAT, add --iface".to_owned())?;
        self.with_addresses(owner, &[ip])
    }

    /// First the addresses are matched, of each family and then of any, and then the names.
    fn by_regex(&self, pattern: &str) -> Result<ExternalInterface, String> {
        let regex = Regex::new(pattern).map_err(|error| format!("not a pattern: {error}"))?;
        for least in [self.families.len(), 1] {
            for interface in &self.inventory.interfaces {
                let matching = |family: &Family| {
                    let mut usable = usable(interface, *family).into_iter();
                    usable.find(|ip| regex.is_match(&ip.to_string()))
                };
                let matching: Vec<_> = self.families.iter().filter_map(matching).collect();
                if matching.len() >= least {
                    return self.with_addresses(interface, &matching);
                }
            }
        }
        let named = |interface: &&Interface| regex.is_match(interface.name.as_str());
        let found = self.inventory.interfaces.iter().find(named);
        self.with_addresses(found.ok_or_else(|| self.unknown("matching interface"))?, &[])
    }

    fn by_reach(&self, reach: Reach) -> Result<ExternalInterface, String> {
        let (name, source) = reach.ok_or_else(|| "no route to this address".to_owned())?;
        self.with_addresses(self.interface(name)?, &Vec::from_iter(source))
    }

    /// The best route whose interface has an address of each family, and a default route of each
    /// family that has one at all.
    fn by_default_route(&self) -> Result<ExternalInterface, String> {
        let routes = &self.inventory.default_routes;
        let of = |family: Family| {
            routes.iter().filter(move |route| route.ipv6 == (family == Family::V6))
        };
        let leads_by = |name, family: &Family| {
            of(*family).next().is_none() || of(*family).any(|route| route.interface == name)
        };
        let mut reasons = Vec::new();
        for route in self.families.iter().flat_map(|family| of(*family)) {
            let name = route.interface;
            let found = match self.families.iter().find(|family| !leads_by(name, family)) {
                Some(family) => Err(format!("no default route for {family} leads by it")),
                None => self.interface(name).and_then(|found| self.with_addresses(found, &[])),
            };
            match found {
                Ok(interface) => return Ok(interface),
                Err(reason) => reasons.push(format!("{name}: {reason}")),
            }
        }
        reasons.dedup();
        if reasons.is_empty() {
            let families: Vec<_> = self.families.iter().map(Family::to_string).collect();
            reasons.push(format!("there is none for {}", families.join(" or ")));
        }
        Err(format!("{}; name the interface with --iface", reasons.join(", ")))
    }

    fn interface(&self, name: LinkName) -> Result<&Interface, String> {
        let found = self.inventory.interfaces.iter().find(|interface| interface.name == name);
        found.ok_or_else(|| format!("{name} is gone"))
    }

    /// Takes these addresses; of other families the one to publish if it is there, or the best.
    fn with_addresses(
        &self,
        interface: &Interface,
        wanted: &[IpAddr],
    ) -> Result<ExternalInterface, String> {
        let mtu = Mtu::new(interface.mtu).ok_or("it has no MTU")?;
        let addresses = PerFamily::try_from_fn(|family| {
            if !self.families.contains(&family) {
                return Ok(None);
            }
            let usable = usable(interface, family);
            let public = self.options.public(family);
            let wanted = wanted.iter().copied().find(|ip| Family::of(*ip) == family);
            let published = || public.filter(|ip| usable.contains(ip));
            let ip = wanted.or_else(published).or(usable.first().copied());
            let ip = ip.ok_or_else(|| format!("it has no usable {family} address"))?;
            Ok::<_, String>(Some(NodeAddress { ip, public_ip: public.unwrap_or(ip) }))
        })?;
        let on_link = OnLink::by(interface.name, &self.inventory.ways);
        Ok(ExternalInterface { name: interface.name, mtu, addresses, on_link })
    }

    fn unknown(&self, what: &str) -> String {
        let names = self.inventory.interfaces.iter().map(|interface| interface.name.as_str());
        format!("no such {what}; there are {}", names.collect::<Vec<_>>().join(", "))
    }
}

/// The addresses that may be used, the best first: those valid beyond the link, then those set by
/// hand, then those that do not change by themselves.
fn usable(interface: &Interface, family: Family) -> Vec<IpAddr> {
    let mut usable: Vec<&InterfaceAddress> = interface
        .addresses
        .iter()
        .filter(|address| Family::of(address.ip) == family && !address.deprecated)
        .filter(|InterfaceAddress { ip, .. }| {
            !ip.is_loopback() && !ip.is_multicast() && !ip.is_unspecified()
        })
        .collect();
    usable.sort_by_key(|address| {
        let link_local = address.link_scope || is_link_local(address.ip);
        (link_local, !address.permanent, address.temporary)
    });
    usable.into_iter().map(|address| address.ip).collect()
}

const fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests;
