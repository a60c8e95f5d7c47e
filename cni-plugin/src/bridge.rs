//! What the plugin `bridge` understands of its configuration, and what it refuses because it cannot
//! do it.
//!
//! A key that asks for something is never passed over in silence: either it works, or the ADD fails
//! and names it. Keys that are not of the bridge plugin ask for nothing.

pub mod vlan;

use fabric::json;
use fabric::link_name::{InvalidLinkName, LinkName};
use fabric::mac::MacAddr;
use fabric::mtu::Mtu;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::args::{Args, ArgsError};
use crate::bandwidth::{BandwidthError, Limits};
use crate::filter::Engine;
use crate::ipam::source::{Source, SourceError};
use crate::portmap::{PortMap, PortMapError};
use crate::result::Dns;
use vlan::{RawTrunk, VlanError, Vlans};

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// The name of the bridge.
    pub name: LinkName,
    /// What the node is to the attachments.
    pub gateway: Gateway,
    /// Whether an address of the bridge that is in the way is removed.
    pub force_address: bool,
    /// Whether a pod may reach itself through the bridge.
    pub hairpin: bool,
    /// Whether pods do not reach other isolated ones.
    pub isolated: bool,
    /// Whether the bridge takes in what is not for it.
    pub promiscuous: bool,
    /// Whether the interface in the sandbox is brought up.
    pub up: bool,
    /// Whether an attachment can send nothing under another Ethernet address than its own.
    pub mac_spoof_check: bool,
    /// Whether IPv6 addresses are only used when no duplicate was found.
    pub probed: bool,
    /// The VLANs of an attachment.
    pub vlans: Vlans,
    /// The MTU of both ends of an attachment; `None` for the kernel's default.
    pub mtu: Option<Mtu>,
    /// What gives what leaves the subnet the node's address, if anything does.
    pub masquerade: Option<Engine>,
    /// What the result says about name servers; `None` for what `ipam` says, which is nothing.
    pub dns: Option<Dns>,
    /// Ports of the node that lead to the attachment.
    pub ports: PortMap,
    /// How much the attachment may send and receive.
    pub limits: Limits,
    /// The Ethernet address of the interface in the sandbox, if somebody asked for one.
    pub mac: Option<MacAddr>,
    /// Where addresses come from; `None` for a bridge that only switches.
    pub ipam: Option<Source>,
}

/// What the node is to the attachments of a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gateway {
    /// Nothing: the bridge has no address.
    None,
    /// The gateway of the subnet.
    OfSubnet,
    /// That, and where everything else goes by default.
    Default,
}

