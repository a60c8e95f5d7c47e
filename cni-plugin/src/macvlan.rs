//! A pod with an interface on a link of its node, and an Ethernet address of its own there. Pure.

use fabric::json;
use fabric::link_name::{InvalidLinkName, LinkName};
use fabric::mac::MacAddr;
use fabric::mtu::Mtu;
use fabric::netstate::{Link, LinkKind, MacvlanMode, NetState, Sysctl};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::args::{Args, ArgsError};
use crate::attachment;
use crate::invocation::Attachment;
use crate::ipam::source::{Source, SourceError};
use crate::result::{self, Dns, Ip};

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Macvlan {
    /// The link to be on; `None` for that of the default route.
    pub master: Option<LinkName>,
    /// Whether that is a link of the sandbox.
    pub master_in_sandbox: bool,
    /// What it has to do with others on that link.
    pub mode: MacvlanMode,
    /// Its MTU; `None` for that of the link.
    pub mtu: Option<Mtu>,
    /// Its Ethernet address; `None` if nobody asked for one.
    pub mac: Option<MacAddr>,
    /// How many broadcasts may wait; `None` for the kernel's default.
    pub broadcast_queue: Option<u32>,
    /// What the result says about name servers.
    pub dns: Dns,
    /// Where addresses come from; `None` if it has none.
    pub ipam: Option<Source>,
}

