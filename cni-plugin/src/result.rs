//! The result of an ADD: one model, and how each version of the specification writes it.
//!
//! Callers parse JSON, yet the order of keys is that of the Go library, so that tools which compare
//! text keep working.

use std::net::IpAddr;

use fabric::json;
use ipnetwork::IpNetwork;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::output::pretty;
use crate::version::Version;

/// What an attachment got, or all attachments of a list so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddResult {
    /// Interfaces made, on the host and in the sandbox.
    pub interfaces: Vec<Interface>,
    /// Addresses given.
    pub ips: Vec<Ip>,
    /// Routes made in the sandbox.
    pub routes: Vec<Route>,
    /// Name servers for the sandbox; nobody here configures them.
    pub dns: Dns,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Interface {
    /// Its name where it lives.
    pub name: String,
    /// Its Ethernet address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU; 0 if the plugin that made it did not say.
    #[serde(skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// The namespace it lives in, as the runtime calls it; empty for the host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// For interfaces that are sockets.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// For interfaces that are PCI devices.
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// The interface that has it, as an index into the interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// The address, with the length of the subnet it is in.
    #[serde(deserialize_with = "cidr")]
    pub address: IpNetwork,
    /// The gateway of the subnet.
    #[serde(default, deserialize_with = "address", skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where it leads to.
    #[serde(deserialize_with = "cidr")]
    pub dst: IpNetwork,
    /// The next hop; without it, the gateway of the family.
    #[serde(default, deserialize_with = "address", skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Its MTU; 0 for that of the interface.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// The largest TCP segment to ask for; 0 to leave it to the kernel.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub advmss: u32,
    /// Metric; 0 for the kernel's default.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: u32,
    /// Routing table; `None` for the main one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope as in rtnetlink(7): 0 universe, 253 link, 254 host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u32>,
}

impl Route {
    /// A route to `dst` that leaves everything else open.
    pub const fn to(dst: IpNetwork) -> Self {
        Self { dst, gw: None, mtu: 0, advmss: 0, priority: 0, table: None, scope: None }
    }
}

/// Name servers and what else a resolver is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of servers, the preferred one first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Domains to look in for short names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options for the resolver.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Why a result cannot be written or read in a version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResultError {
    /// Results of 0.1.0 and 0.2.0 are nothing but addresses.
    #[error("cannot convert: no valid IP addresses")]
    NoAddresses,
    /// A `prevResult` does not decode.
    #[error("could not parse prevResult")]
    Malformed(#[source] json::Error),
    /// A `prevResult` is of another generation than its configuration.
    #[error(
        "could not parse prevResult: result type supports [{}] but unmarshalled CNIVersion is {found:?}",
        join(expected)
    )]
    OtherGeneration {
        /// The versions that would have been right.
        expected: &'static [Version],
        /// The version that the result says it has.
        found: String,
    },
}

impl AddResult {
    /// Writes the result as `version` wants it.
    ///
    /// # Errors
    /// If the version cannot express it: before 0.3.0 there must be an address.
    pub fn encode(&self, version: Version) -> Result<String, ResultError> {
        Ok(match generation(version) {
            Generation::Families => pretty(&Families::of(self, version)?),
            Generation::VersionedIps => pretty(&VersionedIps::of(self, version)),
            // Go writes these through a map, which sorts the keys, and so does this.
            Generation::Current => pretty(&json_value(&Current::of(self, version))),
        })
    }

    /// Reads a `prevResult` of a configuration in `version`.
    ///
    /// # Errors
    /// If it does not decode, or says that it is of another generation.
    pub fn decode(version: Version, result: Value) -> Result<Self, ResultError> {
        let said: Said = json::from_value(result.clone()).map_err(ResultError::Malformed)?;
        let expected = versions_of(generation(version));
        let is_expected = |said| expected.contains(&said);
        if !said.cni_version.is_empty()
            && !Version::exact(&said.cni_version).is_some_and(is_expected)
        {
            return Err(ResultError::OtherGeneration { expected, found: said.cni_version });
        }
        let decoded = match generation(version) {
            Generation::Families => json::from_value(result).map(OwnedFamilies::into_result),
            // The version of an address says nothing that the address does not.
            Generation::VersionedIps | Generation::Current => {
                json::from_value(result).map(OwnedCurrent::into_result)
            }
        };
        decoded.map_err(ResultError::Malformed)
    }
}

impl AddResult {
    /// Reads the result of a plugin that was called with a configuration in `version`. It may be in
    /// another one if it says so.
    ///
    /// # Errors
    /// If it does not decode, or is in a version that does not exist.
    pub fn decode_any(version: Version, result: Value) -> Result<Self, ResultError> {
        let said: Said = json::from_value(result.clone()).map_err(ResultError::Malformed)?;
        Self::decode(Version::exact(&said.cni_version).unwrap_or(version), result)
    }
}

/// Versions whose results differ in nothing but the version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Generation {
    /// One address per family.
    Families,
    /// Any number of addresses, each with its family.
    VersionedIps,
    /// Any number of addresses.
    Current,
}

