//! The command line and its environment form, by the rules of Go's `flag` package.
//!
//! Manifests and unit files of flannel are passed as they are, so the syntax is theirs: one dash or
//! two, `-flag=value` or `-flag value`, switches without a value or with `=`. [`Options`] is what
//! was typed, checked one flag at a time; what it means together is decided where it is used.

mod cleanup;
mod flags;
mod lease;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::cleanup::Cleanup;
use crate::family::{Family, PerFamily};
use crate::install::CniConf;
use crate::rules::RuleOptions;
use crate::store::kube::Annotations;
pub(crate) use flags::usage;
use flags::{FLAGS, Flag, Kind};
pub(crate) use lease::{LeaseCommand, Verb};

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Command {
    /// Be the node agent.
    Run(Box<Options>),
    /// Look at leases, or change them.
    Lease(Box<LeaseCommand>),
    /// Remove from this node what was made there.
    Cleanup(Cleanup),
    /// Print the version.
    Version,
    /// Print the usage.
    Help,
}

/// How the agent shall run.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) store: StoreOptions,
    pub(crate) interface: InterfaceOptions,
    pub(crate) subnet_file: PathBuf,
    pub(crate) renew_margin: Duration,
    /// What the subnet file says about masquerading.
    pub(crate) ip_masq: bool,
    pub(crate) rules: RuleOptions,
    pub(crate) rules_interval: Duration,
    pub(crate) blackhole_route: bool,
    pub(crate) health: Option<SocketAddr>,
    /// What to tell the container runtime.
    pub(crate) cni_conf: Option<CniConf>,
    pub(crate) verbosity: i64,
    /// Variables of the environment that were left out, and why.
    pub(crate) ignored: Vec<String>,
}

/// Where leases are kept.
#[derive(Debug)]
pub(crate) enum StoreOptions {
    Etcd(EtcdOptions),
    /// A directory on this machine, and the network configuration to use if it holds none.
    Directory {
        path: PathBuf,
        net_config: PathBuf,
    },
    Kube(KubeOptions),
}

/// How to reach the Kubernetes API, and what to do there.
#[derive(Clone, Debug)]
pub(crate) struct KubeOptions {
    pub(crate) api_url: Option<String>,
    pub(crate) kubeconfig: Option<PathBuf>,
    pub(crate) annotations: Annotations,
    pub(crate) net_config: PathBuf,
    /// Whether to set the node condition `NetworkUnavailable`.
    pub(crate) sets_condition: bool,
    /// What is known of the cluster is kept beside this file.
    pub(crate) subnet_file: PathBuf,
}

/// How to reach etcd.
#[derive(Clone, Debug)]
pub(crate) struct EtcdOptions {
    pub(crate) endpoints: Vec<String>,
    pub(crate) prefix: String,
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) cert_file: Option<PathBuf>,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) user: Option<(String, Password)>,
}

/// Where the password of a user is.
#[derive(Clone, Debug)]
pub(crate) enum Password {
    Given(Secret),
    File(PathBuf),
}

/// Which interface carries the traffic between nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct InterfaceOptions {
    pub(crate) names: Vec<String>,
    pub(crate) regexes: Vec<String>,
    pub(crate) can_reach: Option<IpAddr>,
    pub(crate) public_ip: Option<Ipv4Addr>,
    pub(crate) public_ipv6: Option<Ipv6Addr>,
}

/// A text that never shows in logs.
#[derive(Clone)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Why the command line is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UsageError {
    #[error("flag provided but not defined: -{0}; see --help")]
    Unknown(String),
    #[error("flag needs an argument: -{0}")]
    NoValue(String),
    #[error("invalid value {value:?} for flag -{flag}: {expected}")]
    Value { flag: &'static str, value: String, expected: String },
    #[error("flanneld lease: {0}; {usage}", usage = lease::USAGE)]
    Lease(String),
    #[error("flanneld cleanup: {0} is not known; {usage}", usage = cleanup::USAGE)]
    Cleanup(String),
}

/// Reads the arguments, without the name of the program, and `FLANNELD_…` variables for whatever
/// they leave open.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = String>,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Command, UsageError> {
    let mut arguments = arguments.into_iter().peekable();
    if arguments.next_if_eq("lease").is_some() {
        return lease::parse(arguments, environment);
    }
    if arguments.next_if_eq("cleanup").is_some() {
        return cleanup::parse(arguments, environment);
    }
    let mut typed = match Typed::from_arguments(arguments)? {
        Some(typed) => typed,
        None => return Ok(Command::Help),
    };
    if typed.switch("version") {
        return Ok(Command::Version);
    }
    typed.add_environment(environment);
    typed.options().map(|options| Command::Run(Box::new(options)))
}

