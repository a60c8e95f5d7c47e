//! The rules of attachments in iptables: those that a configuration asks for by name, and those that
//! the Go plugins made before we came.
//!
//! Its programs are only run where there is something for them: nf_tables is asked for chains by
//! name, and the kernel's older tables exist or not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;

use fabric::packet_filter::iptables::{
    Chain, Content, Error, IpVersion, Iptables, Rule, Table, TableName, Variant, diff,
};
use fabric::packet_filter::nft::Nft;
use fabric::packet_filter::{Family, TableId};
use sha2::{Digest, Sha512};

use crate::invocation::{Attachment, Id};
use crate::masquerade;
use crate::portmap;

/// What the tables of each IP version hold for an attachment.
pub type Tables = BTreeMap<IpVersion, Vec<Table>>;

/// There are no programs of iptables, and a configuration asks for them.
#[derive(Debug, thiserror::Error)]
pub enum IptablesError {
    /// They are not installed.
    #[error("iptables is not installed; install it or configure the backend nftables")]
    Missing,
    /// They failed.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// Makes the rules of an attachment true.
///
/// # Errors
/// If there is no iptables, or if it refuses.
pub fn ensure(tables: &Tables) -> Result<(), IptablesError> {
    for (version, tables) in tables {
        in_use(*version)?.ensure(tables)?;
    }
    Ok(())
}

/// Returns the commands that would make the rules true.
///
/// # Errors
/// If there is no iptables, or if it cannot read its rules.
pub fn missing(tables: &Tables) -> Result<String, IptablesError> {
    let mut text = String::new();
    for (version, tables) in tables {
        let change = diff(tables, &in_use(*version)?.observe(tables)?);
        for command in change.commands() {
            text.push_str(&format!("{} {command}\n", program(*version)));
        }
    }
    Ok(text)
}

/// Removes rules from chains that others use too, wherever those are.
///
/// # Errors
/// If iptables refuses.
pub fn remove_among(tables: &Tables) -> Result<(), IptablesError> {
    for (version, tables) in tables {
        for table in tables {
            let chains: Vec<_> = table.chains.iter().map(|chain| chain.name.clone()).collect();
            let places = places(table.name, &chains).into_iter();
            for place in places.filter(|place| place.version() == *version) {
                place.ensure(std::slice::from_ref(table))?;
            }
        }
    }
    Ok(())
}

/// Removes the rules of an attachment, and returns whether there were any.
///
/// # Errors
/// If iptables refuses.
pub fn remove(attachment: &Attachment) -> Result<bool, IptablesError> {
    let own = [
        masquerade::iptables::chain_of(attachment),
        portmap::iptables::chain_of(attachment),
        // Of old versions of the Go plugin.
        hashed("CNI-SN-", attachment),
    ];
    let mut had_any = false;
    for place in places(TableName::Nat, &own) {
        let absent = |name: &String| Chain { name: name.clone(), content: Content::Absent };
        let table = Table { name: TableName::Nat, chains: own.iter().map(absent).collect() };
        had_any |= !place.ensure(&[table])?.is_empty();
    }
    Ok(had_any)
}

/// Whether ports may lead to an attachment by iptables.
pub fn has_ports(attachment: &Attachment) -> bool {
    !places(TableName::Nat, &[portmap::iptables::chain_of(attachment)]).is_empty()
}

/// Removes the rules of those containers of a network that are not `valid`.
///
/// # Errors
/// If iptables refuses.
pub fn remove_stale(network: &Id, valid: impl Fn(&str) -> bool) -> Result<(), IptablesError> {
    // Where a container has rules, one of the kernel's chains leads there.
    let all = ["POSTROUTING".to_owned()];
    for place in places(TableName::Nat, &all) {
        let nat = |chains| [Table { name: TableName::Nat, chains }];
        let observed = place.observe(&nat(Vec::new()))?;
        let leading = ["POSTROUTING", portmap::iptables::leading()];
        let rules = leading.iter().flat_map(|chain| observed.rules(TableName::Nat, chain));
        let stale: BTreeSet<_> = rules
            .filter(|rule| container_of(network, rule).is_some_and(|container| !valid(&container)))
            .filter_map(|rule| rule.target().map(str::to_owned))
            .collect();
        let absent = |name| Chain { name, content: Content::Absent };
        place.ensure(&nat(stale.into_iter().map(absent).collect()))?;
    }
    Ok(())
}

/// The version that sees packets to an address.
pub const fn version_of(ip: IpAddr) -> IpVersion {
    if ip.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 }
}