const fn generation(version: Version) -> Generation {
    match version {
        Version::V0_1_0 | Version::V0_2_0 => Generation::Families,
        Version::V0_3_0 | Version::V0_3_1 | Version::V0_4_0 => Generation::VersionedIps,
        Version::V1_0_0 | Version::V1_1_0 => Generation::Current,
    }
}

const fn versions_of(generation: Generation) -> &'static [Version] {
    match generation {
        Generation::Families => &[Version::V0_1_0, Version::V0_2_0],
        Generation::VersionedIps => &[Version::V0_3_0, Version::V0_3_1, Version::V0_4_0],
        Generation::Current => &[Version::V1_0_0, Version::V1_1_0],
    }
}

fn join(versions: &[Version]) -> String {
    versions.iter().map(|version| version.as_str()).collect::<Vec<_>>().join(" ")
}

/// The version that a result says it has.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "a result")]
struct Said {
    cni_version: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Families<'a> {
    cni_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip4: Option<Family>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip6: Option<Family>,
    dns: &'a Dns,
}

#[derive(Serialize, Deserialize)]
struct Family {
    #[serde(deserialize_with = "cidr")]
    ip: IpNetwork,
    #[serde(default, deserialize_with = "address", skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route>,
}

impl<'a> Families<'a> {
    fn of(result: &'a AddResult, version: Version) -> Result<Self, ResultError> {
        let family = |is_v4: bool| {
            let ip = result.ips.iter().find(|ip| ip.address.is_ipv4() == is_v4)?;
            let routes = result.routes.iter().filter(|route| route.dst.is_ipv4() == is_v4);
            let routes = routes.map(|route| Route { gw: route.gw, ..Route::to(route.dst) });
            Some(Family { ip: ip.address, gateway: ip.gateway, routes: routes.collect() })
        };
        let (ip4, ip6) = (family(true), family(false));
        if ip4.is_none() && ip6.is_none() {
            return Err(ResultError::NoAddresses);
        }
        Ok(Self { cni_version: version.as_str(), ip4, ip6, dns: &result.dns })
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OwnedFamilies {
    ip4: Option<Family>,
    ip6: Option<Family>,
    dns: Dns,
}

impl OwnedFamilies {
    fn into_result(self) -> AddResult {
        let mut result = AddResult { dns: self.dns, ..AddResult::default() };
        for family in [self.ip4, self.ip6].into_iter().flatten() {
            let Family { ip, gateway, routes } = family;
            result.ips.push(Ip { interface: None, address: ip, gateway });
            result.routes.extend(routes);
        }
        result
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VersionedIps<'a> {
    cni_version: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interfaces: Vec<Interface>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ips: Vec<VersionedIp<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    routes: &'a [Route],
    dns: &'a Dns,
}

#[derive(Serialize)]
struct VersionedIp<'a> {
    version: &'static str,
    #[serde(flatten)]
    ip: &'a Ip,
}

impl<'a> VersionedIps<'a> {
    fn of(result: &'a AddResult, version: Version) -> Self {
        let interfaces = result.interfaces.iter().map(|interface| Interface {
            name: interface.name.clone(),
            mac: interface.mac.clone(),
            sandbox: interface.sandbox.clone(),
            ..Interface::default()
        });
        let ips = result
            .ips
            .iter()
            .map(|ip| VersionedIp { version: if ip.address.is_ipv4() { "4" } else { "6" }, ip });
        Self {
            cni_version: version.as_str(),
            interfaces: interfaces.collect(),
            ips: ips.collect(),
            routes: &result.routes,
            dns: &result.dns,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Current<'a> {
    cni_version: &'static str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    interfaces: &'a [Interface],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    ips: &'a [Ip],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    routes: &'a [Route],
    #[serde(skip_serializing_if = "Dns::is_empty")]
    dns: &'a Dns,
}

impl<'a> Current<'a> {
    fn of(result: &'a AddResult, version: Version) -> Self {
        let AddResult { interfaces, ips, routes, dns } = result;
        Self { cni_version: version.as_str(), interfaces, ips, routes, dns }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OwnedCurrent {
    interfaces: Vec<Interface>,
    ips: Vec<Ip>,
    routes: Vec<Route>,
    dns: Dns,
}

impl OwnedCurrent {
    fn into_result(self) -> AddResult {
        let Self { interfaces, ips, routes, dns } = self;
        AddResult { interfaces, ips, routes, dns }
    }
}

fn json_value(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("all keys are text and all numbers are finite")
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Decodes an address with the length of its subnet. Host bits are kept; a bare address, which
/// [`IpNetwork`] would take, is refused as by everybody else.
fn cidr<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpNetwork, D::Error> {
    let text = String::deserialize(deserializer)?;
    let parsed = text.contains('/').then(|| text.parse().ok()).flatten();
    parsed.ok_or_else(|| D::Error::custom(format_args!("invalid CIDR address: {text}")))
}

/// Decodes an address, where an empty text stands for none.
fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    let invalid = |_| D::Error::custom(format_args!("invalid IP address: {text}"));
    text.parse().map(Some).map_err(invalid)
}

#[cfg(test)]
mod tests;
