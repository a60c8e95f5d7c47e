//! `flannel hand-over`: moves the rules of the pods of this node from nftables into iptables, where the
//! Go plugins look for them, so that these can check and remove them when they have taken over.
//!
//! What a rule says is read back from the kernel: nobody else knows the ports of a pod. The new rules
//! are there before the old ones go.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use fabric::link_name::LinkName;
use fabric::netlink::{Inventory, Socket, aliases};
use fabric::packet_filter::nft::Nft;
use fabric::packet_filter::{self, Match, Observed, ObservedRule, PacketFilter, Rule, Verdict};
use ipnetwork::IpNetwork;

use crate::attachment::{host_veth, of_alias};
use crate::filter::{self, Engine, FilterError, Rules};
use crate::invocation::{Attachment, Id};
use crate::iptables::{self, IptablesError};
use crate::kernel::KernelError;
use crate::masquerade;
use crate::portmap::{self, Backend, Mapping, Masquerade, PortMap};

/// Why not all of it was handed over.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// The kernel cannot be asked for links and routes.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// nf_tables refuses.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// iptables refuses, or is not there.
    #[error(transparent)]
    Iptables(#[from] IptablesError),
}

/// What became of the rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The attachments whose rules are in iptables now.
    pub moved: Vec<Attachment>,
    /// The comments on rules for ports that stay as they were: of pods that have no link of ours,
    /// because they are gone or somebody else's plugin attached them, or under conditions that
    /// iptables has other words for.
    pub left: BTreeSet<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Attachment { network, container, if_name } in &self.moved {
            writeln!(f, "moved to iptables: rules of {container}, interface {if_name}, {network}")?;
        }
        for comment in &self.left {
            writeln!(f, "left in nftables: ports of {comment}")?;
        }
        Ok(())
    }
}

/// Hands over the rules of all pods that have a link of ours.
///
/// # Errors
/// The first thing that failed. What was not moved by then is as it was.
pub fn run() -> Result<Report, HandOverError> {
    let mut host = Socket::open().map_err(KernelError::from)?;
    let inventory = Inventory::take(&mut host).map_err(KernelError::from)?;
    let mut nft = match Nft::open() {
        Err(packet_filter::Error::Unavailable(_)) => return Ok(Report::default()),
        nft => nft.map_err(FilterError::from)?,
    };
    let mut tables = portmap::nftables::tables();
    tables.tables.extend(masquerade::tables().tables);
    let observed = nft.observe(&tables).map_err(FilterError::from)?;
    let mut report = Report::default();
    let aliases = aliases(&mut host).map_err(KernelError::from)?;
    for attachment in aliases.iter().filter_map(|(link, alias)| attachment_of(*link, alias)) {
        let subnet_of = |pod| subnet_of(&inventory, pod, host_veth(&attachment));
        let Some(rules) = in_iptables(&attachment, &observed, subnet_of) else { continue };
        iptables::ensure(&rules.iptables)?;
        let mark = masquerade::mark(&attachment);
        filter::remove_stale(|comment| comment.starts_with(&mark), |_| false)?;
        report.moved.push(attachment);
    }
    let marks: Vec<_> = report.moved.iter().map(masquerade::mark).collect();
    let is_left = |comment: &&String| !marks.iter().any(|mark| comment.starts_with(mark));
    let leads = |rule: &Rule| matches!(rule.verdict, Verdict::DestinationNat(_));
    let ports = rules(&observed).filter(|rule| rule.rule.as_ref().is_some_and(leads));
    report.left = ports.filter_map(|rule| rule.comment.as_ref()).filter(is_left).cloned().collect();
    Ok(report)
}

/// The attachment that a link of the host is for.
fn attachment_of(link: LinkName, alias: &str) -> Option<Attachment> {
    let (container, if_name, network) = of_alias(alias)?;
    let (network, container) = (Id::new(network)?, Id::new(container)?);
    let attachment = Attachment { network, container, if_name: if_name.parse().ok()? };
    (link == host_veth(&attachment)).then_some(attachment)
}

