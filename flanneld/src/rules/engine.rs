//! The engine that the rules go into: which one it is, and that the rules are in it and in no other.

use std::fmt;
use std::path::Path;

use fabric::packet_filter::iptables::{self, IpVersion, Iptables, Table, TableName, Variant};
use fabric::packet_filter::nft::Nft;
use fabric::packet_filter::{self, PacketFilter};
use tracing::{debug, info, warn};

use super::iptables::tables;
use super::nftables::ruleset;
use super::{FamilyRules, NodeRules};
use crate::cleanup::Outcome;
use crate::errors::chain;
use crate::family::Family;

/// What evaluates the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// Tables of our own, over netlink.
    Nftables,
    /// The tables of everybody, by the programs of iptables. A FORWARD policy of DROP that was set
    /// there can only be got past there.
    Iptables,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        })
    }
}

impl Engine {
    /// Chooses the engine for packets of these families. The administrator's word counts; without
    /// it, iptables is flannel's default. Where its programs are not installed, as in an image that
    /// holds nothing but this program, nftables needs none.
    pub(crate) fn choose(
        enable_nftables: Option<bool>,
        families: impl IntoIterator<Item = Family>,
    ) -> Self {
        let missing = families.into_iter().any(|family| find(family, Variant::Host).is_none());
        let (engine, reason) = match enable_nftables {
            Some(true) => (Self::Nftables, "EnableNFTables is true"),
            Some(false) if missing => {
                (Self::Nftables, "EnableNFTables is false, but iptables is not installed")
            }
            Some(false) => (Self::Iptables, "EnableNFTables is false"),
            None if missing => {
                (Self::Nftables, "EnableNFTables is not set, and iptables is not installed")
            }
            None => (Self::Iptables, "EnableNFTables is not set, and iptables is installed"),
        };
        info!(%engine, reason, "engine for packet filter rules chosen");
        engine
    }
}

/// Says so if the kernel does not show bridged packets to iptables: kube-proxy's translation of a
/// service address is then not undone for answers that stay on the bridge of the pods.
///
/// It is no reason to stop. Without services nobody misses it, and the module can be loaded later.
pub(crate) fn warn_without_bridge_filter(
    engine: Engine,
    families: impl IntoIterator<Item = Family>,
) {
    let exists = |parameter: &str| Path::new("/proc/sys").join(parameter).exists();
    for parameter in missed_parameters(engine, families, exists) {
        warn!(
            %parameter,
            "br_netfilter is not loaded: pods that reach a pod of their own node by the address of \
             a service get no answer; load it with modprobe br_netfilter"
        );
    }
}

/// The parameters of the module that rules of these families need and that do not exist.
pub(super) fn missed_parameters(
    engine: Engine,
    families: impl IntoIterator<Item = Family>,
    exists: impl Fn(&str) -> bool,
) -> Vec<String> {
    let needed = families.into_iter().filter(|_| engine == Engine::Iptables);
    let names =
        needed.map(|family| format!("net/bridge/bridge-nf-call-{}", version(family).program()));
    names.filter(|name| !exists(name)).collect()
}

