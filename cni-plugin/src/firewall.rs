//! What lets the node forward for a pod where its rules would not, in the chains of the Go plugin and
//! exactly as that one makes them. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fabric::json;
use fabric::link_name::LinkName;
use fabric::packet_filter::iptables::{
    Chain, Content, IpVersion, Place, Placed, Rule, Table, TableName,
};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::iptables::{Tables, version_of};

/// The chain with what is allowed for pods.
pub const FORWARD: &str = "CNI-FORWARD";
const STAGE_1: &str = "CNI-ISOLATION-STAGE-1";
const STAGE_2: &str = "CNI-ISOLATION-STAGE-2";

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firewall {
    /// What lets pods through.
    pub backend: Backend,
    /// The zone of firewalld that pods get into.
    pub zone: Zone,
    /// The chain in which the administrator overrides what is allowed.
    pub admin_chain: String,
    /// Who may reach pods from other bridges.
    pub policy: Policy,
}

/// What lets the packets of pods through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// firewalld.
    Firewalld,
    /// Rules in iptables.
    Iptables,
    /// firewalld if it runs, and rules otherwise.
    WhatRuns,
}

/// The name of a zone of firewalld.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone(String);

/// Who may reach a pod through the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Everybody.
    Open,
    /// Pods on the same bridge, and not those on others.
    SameBridge,
    /// No other pod.
    Isolated,
}

