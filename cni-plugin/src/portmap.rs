//! Ports of the node that lead to a pod: what a configuration says of them, and the rules that make
//! it true. Pure.
//!
//! The rules stand in the tables of the Go plugin's nftables back end. Only what is sent to an
//! address of the node itself is looked at, so that a port mapping never takes what is for others.
//! Rules for one address of the node come before those for all of them.

use std::net::{IpAddr, Ipv4Addr};

use fabric::json;
use fabric::link_name::LinkName;
use fabric::packet_filter::{
    Chain, Family, Hook, Match, Ownership, Rule, Ruleset, Table, TableId, Transport, Verdict,
};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::invocation::Attachment;
use crate::masquerade;

/// Ports that lead to a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortMap {
    /// In the order of the configuration.
    pub mappings: Vec<Mapping>,
    /// Whose packets get the node's address on their way.
    pub masquerade: Masquerade,
}

/// Whose packets get the node's address, so that the answer comes back through it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Masquerade {
    /// Nobody's: neither the node by its loopback addresses nor the pod itself can use the ports.
    Nobody,
    /// Those of the pod itself and of the node's loopback addresses.
    #[default]
    Hairpin,
    /// Everybody's.
    All,
}

/// A port of the node that leads to one of the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The protocol.
    pub transport: Transport,
    /// The address of the node; `None` for all of them.
    pub host_ip: Option<IpAddr>,
    /// The port of the node.
    pub host_port: u16,
    /// The port of the pod.
    pub container_port: u16,
}

/// Why a configuration cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum PortMapError {
    /// It has a value of the wrong type.
    #[error("failed to parse config")]
    Json(#[source] json::Error),
    /// It asks for something that we cannot do.
    #[error("unsupported field: {key} is {value}")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// Its value, as JSON.
        value: String,
    },
    /// There is no such way to lead ports.
    #[error("failed to parse config: unrecognized backend {0:?}")]
    Backend(String),
    /// The mark is not one bit of 32.
    #[error("failed to parse config: MasqMarkBit must be between 0 and 31")]
    MarkBit,
    /// The port of the pod is none.
    #[error("failed to parse config: Invalid container port number: {0}")]
    ContainerPort(i64),
    /// The port of the node is none.
    #[error("failed to parse config: Invalid host port number: {0}")]
    HostPort(i64),
    /// The protocol has no ports, or is not known.
    #[error("failed to parse config: unknown protocol {0:?}")]
    Protocol(String),
    /// The address of the node is none.
    #[error("failed to parse config: invalid hostIP {0:?}")]
    HostIp(String),
}

#[derive(Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawPortMap {
    backend: String,
    snat: bool,
    masq_all: bool,
    mark_masq_bit: Option<i64>,
    external_set_mark_chain: String,
    conditions_v4: Vec<String>,
    conditions_v6: Vec<String>,
    runtime_config: RawRuntimeConfig,
}