/// Why the rules are not as they shall be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RuleError {
    #[error(transparent)]
    Nftables(#[from] packet_filter::Error),
    #[error(transparent)]
    Iptables(#[from] iptables::Error),
    #[error(
        "the rules shall go into iptables, but {0}-save and {0}-restore are not installed: install \
         the package iptables, or set EnableNFTables to true"
    )]
    NoPrograms(&'static str),
    /// The kernel may have no table `raw` for iptables. Pods can do without.
    #[error("packets around those of pods keep the mark of kube-proxy and may be masqueraded, too")]
    MarkStays(#[source] iptables::Error),
}

/// Keeps the rules of the node in one engine, and out of the others.
#[derive(Debug, Default)]
pub(crate) struct RuleKeeper {
    /// Which of the two iptables is used, once that was decided.
    variant: Option<Variant>,
    /// What holds the rules, once everything else was cleared of them.
    settled: Option<(Engine, NodeRules)>,
}

impl RuleKeeper {
    /// Makes the rules true. Returns how many operations that took, and what failed of those that
    /// pods can do without.
    ///
    /// # Errors
    /// Says what is not as it shall be.
    pub(crate) fn make_true(
        &mut self,
        engine: Engine,
        rules: &NodeRules,
    ) -> Result<(usize, Vec<RuleError>), RuleError> {
        match engine {
            Engine::Nftables => ensure_nftables(rules).map(|operations| (operations, Vec::new())),
            Engine::Iptables => self.ensure_iptables(rules),
        }
    }

    /// Tells whether the kernel says when the rules change, which it does for nf_tables only.
    pub(crate) fn is_notified(&self, engine: Engine) -> bool {
        engine == Engine::Nftables || self.variant == Some(Variant::Nft)
    }

    /// Removes what is left of the rules everywhere else, ours and flannel's: in the engine that was
    /// used before, and of a family that is no longer in use. Call this when the rules are in
    /// place, so that packets meet one set or both. Returns how many operations that took, and what
    /// could not be removed.
    pub(crate) fn clear_elsewhere(
        &mut self,
        engine: Engine,
        rules: &NodeRules,
    ) -> (usize, Vec<RuleError>) {
        if self.settled.as_ref().is_some_and(|settled| (settled.0, &settled.1) == (engine, rules)) {
            return (0, Vec::new());
        }
        let mut results: Vec<_> = match self.variant() {
            Ok(variant) => elsewhere(engine, variant, rules)
                .map(|iptables| ensure(&iptables, &tables(&FamilyRules::default())))
                .collect(),
            Err(error) => vec![Err(error)],
        };
        if engine == Engine::Iptables {
            results.push(match ensure_nftables(&NodeRules::default()) {
                Err(RuleError::Nftables(packet_filter::Error::Unavailable(_))) => Ok(0),
                removed => removed,
            });
        }
        let (removed, failures): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        if failures.is_empty() {
            self.settled = Some((engine, rules.clone()));
        }
        let failures = failures.into_iter().filter_map(Result::err).collect();
        (removed.into_iter().flatten().sum(), failures)
    }

    fn ensure_iptables(&mut self, rules: &NodeRules) -> Result<(usize, Vec<RuleError>), RuleError> {
        let variant = self.variant()?;
        let (mut operations, mut tolerated) = (0, Vec::new());
        for (family, rules) in rules.iter() {
            let iptables = find(family, variant)
                .ok_or_else(|| RuleError::NoPrograms(version(family).program()))?;
            let mut tables = tables(rules);
            operations += match ensure(&iptables, &tables) {
                Err(RuleError::Iptables(refused @ iptables::Error::Refused { .. })) => {
                    // Whose fault it is, the others tell by themselves.
                    tables.retain(|table| table.name != TableName::Raw);
                    let operations = ensure(&iptables, &tables)?;
                    tolerated.push(RuleError::MarkStays(refused));
                    operations
                }
                ensured => ensured?,
            };
        }
        Ok((operations, tolerated))
    }

    /// Decided once: from then on our own rules would have a say in it.
    fn variant(&mut self) -> Result<Variant, RuleError> {
        match self.variant {
            Some(variant) => Ok(variant),
            None => Ok(*self.variant.insert(Variant::in_use()?)),
        }
    }
}

/// Removes the rules, ours and flannel's, from every engine, or only says how.
pub(crate) fn remove_everywhere(dry_run: bool, outcome: &mut Outcome) {
    let nothing = NodeRules::default();
    match remove_from_nftables(dry_run) {
        Ok(change) => {
            let commands = change.operations.iter().map(|operation| format!("nft {operation}"));
            outcome.commands.extend(commands);
        }
        Err(packet_filter::Error::Unavailable(_)) => {}
        Err(error) => outcome.failures.push(chain(&error)),
    }
    let everywhere = match RuleKeeper::default().variant() {
        Ok(variant) => elsewhere(Engine::Nftables, variant, &nothing).collect(),
        Err(error) => {
            outcome.failures.push(chain(&error));
            Vec::new()
        }
    };
    for iptables in everywhere {
        match remove_from_iptables(&iptables, dry_run) {
            Ok(change) => {
                let program = iptables.version().program();
                let commands = change.commands().map(|command| format!("{program} {command}"));
                outcome.commands.extend(commands);
            }
            Err(error) => outcome.failures.push(chain(&error)),
        }
    }
}

fn remove_from_nftables(dry_run: bool) -> Result<packet_filter::Change, packet_filter::Error> {
    let (mut nft, nothing) = (Nft::open()?, ruleset(&NodeRules::default()));
    if dry_run {
        return Ok(packet_filter::diff(&nothing, &nft.observe(&nothing)?));
    }
    packet_filter::ensure(&mut nft, &nothing)
}

fn remove_from_iptables(
    iptables: &Iptables,
    dry_run: bool,
) -> Result<iptables::Change, iptables::Error> {
    let nothing = tables(&FamilyRules::default());
    if dry_run {
        return Ok(iptables::diff(&nothing, &iptables.observe(&nothing)?));
    }
    iptables.ensure(&nothing)
}

/// Every iptables of this host that shall hold none of the rules.
fn elsewhere(
    engine: Engine,
    variant: Variant,
    rules: &NodeRules,
) -> impl Iterator<Item = Iptables> {
    let variants: &[Variant] = match variant {
        Variant::Host => &[Variant::Host],
        Variant::Nft | Variant::Legacy => &[Variant::Nft, Variant::Legacy],
    };
    let pairs = variants.iter().flat_map(|other| Family::ALL.map(|family| (family, *other)));
    pairs
        .filter(move |(family, other)| {
            engine == Engine::Nftables || *other != variant || rules.get(*family).is_none()
        })
        .filter_map(|(family, other)| find(family, other))
}

fn find(family: Family, variant: Variant) -> Option<Iptables> {
    Iptables::find(version(family), variant)
}

const fn version(family: Family) -> IpVersion {
    match family {
        Family::V4 => IpVersion::V4,
        Family::V6 => IpVersion::V6,
    }
}

fn ensure_nftables(rules: &NodeRules) -> Result<usize, RuleError> {
    let change = packet_filter::ensure(&mut Nft::open()?, &ruleset(rules))?;
    change.operations.iter().for_each(|operation| debug!("nft {operation}"));
    Ok(change.operations.len())
}

fn ensure(iptables: &Iptables, tables: &[Table]) -> Result<usize, RuleError> {
    let change = iptables.ensure(tables)?;
    let commands = change.commands();
    Ok(commands.map(|command| debug!("{} {command}", iptables.version().program())).count())
}
