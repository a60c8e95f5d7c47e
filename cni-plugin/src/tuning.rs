//! What the plugin `tuning` changes of a sandbox: parameters of its namespace, and properties of its
//! interface. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fabric::json;
use fabric::link_name::LinkName;
use fabric::mac::MacAddr;
use fabric::mtu::Mtu;
use fabric::netstate::{Link, Sysctl};
use regex_lite::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::args::{Args, ArgsError};

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Parameters and their values.
    pub sysctls: BTreeMap<Sysctl, String>,
    /// Properties of the interface.
    pub properties: Properties,
    /// Where the properties that the interface had are kept.
    pub data_dir: PathBuf,
}

/// Properties of an interface; `None` for those that are not to be changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    /// Its Ethernet address.
    pub mac: Option<MacAddr>,
    /// Its MTU.
    pub mtu: Option<Mtu>,
    /// Whether it takes in what is not for it.
    pub promiscuous: Option<bool>,
    /// Whether it takes in all multicast.
    pub all_multicast: Option<bool>,
    /// How many packets may wait to be sent.
    pub queue_length: Option<u32>,
}

/// Why a configuration cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TuningError {
    /// A value is of the wrong type.
    #[error("failed to load netconf")]
    Json(#[source] json::Error),
    /// `CNI_ARGS` cannot be followed.
    #[error(transparent)]
    Args(#[from] ArgsError),
    /// Two keys are the same parameter.
    #[error("duplicated sysctl keys are not allowed")]
    Duplicate,
    /// The parameter is none of networking.
    #[error("invalid net sysctl key: {0:?}")]
    Sysctl(String),
    /// The administrator does not allow it.
    #[error(
        "Sysctl {key} is not allowed. Only the following sysctls are allowed: [{}]",
        allowed.join(" ")
    )]
    NotAllowed {
        /// The parameter.
        key: String,
        /// The expressions of which one must match.
        allowed: Vec<String>,
    },
    /// The administrator's list makes no sense.
    #[error("invalid expression {0:?} in the list of allowed sysctls")]
    AllowList(String),
    /// It is not an Ethernet address.
    #[error("invalid mac address: {0}")]
    Mac(String),
    /// The MTU cannot be one.
    #[error("mtu: {0} is not from {min} to {max}", min = Mtu::MIN, max = Mtu::MAX)]
    Mtu(i64),
}

