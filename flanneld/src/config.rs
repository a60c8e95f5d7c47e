//! The network configuration that all nodes share: a JSON object in the store.
//!
//! It is decoded by Go's rules, because it was written for a Go program. Nothing is ever written
//! back. What a backend makes of its options is decided by the backend.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::family::{Family, PerFamily};

/// The network configuration, valid as a whole.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NetworkConfig {
    /// The subnets to lease: of IPv4 unless it is switched off, of IPv6 if it is switched on.
    pub(crate) pools: PerFamily<Pool>,
    /// Whether rules go into nftables or into iptables, by the administrator's word.
    pub(crate) enable_nftables: Option<bool>,
    /// How packets travel between nodes.
    pub(crate) backend: BackendConfig,
}

/// The subnets that nodes of one family can lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pool {
    /// The network of all pods.
    pub(crate) network: IpNetwork,
    /// The prefix length of each subnet.
    pub(crate) subnet_len: u8,
    /// The first subnet that may be leased.
    pub(crate) min: IpAddr,
    /// The last one.
    pub(crate) max: IpAddr,
}

/// The kind of backend, in lower case, and all its options.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BackendConfig {
    pub(crate) kind: String,
    pub(crate) options: Value,
}

/// What is wrong with the configuration.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("the network configuration does not decode")]
    Json(#[from] fabric::json::Error),
    #[error("neither EnableIPv4 nor EnableIPv6 is true")]
    NoFamily,
    #[error(
        "{} is missing: want the network of all pods, such as {}", .0.keys().network, .0.example()
    )]
    NoNetwork(Family),
    #[error(
        "{key} {value} is too small: at least four subnets must fit; want a prefix of at most /{longest}"
    )]
    NetworkTooSmall { key: &'static str, value: IpNetwork, longest: u8 },
    #[error("{key} {value} is out of range: want {shortest} to {longest} with {network}")]
    SubnetLen { key: &'static str, value: u32, shortest: u8, longest: u8, network: IpNetwork },
    #[error("{key} {value} is not in {network}")]
    NotInside { key: &'static str, value: IpAddr, network: IpNetwork },
    #[error("{key} {value} is not the first address of a /{subnet_len}")]
    NotOnBoundary { key: &'static str, value: IpAddr, subnet_len: u8 },
    #[error(
        "{key} {value} has IPv4 addresses in the form of IPv6 in it, which no pod can have: want \
         another network, such as fc00::/48"
    )]
    Mapped { key: &'static str, value: IpNetwork },
    #[error("Backend has no Type: want vxlan, host-gw or udp")]
    NoBackendType,
}

impl Family {
    const fn example(self) -> &'static str {
        match self {
            Self::V4 => "10.244.0.0/16",
            Self::V6 => "fd00:10:244::/48",
        }
    }

    const fn keys(self) -> Keys {
        match self {
            Self::V4 => {
                Keys { network: "Network", len: "SubnetLen", min: "SubnetMin", max: "SubnetMax" }
            }
            Self::V6 => Keys {
                network: "IPv6Network",
                len: "IPv6SubnetLen",
                min: "IPv6SubnetMin",
                max: "IPv6SubnetMax",
            },
        }
    }

    /// The length that subnets get when nothing is said, or `None` if the network is too small.
    fn default_subnet_len(self, prefix: u8) -> Option<u8> {
        let usual = match self {
            Self::V4 => 24,
            Self::V6 => 64,
        };
        // Four subnets of four addresses are the least.
        let longest = self.bits() - 4;
        if prefix > longest { None } else { Some(usual.max(prefix + 2)) }
    }
}

struct Keys {
    network: &'static str,
    len: &'static str,
    min: &'static str,
    max: &'static str,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Document {
    #[serde(rename = "Network", deserialize_with = "cidr")]
    network: Option<Ipv4Network>,
    #[serde(rename = "IPv6Network", deserialize_with = "cidr")]
    ipv6_network: Option<Ipv6Network>,
    #[serde(rename = "EnableIPv4")]
    enable_ipv4: Option<bool>,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: bool,
    #[serde(rename = "EnableNFTables")]
    enable_nftables: Option<bool>,
    #[serde(rename = "SubnetLen")]
    subnet_len: Option<u32>,
    #[serde(rename = "SubnetMin")]
    subnet_min: Option<Ipv4Addr>,
    #[serde(rename = "SubnetMax")]
    subnet_max: Option<Ipv4Addr>,
    #[serde(rename = "IPv6SubnetLen")]
    ipv6_subnet_len: Option<u32>,
    #[serde(rename = "IPv6SubnetMin")]
    ipv6_subnet_min: Option<Ipv6Addr>,
    #[serde(rename = "IPv6SubnetMax")]
    ipv6_subnet_max: Option<Ipv6Addr>,
    #[serde(rename = "Backend")]
    backend: Option<Value>,
}

/// A network has a length; the library would take an address without one as a network of one.
fn cidr<'de, D, N>(deserializer: D) -> Result<Option<N>, D::Error>
where
    D: Deserializer<'de>,
    N: FromStr<Err: Display>,
{
    let text = String::deserialize(deserializer)?;
    let wrong = |reason: String| D::Error::custom(format!("{text:?} is not a network: {reason}"));
    if !text.contains('/') {
        return Err(wrong("it has no length, such as /16".to_owned()));
    }
    text.parse().map(Some).map_err(|error: N::Err| wrong(error.to_string()))
}

/// One family of the document, before it is checked.
struct PoolDocument {
    family: Family,
    network: Option<IpNetwork>,
    subnet_len: Option<u32>,
    min: Option<IpAddr>,
    max: Option<IpAddr>,
}

impl Document {
    /// What it says about the families that are switched on.
    fn pools(&self) -> PerFamily<PoolDocument> {
        let ipv4 = self.enable_ipv4.unwrap_or(true).then(|| PoolDocument {
            family: Family::V4,
            network: self.network.map(IpNetwork::V4),
            subnet_len: self.subnet_len,
            min: self.subnet_min.map(IpAddr::V4),
            max: self.subnet_max.map(IpAddr::V4),
        });
        let ipv6 = self.enable_ipv6.then(|| PoolDocument {
            family: Family::V6,
            network: self.ipv6_network.map(IpNetwork::V6),
            subnet_len: self.ipv6_subnet_len,
            min: self.ipv6_subnet_min.map(IpAddr::V6),
            max: self.ipv6_subnet_max.map(IpAddr::V6),
        });
        PerFamily { ipv4, ipv6 }
    }
}

impl NetworkConfig {
    /// Decodes and checks the configuration, and fills in what it leaves open.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        Self::decode(json, PoolDocument::check)
    }

    /// The same where subnets are assigned: nothing that is said about them counts, as with flannel.
    pub(crate) fn parse_assigned(json: &[u8]) -> Result<Self, ConfigError> {
        Self::decode(json, PoolDocument::whole)
    }

    fn decode(
        json: &[u8],
        check: impl Fn(&PoolDocument) -> Result<Pool, ConfigError>,
    ) -> Result<Self, ConfigError> {
        let document: Document = fabric::json::from_slice(json)?;
        let pools = document.pools();
        if pools.families().next().is_none() {
            return Err(ConfigError::NoFamily);
        }
        Ok(Self {
            pools: PerFamily::try_from_fn(|family| pools.get(family).map(&check).transpose())?,
            enable_nftables: document.enable_nftables,
            backend: BackendConfig::parse(document.backend)?,
        })
    }
}