/// The values of flags, each checked to be of the flag's kind.
#[derive(Default)]
struct Typed {
    values: BTreeMap<&'static str, Vec<String>>,
    ignored: Vec<String>,
}

impl InterfaceOptions {
    /// Uses these addresses in place of what was typed.
    pub(crate) fn prefer(&mut self, addresses: &PerFamily<IpAddr>) {
        if let Some(IpAddr::V4(ip)) = addresses.ipv4 {
            self.public_ip = Some(ip);
        }
        if let Some(IpAddr::V6(ip)) = addresses.ipv6 {
            self.public_ipv6 = Some(ip);
        }
    }
}

impl Typed {
    /// Returns `None` if help is asked for.
    fn from_arguments(
        mut arguments: impl Iterator<Item = String>,
    ) -> Result<Option<Self>, UsageError> {
        let mut typed = Self::default();
        while let Some(argument) = arguments.next() {
            // As in Go, the first argument that is no flag ends the flags, and so does "--".
            let Some(flag) = argument.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
                break;
            };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            if flag.is_empty() {
                break;
            }
            let (name, value) = flag.split_once('=').map_or((flag, None), |(n, v)| (n, Some(v)));
            if name == "h" || name == "help" {
                return Ok(None);
            }
            let known = FLAGS.iter().find(|known| known.name == name);
            let known = known.ok_or_else(|| UsageError::Unknown(name.to_owned()))?;
            let value = match (value, known.kind) {
                (Some(value), _) => value.to_owned(),
                (None, Kind::Switch) => "true".to_owned(),
                (None, _) => {
                    arguments.next().ok_or_else(|| UsageError::NoValue(name.to_owned()))?
                }
            };
            typed.set(known, value)?;
        }
        Ok(Some(typed))
    }

    fn set(&mut self, flag: &Flag, value: String) -> Result<(), UsageError> {
        flag.kind.check(&value).map_err(|expected| UsageError::Value {
            flag: flag.name,
            value: if flag.secret { "…".to_owned() } else { value.clone() },
            expected,
        })?;
        let values = self.values.entry(flag.name).or_default();
        if flag.kind != Kind::Texts {
            values.clear();
        }
        values.push(value);
        Ok(())
    }

    /// A variable that does not parse is left out, as it always was: a node must not lose its
    /// network because of a variable that happens to begin like ours.
    fn add_environment(&mut self, environment: impl Fn(&str) -> Option<String>) {
        for flag in FLAGS.iter().filter(|flag| flag.name != "version") {
            let variable =
                format!("FLANNELD_{}", flag.name.to_uppercase().replace(['-', '.'], "_"));
            let value = environment(&variable).filter(|value| !value.is_empty());
            if let Some(value) = value.filter(|_| !self.values.contains_key(flag.name))
                && let Err(error) = self.set(flag, value)
            {
                self.ignored.push(format!("{variable}: {error}"));
            }
        }
    }

    fn options(self) -> Result<Options, UsageError> {
        let health = match self.number("healthz-port")? {
            ..=0 => None,
            port => Some(SocketAddr::new(
                self.parsed("healthz-ip", "an IP address")?.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
                u16::try_from(port).map_err(|_| self.invalid("healthz-port", "at most 65535"))?,
            )),
        };
        let margin = self.number("subnet-lease-renew-margin")?;
        if !(1..1440).contains(&margin) {
            return Err(self.invalid("subnet-lease-renew-margin", "minutes from 1 to 1439"));
        }
        let interval = self.number("iptables-resync")?;
        Ok(Options {
            store: self.store()?,
            interface: self.interface()?,
            subnet_file: self.text("subnet-file").into(),
            renew_margin: Duration::from_secs(margin.unsigned_abs() * 60),
            ip_masq: self.switch("ip-masq"),
            rules: self.rules()?,
            rules_interval: Duration::from_secs(interval.clamp(1, 3600).unsigned_abs()),
            blackhole_route: self.switch("ip-blackhole-route"),
            health,
            cni_conf: self
                .path("cni-conf-install")
                .map(|destination| CniConf { source: self.text("cni-conf").into(), destination }),
            verbosity: self.number("v")?,
            ignored: self.ignored,
        })
    }

    fn store(&self) -> Result<StoreOptions, UsageError> {
        if self.switch("kube-subnet-mgr") {
            return self.kube().map(StoreOptions::Kube);
        }
        if let Some(path) = self.path("lease-dir") {
            let net_config = self.text("net-config-path").into();
            return Ok(StoreOptions::Directory { path, net_config });
        }
        let user = Some(self.text("etcd-username")).filter(|name| !name.is_empty());
        Ok(StoreOptions::Etcd(EtcdOptions {
            endpoints: self.text("etcd-endpoints").split(',').map(str::to_owned).collect(),
            prefix: self.text("etcd-prefix"),
            key_file: self.path("etcd-keyfile"),
            cert_file: self.path("etcd-certfile"),
            ca_file: self.path("etcd-cafile"),
            user: user.map(|name| (name, self.password())),
        }))
    }

    fn kube(&self) -> Result<KubeOptions, UsageError> {
        let prefix = "kube-annotation-prefix";
        let annotations = Annotations::with_prefix(&self.text(prefix));
        Ok(KubeOptions {
            api_url: Some(self.text("kube-api-url")).filter(|url| !url.is_empty()),
            kubeconfig: self.path("kubeconfig-file"),
            annotations: annotations.map_err(|error| self.wrong(prefix, error.to_string()))?,
            net_config: self.text("net-config-path").into(),
            sets_condition: self.switch("set-node-network-unavailable"),
            subnet_file: self.text("subnet-file").into(),
        })
    }

    fn password(&self) -> Password {
        match self.path("etcd-password-file") {
            Some(path) => Password::File(path),
            None => Password::Given(Secret(self.text("etcd-password"))),
        }
    }

    fn interface(&self) -> Result<InterfaceOptions, UsageError> {
        Ok(InterfaceOptions {
            names: self.values.get("iface").cloned().unwrap_or_default(),
            regexes: self.values.get("iface-regex").cloned().unwrap_or_default(),
            can_reach: self.parsed("iface-can-reach", "an IP address")?,
            public_ip: self.parsed("public-ip", "an IPv4 address")?,
            public_ipv6: self.parsed("public-ipv6", "an IPv6 address")?,
        })
    }

    fn rules(&self) -> Result<RuleOptions, UsageError> {
        let families = [(Family::V4, "ip-masq-ipv4"), (Family::V6, "ip-masq-ipv6")];
        let is_on = |flag| self.switch("ip-masq") && self.switch(flag);
        let on = families.into_iter().filter(|(_, flag)| is_on(flag));
        Ok(RuleOptions {
            masquerade: on.map(|(family, _)| family).collect(),
            masquerade_except: self.networks("ip-masq-except")?,
            random_fully: !self.switch("ip-masq-fully-random-disable"),
            forward: self.switch("iptables-forward-rules"),
        })
    }

    /// The values of a flag that may be given more than once.
    fn networks(&self, flag: &'static str) -> Result<Vec<IpNetwork>, UsageError> {
        let given = self.values.get(flag).into_iter().flatten().filter(|text| !text.is_empty());
        let network = |text: &String| {
            text.parse::<IpNetwork>().map_err(|_| UsageError::Value {
                flag,
                value: text.clone(),
                expected: "a network such as 10.0.0.0/8, or an address".to_owned(),
            })
        };
        given.map(network).collect()
    }

    fn text(&self, name: &'static str) -> String {
        let given = self.values.get(name).and_then(|values| values.last());
        given.cloned().unwrap_or_else(|| flags::default(name).to_owned())
    }

    fn path(&self, name: &'static str) -> Option<PathBuf> {
        Some(self.text(name)).filter(|path| !path.is_empty()).map(PathBuf::from)
    }

    fn switch(&self, name: &'static str) -> bool {
        flags::parse_switch(&self.text(name)).unwrap_or(false)
    }

    fn number(&self, name: &'static str) -> Result<i64, UsageError> {
        flags::parse_number(&self.text(name)).ok_or_else(|| self.invalid(name, "a whole number"))
    }

    fn parsed<T: std::str::FromStr>(
        &self,
        name: &'static str,
        expected: &str,
    ) -> Result<Option<T>, UsageError> {
        match self.text(name).as_str() {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| self.invalid(name, expected)),
        }
    }

    fn invalid(&self, flag: &'static str, expected: &str) -> UsageError {
        self.wrong(flag, format!("want {expected}"))
    }

    fn wrong(&self, flag: &'static str, expected: String) -> UsageError {
        UsageError::Value { flag, value: self.text(flag), expected }
    }
}

#[cfg(test)]
mod tests;