impl Default for RawPortMap {
    fn default() -> Self {
        Self {
            backend: String::new(),
            snat: true,
            masq_all: false,
            mark_masq_bit: None,
            external_set_mark_chain: String::new(),
            conditions_v4: Vec::new(),
            conditions_v6: Vec::new(),
            runtime_config: RawRuntimeConfig::default(),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawRuntimeConfig {
    port_mappings: Vec<RawMapping>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawMapping {
    host_port: i64,
    container_port: i64,
    protocol: String,
    #[serde(rename = "hostIP")]
    host_ip: String,
}

impl PortMap {
    /// Reads the configuration of a list's entry with what the runtime says about an attachment.
    ///
    /// # Errors
    /// If it cannot be understood, or asks for something that we cannot do.
    pub fn new(config: &Map<String, Value>) -> Result<Self, PortMapError> {
        let raw: RawPortMap =
            json::from_value(config.clone().into()).map_err(PortMapError::Json)?;
        raw.check()?;
        let masquerade = match (raw.snat, raw.masq_all) {
            (false, _) => Masquerade::Nobody,
            (true, false) => Masquerade::Hairpin,
            (true, true) => Masquerade::All,
        };
        let mappings = raw.runtime_config.port_mappings.iter().map(RawMapping::check);
        Ok(Self { mappings: mappings.collect::<Result<_, _>>()?, masquerade })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.mappings.is_empty()
    }

    /// Whether the node's IPv4 loopback addresses lead to the pod.
    pub fn leads_loopback(&self) -> bool {
        let of_v4 = |mapping: &Mapping| mapping.host_ip.is_none_or(|ip| ip.is_ipv4());
        self.masquerade != Masquerade::Nobody && self.mappings.iter().any(of_v4)
    }

    /// The ports of the node that UDP is led from.
    pub fn udp_ports(&self) -> impl Iterator<Item = u16> {
        let udp = self.mappings.iter().filter(|mapping| mapping.transport == Transport::Udp);
        udp.map(|mapping| mapping.host_port)
    }
}

impl RawPortMap {
    fn check(&self) -> Result<(), PortMapError> {
        let unsupported =
            |key, value: Value| Err(PortMapError::Unsupported { key, value: value.to_string() });
        match self.backend.as_str() {
            "" | "nftables" => {}
            "iptables" => return unsupported("backend", "iptables".into()),
            unknown => return Err(PortMapError::Backend(unknown.to_owned())),
        }
        if self.mark_masq_bit.is_some_and(|bit| !(0..32).contains(&bit)) {
            return Err(PortMapError::MarkBit);
        }
        if !self.external_set_mark_chain.is_empty() {
            let chain = self.external_set_mark_chain.as_str();
            return unsupported("externalSetMarkChain", chain.into());
        }
        let conditions =
            [("conditionsV4", &self.conditions_v4), ("conditionsV6", &self.conditions_v6)];
        let given = conditions.into_iter().find(|(_, conditions)| !conditions.is_empty());
        given.map_or(Ok(()), |(key, conditions)| unsupported(key, conditions.clone().into()))
    }
}

impl RawMapping {
    fn check(&self) -> Result<Mapping, PortMapError> {
        let port = |number: i64| u16::try_from(number).ok().filter(|port| *port != 0);
        let container_port =
            port(self.container_port).ok_or(PortMapError::ContainerPort(self.container_port))?;
        let host_port = port(self.host_port).ok_or(PortMapError::HostPort(self.host_port))?;
        let protocol = self.protocol.to_ascii_lowercase();
        let named = |transport: &Transport| transport.as_str() == protocol;
        let transport = match protocol.as_str() {
            "" => Some(Transport::Tcp),
            _ => Transport::ALL.into_iter().find(named),
        };
        let transport = transport.ok_or_else(|| PortMapError::Protocol(self.protocol.clone()))?;
        let host_ip = match self.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| PortMapError::HostIp(self.host_ip.clone()))?),
        };
        Ok(Mapping { transport, host_ip, host_port, container_port })
    }
}

/// Returns the rules for an attachment with these addresses, of which the first of each family
/// counts, and which is reached by `link`.
pub fn rules(attachment: &Attachment, map: &PortMap, pod: &[IpAddr], link: LinkName) -> Ruleset {
    let of_family = |is_v4: bool| pod.iter().copied().find(|ip| ip.is_ipv4() == is_v4);
    let tables = [(Family::Ip, true), (Family::Ip6, false)].map(|(family, is_v4)| {
        let chains = of_family(is_v4).map(|pod| chains(attachment, map, pod, link));
        table(family, masquerade::mark(attachment), chains.unwrap_or_default())
    });
    Ruleset { tables: tables.into() }
}

/// Returns the tables that have rules of attachments, to look through.
pub fn tables() -> Ruleset {
    let table = |family| table(family, String::new(), Vec::new());
    Ruleset { tables: vec![table(Family::Ip), table(Family::Ip6)] }
}

fn table(family: Family, mark: String, chains: Vec<Chain>) -> Table {
    Table {
        id: TableId { family, name: "cni_hostport".to_owned() },
        ownership: Ownership::Marked(mark),
        comment: Some("CNI portmap plugin".to_owned()),
        chains,
    }
}

fn chains(attachment: &Attachment, map: &PortMap, pod: IpAddr, link: LinkName) -> Vec<Chain> {
    let chain = |name: &str, hook, rules| Chain { name: name.to_owned(), hook, rules };
    let jump = |matches, to: &str| plain(matches, Verdict::Jump(to.to_owned()));
    let (one, all): (Vec<_>, Vec<_>) = map
        .mappings
        .iter()
        .filter(|mapping| mapping.host_ip.is_none_or(|ip| ip.is_ipv4() == pod.is_ipv4()))
        .map(|mapping| translation(attachment, mapping, pod))
        .partition(|rule| matches!(rule.matches[0], Match::Destination(..)));
    if one.is_empty() && all.is_empty() {
        return Vec::new();
    }
    let local = || vec![jump(vec![Match::LocalDestination], "hostports_all")];
    let both = vec![jump(Vec::new(), "hostip_hostports"), jump(Vec::new(), "hostports")];
    let mut chains = vec![
        chain("hostip_hostports", None, one),
        chain("hostports", None, all),
        chain("hostports_all", None, both),
        chain("prerouting", Some(Hook::NatPrerouting), local()),
        chain("output", Some(Hook::NatOutput), local()),
    ];
    let masqueraded = masqueraded(attachment, map.masquerade, pod);
    if !masqueraded.is_empty() {
        chains.push(chain("masquerading", Some(Hook::NatPostrouting), masqueraded));
        if pod.is_ipv4() {
            chains.push(chain("martians", Some(Hook::FilterPrerouting), martians(link)));
        }
    }
    chains
}

fn translation(attachment: &Attachment, mapping: &Mapping, pod: IpAddr) -> Rule {
    let host_ip = mapping.host_ip.filter(|ip| !ip.is_unspecified());
    let host_ip = host_ip.map(|ip| Match::Destination(IpNetwork::from(ip), true));
    let port = Match::DestinationPort(mapping.transport, mapping.host_port);
    let to = (pod, mapping.container_port).into();
    Rule {
        matches: host_ip.into_iter().chain([port]).collect(),
        verdict: Verdict::DestinationNat(to),
        comment: Some(masquerade::comment(attachment)),
    }
}

fn masqueraded(attachment: &Attachment, masquerade: Masquerade, pod: IpAddr) -> Vec<Rule> {
    let sources = match masquerade {
        Masquerade::Nobody => Vec::new(),
        Masquerade::Hairpin if pod.is_ipv4() => {
            vec![IpNetwork::from(pod), IpNetwork::from(IpAddr::V4(Ipv4Addr::LOCALHOST))]
        }
        Masquerade::Hairpin => vec![IpNetwork::from(pod)],
        Masquerade::All => vec![everybody(pod.is_ipv4())],
    };
    let rule = |source| Rule {
        matches: vec![Match::Source(source, true), Match::Destination(IpNetwork::from(pod), true)],
        verdict: Verdict::Masquerade { fully_random: false },
        comment: Some(masquerade::comment(attachment)),
    };
    sources.into_iter().map(rule).collect()
}

fn everybody(is_v4: bool) -> IpNetwork {
    let any = if is_v4 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    IpNetwork::new(any, 0).expect("zero is a prefix length")
}

/// Where the node's loopback addresses lead somewhere, the kernel does not keep others from using
/// them any more (`route_localnet` of its `networking/ip-sysctl`).
fn martians(link: LinkName) -> Vec<Rule> {
    let loopback = || "127.0.0.0/8".parse().expect("a network");
    let from_link = |condition| plain(vec![Match::InputInterface(link), condition], Verdict::Drop);
    vec![
        from_link(Match::Destination(loopback(), true)),
        from_link(Match::Source(loopback(), true)),
    ]
}

fn plain(matches: Vec<Match>, verdict: Verdict) -> Rule {
    Rule { matches, verdict, comment: None }
}

#[cfg(test)]
mod tests;