impl BackendConfig {
    fn parse(value: Option<Value>) -> Result<Self, ConfigError> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Backend {
            #[serde(rename = "Type")]
            kind: String,
        }
        let Some(options) = value else {
            // What a configuration without a backend has always meant.
            return Ok(Self { kind: "udp".to_owned(), options: Value::Null });
        };
        let kind = match &options {
            Value::Null => String::new(),
            value => fabric::json::from_value::<Backend>(value.clone())?.kind.to_lowercase(),
        };
        if kind.is_empty() { Err(ConfigError::NoBackendType) } else { Ok(Self { kind, options }) }
    }
}

impl PoolDocument {
    /// All of the network, in one piece.
    fn whole(&self) -> Result<Pool, ConfigError> {
        let network = self.network()?;
        let (subnet_len, base) = (network.prefix(), network.network());
        Ok(Pool { network, subnet_len, min: base, max: base })
    }

    fn network(&self) -> Result<IpNetwork, ConfigError> {
        let network = self.network.filter(|network| network.prefix() > 0);
        let network = network.ok_or(ConfigError::NoNetwork(self.family))?;
        let network = IpNetwork::new(network.network(), network.prefix())
            .expect("the prefix of a network is valid");
        if has_mapped(network) {
            return Err(ConfigError::Mapped { key: self.family.keys().network, value: network });
        }
        Ok(network)
    }