/// Why a configuration cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// It has a value of the wrong type.
    #[error("failed to load netconf")]
    Json(#[source] json::Error),
    /// It asks for something that we cannot do.
    #[error("unsupported field: {key} is {value}")]
    Unsupported {
        /// The key, with those it is inside of.
        key: String,
        /// Its value, as JSON.
        value: String,
    },
    /// `CNI_ARGS` cannot be followed.
    #[error(transparent)]
    Args(#[from] ArgsError),
    /// The name of the bridge cannot be one.
    #[error("bridge")]
    Name(#[source] InvalidLinkName),
    /// The MTU cannot be one.
    #[error("mtu: {0} is not from {min} to {max}", min = Mtu::MIN, max = Mtu::MAX)]
    Mtu(i64),
    /// There is no such way to masquerade.
    #[error("unknown ipmasq backend {0:?}")]
    MasqueradeBackend(String),
    /// What is requested is not an Ethernet address.
    #[error("failed to make veth pair: address {0}: invalid MAC address")]
    Mac(String),
    /// There are no such VLANs.
    #[error(transparent)]
    Vlan(#[from] VlanError),
    /// An interface that stays down has no use for addresses.
    #[error("cannot use IPAM when DisableContainerInterface flag is set")]
    DownWithAddresses,
    /// Every frame would come back twice.
    #[error("cannot set hairpin mode and promiscuous mode at the same time")]
    HairpinAndPromiscuous,
    /// Ports cannot be led as configured.
    #[error(transparent)]
    Ports(#[from] PortMapError),
    /// There cannot be such limits.
    #[error(transparent)]
    Bandwidth(#[from] BandwidthError),
    /// The addresses cannot be handed out as configured.
    #[error(transparent)]
    Ipam(#[from] SourceError),
}

impl Bridge {
    /// Checks the configuration of a delegate together with the `CNI_ARGS` of an attachment.
    ///
    /// # Errors
    /// If it cannot be understood, or asks for something that we cannot do.
    pub fn new(delegate: &Map<String, Value>, args: &str) -> Result<Self, BridgeError> {
        let args = Args::parse(args)?;
        let raw: RawBridge =
            json::from_value(delegate.clone().into()).map_err(BridgeError::Json)?;
        let vlans = Vlans::new(raw.vlan, raw.vlan_trunk.as_deref(), raw.preserve_default_vlan)?;
        let ipam = Source::of(delegate, &args)?;
        if raw.disable_container_interface && ipam.is_some() {
            return Err(BridgeError::DownWithAddresses);
        }
        if raw.hairpin_mode && raw.promisc_mode {
            return Err(BridgeError::HairpinAndPromiscuous);
        }
        let name = raw.bridge.as_deref().map_or_else(|| Ok(default_name()), str::parse);
        let name: LinkName = name.map_err(BridgeError::Name)?;
        vlans.gateway_name(name).map_err(BridgeError::Name)?;
        Ok(Self {
            name,
            gateway: match (raw.is_default_gateway, raw.is_gateway) {
                (true, _) => Gateway::Default,
                (false, true) => Gateway::OfSubnet,
                (false, false) => Gateway::None,
            },
            force_address: raw.force_address,
            hairpin: raw.hairpin_mode,
            isolated: raw.port_isolation,
            promiscuous: raw.promisc_mode,
            up: !raw.disable_container_interface,
            mac_spoof_check: raw.macspoofchk,
            probed: raw.enabledad,
            vlans,
            mtu: mtu(raw.mtu)?,
            masquerade: raw.masquerade()?,
            mac: raw.mac(&args)?,
            ipam,
            ports: PortMap::new(delegate)?,
            limits: Limits::of_runtime(delegate)?,
            dns: raw.dns.filter(|_| says_dns(delegate)),
        })
    }
}

/// Whether name servers are configured here, be it that there shall be none.
pub fn says_dns(delegate: &Map<String, Value>) -> bool {
    let keys = ["nameservers", "domain", "search", "options"];
    keys.iter().any(|key| lookup(delegate, &["dns", key]).is_some_and(|value| !value.is_null()))
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawBridge {
    bridge: Option<String>,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    ip_masq_backend: String,
    mtu: i64,
    hairpin_mode: bool,
    promisc_mode: bool,
    port_isolation: bool,
    disable_container_interface: bool,
    enabledad: bool,
    macspoofchk: bool,
    vlan: i64,
    vlan_trunk: Option<Vec<RawTrunk>>,
    preserve_default_vlan: bool,
    dns: Option<Dns>,
    args: RawArgs,
    runtime_config: RawMac,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawArgs {
    cni: RawMac,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawMac {
    mac: String,
}

impl RawBridge {
    fn masquerade(&self) -> Result<Option<Engine>, BridgeError> {
        let engine = masquerade_engine(&self.ip_masq_backend)?;
        Ok(self.ip_masq.then_some(engine))
    }

    /// What the runtime says counts most, `CNI_ARGS` least.
    fn mac(&self, args: &Args) -> Result<Option<MacAddr>, BridgeError> {
        let asked = [&self.runtime_config.mac, &self.args.cni.mac, &args.mac];
        let asked = asked.into_iter().find(|text| !text.is_empty());
        let parse = |text: &String| text.parse().map_err(|_| BridgeError::Mac(text.clone()));
        asked.map(parse).transpose()
    }
}

/// Returns what the rules go into that hide pods.
///
/// # Errors
/// If there is nothing of that name.
pub fn masquerade_engine(backend: &str) -> Result<Engine, BridgeError> {
    if backend.is_empty() {
        return Ok(Engine::Nftables);
    }
    let unknown = || BridgeError::MasqueradeBackend(backend.to_owned());
    Engine::named(backend).ok_or_else(unknown)
}

/// Returns the name of the bridge where nothing is configured.
pub fn default_name() -> LinkName {
    "cni0".parse().expect("four letters and digits are a name")
}

/// Zero stands for the kernel's default.
pub fn mtu(bytes: i64) -> Result<Option<Mtu>, BridgeError> {
    if bytes == 0 {
        return Ok(None);
    }
    let mtu = u32::try_from(bytes).ok().and_then(Mtu::new);
    mtu.map(Some).ok_or(BridgeError::Mtu(bytes))
}

/// Finds a value by the keys that lead to it, whatever the case of their letters.
pub fn lookup<'a>(object: &'a Map<String, Value>, path: &[&str]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let mut matching = object.iter().filter(|(key, _)| key.eq_ignore_ascii_case(first));
    let (_, value) = matching.next_back()?;
    if rest.is_empty() { Some(value) } else { lookup(value.as_object()?, rest) }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;

    use super::*;
    use crate::ipam::config::HostLocal;
    use crate::ipam::range::{Range, RangeSet};
    use crate::result::Route;

    /// A delegate of the stock list with `changes` made to it.
    fn bridge(changes: Value) -> Result<Bridge, BridgeError> {
        bridge_with_args(changes, "")
    }

    fn bridge_with_args(changes: Value, args: &str) -> Result<Bridge, BridgeError> {
        let mut delegate = json!({
            "name": "cbr0",
            "type": "bridge",
            "hairpinMode": true,
            "isDefaultGateway": true,
            "isGateway": true,
            "ipMasq": false,
            "mtu": 1450,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.1.2.0/24"}]],
                "routes": [{"dst": "10.1.0.0/16"}],
            },
        });
        merge(delegate.as_object_mut().unwrap(), changes);
        Bridge::new(delegate.as_object().unwrap(), args)
    }

    fn merge(object: &mut Map<String, Value>, changes: Value) {
        let Value::Object(changes) = changes else { panic!("not an object") };
        for (key, value) in changes {
            match (object.get_mut(&key), value) {
                (Some(Value::Object(inner)), value @ Value::Object(_)) => merge(inner, value),
                (_, value) => drop(object.insert(key, value)),
            }
        }
    }

    #[test]
    fn the_stock_list_is_understood() {
        let expected = Bridge {
            name: "cni0".parse().unwrap(),
            gateway: Gateway::Default,
            force_address: false,
            hairpin: true,
            isolated: false,
            promiscuous: false,
            up: true,
            mac_spoof_check: false,
            probed: false,
            vlans: Vlans::default(),
            mtu: Mtu::new(1450),
            masquerade: None,
            dns: None,
            mac: None,
            ports: PortMap::default(),
            limits: Limits::default(),
            ipam: Some(Source::HostLocal(HostLocal {
                data_dir: PathBuf::from("/var/lib/cni/networks"),
                sets: vec![RangeSet(vec![Range::of("10.1.2.0/24".parse().unwrap()).unwrap()])],
                requested: Vec::new(),
                routes: vec![Route::to("10.1.0.0/16".parse().unwrap())],
                resolv_conf: None,
            })),
        };
        assert_eq!(bridge(json!({})).unwrap(), expected);
        let unsaid = json!({"vlan": 0, "promiscMode": false, "MacSpoofChk": null, "vlanTrunk": null,
            "ipMasqBackend": null, "args": {"cni": {"ips": []}}, "unknown": {"vlan": 5}, "dns": {}});
        assert_eq!(bridge(unsaid).unwrap(), expected);
    }

    #[test]
    fn keys_that_work_do_so_in_any_case() {
        let conf = bridge(json!({
            "Bridge": "br-pods", "FORCEADDRESS": true, "hairpinMode": false, "MTU": 0,
            "isDefaultGateway": false, "IsGateway": true, "ipMasq": true, "PromiscMode": true,
            "portIsolation": true, "enableDAD": true, "Vlan": 7, "VLANTrunk": [{"ID": 8}],
            "ipMasqBackend": "nftables", "dns": {"nameservers": ["10.1.2.1"]},
            "ipam": {"DataDir": "/run/pods"},
        }));
        let conf = conf.unwrap();
        assert_eq!(conf.name.as_str(), "br-pods");
        assert_eq!(conf.gateway, Gateway::OfSubnet);
        assert!(conf.force_address && !conf.hairpin);
        assert_eq!(conf.masquerade, Some(Engine::Nftables));
        let conf_of = |name: &str| bridge(json!({"ipMasq": true, "ipMasqBackend": name})).unwrap();
        assert_eq!(conf_of("iptables").masquerade, Some(Engine::Iptables));
        assert_eq!(conf_of("").masquerade, Some(Engine::Nftables));
        assert!(conf.promiscuous && conf.isolated && conf.probed);
        assert_eq!(conf.vlans.port.keys().collect::<Vec<_>>(), [&7, &8]);
        assert_eq!(conf.dns.unwrap().nameservers, ["10.1.2.1"]);
        let Some(Source::HostLocal(ipam)) = conf.ipam else { panic!("not of host-local") };
        assert_eq!(ipam.data_dir, PathBuf::from("/run/pods"));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let table = [
            (json!({"ipam": {"type": "bridge"}}), "unsupported field: ipam.type is \"bridge\""),
            (json!({"vlan": 5000}), "invalid VLAN ID 5000 (must be between 0 and 4094)"),
            (json!({"vlanTrunk": [{"id": 0}]}), "incorrect trunk id parameter"),
            (
                json!({"promiscMode": true}),
                "cannot set hairpin mode and promiscuous mode at the same time",
            ),
            (
                json!({"disableContainerInterface": true}),
                "cannot use IPAM when DisableContainerInterface flag is set",
            ),
            (
                json!({"ipam": {"routes": [{"dst": "10.0.0.0/8", "scope": 254}]}}),
                "unsupported field: ipam.routes[0].scope is 254",
            ),
        ];
        for (changes, expected) in table {
            assert_eq!(bridge(changes).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn an_ethernet_address_is_asked_for_in_three_ways() {
        let args = "MAC=02:00:00:00:00:01";
        let mac = |changes| bridge_with_args(changes, args).unwrap().mac.unwrap().to_string();
        assert_eq!(mac(json!({})), "02:00:00:00:00:01");
        let cni = json!({"cni": {"mac": "02:00:00:00:00:02"}});
        assert_eq!(mac(json!({"args": cni})), "02:00:00:00:00:02");
        let runtime = json!({"mac": "02:00:00:00:00:03"});
        let all = json!({"args": cni, "RuntimeConfig": runtime});
        assert_eq!(mac(all), "02:00:00:00:00:03");
        let error = bridge(json!({"args": {"cni": {"mac": "02::"}}})).unwrap_err();
        let expected = "failed to make veth pair: address 02::: invalid MAC address";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn without_addresses_it_only_switches() {
        let conf = json!({"type": "bridge", "bridge": "br0", "ipam": {"type": ""}});
        assert_eq!(Bridge::new(conf.as_object().unwrap(), "").unwrap().ipam, None);
        assert_eq!(Bridge::new(&Map::new(), "").unwrap().ipam, None);
    }

    #[test]
    fn name_servers_of_the_bridge_count_before_those_of_the_addresses() {
        assert_eq!(bridge(json!({"dns": {"nameservers": null}})).unwrap().dns, None);
        assert_eq!(bridge(json!({"dns": {"search": []}})).unwrap().dns, Some(Dns::default()));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let table = [
            (
                json!({"mtu": "1500"}),
                "failed to load netconf: mtu: expected i64, found string \"1500\"",
            ),
            (json!({"mtu": 40}), "mtu: 40 is not from 68 to 65536"),
            (json!({"mtu": -1}), "mtu: -1 is not from 68 to 65536"),
            (json!({"bridge": ""}), "bridge: interface name is empty"),
            (json!({"ipMasqBackend": "bpf"}), "unknown ipmasq backend \"bpf\""),
            (
                json!({"ipam": {"ranges": [[{"subnet": "10.1.2.0/31"}]]}}),
                "invalid range set 0: Network 10.1.2.0/31 too small to allocate from",
            ),
            (
                json!({"ipam": {"routes": [{"dst": "10.1.0.0"}]}}),
                "failed to load netconf: ipam.routes[0].dst: invalid CIDR address: 10.1.0.0",
            ),
        ];
        for (changes, expected) in table {
            assert_eq!(crate::error::chain(&bridge(changes).unwrap_err()), expected);
        }
    }
}