/// Why a configuration cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// A value is of the wrong type.
    #[error("failed to load netconf")]
    Json(#[source] json::Error),
    /// No zone has such a name.
    #[error("firewalldZone: {0:?} is not the name of a zone")]
    Zone(String),
    /// There is no such policy.
    #[error("unknown ingress policy: {0:?}")]
    Policy(String),
    /// The name cannot be that of a chain.
    #[error("iptablesAdminChainName: {0:?} is not the name of a chain")]
    Chain(String),
    /// A policy is about a bridge, and the plugins before this one speak of none.
    #[error("interface name is empty")]
    NoBridge,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawFirewall {
    backend: String,
    firewalld_zone: String,
    iptables_admin_chain_name: String,
    ingress_policy: String,
}

impl Firewall {
    /// Reads the configuration of the plugin `firewall`.
    ///
    /// # Errors
    /// If it cannot be understood, or asks for something that we cannot do.
    pub fn new(config: &Map<String, Value>) -> Result<Self, FirewallError> {
        let raw: RawFirewall =
            json::from_value(config.clone().into()).map_err(FirewallError::Json)?;
        let backend = match raw.backend.as_str() {
            "firewalld" => Backend::Firewalld,
            "iptables" => Backend::Iptables,
            _ => Backend::WhatRuns,
        };
        let zone = match raw.firewalld_zone {
            none if none.is_empty() => Zone("trusted".to_owned()),
            name => Zone::new(&name).ok_or(FirewallError::Zone(name))?,
        };
        let policy = match raw.ingress_policy.as_str() {
            "" | "open" => Policy::Open,
            "same-bridge" => Policy::SameBridge,
            "isolated" => Policy::Isolated,
            unknown => return Err(FirewallError::Policy(unknown.to_owned())),
        };
        let admin_chain = admin_chain(raw.iptables_admin_chain_name)?;
        Ok(Self { backend, zone, admin_chain, policy })
    }
}

impl Zone {
    /// A word, as firewalld itself demands.
    pub fn new(name: &str) -> Option<Self> {
        const BYTES_MAX: usize = 64;
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/' | '.');
        let is_name = (1..=BYTES_MAX).contains(&name.len()) && name.chars().all(is_word);
        is_name.then(|| Self(name.to_owned()))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A word of its own for the program, and no longer than the kernel can take.
fn admin_chain(name: String) -> Result<String, FirewallError> {
    const BYTES_MAX: usize = 28;
    if name.is_empty() {
        return Ok("CNI-ADMIN".to_owned());
    }
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    let is_chain = name.len() <= BYTES_MAX && name.chars().all(is_word) && !name.starts_with('-');
    if is_chain { Ok(name) } else { Err(FirewallError::Chain(name)) }
}

/// Returns what the tables hold for a pod with these addresses, whose bridge counts where there is a
/// policy.
///
/// # Errors
/// If there is a policy and no bridge.
pub fn tables(
    firewall: &Firewall,
    pod: &BTreeSet<IpAddr>,
    bridge: Option<LinkName>,
) -> Result<Tables, FirewallError> {
    // What is kept out must be so before anything is let through.
    let isolated = isolated(firewall.policy, bridge)?;
    let chains = |version| [isolated.clone(), allowed(firewall, version, pod)].concat();
    Ok(versions(pod).map(|version| (version, merged(chains(version)))).collect())
}

/// Returns what of that the tables hold when it is not they that let the pod through.
///
/// # Errors
/// As [`tables`].
pub fn tables_of_policy(
    firewall: &Firewall,
    pod: &BTreeSet<IpAddr>,
    bridge: Option<LinkName>,
) -> Result<Tables, FirewallError> {
    let isolated = isolated(firewall.policy, bridge)?;
    let versions = versions(pod).filter(|_| !isolated.is_empty());
    Ok(versions.map(|version| (version, merged(isolated.clone()))).collect())
}

fn versions(pod: &BTreeSet<IpAddr>) -> impl Iterator<Item = IpVersion> {
    pod.iter().map(|ip| version_of(*ip)).collect::<BTreeSet<_>>().into_iter()
}

/// Returns what the tables hold when nothing is allowed for these addresses any more. What pods share
/// stays.
pub fn without(pod: &BTreeSet<IpAddr>) -> Tables {
    let of = |version| {
        let addresses = pod.iter().filter(move |ip| version_of(**ip) == version);
        let rules = addresses.flat_map(|ip| rules_for(*ip));
        let absent = rules.map(|rule| Placed { rule, place: Place::Absent });
        vec![filter(vec![chain(FORWARD, absent.collect())])]
    };
    versions(pod).map(|version| (version, of(version))).collect()
}

fn allowed(firewall: &Firewall, version: IpVersion, pod: &BTreeSet<IpAddr>) -> Vec<Chain> {
    let admin = firewall.admin_chain.as_str();
    let overrides = commented(&[], "CNI firewall plugin admin overrides", admin);
    let addresses = pod.iter().filter(|ip| version_of(**ip) == version);
    let rules = addresses.flat_map(|ip| rules_for(*ip));
    let rules = rules.map(|rule| Placed { rule, place: Place::Last });
    vec![
        chain("FORWARD", vec![first(commented(&[], "CNI firewall plugin rules", FORWARD))]),
        chain(FORWARD, [first(overrides)].into_iter().chain(rules).collect()),
        Chain { name: admin.to_owned(), content: Content::Anything },
    ]
}

fn rules_for(ip: IpAddr) -> [Rule; 2] {
    let ip = IpNetwork::from(ip).to_string();
    let established = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"];
    [Rule::new(["-d", &ip].into_iter().chain(established)), Rule::new(["-s", &ip, "-j", "ACCEPT"])]
}

/// What leaves a bridge of pods goes to the second stage, where it does not enter another one.
fn isolated(policy: Policy, bridge: Option<LinkName>) -> Result<Vec<Chain>, FirewallError> {
    const ALL: &str = "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)";
    if policy == Policy::Open {
        return Ok(Vec::new());
    }
    let bridge = bridge.ok_or(FirewallError::NoBridge)?;
    let bridge = bridge.as_str();
    let comment = match policy {
        Policy::Isolated => "CNI firewall plugin rules (ingressPolicy: isolated)",
        Policy::SameBridge | Policy::Open => {
            "CNI firewall plugin rules (ingressPolicy: same-bridge)"
        }
    };
    let last = || Placed { rule: commented(&[], ALL, "RETURN"), place: Place::Last };
    let onward = commented(&["-i", bridge, "!", "-o", bridge], comment, STAGE_2);
    let within = commented(&["-i", bridge, "-o", bridge], comment, "DROP");
    let within = (policy == Policy::Isolated).then(|| first(within));
    let into = commented(&["-o", bridge], comment, "DROP");
    Ok(vec![
        chain("FORWARD", vec![first(commented(&[], ALL, STAGE_1))]),
        chain(STAGE_1, within.into_iter().chain([first(onward), last()]).collect()),
        chain(STAGE_2, vec![first(into), last()]),
    ])
}

/// A chain is named once in a table.
fn merged(chains: Vec<Chain>) -> Vec<Table> {
    let mut merged: Vec<Chain> = Vec::new();
    for chain in chains {
        let present = merged.iter_mut().find(|one| one.name == chain.name);
        match (present.map(|one| &mut one.content), chain.content) {
            (Some(Content::Among(rules)), Content::Among(more)) => rules.extend(more),
            (_, content) => merged.push(Chain { name: chain.name, content }),
        }
    }
    vec![filter(merged)]
}

const fn filter(chains: Vec<Chain>) -> Table {
    Table { name: TableName::Filter, chains }
}

fn chain(name: &str, rules: Vec<Placed>) -> Chain {
    Chain { name: name.to_owned(), content: Content::Among(rules) }
}

const fn first(rule: Rule) -> Placed {
    Placed { rule, place: Place::First }
}

fn commented(matches: &[&str], comment: &str, target: &str) -> Rule {
    let comment = ["-m", "comment", "--comment", comment, "-j", target];
    Rule::new(matches.iter().copied().chain(comment))
}

#[cfg(test)]
mod tests {
    use fabric::packet_filter::iptables::{Observed, diff};
    use serde_json::json;

    use super::*;

    fn firewall(config: Value) -> Result<Firewall, String> {
        Firewall::new(config.as_object().unwrap()).map_err(|error| crate::error::chain(&error))
    }

    fn plan(config: Value, pod: &[&str]) -> String {
        let pod = pod.iter().map(|ip| ip.parse().unwrap()).collect();
        let bridge = Some("br0".parse().unwrap());
        let tables = tables(&firewall(config).unwrap(), &pod, bridge).unwrap();
        let change = |tables: &Vec<Table>| diff(tables, &Observed::default()).to_string();
        tables.values().map(change).collect()
    }

    #[test]
    fn what_a_pod_sends_and_its_answers_are_forwarded() {
        let expected = r#"*filter
-N CNI-FORWARD
-I FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD
-I CNI-FORWARD -m comment --comment "CNI firewall plugin admin overrides" -j CNI-ADMIN
-A CNI-FORWARD -d 10.1.2.3/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A CNI-FORWARD -s 10.1.2.3/32 -j ACCEPT
COMMIT
"#;
        let text = plan(json!({}), &["10.1.2.3"]);
        let without_admin = text.replace("-N CNI-ADMIN\n", "");
        assert_eq!(without_admin, expected);
        assert!(text.contains("-N CNI-ADMIN\n"), "{text}");
        let both = plan(json!({"iptablesAdminChainName": "MINE"}), &["10.1.2.3", "fd01::3"]);
        assert_eq!(both.matches("-j MINE\n").count(), 2, "{both}");
        assert!(both.contains("-A CNI-FORWARD -s fd01::3/128 -j ACCEPT\n"), "{both}");
    }

    #[test]
    fn bridges_are_kept_from_each_other() {
        let text = plan(json!({"ingressPolicy": "isolated"}), &["10.1.2.3"]);
        let isolated =
            "-m comment --comment \"CNI firewall plugin rules (ingressPolicy: isolated)\"";
        for expected in [
            format!("CNI-ISOLATION-STAGE-1 -i br0 ! -o br0 {isolated} -j CNI-ISOLATION-STAGE-2\n"),
            format!("CNI-ISOLATION-STAGE-1 -i br0 -o br0 {isolated} -j DROP\n"),
            format!("CNI-ISOLATION-STAGE-2 -o br0 {isolated} -j DROP\n"),
        ] {
            assert!(text.contains(&expected), "{text}");
        }
        let text = plan(json!({"ingressPolicy": "same-bridge"}), &["10.1.2.3"]);
        assert!(!text.contains("-i br0 -o br0"), "{text}");
        assert_eq!(text.matches("-j RETURN\n").count(), 2, "{text}");
    }

    #[test]
    fn firewalld_needs_rules_for_a_policy_only() {
        let pod = ["10.1.2.3".parse().unwrap()].into();
        let bridge = Some("br0".parse().unwrap());
        let of = |policy: &str| {
            let config = json!({"backend": "firewalld", "ingressPolicy": policy});
            let firewall = firewall(config).unwrap();
            assert_eq!((firewall.backend, firewall.zone.as_str()), (Backend::Firewalld, "trusted"));
            tables_of_policy(&firewall, &pod, bridge).unwrap()
        };
        assert_eq!(of("open"), Tables::new());
        let text: String =
            of("isolated").values().map(|t| diff(t, &Observed::default()).to_string()).collect();
        assert!(text.contains(STAGE_2) && !text.contains(FORWARD), "{text}");
        for (backend, expected) in
            [("iptables", Backend::Iptables), ("", Backend::WhatRuns), ("x", Backend::WhatRuns)]
        {
            let config = json!({"backend": backend, "firewalldZone": "internal"});
            let firewall = firewall(config).unwrap();
            assert_eq!((firewall.backend, firewall.zone.as_str()), (expected, "internal"));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let table = [
            (
                json!({"firewalldZone": "a\0b"}),
                "firewalldZone: \"a\\0b\" is not the name of a zone",
            ),
            (json!({"ingressPolicy": "closed"}), "unknown ingress policy: \"closed\""),
            (
                json!({"iptablesAdminChainName": "A B"}),
                "iptablesAdminChainName: \"A B\" is not the name of a chain",
            ),
            (
                json!({"iptablesAdminChainName": "-j"}),
                "iptablesAdminChainName: \"-j\" is not the name of a chain",
            ),
        ];
        for (config, expected) in table {
            assert_eq!(firewall(config).unwrap_err(), expected);
        }
        let isolated = firewall(json!({"ingressPolicy": "isolated"})).unwrap();
        let pod = ["10.1.2.3".parse().unwrap()].into();
        assert!(matches!(tables(&isolated, &pod, None), Err(FirewallError::NoBridge)));
    }
}