    fn check(&self) -> Result<Pool, ConfigError> {
        let keys = self.family.keys();
        let network = self.network()?;
        let subnet_len = self.subnet_len(network)?;
        let step = 1 << (self.family.bits() - subnet_len);
        let first = to_bits(network.network());
        let size = 1_u128 << (self.family.bits() - network.prefix());
        let pool = Pool {
            network,
            subnet_len,
            // The first subnet is left out, as it always was.
            min: self.min.unwrap_or_else(|| from_bits(first + step, self.family)),
            max: self.max.unwrap_or_else(|| from_bits(first + (size - step), self.family)),
        };
        for (key, value) in [(keys.min, pool.min), (keys.max, pool.max)] {
            if !network.contains(value) {
                return Err(ConfigError::NotInside { key, value, network });
            }
            if !to_bits(value).is_multiple_of(step) {
                return Err(ConfigError::NotOnBoundary { key, value, subnet_len });
            }
        }
        Ok(pool)
    }

    fn subnet_len(&self, network: IpNetwork) -> Result<u8, ConfigError> {
        let keys = self.family.keys();
        let prefix = network.prefix();
        let longest = self.family.bits() - 2;
        let too_small = ConfigError::NetworkTooSmall {
            key: keys.network,
            value: network,
            longest: self.family.bits() - 4,
        };
        let Some(value) = self.subnet_len.filter(|len| *len != 0) else {
            return self.family.default_subnet_len(prefix).ok_or(too_small);
        };
        let shortest = prefix + 2;
        if shortest > longest {
            return Err(too_small);
        }
        let range = ConfigError::SubnetLen { key: keys.len, value, shortest, longest, network };
        let len = u8::try_from(value).ok().filter(|len| (shortest..=longest).contains(len));
        len.ok_or(range)
    }
}

impl Pool {
    /// Whether `subnet` is one of those that can be leased.
    pub(crate) fn offers(&self, subnet: IpNetwork) -> bool {
        subnet.is_ipv4() == self.network.is_ipv4()
            && subnet.prefix() == self.subnet_len
            && (self.min..=self.max).contains(&subnet.network())
            && subnet.ip() == subnet.network()
    }

    /// Returns the subnets that can be leased, from the first to the last.
    pub(crate) fn subnets(&self) -> impl Iterator<Item = IpNetwork> {
        let family = Family::of_network(self.network);
        let step = 1_u128 << (family.bits() - self.subnet_len);
        let (min, max) = (to_bits(self.min), to_bits(self.max));
        let subnet_len = self.subnet_len;
        std::iter::successors(Some(min), move |base| base.checked_add(step))
            .take_while(move |base| *base <= max)
            .map(move |base| {
                IpNetwork::new(from_bits(base, family), subnet_len).expect("the length was checked")
            })
    }
}

/// Whether there are IPv4-mapped addresses in a network (RFC 4291, section 2.5.5.2). Their text has
/// dots, and no key with that is a lease for flannel.
fn has_mapped(network: IpNetwork) -> bool {
    let mapped = Ipv6Network::new(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(), 96);
    let mapped = mapped.expect("an IPv6 address has more bits than that");
    matches!(network, IpNetwork::V6(network) if network.overlaps(mapped))
}

fn to_bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn from_bits(bits: u128, family: Family) -> IpAddr {
    match family {
        Family::V4 => u32::try_from(bits)
            .map_or(IpAddr::from([255; 4]), |bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
        Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(bits)),
    }
}

#[cfg(test)]
mod tests;
