//! What `host-local` understands of a configuration: which addresses it may hand out, and which of
//! them somebody asked for.

use std::net::IpAddr;
use std::path::PathBuf;

use fabric::json;
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::range::{Range, RangeError, RangeSet};
use crate::args::Args;
use crate::bridge::lookup;
use crate::result::Route;
use crate::version::Version;

/// Where addresses come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLocal {
    /// The directory with a directory for each network.
    pub data_dir: PathBuf,
    /// One address is taken from each.
    pub sets: Vec<RangeSet>,
    /// Addresses that must be among those taken.
    pub requested: Vec<IpAddr>,
    /// What the sandbox is told to reach through the gateway.
    pub routes: Vec<Route>,
    /// The file that says which name servers the sandbox is told of.
    pub resolv_conf: Option<PathBuf>,
}

/// Why a configuration cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum HostLocalError {
    /// It has a value of the wrong type.
    #[error("failed to load netconf")]
    Json(#[source] json::Error),
    /// It does not say anything about addresses.
    #[error("IPAM config missing 'ipam' key")]
    NoIpam,
    /// It names no subnet.
    #[error("no IP ranges specified")]
    NoRanges,
    /// A set of ranges makes no sense.
    #[error("invalid range set {0}")]
    Set(usize, #[source] SetError),
    /// Two sets could give the same address.
    #[error("range set {0} overlaps with {1}")]
    Overlap(RangeSet, RangeSet),
    /// Old versions of the specification know one address per family.
    #[error("CNI version {0} does not support more than 1 address per family")]
    OnePerFamily(Version),
    /// What is requested is not an address.
    #[error("cannot understand ip: {0}")]
    Requested(String),
}

/// What is wrong with a set of ranges.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetError {
    /// It has no ranges.
    #[error("empty range set")]
    Empty,
    /// It has ranges of both families.
    #[error("mixed address families")]
    MixedFamilies,
    /// Two of its ranges could give the same address.
    #[error("subnets {} and {} overlap", .0.0, .0.1)]
    Overlap(Box<(Range, Range)>),
    /// One of its ranges is of no use.
    #[error(transparent)]
    Range(#[from] RangeError),
}

impl HostLocal {
    /// Reads the configuration of a network together with the `CNI_ARGS` of an attachment.
    ///
    /// # Errors
    /// If it cannot be understood.
    pub fn new(config: &Map<String, Value>, args: &Args) -> Result<Self, HostLocalError> {
        let raw: RawConfig =
            json::from_value(config.clone().into()).map_err(HostLocalError::Json)?;
        let requested = raw.requested(args)?;
        let version = Version::exact(&raw.cni_version).unwrap_or(Version::NEWEST);
        let ipam = raw.ipam.ok_or(HostLocalError::NoIpam)?;
        let sets = range_sets(raw.runtime_config.ip_ranges, ipam.legacy, ipam.ranges)?;
        check_sets(&sets, version)?;
        Ok(Self {
            data_dir: directory(&ipam.data_dir),
            sets,
            requested,
            routes: ipam.routes,
            resolv_conf: (!ipam.resolv_conf.is_empty()).then(|| ipam.resolv_conf.into()),
        })
    }
}

/// Returns the directory where `host-local` keeps what it hands out with this configuration, which
/// need not make sense otherwise.
pub fn data_dir(config: &Map<String, Value>) -> PathBuf {
    let configured = lookup(config, &["ipam", "dataDir"]).and_then(Value::as_str);
    directory(configured.unwrap_or_default())
}

fn directory(configured: &str) -> PathBuf {
    PathBuf::from(if configured.is_empty() { "/var/lib/cni/networks" } else { configured })
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawConfig {
    cni_version: String,
    ipam: Option<RawIpam>,
    runtime_config: RawRuntimeConfig,
    args: RawArgs,
}

#[derive(Default)]
struct RawIpam {
    data_dir: String,
    resolv_conf: String,
    legacy: RawRange,
    ranges: Vec<Vec<RawRange>>,
    routes: Vec<Route>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawRuntimeConfig {
    ip_ranges: Vec<Vec<RawRange>>,
    ips: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawArgs {
    cni: RawCniArgs,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawCniArgs {
    ips: Vec<String>,
}

/// An empty text stands for nothing.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawRange {
    subnet: String,
    range_start: String,
    range_end: String,
    gateway: String,
}

impl<'de> Deserialize<'de> for RawIpam {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        struct Keys {
            data_dir: String,
            resolv_conf: String,
            subnet: String,
            range_start: String,
            range_end: String,
            gateway: String,
            ranges: Vec<Vec<RawRange>>,
            routes: Vec<Route>,
        }
        let Keys { data_dir, resolv_conf, ranges, routes, subnet, range_start, range_end, gateway } =
            Keys::deserialize(deserializer)?;
        let legacy = RawRange { subnet, range_start, range_end, gateway };
        Ok(Self { data_dir, resolv_conf, legacy, ranges, routes })
    }
}

impl RawConfig {
    /// All that ask are heard; asking twice for an address is asking once.
    fn requested(&self, args: &Args) -> Result<Vec<IpAddr>, HostLocalError> {
        let by_args = Some(&args.ip).filter(|ip| !ip.is_empty());
        let mut requested = Vec::new();
        for text in by_args.into_iter().chain(&self.args.cni.ips).chain(&self.runtime_config.ips) {
            let ip = text.parse::<IpNetwork>();
            let ip = ip.map_err(|_| HostLocalError::Requested(text.clone()))?.ip();
            if !requested.contains(&ip) {
                requested.push(ip);
            }
        }
        Ok(requested)
    }
}

/// The place of a set in this order is its number, which the result and file names are ordered by.
fn range_sets(
    by_runtime: Vec<Vec<RawRange>>,
    legacy: RawRange,
    ranges: Vec<Vec<RawRange>>,
) -> Result<Vec<RangeSet>, HostLocalError> {
    let legacy = (!legacy.subnet.is_empty()).then(|| vec![legacy]);
    let sets = by_runtime.into_iter().chain(legacy).chain(ranges).enumerate();
    let sets = sets.map(|(index, ranges)| {
        range_set(&ranges).map_err(|error| HostLocalError::Set(index, error))
    });
    sets.collect()
}

fn range_set(ranges: &[RawRange]) -> Result<RangeSet, SetError> {
    let ranges = ranges.iter().map(RawRange::check).collect::<Result<Vec<_>, _>>()?;
    let first = ranges.first().ok_or(SetError::Empty)?;
    if ranges.iter().any(|range| range.is_ipv4() != first.is_ipv4()) {
        return Err(SetError::MixedFamilies);
    }
    for (place, range) in ranges.iter().enumerate() {
        if let Some(other) = ranges[place + 1..].iter().find(|other| range.overlaps(other)) {
            return Err(SetError::Overlap(Box::new((*range, *other))));
        }
    }
    Ok(RangeSet(ranges))
}

impl RawRange {
    fn check(&self) -> Result<Range, RangeError> {
        let subnet = self.subnet.contains('/').then(|| self.subnet.parse().ok()).flatten();
        let range = Range::of(subnet.ok_or_else(|| RangeError::Cidr(self.subnet.clone()))?)?;
        let address = |text: &str| match text {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| RangeError::Address(text.to_owned())),
        };
        let range = range.between(address(&self.range_start)?, address(&self.range_end)?)?;
        Ok(address(&self.gateway)?.map_or(range, |gateway| range.with_gateway(gateway)))
    }
}

fn check_sets(sets: &[RangeSet], version: Version) -> Result<(), HostLocalError> {
    if sets.is_empty() {
        return Err(HostLocalError::NoRanges);
    }
    for (place, set) in sets.iter().enumerate() {
        if let Some(other) = sets[place + 1..].iter().find(|other| set.overlaps(other)) {
            return Err(HostLocalError::Overlap(set.clone(), other.clone()));
        }
    }
    let of_family = |is_v4: bool| sets.iter().filter(|set| set.0[0].is_ipv4() == is_v4).count();
    if version < Version::V0_3_0 && (of_family(true) > 1 || of_family(false) > 1) {
        return Err(HostLocalError::OnePerFamily(version));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn host_local(config: Value, args: &str) -> Result<HostLocal, HostLocalError> {
        HostLocal::new(config.as_object().unwrap(), &Args::parse(args).unwrap())
    }

    fn sets(conf: &HostLocal) -> Vec<String> {
        conf.sets.iter().map(RangeSet::to_string).collect()
    }

    #[test]
    fn sets_come_from_the_runtime_then_the_old_keys_then_the_list() {
        let config = json!({
            "cniVersion": "1.0.0",
            "RuntimeConfig": {"ipRanges": [[{"Subnet": "10.3.0.0/24", "RangeStart": ""}]]},
            "ipam": {
                "subnet": "10.1.0.0/24", "rangeEnd": "10.1.0.9", "gateway": "10.9.9.9",
                "ranges": [[{"subnet": "10.2.0.0/24", "rangeStart": "10.2.0.5"},
                            {"subnet": "10.2.1.0/24"}], [{"subnet": "fd00::/64"}]],
                "dataDir": "/run/x", "resolvConf": "/etc/resolv.conf",
            },
        });
        let conf = host_local(config, "").unwrap();
        let expected = [
            "10.3.0.1-10.3.0.254",
            "10.1.0.1-10.1.0.9",
            "10.2.0.5-10.2.0.254,10.2.1.1-10.2.1.254",
            "fd00::1-fd00::ffff:ffff:ffff:ffff",
        ];
        assert_eq!(sets(&conf), expected);
        assert_eq!(conf.sets[1].0[0].gateway().to_string(), "10.9.9.9");
        assert_eq!(conf.sets[2].0[0].gateway().to_string(), "10.2.0.1");
        assert_eq!(conf.data_dir, PathBuf::from("/run/x"));
        assert_eq!(conf.resolv_conf, Some(PathBuf::from("/etc/resolv.conf")));
    }

    #[test]
    fn all_requests_count() {
        let config = json!({
            "ipam": {"subnet": "10.1.0.0/24"},
            "args": {"cni": {"ips": ["10.1.0.7", "10.1.0.6/24"]}},
            "runtimeConfig": {"ips": ["10.1.0.8"]},
        });
        let conf = host_local(config, "IP=10.1.0.6").unwrap();
        let requested: Vec<_> = conf.requested.iter().map(ToString::to_string).collect();
        assert_eq!(requested, ["10.1.0.6", "10.1.0.7", "10.1.0.8"]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let ranges = |ranges: Value| json!({"ipam": {"ranges": ranges}});
        let table = [
            (json!({}), "IPAM config missing 'ipam' key"),
            (json!({"ipam": {}}), "no IP ranges specified"),
            (json!({"ipam": {"gateway": "10.0.0.1"}}), "no IP ranges specified"),
            (ranges(json!([[]])), "invalid range set 0: empty range set"),
            (
                ranges(json!([[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]])),
                "invalid range set 0: mixed address families",
            ),
            (
                ranges(json!([[{"subnet": "10.0.0.0/29"}, {"subnet": "10.0.0.0/30"}]])),
                "invalid range set 0: subnets 10.0.0.1-10.0.0.6 and 10.0.0.1-10.0.0.2 overlap",
            ),
            (
                ranges(json!([[{"subnet": "10.0.0.0/29"}], [{"subnet": "10.0.0.0/30"}]])),
                "range set 10.0.0.1-10.0.0.6 overlaps with 10.0.0.1-10.0.0.2",
            ),
            (
                ranges(json!([[{"subnet": "10.0.0.0/31"}]])),
                "invalid range set 0: Network 10.0.0.0/31 too small to allocate from",
            ),
            (
                ranges(json!([[{"subnet": "10.0.0.0"}]])),
                "invalid range set 0: invalid CIDR address: 10.0.0.0",
            ),
            (
                ranges(json!([[{"subnet": "10.0.0.0/24", "gateway": "x"}]])),
                "invalid range set 0: invalid IP address: x",
            ),
            (
                json!({"cniVersion": "0.2.0",
                       "ipam": {"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.1.0/24"}]]}}),
                "CNI version 0.2.0 does not support more than 1 address per family",
            ),
            (
                json!({"ipam": {"subnet": "10.0.0.0/24"}, "args": {"cni": {"ips": ["x"]}}}),
                "cannot understand ip: x",
            ),
        ];
        for (config, expected) in table {
            let error = host_local(config, "").unwrap_err();
            assert_eq!(crate::error::chain(&error), expected);
        }
        let dual = json!({"cniVersion": "0.2.0",
                          "ipam": {"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]]}});
        host_local(dual, "").unwrap();
    }
}
