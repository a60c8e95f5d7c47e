//! What differs between the desired and the observed tables, as input of `iptables-restore`.

use std::fmt::{Display, Formatter, Result};

use super::save::ObservedTable;
use super::{Chain, Content, Observed, Place, Placed, Rule, Table, TableName};

/// What is carried out by one run of `iptables-restore --noflush`, each table in one transaction.
/// It displays as the input of that program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// In the order in which they are changed; none without an operation.
    pub tables: Vec<(TableName, Vec<Operation>)>,
}

/// One step of a [`Change`]. It displays as the arguments of `iptables` that would do the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Makes a chain.
    NewChain(String),
    /// Removes all rules of a chain.
    Flush(String),
    /// Makes a rule at the end of a chain.
    Append(String, Rule),
    /// Makes a rule at the start of a chain.
    Insert(String, Rule),
    /// Removes the first rule of a chain that says this.
    Delete(String, Rule),
    /// Removes a chain, which must be empty and which nothing must lead to.
    DeleteChain(String),
}

impl Change {
    /// Tells whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Returns every operation as it would be typed behind `iptables`.
    pub fn commands(&self) -> impl Iterator<Item = String> {
        self.tables.iter().flat_map(|(table, operations)| {
            operations.iter().map(move |operation| format!("-t {table} {operation}"))
        })
    }
}

impl Display for Change {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        self.tables.iter().try_for_each(|(table, operations)| {
            writeln!(f, "*{table}")?;
            operations.iter().try_for_each(|operation| writeln!(f, "{operation}"))?;
            writeln!(f, "COMMIT")
        })
    }
}

impl Display for Operation {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::NewChain(chain) => write!(f, "-N {chain}"),
            Self::Flush(chain) => write!(f, "-F {chain}"),
            Self::Append(chain, rule) => write!(f, "-A {chain} {rule}"),
            Self::Insert(chain, rule) => write!(f, "-I {chain} {rule}"),
            Self::Delete(chain, rule) => write!(f, "-D {chain} {rule}"),
            Self::DeleteChain(chain) => write!(f, "-X {chain}"),
        }
    }
}

/// Returns what makes the `observed` tables hold what is `desired`.
///
/// A chain that is ours alone is filled anew if it differs in anything. In one that others use too
/// the missing rules are added, and a rule that stands where others were put before it stays there.
pub fn diff(desired: &[Table], observed: &Observed) -> Change {
    let nothing = ObservedTable::new();
    let tables = desired.iter().map(|table| {
        let observed = observed.tables.get(&table.name).unwrap_or(&nothing);
        (table.name, operations(table, observed))
    });
    Change { tables: tables.filter(|(_, operations)| !operations.is_empty()).collect() }
}

/// Chains come first and their rules follow, so that rules may lead to any chain; what leads to an
/// unwanted chain goes before the chain does.
fn operations(table: &Table, observed: &ObservedTable) -> Vec<Operation> {
    let mut operations = Vec::new();
    for chain in &table.chains {
        operations.extend(prepared(table, chain, observed));
    }
    for chain in &table.chains {
        operations.extend(filled(chain, observed));
    }
    operations.extend(leading_to_unwanted(table, observed));
    let unwanted = table.chains.iter().filter(|chain| chain.content == Content::Absent);
    let removed = unwanted.filter(|chain| observed.contains_key(&chain.name));
    operations.extend(removed.map(|chain| Operation::DeleteChain(chain.name.clone())));
    operations
}

/// What makes a chain, or empties it, before it is filled or removed.
fn prepared(table: &Table, chain: &Chain, observed: &ObservedTable) -> Option<Operation> {
    let existing = observed.get(&chain.name);
    let new = existing.is_none() && !table.has_built_in(&chain.name);
    let stale = existing.is_some_and(|rules| !rules.is_empty());
    let name = || chain.name.clone();
    match &chain.content {
        Content::Exactly(_) | Content::Anything if new => Some(Operation::NewChain(name())),
        Content::Anything => None,
        Content::Exactly(rules) if existing == Some(rules) => None,
        Content::Exactly(_) | Content::Absent => stale.then(|| Operation::Flush(name())),
        Content::Among(rules) => {
            let needed = rules.iter().any(|rule| rule.place != Place::Absent);
            (new && needed).then(|| Operation::NewChain(name()))
        }
    }
}

/// What gives a chain its rules after it was prepared.
fn filled(chain: &Chain, observed: &ObservedTable) -> Vec<Operation> {
    let append = |rule: &Rule| Operation::Append(chain.name.clone(), rule.clone());
    match &chain.content {
        Content::Exactly(rules) if observed.get(&chain.name) == Some(rules) => Vec::new(),
        Content::Exactly(rules) => rules.iter().map(append).collect(),
        Content::Among(rules) => among(&chain.name, rules, observed),
        Content::Anything | Content::Absent => Vec::new(),
    }
}

/// Every rule that shall be there is there once, every other that is named is not.
fn among(chain: &str, rules: &[Placed], observed: &ObservedTable) -> Vec<Operation> {
    let existing = observed.get(chain).map_or(&[][..], Vec::as_slice);
    let count = |rule: &Rule| existing.iter().filter(|existing| *existing == rule).count();
    let missing = |place: Place| {
        let is_missing = move |placed: &&Placed| placed.place == place && count(&placed.rule) == 0;
        rules.iter().filter(is_missing).map(|placed| (chain.to_owned(), placed.rule.clone()))
    };
    // Each is put before the ones that were put there earlier.
    let first: Vec<_> = missing(Place::First).collect();
    let first = first.into_iter().rev().map(|(chain, rule)| Operation::Insert(chain, rule));
    let last = missing(Place::Last).map(|(chain, rule)| Operation::Append(chain, rule));
    let surplus = rules.iter().flat_map(|placed| {
        let wanted = usize::from(placed.place != Place::Absent);
        let delete = Operation::Delete(chain.to_owned(), placed.rule.clone());
        std::iter::repeat_n(delete, count(&placed.rule).saturating_sub(wanted))
    });
    first.chain(last).chain(surplus).collect()
}

/// What removes the rules that lead to unwanted chains, where their own chains are not emptied.
fn leading_to_unwanted(table: &Table, observed: &ObservedTable) -> Vec<Operation> {
    let content = |name: &str| {
        table.chains.iter().find(|chain| chain.name == name).map(|chain| &chain.content)
    };
    let is_kept =
        |name: &str| matches!(content(name), None | Some(Content::Among(_) | Content::Anything));
    let leads = |rule: &&Rule| {
        rule.target().is_some_and(|target| content(target) == Some(&Content::Absent))
    };
    let kept = observed.iter().filter(|(name, _)| is_kept(name));
    let leading = kept.flat_map(|(chain, rules)| {
        let delete = |rule: &Rule| Operation::Delete(chain.clone(), rule.clone());
        rules.iter().filter(leads).map(delete)
    });
    leading.collect()
}

#[cfg(test)]
mod tests;