/// The name of an attachment's chain, as the Go plugins make it: they tell containers of a network
/// apart, but not the interfaces of a container.
pub fn hashed(prefix: &str, attachment: &Attachment) -> String {
    const LENGTH: usize = 28;
    let Attachment { network, container, .. } = attachment;
    let mut name = prefix.to_owned();
    for byte in Sha512::digest(format!("{network}{container}").as_bytes()) {
        name.push_str(&format!("{byte:02x}"));
    }
    name.truncate(LENGTH);
    name
}

/// The comment on rules that lead to an attachment's chain.
pub fn comment_of(prefix: &str, attachment: &Attachment) -> String {
    const LENGTH: usize = 255;
    let Attachment { network, container, .. } = attachment;
    let comment = format!("{prefix}name: \"{network}\" id: \"{container}\"");
    if comment.len() <= LENGTH { comment } else { format!("{}...", &comment[..LENGTH - 2]) }
}

/// The container that a rule with such a comment is about, if it is one of the network.
fn container_of(network: &Id, rule: &Rule) -> Option<String> {
    let comment = rule.comment()?;
    let comment = comment.strip_prefix("dnat ").unwrap_or(comment);
    let container = comment.strip_prefix(&format!("name: \"{network}\" id: \""))?;
    container.strip_suffix('"').map(str::to_owned)
}

const fn program(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => "iptables",
        IpVersion::V6 => "ip6tables",
    }
}

/// The iptables that the rules of this host are in.
fn in_use(version: IpVersion) -> Result<Iptables, IptablesError> {
    Iptables::find(version, Variant::in_use()?).ok_or(IptablesError::Missing)
}

/// Every iptables that may have one of these chains of a table.
fn places(table: TableName, chains: &[String]) -> Vec<Iptables> {
    let versions = [(IpVersion::V4, Family::Ip), (IpVersion::V6, Family::Ip6)];
    let places = versions.into_iter().flat_map(|(version, family)| {
        let nft = nf_tables_has(family, table, chains).then_some(Variant::Nft);
        let legacy = has_legacy(version, table).then_some(Variant::Legacy);
        let variants = nft.into_iter().chain(legacy);
        variants.filter_map(move |variant| {
            let named = Iptables::find(version, variant);
            named.or_else(|| Iptables::find(version, Variant::Host))
        })
    });
    places.collect()
}

fn nf_tables_has(family: Family, table: TableName, chains: &[String]) -> bool {
    let table = TableId { family, name: table.as_str().to_owned() };
    let Ok(mut nft) = Nft::open() else { return false };
    chains.iter().any(|chain| nft.has_chain(&table, chain).unwrap_or(false))
}

/// The kernel lists the older tables that this namespace has.
fn has_legacy(version: IpVersion, table: TableName) -> bool {
    let list = match version {
        IpVersion::V4 => "/proc/thread-self/net/ip_tables_names",
        IpVersion::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    let tables = fs::read_to_string(list).unwrap_or_default();
    tables.lines().any(|name| name == table.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_tells_the_container() {
        let network = Id::new("cbr0").unwrap();
        let rule = |comment: &str| Rule::new(["-m", "comment", "--comment", comment, "-j", "X"]);
        let of = |comment: &str| container_of(&network, &rule(comment));
        let one = Attachment::named("cbr0", "one", "eth0");
        for prefix in ["", "dnat "] {
            assert_eq!(of(&comment_of(prefix, &one)).as_deref(), Some("one"));
            assert_eq!(of(&comment_of(prefix, &Attachment::named("cbr1", "one", "eth0"))), None);
        }
        assert_eq!(of("name: \"cbr0\" id: \"one"), None);
        let long = comment_of("", &Attachment::named("cbr0", &"a".repeat(300), "eth0"));
        assert_eq!(long.len(), 256);
        assert_eq!(of(&long), None, "what was cut off cannot be told");
    }
}