/// The subnet of a pod as it is on the host, and the link that leads there: the pod's own link, where
/// it has no other.
fn subnet_of(inventory: &Inventory, pod: IpAddr, link: LinkName) -> (IpNetwork, LinkName) {
    let ways = inventory.ways.iter();
    let on_link = ways.filter(|way| way.on_link && way.destination.contains(pod));
    let way = on_link.max_by_key(|way| way.destination.prefix());
    let (prefix, link) = way.map_or((IpNetwork::from(pod).prefix(), link), |way| {
        (way.destination.prefix(), way.interface)
    });
    (IpNetwork::new(pod, prefix).expect("a prefix of its family"), link)
}

/// What the rules of an attachment in nf_tables say, as rules of iptables, if there are any and all of
/// them can be said there.
fn in_iptables(
    attachment: &Attachment,
    observed: &Observed,
    subnet_of: impl Fn(IpAddr) -> (IpNetwork, LinkName),
) -> Option<Rules> {
    let mark = masquerade::mark(attachment);
    let is_own =
        |rule: &&ObservedRule| rule.comment.as_ref().is_some_and(|text| text.starts_with(&mark));
    let own: Option<Vec<&Rule>> =
        rules(observed).filter(is_own).map(|rule| rule.rule.as_ref()).collect();
    let own = own.filter(|own| !own.is_empty())?;
    let hidden: Vec<_> = own.iter().filter_map(|rule| hidden(rule)).collect();
    let mut rules = masquerade::rules(attachment, Engine::Iptables, &hidden);
    let translations = own.iter().filter(|rule| matches!(rule.verdict, Verdict::DestinationNat(_)));
    let led: Vec<_> = translations.map(|rule| led(rule)).collect::<Option<_>>()?;
    let pods: BTreeSet<IpAddr> = led.iter().map(|(pod, _)| *pod).collect();
    let (pods, links): (Vec<_>, Vec<_>) = pods.into_iter().map(subnet_of).unzip();
    if let Some(link) = links.first() {
        let map = PortMap {
            mappings: mappings(&led),
            masquerade: masqueraded(&own),
            backend: Backend::of_go_plugin(),
        };
        rules.extend(portmap::rules(attachment, &map, &pods, *link));
    }
    Some(rules)
}

fn rules(observed: &Observed) -> impl Iterator<Item = &ObservedRule> {
    let chains = observed.tables.values().flat_map(|table| table.chains.values());
    chains.flat_map(|chain| &chain.rules)
}

/// A pod's address with the length of its subnet, if the rule gives what leaves the subnet the node's.
fn hidden(rule: &Rule) -> Option<IpNetwork> {
    match (&rule.matches[..], &rule.verdict) {
        (
            [Match::Source(pod, true), Match::Destination(subnet, false)],
            Verdict::Masquerade { .. },
        ) => IpNetwork::new(pod.ip(), subnet.prefix()).ok(),
        _ => None,
    }
}

/// Where a rule leads, and from which port of the node, unless there are conditions.
fn led(rule: &Rule) -> Option<(IpAddr, Mapping)> {
    let Verdict::DestinationNat(to) = rule.verdict else { return None };
    let mapping = |host_ip, transport, host_port| Mapping {
        transport,
        host_ip,
        host_port,
        container_port: to.port(),
    };
    match rule.matches[..] {
        [Match::DestinationPort(transport, port)] => {
            Some((to.ip(), mapping(None, transport, port)))
        }
        [Match::Destination(host, true), Match::DestinationPort(transport, port)] => {
            Some((to.ip(), mapping(Some(host.ip()), transport, port)))
        }
        _ => None,
    }
}

/// One for all addresses of the node stands in the table of each family.
fn mappings(led: &[(IpAddr, Mapping)]) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for (_, mapping) in led {
        if !mappings.contains(mapping) {
            mappings.push(*mapping);
        }
    }
    mappings
}