/// Why a configuration cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum MacvlanError {
    /// It has a value of the wrong type.
    #[error("failed to load netconf")]
    Json(#[source] json::Error),
    /// `CNI_ARGS` cannot be followed.
    #[error(transparent)]
    Args(#[from] ArgsError),
    /// The name of the link cannot be one.
    #[error("master")]
    Master(#[source] InvalidLinkName),
    /// There is no such mode.
    #[error("unknown macvlan mode: {0:?}")]
    Mode(String),
    /// The MTU is larger than that of the link, or none.
    #[error("invalid MTU {wanted}, must be [0, master MTU({master})]")]
    Mtu {
        /// What is configured.
        wanted: i64,
        /// The MTU of the link; 0 if that is not known.
        master: u32,
    },
    /// It is not an Ethernet address.
    #[error("invalid mac address: {0}")]
    Mac(String),
    /// Nothing says which link to be on.
    #[error("no default route interface found")]
    NoDefaultRoute,
    /// The link is not there.
    #[error("failed to lookup master {:?}: Link not found", .0.as_str())]
    NoMaster(LinkName),
    /// Addresses cannot be handed out as configured.
    #[error(transparent)]
    Ipam(#[from] SourceError),
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawMacvlan {
    master: String,
    mode: String,
    mtu: i64,
    mac: String,
    link_in_container: bool,
    bcqueuelen: u32,
    dns: Dns,
    runtime_config: RawMac,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawMac {
    mac: String,
}

impl Macvlan {
    /// Checks the configuration of the plugin `macvlan` together with the `CNI_ARGS` of an attachment.
    ///
    /// # Errors
    /// If it cannot be understood.
    pub fn new(config: &Map<String, Value>, args: &str) -> Result<Self, MacvlanError> {
        let args = Args::parse(args)?;
        let raw: RawMacvlan =
            json::from_value(config.clone().into()).map_err(MacvlanError::Json)?;
        let mtu = u32::try_from(raw.mtu).ok().map(Mtu::new);
        let unknown = || MacvlanError::Mtu { wanted: raw.mtu, master: 0 };
        Ok(Self {
            master: (!raw.master.is_empty())
                .then(|| raw.master.parse().map_err(MacvlanError::Master))
                .transpose()?,
            master_in_sandbox: raw.link_in_container,
            mode: mode(&raw.mode)?,
            mtu: if raw.mtu == 0 { None } else { Some(mtu.flatten().ok_or_else(unknown)?) },
            mac: mac([&raw.runtime_config.mac, &args.mac, &raw.mac])?,
            broadcast_queue: (raw.bcqueuelen != 0).then_some(raw.bcqueuelen),
            dns: raw.dns,
            ipam: Source::of(config, &args)?,
        })
    }

    /// Checks the MTU against that of the link to be on.
    ///
    /// # Errors
    /// If it is larger.
    pub fn check_mtu(&self, master: Option<Mtu>) -> Result<(), MacvlanError> {
        match (self.mtu, master) {
            (Some(wanted), Some(master)) if wanted > master => {
                Err(MacvlanError::Mtu { wanted: wanted.get().into(), master: master.get() })
            }
            _ => Ok(()),
        }
    }

    /// The link itself. Where everybody on the same link has the same Ethernet address, it is not ours
    /// to choose.
    pub fn link(&self, attachment: &Attachment, ips: &[Ip], parent: Option<LinkName>) -> Link {
        let chosen = || match self.mode {
            MacvlanMode::Passthru => None,
            _ => Some(attachment::own_mac(attachment, ips)),
        };
        let kind = fabric::netstate::Macvlan {
            parent,
            mode: self.mode,
            broadcast_queue: self.broadcast_queue,
        };
        let mac = self.mac.or_else(chosen);
        Link { mac, mtu: self.mtu, ..Link::up(LinkKind::Macvlan(kind)) }
    }
}

/// Returns what shall be in the sandbox, once the link is there.
pub fn desired(
    attachment: &Attachment,
    link: Link,
    ips: &[Ip],
    routes: &[result::Route],
) -> NetState {
    let if_name = attachment.if_name;
    let mut state = attachment::inside(if_name, link, ips, routes);
    if ips.is_empty() {
        state.sysctls.clear();
    } else {
        state.sysctls.insert(Sysctl::ipv6(if_name, "ndisc_notify"), "1".to_owned());
    }
    state
}

fn mode(name: &str) -> Result<MacvlanMode, MacvlanError> {
    if name.is_empty() {
        return Ok(MacvlanMode::Bridge);
    }
    let mut modes = MacvlanMode::ALL.into_iter();
    modes.find(|mode| mode.as_str() == name).ok_or_else(|| MacvlanError::Mode(name.to_owned()))
}

/// The first that is asked for.
fn mac(asked: [&String; 3]) -> Result<Option<MacAddr>, MacvlanError> {
    let asked = asked.into_iter().find(|text| !text.is_empty());
    let parse = |text: &String| text.parse().map_err(|_| MacvlanError::Mac(text.clone()));
    asked.map(parse).transpose()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn macvlan(config: Value, args: &str) -> Result<Macvlan, String> {
        Macvlan::new(config.as_object().unwrap(), args).map_err(|error| crate::error::chain(&error))
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let bare = macvlan(json!({}), "").unwrap();
        assert_eq!((bare.master, bare.mode, bare.mtu), (None, MacvlanMode::Bridge, None));
        assert!(bare.ipam.is_none() && bare.broadcast_queue.is_none());
        let full = json!({"master": "eth1", "mode": "vepa", "mtu": 1400, "bcqueuelen": 9,
                          "linkInContainer": true, "mac": "02:00:00:00:00:01"});
        let mac = |conf: &Value, args| macvlan(conf.clone(), args).unwrap().mac.unwrap().0[5];
        assert_eq!(mac(&full, ""), 1);
        assert_eq!(mac(&full, "MAC=02:00:00:00:00:02"), 2);
        let mut said = full.clone();
        said["RuntimeConfig"] = json!({"Mac": "02:00:00:00:00:03"});
        assert_eq!(mac(&said, "MAC=02:00:00:00:00:02"), 3);
        let full = macvlan(full, "").unwrap();
        assert_eq!((full.mode, full.broadcast_queue), (MacvlanMode::Vepa, Some(9)));
        assert!(full.master_in_sandbox);
        assert!(full.check_mtu(Mtu::new(1400)).is_ok());
        let error = full.check_mtu(Mtu::new(1399)).unwrap_err().to_string();
        assert_eq!(error, "invalid MTU 1400, must be [0, master MTU(1399)]");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let table = [
            (json!({"mode": "source"}), "unknown macvlan mode: \"source\""),
            (json!({"mtu": -1}), "invalid MTU -1, must be [0, master MTU(0)]"),
            (json!({"mac": "x"}), "invalid mac address: x"),
            (
                json!({"master": "a/b"}),
                "master: interface name \"a/b\" contains / or : or whitespace characters",
            ),
        ];
        for (config, expected) in table {
            assert_eq!(macvlan(config, "").unwrap_err(), expected);
        }
    }
}
