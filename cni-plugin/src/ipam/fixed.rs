//! Addresses that the configuration names one by one: what the plugin `static` understands of it.
//!
//! Nothing is taken from anywhere, so nothing has to be given back.

use std::net::IpAddr;

use fabric::json;
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::args::Args;
use crate::result::{Dns, Ip, Route};
use crate::version::Version;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed {
    addresses: Vec<(IpNetwork, Option<IpAddr>)>,
    /// What the sandbox is told to reach through the gateway.
    pub routes: Vec<Route>,
    /// What the sandbox is told about name servers.
    pub dns: Dns,
}

/// Why a configuration cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum FixedError {
    /// It has a value of the wrong type.
    #[error("failed to load netconf")]
    Json(#[source] json::Error),
    /// It does not say anything about addresses.
    #[error("IPAM config missing 'ipam' key")]
    NoIpam,
    /// What is called an address has no prefix length, or is none.
    #[error("the '{key}' field is expected to be in CIDR notation, got: '{value}'")]
    Cidr {
        /// Where it stands.
        key: &'static str,
        /// What stands there.
        value: String,
    },
    /// The same in a list of the runtime.
    #[error("an entry in the 'ips' field is NOT in CIDR notation, got: '{0}'")]
    Entry(String),
    /// What is called a gateway is no address.
    #[error("invalid gateway address: {0}")]
    Gateway(String),
    /// Old versions of the specification know one address per family.
    #[error("CNI version {0} does not support more than 1 address per family")]
    OnePerFamily(Version),
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawConfig {
    cni_version: String,
    ipam: Option<RawIpam>,
    args: RawArgs,
    runtime_config: RawIps,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawIpam {
    addresses: Vec<RawAddress>,
    routes: Vec<Route>,
    dns: Dns,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawAddress {
    address: String,
    gateway: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawArgs {
    cni: RawIps,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawIps {
    ips: Vec<String>,
}

impl Fixed {
    /// Reads the configuration of a network together with the `CNI_ARGS` of an attachment.
    ///
    /// `CNI_ARGS` add to the configured addresses; `args` in the configuration and what the runtime
    /// says replace them.
    ///
    /// # Errors
    /// If it cannot be understood.
    pub fn new(config: &Map<String, Value>, args: &Args) -> Result<Self, FixedError> {
        let raw: RawConfig = json::from_value(config.clone().into()).map_err(FixedError::Json)?;
        let ipam = raw.ipam.ok_or(FixedError::NoIpam)?;
        let mut addresses = configured(&ipam.addresses)?;
        addresses.extend(by_args(args)?.into_iter().map(|address| (address, None)));
        assign_gateways(&args.gateway, &mut addresses)?;
        for ips in [&raw.args.cni.ips, &raw.runtime_config.ips] {
            if !ips.is_empty() {
                addresses = ips.iter().map(|text| entry(text)).collect::<Result<_, _>>()?;
            }
        }
        let version = Version::exact(&raw.cni_version).unwrap_or(Version::NEWEST);
        check_families(&addresses, version)?;
        Ok(Self { addresses, routes: ipam.routes, dns: ipam.dns })
    }

    /// The addresses, as a result has them.
    pub fn ips(&self) -> Vec<Ip> {
        let ip = |&(address, gateway): &(IpNetwork, _)| Ip { interface: None, address, gateway };
        self.addresses.iter().map(ip).collect()
    }
}

type Addresses = Vec<(IpNetwork, Option<IpAddr>)>;

fn configured(raw: &[RawAddress]) -> Result<Addresses, FixedError> {
    let address = |raw: &RawAddress| {
        let address = cidr("address", &raw.address)?;
        let gateway = Some(&raw.gateway).filter(|text| !text.is_empty());
        Ok((address, gateway.map(|text| gateway_of(text)).transpose()?))
    };
    raw.iter().map(address).collect()
}

fn by_args(args: &Args) -> Result<Vec<IpNetwork>, FixedError> {
    words(&args.ip).map(|text| cidr("ip", text)).collect()
}

/// A gateway is that of every address in whose subnet it is.
fn assign_gateways(list: &str, addresses: &mut Addresses) -> Result<(), FixedError> {
    for text in words(list) {
        let gateway = gateway_of(text)?;
        for (address, of_address) in &mut *addresses {
            if address.is_ipv4() == gateway.is_ipv4() && address.contains(gateway) {
                *of_address = Some(gateway);
            }
        }
    }
    Ok(())
}

fn entry(text: &str) -> Result<(IpNetwork, Option<IpAddr>), FixedError> {
    let address = parse_cidr(text).ok_or_else(|| FixedError::Entry(text.to_owned()))?;
    Ok((address, None))
}

fn words(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|word| !word.is_empty())
}

fn cidr(key: &'static str, text: &str) -> Result<IpNetwork, FixedError> {
    parse_cidr(text).ok_or_else(|| FixedError::Cidr { key, value: text.to_owned() })
}

fn parse_cidr(text: &str) -> Option<IpNetwork> {
    text.contains('/').then(|| text.parse().ok()).flatten()
}

fn gateway_of(text: &str) -> Result<IpAddr, FixedError> {
    text.parse().map_err(|_| FixedError::Gateway(text.to_owned()))
}

fn check_families(addresses: &Addresses, version: Version) -> Result<(), FixedError> {
    let v4 = addresses.iter().filter(|(address, _)| address.is_ipv4()).count();
    let too_many = v4 > 1 || addresses.len() - v4 > 1;
    if version < Version::V0_3_0 && too_many {
        return Err(FixedError::OnePerFamily(version));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fixed(changes: Value, args: &str) -> Result<Fixed, FixedError> {
        let mut config = json!({
            "cniVersion": "1.0.0",
            "ipam": {
                "type": "static",
                "addresses": [
                    {"address": "10.10.0.1/24", "gateway": "10.10.0.254"},
                    {"address": "3ffe:ffff::1/64", "gateway": "3ffe:ffff::ffff"},
                ],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "10.10.5.1"}],
                "dns": {"nameservers": ["8.8.8.8"], "domain": "example.com"},
            },
        });
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        Fixed::new(config.as_object().unwrap(), &Args::parse(args).unwrap())
    }

    fn addresses(fixed: &Fixed) -> Vec<String> {
        let text = |ip: Ip| {
            let gateway = ip.gateway.map(|gateway| format!(" via {gateway}"));
            format!("{}{}", ip.address, gateway.unwrap_or_default())
        };
        fixed.ips().into_iter().map(text).collect()
    }

    #[test]
    fn what_the_runtime_says_counts_most() {
        let by_runtime = json!({"IPs": ["10.40.0.1/24"]});
        let by_args = json!({"cni": {"ips": ["10.30.0.1/24", "fd30::1/64"]}});
        let table = [
            (
                json!({}),
                "",
                &["10.10.0.1/24 via 10.10.0.254", "3ffe:ffff::1/64 via 3ffe:ffff::ffff"][..],
            ),
            (
                json!({}),
                "IP=10.20.0.1/24,fd20::1/64;GATEWAY=10.20.0.9,10.10.0.9",
                &[
                    "10.10.0.1/24 via 10.10.0.9",
                    "3ffe:ffff::1/64 via 3ffe:ffff::ffff",
                    "10.20.0.1/24 via 10.20.0.9",
                    "fd20::1/64",
                ],
            ),
            (json!({"args": by_args}), "IP=10.20.0.1/24", &["10.30.0.1/24", "fd30::1/64"]),
            (json!({"args": by_args, "runtimeConfig": by_runtime}), "", &["10.40.0.1/24"]),
            (json!({"ipam": {}}), "IP=10.20.0.1/24", &["10.20.0.1/24"]),
            (json!({"ipam": {}}), "", &[]),
        ];
        for (changes, args, expected) in table {
            assert_eq!(addresses(&fixed(changes, args).unwrap()), expected, "{args}");
        }
        let fixed = fixed(json!({}), "").unwrap();
        assert_eq!(fixed.routes[1].gw, Some("10.10.5.1".parse().unwrap()));
        assert_eq!(fixed.dns.domain, "example.com");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let address = |text: &str| json!({"ipam": {"addresses": [{"address": text}]}});
        let gateway = json!({"addresses": [{"address": "10.0.0.1/8", "gateway": "x"}]});
        let two = json!({"addresses": [{"address": "10.0.0.1/8"}, {"address": "10.0.0.2/8"}]});
        let table = [
            (json!({"ipam": null}), "", "IPAM config missing 'ipam' key"),
            (
                address("10.0.0.1"),
                "",
                "the 'address' field is expected to be in CIDR notation, got: '10.0.0.1'",
            ),
            (
                json!({}),
                "IP=10.0.0.1",
                "the 'ip' field is expected to be in CIDR notation, got: '10.0.0.1'",
            ),
            (
                json!({"runtimeConfig": {"ips": ["10.0.0.1"]}}),
                "",
                "an entry in the 'ips' field is NOT in CIDR notation, got: '10.0.0.1'",
            ),
            (
                json!({"args": {"cni": {"ips": ["x/y"]}}}),
                "",
                "an entry in the 'ips' field is NOT in CIDR notation, got: 'x/y'",
            ),
            (json!({"ipam": gateway}), "", "invalid gateway address: x"),
            (json!({}), "GATEWAY=10.0.0.300", "invalid gateway address: 10.0.0.300"),
            (
                json!({"ipam": two, "cniVersion": "0.2.0"}),
                "",
                "CNI version 0.2.0 does not support more than 1 address per family",
            ),
            (
                json!({"ipam": {"addresses": 1}}),
                "",
                "failed to load netconf: ipam.addresses: expected a sequence, found integer `1`",
            ),
        ];
        for (changes, args, expected) in table {
            assert_eq!(crate::error::chain(&fixed(changes, args).unwrap_err()), expected);
        }
    }
}