/// The names are those of the Go plugin, also in what it keeps.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, rename_all = "camelCase", expecting = "properties of an interface")]
struct RawProperties {
    #[serde(skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(skip_serializing_if = "is_zero")]
    mtu: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
    #[serde(rename = "txQLen", skip_serializing_if = "Option::is_none")]
    tx_q_len: Option<u32>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawTuning {
    sysctl: BTreeMap<String, String>,
    data_dir: String,
    runtime_config: RawMac,
    args: RawArgs,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawMac {
    mac: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawArgs {
    cni: Map<String, Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawSysctls {
    sysctl: BTreeMap<String, String>,
}

impl Tuning {
    /// Reads the configuration of the plugin `tuning` together with the `CNI_ARGS` of an attachment
    /// and the list of what the administrator allows, one regular expression each, if there is one.
    ///
    /// `args` in the configuration count most, then the runtime, then `CNI_ARGS`.
    ///
    /// # Errors
    /// If it cannot be understood, or asks for something that is not allowed.
    pub fn new(
        config: &Map<String, Value>,
        args: &str,
        if_name: LinkName,
        allowed: Option<&str>,
    ) -> Result<Self, TuningError> {
        let whole = || Value::from(config.clone());
        let raw: RawTuning = json::from_value(whole()).map_err(TuningError::Json)?;
        let mut properties: RawProperties = json::from_value(whole()).map_err(TuningError::Json)?;
        let args = Args::parse(args)?;
        for mac in [args.mac, raw.runtime_config.mac].into_iter().filter(|mac| !mac.is_empty()) {
            properties.mac = mac;
        }
        let by_args = Value::from(raw.args.cni);
        let more: RawProperties = json::from_value(by_args.clone()).map_err(TuningError::Json)?;
        let sysctls: RawSysctls = json::from_value(by_args).map_err(TuningError::Json)?;
        let mut all = raw.sysctl;
        all.extend(sysctls.sysctl);
        Ok(Self {
            sysctls: parameters(&all, if_name, allowed)?,
            properties: properties.overridden_by(more).check()?,
            data_dir: match raw.data_dir.as_str() {
                "" => PathBuf::from("/run/cni/tuning"),
                directory => directory.into(),
            },
        })
    }
}

impl RawProperties {
    fn overridden_by(self, other: Self) -> Self {
        Self {
            mac: if other.mac.is_empty() { self.mac } else { other.mac },
            promisc: other.promisc.or(self.promisc),
            mtu: if other.mtu == 0 { self.mtu } else { other.mtu },
            allmulti: other.allmulti.or(self.allmulti),
            tx_q_len: other.tx_q_len.or(self.tx_q_len),
        }
    }

    fn check(self) -> Result<Properties, TuningError> {
        let mac = (!self.mac.is_empty())
            .then(|| self.mac.parse().map_err(|_| TuningError::Mac(self.mac.clone())));
        let mtu = (self.mtu != 0).then(|| {
            let mtu = u32::try_from(self.mtu).ok().and_then(Mtu::new);
            mtu.ok_or(TuningError::Mtu(self.mtu))
        });
        Ok(Properties {
            mac: mac.transpose()?,
            mtu: mtu.transpose()?,
            // Off is what says nothing.
            promiscuous: self.promisc.filter(|on| *on),
            all_multicast: self.allmulti,
            queue_length: self.tx_q_len,
        })
    }
}

/// Dots in keys part names; the name of the interface may hold some too.
fn parameters(
    raw: &BTreeMap<String, String>,
    if_name: LinkName,
    allowed: Option<&str>,
) -> Result<BTreeMap<Sysctl, String>, TuningError> {
    let allowed = allowed.map(AllowList::parse).transpose()?;
    let mut parameters = BTreeMap::new();
    for (key, value) in raw {
        if let Some(list) = &allowed {
            list.check(key)?;
        }
        let path = key.replace('.', "/").replacen("IFNAME", if_name.as_str(), 1);
        let sysctl = Sysctl::of_network(&path).ok_or_else(|| TuningError::Sysctl(key.clone()))?;
        if parameters.insert(sysctl, value.clone()).is_some() {
            return Err(TuningError::Duplicate);
        }
    }
    Ok(parameters)
}

struct AllowList(Vec<(String, Regex)>);

impl AllowList {
    fn parse(text: &str) -> Result<Self, TuningError> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let expression = |line: &str| -> Result<_, TuningError> {
            let regex = Regex::new(line).map_err(|_| TuningError::AllowList(line.to_owned()))?;
            Ok((line.to_owned(), regex))
        };
        Ok(Self(lines.map(expression).collect::<Result<_, _>>()?))
    }

    fn check(&self, key: &str) -> Result<(), TuningError> {
        if self.0.iter().any(|(_, regex)| regex.is_match(key)) {
            return Ok(());
        }
        let allowed = self.0.iter().map(|(line, _)| line.clone()).collect();
        Err(TuningError::NotAllowed { key: key.to_owned(), allowed })
    }
}

impl Properties {
    /// Whether nothing is to be changed.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The properties of a link.
    pub const fn of(link: &Link) -> Self {
        Self {
            mac: link.mac,
            mtu: link.mtu,
            promiscuous: link.promiscuous,
            all_multicast: link.all_multicast,
            queue_length: link.queue_length,
        }
    }

    /// Those of these that `other` changes.
    pub fn changed_by(&self, other: &Self) -> Self {
        Self {
            mac: self.mac.filter(|_| other.mac.is_some()),
            mtu: self.mtu.filter(|_| other.mtu.is_some()),
            promiscuous: self.promiscuous.filter(|_| other.promiscuous.is_some()),
            all_multicast: self.all_multicast.filter(|_| other.all_multicast.is_some()),
            queue_length: self.queue_length.filter(|_| other.queue_length.is_some()),
        }
    }

    /// A link that is like `present` but for these.
    pub fn on(&self, present: &Link) -> Link {
        Link {
            up: present.up,
            mac: self.mac,
            mtu: self.mtu,
            promiscuous: self.promiscuous,
            all_multicast: self.all_multicast,
            queue_length: self.queue_length,
            ..Link::up(present.kind.clone())
        }
    }

    /// As the Go plugin keeps them.
    pub fn to_json(&self) -> Value {
        let raw = RawProperties {
            mac: self.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            promisc: self.promiscuous,
            mtu: self.mtu.map_or(0, |mtu| mtu.get().into()),
            allmulti: self.all_multicast,
            tx_q_len: self.queue_length,
        };
        serde_json::to_value(raw).expect("all keys are text")
    }

    /// Reads what either plugin kept; what makes no sense is not restored.
    pub fn from_json(value: Value) -> Option<Self> {
        let raw: RawProperties = json::from_value(value).ok()?;
        let promiscuous = raw.promisc;
        Some(Self { promiscuous, ..raw.check().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tuning(config: Value, args: &str, allowed: Option<&str>) -> Result<Tuning, String> {
        let if_name = "eth0.5".parse().unwrap();
        Tuning::new(config.as_object().unwrap(), args, if_name, allowed)
            .map_err(|error| crate::error::chain(&error))
    }

    fn paths(tuning: &Tuning) -> Vec<&str> {
        tuning.sysctls.keys().map(Sysctl::as_path).collect()
    }

    #[test]
    fn what_counts_more_overrides() {
        let mac = |config, args| {
            tuning(config, args, None).unwrap().properties.mac.map(|mac| mac.to_string())
        };
        let conf = json!({"mac": "02:00:00:00:00:01"});
        assert_eq!(mac(conf.clone(), "").unwrap(), "02:00:00:00:00:01");
        assert_eq!(mac(conf, "MAC=02:00:00:00:00:02").unwrap(), "02:00:00:00:00:02");
        let runtime = json!({"runtimeConfig": {"mac": "02:00:00:00:00:03"}});
        assert_eq!(mac(runtime.clone(), "MAC=02:00:00:00:00:02").unwrap(), "02:00:00:00:00:03");
        let mut all = runtime;
        all["args"] = json!({"cni": {"mac": "02:00:00:00:00:04", "mtu": 1400, "txQLen": 5,
                                     "allmulti": false, "sysctl": {"net.core.somaxconn": "5"}}});
        all["promisc"] = json!(true);
        all["sysctl"] = json!({"net.core.somaxconn": "4"});
        let tuning = tuning(all, "", None).unwrap();
        let expected = Properties {
            mac: Some("02:00:00:00:00:04".parse().unwrap()),
            mtu: Mtu::new(1400),
            promiscuous: Some(true),
            all_multicast: Some(false),
            queue_length: Some(5),
        };
        assert_eq!(tuning.properties, expected);
        assert_eq!(tuning.sysctls.values().collect::<Vec<_>>(), ["5"]);
        assert_eq!(tuning.data_dir, PathBuf::from("/run/cni/tuning"));
        assert_eq!(Properties::from_json(expected.to_json()), Some(expected));
    }

    #[test]
    fn parameters_are_those_of_networking_and_allowed() {
        let conf = |key: &str| json!({"sysctl": {key: "1"}});
        let one = tuning(conf("net.ipv4.conf.IFNAME.arp_filter"), "", None).unwrap();
        assert_eq!(paths(&one), ["net/ipv4/conf/eth0.5/arp_filter"]);
        for key in ["kernel.hostname", "net.", "net", "net/../kernel/hostname", "/net/core/x"] {
            let expected = format!("invalid net sysctl key: {key:?}");
            assert_eq!(tuning(conf(key), "", None).unwrap_err(), expected);
        }
        let twice = json!({"sysctl": {"net.core.somaxconn": "1", "net/core/somaxconn": "2"}});
        let expected = "duplicated sysctl keys are not allowed";
        assert_eq!(tuning(twice, "", None).unwrap_err(), expected);
        let list = "^net.core.somaxconn$\n\n  conf.*arp\n";
        tuning(conf("net.core.somaxconn"), "", Some(list)).unwrap();
        tuning(conf("net.ipv4.conf.IFNAME.arp_filter"), "", Some(list)).unwrap();
        let expected = "Sysctl net.core.somaxconn2 is not allowed. \
                        Only the following sysctls are allowed: [^net.core.somaxconn$ conf.*arp]";
        assert_eq!(tuning(conf("net.core.somaxconn2"), "", Some(list)).unwrap_err(), expected);
        let expected = "invalid expression \"(\" in the list of allowed sysctls";
        assert_eq!(tuning(conf("net.core.x"), "", Some("(")).unwrap_err(), expected);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let table = [
            (json!({"mac": "x"}), "invalid mac address: x"),
            (json!({"mtu": 10}), "mtu: 10 is not from 68 to 65536"),
            (
                json!({"sysctl": {"a": 1}}),
                "failed to load netconf: sysctl.a: expected a string, found integer `1`",
            ),
        ];
        for (config, expected) in table {
            assert_eq!(tuning(config, "", None).unwrap_err(), expected);
        }
    }
}
