//! Ports of the node that lead to a pod: what a configuration says of them, and the rules that make
//! it true. Pure.

pub mod conditions;
pub mod iptables;
pub mod nftables;

use std::net::IpAddr;

use fabric::json;
use fabric::link_name::LinkName;
use fabric::packet_filter::{Match, Transport};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::filter::Rules;
use crate::invocation::Attachment;
use conditions::Conditions;

/// Ports that lead to a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortMap {
    /// In the order of the configuration.
    pub mappings: Vec<Mapping>,
    /// Whose packets get the node's address on their way.
    pub masquerade: Masquerade,
    /// What the rules are put into.
    pub backend: Backend,
}

/// What rules are put into, with what only that understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// nftables, with further conditions on what is led to the pod.
    Nftables(Conditions<Match>),
    /// iptables, with further conditions as its arguments.
    Iptables(Conditions<String>, Marking),
}

/// How iptables remembers whose packets get the node's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Marking {
    /// By this bit of the mark.
    Bit(u8),
    /// By whatever this chain of table `nat` does, which somebody else made.
    Chain(String),
}

impl Backend {
    /// What the Go plugin does if it is not told anything else.
    pub fn of_go_plugin() -> Self {
        Self::Iptables(Conditions::default(), Marking::Bit(MARK_BIT))
    }
}

impl Default for Backend {
    fn default() -> Self {
        Self::Nftables(Conditions::default())
    }
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
    /// Options of one back end are given to the other.
    #[error(
        "failed to parse config: {requested} backend was requested but configuration contains \
         {other}-specific options [{}]", options.join(" ")
    )]
    OtherBackend {
        /// The one that was asked for.
        requested: &'static str,
        /// The one that the options are of.
        other: &'static str,
        /// The options.
        options: Vec<&'static str>,
    },
    /// There are two ways to mark packets.
    #[error("failed to parse config: Cannot specify externalSetMarkChain and markMasqBit")]
    TwoMarks,
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
        let backend = raw.backend()?;
        let masquerade = match (raw.snat, raw.masq_all) {
            (false, _) => Masquerade::Nobody,
            (true, false) => Masquerade::Hairpin,
            (true, true) => Masquerade::All,
        };
        let mappings = raw.runtime_config.port_mappings.iter().map(RawMapping::check);
        Ok(Self { mappings: mappings.collect::<Result<_, _>>()?, masquerade, backend })
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

/// The bit of the mark that the Go plugin uses too.
const MARK_BIT: u8 = 13;

impl RawPortMap {
    fn backend(&self) -> Result<Backend, PortMapError> {
        let of_iptables = self.options_of(conditions::are_of_iptables, true);
        let of_nftables = self.options_of(|tokens| !conditions::are_of_iptables(tokens), false);
        let misplaced = |requested, other, options| {
            Err(PortMapError::OtherBackend { requested, other, options })
        };
        let marking = self.marking()?;
        match self.backend.as_str() {
            "" if of_iptables.is_empty() => self.nftables(),
            "nftables" if of_iptables.is_empty() => self.nftables(),
            "nftables" => misplaced("nftables", "iptables", of_iptables),
            "" | "iptables" if of_nftables.is_empty() => {
                let conditions =
                    Conditions { v4: self.conditions_v4.clone(), v6: self.conditions_v6.clone() };
                Ok(Backend::Iptables(conditions, marking))
            }
            "" | "iptables" => misplaced("iptables", "nftables", of_nftables),
            unknown => Err(PortMapError::Backend(unknown.to_owned())),
        }
    }

    fn nftables(&self) -> Result<Backend, PortMapError> {
        let parse = |key, tokens: &Vec<String>| {
            let matches = conditions::parse(tokens);
            let value = || Value::from(tokens.clone()).to_string();
            matches.ok_or_else(|| PortMapError::Unsupported { key, value: value() })
        };
        let v4 = parse("conditionsV4", &self.conditions_v4)?;
        let v6 = parse("conditionsV6", &self.conditions_v6)?;
        Ok(Backend::Nftables(Conditions { v4, v6 }))
    }

    /// The options that only one of the back ends understands.
    fn options_of(&self, are_its: fn(&[String]) -> bool, has_chain: bool) -> Vec<&'static str> {
        let is_its = |tokens: &Vec<String>| !tokens.is_empty() && are_its(tokens);
        let options = [
            ("externalSetMarkChain", has_chain && !self.external_set_mark_chain.is_empty()),
            ("conditionsV4", is_its(&self.conditions_v4)),
            ("conditionsV6", is_its(&self.conditions_v6)),
        ];
        options.into_iter().filter(|(_, given)| *given).map(|(option, _)| option).collect()
    }

    fn marking(&self) -> Result<Marking, PortMapError> {
        let bit = self.mark_masq_bit.map(|bit| u8::try_from(bit).ok().filter(|bit| *bit < 32));
        match (bit, self.external_set_mark_chain.as_str()) {
            (Some(None), _) => Err(PortMapError::MarkBit),
            (Some(Some(bit)), "") => Ok(Marking::Bit(bit)),
            (Some(Some(_)), _) => Err(PortMapError::TwoMarks),
            (None, "") => Ok(Marking::Bit(MARK_BIT)),
            (None, chain) => Ok(Marking::Chain(chain.to_owned())),
        }
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
/// counts, each with the length of its subnet, and which is reached by `link`.
pub fn rules(attachment: &Attachment, map: &PortMap, pod: &[IpNetwork], link: LinkName) -> Rules {
    match &map.backend {
        Backend::Nftables(conditions) => {
            let pod: Vec<IpAddr> = pod.iter().map(IpNetwork::ip).collect();
            Rules::of_nftables(nftables::rules(attachment, map, conditions, &pod, link))
        }
        Backend::Iptables(conditions, marking) => {
            Rules::of_iptables(iptables::tables(attachment, map, (conditions, marking), pod, link))
        }
    }
}

#[cfg(test)]
mod tests;
