//! The rules of attachments in the kernel's packet filter, whatever they are for, and the flows that
//! went by them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use fabric::link_name::LinkName;
use fabric::netlink::{Inventory, NetlinkError, Socket};
use fabric::packet_filter::nft::{Flow, Nft, forget_udp_flows};
use fabric::packet_filter::{self, Match, ObservedRule, PacketFilter, Ruleset};

use crate::invocation::Attachment;
use crate::iptables::{self, IptablesError, Tables};
use crate::masquerade;
use crate::portmap::{self, PortMap};
use crate::spoofing;

/// What rules are put into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// nf_tables, without a program.
    Nftables,
    /// Whatever the programs of iptables use.
    Iptables,
}

impl Engine {
    /// Returns the engine of that name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "nftables" => Some(Self::Nftables),
            "iptables" => Some(Self::Iptables),
            _ => None,
        }
    }
}

/// The rules of an attachment, in the engines that its configuration wants them in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Those in nf_tables.
    pub nftables: Ruleset,
    /// Those in iptables.
    pub iptables: Tables,
}

impl Rules {
    /// Rules in nf_tables only.
    pub fn of_nftables(nftables: Ruleset) -> Self {
        Self { nftables, iptables: Tables::new() }
    }

    /// Rules in iptables only.
    pub fn of_iptables(iptables: Tables) -> Self {
        Self { nftables: Ruleset::default(), iptables }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nftables.tables.is_empty() && self.iptables.is_empty()
    }

    /// Adds others. Chains that both have hold what both say.
    pub fn extend(&mut self, others: Self) {
        self.nftables.tables.extend(others.nftables.tables);
        for (version, tables) in others.iptables {
            let present = self.iptables.entry(version).or_default();
            for table in tables {
                match present.iter_mut().find(|one| one.name == table.name) {
                    Some(one) => one.chains.extend(table.chains),
                    None => present.push(table),
                }
            }
        }
    }
}

/// Why the rules of an attachment are not as they shall be.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// nf_tables does not do it.
    #[error(transparent)]
    Nftables(#[from] packet_filter::Error),
    /// iptables does not do it.
    #[error(transparent)]
    Iptables(#[from] IptablesError),
}

/// Makes the rules of an attachment true.
///
/// # Errors
/// If the kernel refuses.
pub fn ensure(rules: &Rules) -> Result<(), FilterError> {
    if !rules.nftables.tables.is_empty() {
        packet_filter::ensure(&mut Nft::open()?, &rules.nftables)?;
    }
    Ok(iptables::ensure(&rules.iptables)?)
}

/// Returns what would make the rules true, as commands.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn missing(rules: &Rules) -> Result<String, FilterError> {
    let mut missing = String::new();
    if !rules.nftables.tables.is_empty() {
        let observed = Nft::open()?.observe(&rules.nftables)?;
        missing = packet_filter::diff(&rules.nftables, &observed).to_string();
    }
    Ok(missing + &iptables::missing(&rules.iptables)?)
}

/// Removes the rules of an attachment, those that the Go plugins made too, and returns whether there
/// were any.
///
/// # Errors
/// If the kernel refuses.
pub fn remove(attachment: &Attachment) -> Result<bool, FilterError> {
    let mark = masquerade::mark(attachment);
    // Thus the Go plugin marks the ports of a container.
    let container = attachment.container.as_str();
    let (spoof_check, chains) = (spoofing::comment(attachment), spoofing::chains(attachment));
    let is_stale = |comment: &str| {
        comment.starts_with(&mark) || comment == container || comment == spoof_check
    };
    let in_nftables = remove_stale(is_stale, |chain| chains.iter().any(|name| name == chain));
    let in_iptables = iptables::remove(attachment)?;
    Ok(in_nftables? || in_iptables)
}

/// Removes the rules whose comment `is_stale` and the chains whose name is, and returns whether there
/// were any.
///
/// # Errors
/// If the kernel refuses.
pub fn remove_stale(
    is_stale: impl Fn(&str) -> bool,
    is_stale_chain: impl Fn(&str) -> bool,
) -> Result<bool, FilterError> {
    let mut filter = match Nft::open() {
        // Then there are no rules either.
        Err(packet_filter::Error::Unavailable(_)) => return Ok(false),
        filter => filter?,
    };
    let tables = [masquerade::tables(), portmap::nftables::tables(), spoofing::tables()];
    let tables = Ruleset { tables: tables.into_iter().flat_map(|one| one.tables).collect() };
    let change =
        packet_filter::remove_rules_and_chains(&mut filter, &tables, is_stale, is_stale_chain)?;
    Ok(!change.is_empty())
}

/// Returns the links whose Ethernet addresses are checked, with the comments on the rules that do so.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn spoof_checks() -> Result<Vec<(LinkName, String)>, FilterError> {
    let mut filter = match Nft::open() {
        Err(packet_filter::Error::Unavailable(_)) => return Ok(Vec::new()),
        filter => filter?,
    };
    let observed = filter.observe(&spoofing::tables())?;
    let rules = observed.tables.values().flat_map(|table| table.chains.values());
    let check = |rule: &ObservedRule| match rule.rule.as_ref()?.matches[..] {
        [Match::InputInterface(link)] => Some((link, rule.comment.clone()?)),
        _ => None,
    };
    Ok(rules.flat_map(|chain| &chain.rules).filter_map(check).collect())
}

/// Forgets the UDP flows to the ports of an attachment that lead elsewhere, for example to the pod
/// that had a port before, or to the node while nobody had it. Best effort: such a flow ends by
/// itself when its client rests.
pub fn forget_earlier_flows(ports: &PortMap, pod: &[IpAddr]) {
    let ports: BTreeSet<u16> = ports.udp_ports().collect();
    if ports.is_empty() {
        return;
    }
    let Ok(local) = local_addresses() else { return };
    let is_stale = |flow: &Flow| {
        let to = flow.destination.ip();
        let is_local = to.is_loopback() || local.contains(&to);
        is_local && ports.contains(&flow.destination.port()) && !pod.contains(&flow.answered_by)
    };
    let _best_effort = forget_udp_flows(is_stale);
}

/// Forgets the UDP flows that a pod with these addresses answered. Best effort, as above.
pub fn forget_flows_to(pod: &BTreeSet<IpAddr>) {
    let _best_effort = forget_udp_flows(|flow| pod.contains(&flow.answered_by));
}

fn local_addresses() -> Result<BTreeSet<IpAddr>, NetlinkError> {
    let interfaces = Inventory::take(&mut Socket::open()?)?.interfaces;
    let addresses = interfaces.iter().flat_map(|interface| &interface.addresses);
    Ok(addresses.map(|address| address.ip).collect())
}
