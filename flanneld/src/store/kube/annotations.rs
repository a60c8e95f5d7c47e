//! A node's lease as annotations of its Node object, byte for byte as flannel writes them.
//!
//! flannel recovers the Ethernet address of a tunnel device by cutting `backend-data` at `:"`, so
//! that nothing may be added to it. What an administrator writes (`public-ip-overwrite`,
//! `node-public-ip` and their IPv6 kind) is only read.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;

use crate::family::{Family, PerFamily};
use crate::lease::acquire::Listed;
use crate::lease::{Attributes, BackendData, LeaseKey};

/// Annotations as they stand in the API.
pub(super) type Texts = BTreeMap<String, String>;

/// The names of the annotations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Annotations {
    /// Ends in `/` or `-`.
    prefix: String,
}

/// What is wrong with `--kube-annotation-prefix`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "want a domain such as flannel.alpha.coreos.com, and after a slash maybe a name of small \
     letters, digits, - and _"
)]
pub(crate) struct BadPrefix;

/// What peers must find before they look at anything else.
const MANAGED: &str = "kube-subnet-manager";
const BACKEND_TYPE: &str = "backend-type";

/// The annotations of one family.
struct Names {
    data: &'static str,
    public_ip: &'static str,
    /// Published instead of the address in use.
    overwrite: &'static str,
    /// Used instead of `--public-ip`.
    own: &'static str,
}

const fn names(family: Family) -> Names {
    match family {
        Family::V4 => Names {
            data: "backend-data",
            public_ip: "public-ip",
            overwrite: "public-ip-overwrite",
            own: "node-public-ip",
        },
        Family::V6 => Names {
            data: "backend-v6-data",
            public_ip: "public-ipv6",
            overwrite: "public-ipv6-overwrite",
            own: "node-public-ipv6",
        },
    }
}

impl Annotations {
    /// Completes a prefix as flannel does: `a.b` means `a.b/`, and `a.b/c` means `a.b/c-`.
    pub(crate) fn with_prefix(text: &str) -> Result<Self, BadPrefix> {
        let (domain, name) = text.split_once('/').unwrap_or((text, ""));
        let of = |text: &str, more: &[u8]| {
            text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || more.contains(&b))
        };
        let is_domain = domain.contains('.') && domain.split('.').all(|part| !part.is_empty());
        if !is_domain || !of(domain, b".-") || !of(name, b"_-") {
            return Err(BadPrefix);
        }
        let end = if name.is_empty() || name.ends_with('-') { "" } else { "-" };
        Ok(Self { prefix: format!("{domain}/{name}{end}") })
    }

    fn name(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.prefix)
    }

    fn get<'a>(&self, texts: &'a Texts, suffix: &str) -> Option<&'a str> {
        texts.get(&self.name(suffix)).map(String::as_str)
    }

    /// Whether these are worth keeping: all others of a node are somebody else's.
    pub(super) fn is_ours(&self, name: &str) -> bool {
        name.starts_with(&self.prefix)
    }

    /// Returns what a node shall say that has these attributes and annotations; `None` is for an
    /// annotation that shall not be there.
    pub(super) fn desired(
        &self,
        attributes: &Attributes,
        texts: &Texts,
    ) -> BTreeMap<String, Option<String>> {
        let mut desired = BTreeMap::from([
            (self.name(MANAGED), Some("true".to_owned())),
            (self.name(BACKEND_TYPE), Some(attributes.backend_type.clone())),
        ]);
        for family in Family::ALL {
            let names = names(family);
            let (data, public_ip) = if is_published(attributes, family) {
                let data = attributes.data(family);
                let data = data.map_or_else(|| "null".to_owned(), ToString::to_string);
                let in_use = attributes.public(family).unwrap_or(Ipv4Addr::UNSPECIFIED.into());
                let overwrite = self.address(texts, names.overwrite, family);
                (Some(data), Some(overwrite.unwrap_or(in_use).to_string()))
            } else {
                (None, None)
            };
            desired.insert(self.name(names.data), data);
            desired.insert(self.name(names.public_ip), public_ip);
        }
        desired
    }

    /// Reads the lease of a node with these subnets. Returns nothing for a node that takes no part,
    /// and no attributes if what it says is unreadable. Each family is there or not by itself.
    pub(super) fn lease(&self, texts: &Texts, subnets: PerFamily<IpNetwork>) -> Option<Listed> {
        if self.get(texts, MANAGED) != Some("true") {
            return None;
        }
        let address = |family| self.address(texts, names(family).public_ip, family);
        let reachable = PerFamily {
            ipv4: subnets.ipv4.filter(|_| address(Family::V4).is_some()),
            ipv6: subnets.ipv6.filter(|_| address(Family::V6).is_some()),
        };
        match LeaseKey::new(reachable) {
            Some(key) => Some(Listed { key, attributes: self.attributes(texts) }),
            None => Some(Listed { key: LeaseKey::new(subnets)?, attributes: None }),
        }
    }

    /// Reads what a node publishes, whatever its subnets.
    pub(super) fn attributes(&self, texts: &Texts) -> Option<Attributes> {
        let address = |family| self.address(texts, names(family).public_ip, family);
        let data = |family| match self.get(texts, names(family).data) {
            None | Some("" | "null") => Some(None),
            Some(text) => read_data(text).ok().map(Some),
        };
        Some(Attributes {
            public_ip: match address(Family::V4) {
                Some(IpAddr::V4(ip)) => ip,
                _ => Ipv4Addr::UNSPECIFIED,
            },
            public_ipv6: match address(Family::V6) {
                Some(IpAddr::V6(ip)) => Some(ip),
                _ => None,
            },
            backend_type: self.get(texts, BACKEND_TYPE).unwrap_or_default().to_owned(),
            backend_data: data(Family::V4)?,
            backend_v6_data: data(Family::V6)?,
        })
    }

    /// Returns the addresses that the administrator wants this node to have.
    pub(super) fn own_addresses(&self, texts: &Texts) -> PerFamily<IpAddr> {
        let address = |family| self.address(texts, names(family).own, family);
        PerFamily { ipv4: address(Family::V4), ipv6: address(Family::V6) }
    }

    fn address(&self, texts: &Texts, suffix: &str, family: Family) -> Option<IpAddr> {
        let address: IpAddr = self.get(texts, suffix)?.parse().ok()?;
        (address.is_ipv4() == (family == Family::V4)).then_some(address)
    }
}

fn read_data(text: &str) -> Result<BackendData, serde_json::Error> {
    serde_json::from_str(text).map(BackendData::read)
}

/// Whether flannel writes the annotations of a family: backends with devices of their own only once
/// there is one, the others as soon as there is an address. IPv4 is always told by those that know
/// nothing else.
fn is_published(attributes: &Attributes, family: Family) -> bool {
    let has_data = attributes.data(family).is_some();
    let has_address = attributes.public(family).is_some();
    match (attributes.backend_type.as_str(), family) {
        ("vxlan", _) | ("wireguard", Family::V4) => has_data,
        ("host-gw" | "extension", Family::V6) => has_address,
        (_, Family::V4) => true,
        // That of udp is ours alone; flannel's carries no IPv6, and never reads it.
        (_, Family::V6) => has_data && has_address,
    }
}

#[cfg(test)]
mod tests;