/// Whose packets to the pod get the node's address.
fn masqueraded(rules: &[&Rule]) -> Masquerade {
    let sources = rules.iter().filter_map(|rule| match (&rule.matches[..], &rule.verdict) {
        (
            [Match::Source(source, true), Match::Destination(_, true)],
            Verdict::Masquerade { .. },
        ) => Some(source.prefix()),
        _ => None,
    });
    match sources.min() {
        None => Masquerade::Nobody,
        Some(0) => Masquerade::All,
        Some(_) => Masquerade::Hairpin,
    }
}

#[cfg(test)]
mod tests {
    use fabric::packet_filter::{ObservedChain, ObservedHook, ObservedTable, Ruleset};
    use serde_json::{Value, json};

    use super::*;

    const SUBNETS: [&str; 2] = ["10.1.2.5/24", "fd00::5/64"];

    fn attachment() -> Attachment {
        Attachment::named("cbr0", "one", "eth0")
    }

    fn pods() -> Vec<IpNetwork> {
        SUBNETS.map(|subnet| subnet.parse().unwrap()).to_vec()
    }

    fn ports(conf: Value, backend: &str) -> Rules {
        let mut conf = conf;
        conf["backend"] = json!(backend);
        let map = PortMap::new(conf.as_object().unwrap()).unwrap();
        portmap::rules(&attachment(), &map, &pods(), "cni0".parse().unwrap())
    }

    /// The rules as the kernel would show them.
    fn observed(ruleset: &Ruleset) -> Observed {
        let rule = |rule: &Rule| ObservedRule {
            handle: 0,
            comment: rule.comment.clone(),
            rule: Some(rule.clone()),
        };
        let mut observed = Observed::default();
        for table in &ruleset.tables {
            let chains = table.chains.iter().map(|chain| {
                let rules = chain.rules.iter().map(rule).collect();
                (chain.name.clone(), ObservedChain { hook: ObservedHook::Absent, rules })
            });
            let table_now = ObservedTable { chains: chains.collect(), foreign: false };
            observed.tables.insert(table.id.clone(), table_now);
        }
        observed
    }

    fn moved(rules: &Rules) -> Option<Rules> {
        let subnet_of = |pod: IpAddr| {
            let subnet = pods().into_iter().find(|subnet| subnet.ip() == pod);
            (subnet.unwrap(), "cni0".parse().unwrap())
        };
        in_iptables(&attachment(), &observed(&rules.nftables), subnet_of)
    }

    #[test]
    fn rules_become_those_that_iptables_would_have_got() {
        let mappings = json!({"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 53, "containerPort": 5353, "protocol": "udp"},
        ]});
        let of_one_address = json!({"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.168.0.1"},
        ]});
        let table = [
            json!({"runtimeConfig": mappings}),
            json!({"runtimeConfig": mappings, "snat": false}),
            json!({"runtimeConfig": mappings, "masqAll": true}),
        ];
        for conf in table {
            let expected = ports(conf.clone(), "iptables");
            assert_eq!(moved(&ports(conf.clone(), "nftables")), Some(expected), "{conf}");
        }
        let rules = moved(&ports(json!({"runtimeConfig": of_one_address}), "nftables")).unwrap();
        assert_eq!(rules.iptables.len(), 1, "IPv6 has nothing to do with it");

        let mut both = ports(json!({"runtimeConfig": mappings}), "nftables");
        both.extend(masquerade::rules(&attachment(), Engine::Nftables, &pods()));
        let mut expected = masquerade::rules(&attachment(), Engine::Iptables, &pods());
        expected.extend(ports(json!({"runtimeConfig": mappings}), "iptables"));
        assert_eq!(moved(&both), Some(expected));
    }

    #[test]
    fn what_cannot_be_said_in_iptables_stays() {
        let conf = json!({
            "conditionsV4": ["ip", "saddr", "10.9.0.0/16"],
            "runtimeConfig": {"portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            ]},
        });
        assert_eq!(moved(&ports(conf, "nftables")), None);
        assert_eq!(moved(&Rules::default()), None);
    }
}
