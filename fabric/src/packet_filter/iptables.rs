//! iptables by its own programs: one run of `iptables-save` to read, and one run of
//! `iptables-restore` per change.
//!
//! There is no other way that works with both variants, in the kernel's own tables or in nf_tables.
//! Nothing goes through a shell. What is desired is said chain by chain, because the tables
//! belong to everybody: see [`Content`].

mod change;
mod program;
mod rule;
mod save;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

pub use change::{Change, Operation, diff};
pub use rule::Rule;
pub use save::{Observed, ObservedTable};

/// How often we start again because others change the rules at the same time.
const ATTEMPTS: usize = 10;
/// Seconds to wait for the lock that all programs of iptables take.
const LOCK_SECONDS: &str = "10";

/// What of a table is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: TableName,
    /// What chains of it shall hold.
    pub chains: Vec<Chain>,
}

/// The tables that we have a use for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TableName {
    /// What passes and what does not.
    Filter,
    /// Translation of addresses.
    Nat,
    /// Changes of packets, marks for example.
    Mangle,
    /// Before connections are tracked.
    Raw,
}

/// A chain and what it shall hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name: one of the kernel's, which always exist, or any other of at most 28 bytes.
    pub name: String,
    /// What it shall hold.
    pub content: Content,
}

/// What a chain shall hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// It is ours alone: these rules in this order, and no others.
    Exactly(Vec<Rule>),
    /// Others use it too: these rules, and whatever else there is. Made if it is missing.
    Among(Vec<Placed>),
    /// It is somebody else's, and only has to exist.
    Anything,
    /// It shall not exist, nor any rule that leads to it, wherever in the table that stands.
    Absent,
}

/// A rule in a chain that others use too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// What it says.
    pub rule: Rule,
    /// Where it is put if it is missing.
    pub place: Place,
}

/// Where a rule is put if it is missing; where it stands otherwise, it stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Before all others.
    First,
    /// After all others.
    Last,
    /// Nowhere: it shall not be there.
    Absent,
}

/// The packets that a set of tables sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IpVersion {
    /// `iptables`
    V4,
    /// `ip6tables`
    V6,
}

/// Which of the two implementations of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Whatever `iptables` is on this host.
    Host,
    /// Rules in nf_tables.
    Nft,
    /// Rules in the kernel's older tables.
    Legacy,
}

/// The rules of one IP version in the current network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Iptables {
    version: IpVersion,
    save: PathBuf,
    restore: PathBuf,
}

/// Why the rules could not be observed or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program could not be run, or did not end.
    #[error("run {}", program.display())]
    Run {
        /// Its path.
        program: PathBuf,
        /// What went wrong; [`io::ErrorKind::TimedOut`] if it was killed.
        #[source]
        source: io::Error,
    },
    /// The program said no.
    #[error("{} ended with {status}: {reason}", program.display())]
    Refused {
        /// Its path.
        program: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// What it complained about.
        reason: String,
    },
    /// A table holds rules that were made with `nft` and that iptables cannot show.
    #[error("iptables cannot read its table {0}, because somebody put rules into it with nft")]
    Incompatible(TableName),
}

impl Iptables {
    /// Finds the programs in `PATH` or where administrators keep them; `None` if there are none.
    pub fn find(version: IpVersion, variant: Variant) -> Option<Self> {
        let save = program::find(variant, version, "save")?;
        let restore = program::find(variant, version, "restore")?;
        Some(Self { version, save, restore })
    }

    /// Returns which packets its rules are about.
    pub const fn version(&self) -> IpVersion {
        self.version
    }

    /// Reads the rules of these tables.
    ///
    /// # Errors
    /// If the program fails, or cannot read one of the tables.
    pub fn observe(&self, tables: &[Table]) -> Result<Observed, Error> {
        // One run per table would see them at different times.
        let text = match tables {
            [] => return Ok(Observed::default()),
            [table] => program::run(&self.save, &["-t", table.name.as_str()], "")?,
            _ => program::run(&self.save, &[], "")?,
        };
        let observed = Observed::parse(&text);
        let unreadable =
            |table: &&Table| observed.incompatible.iter().any(|name| name == table.name.as_str());
        match tables.iter().find(unreadable) {
            Some(table) => Err(Error::Incompatible(table.name)),
            None => Ok(observed),
        }
    }

    /// Carries out `change`; of each table all or nothing.
    ///
    /// # Errors
    /// If the program fails, also because what the change was computed for is no longer there.
    pub fn apply(&self, change: &Change) -> Result<(), Error> {
        if change.is_empty() {
            return Ok(());
        }
        let arguments = ["--noflush", "--wait", LOCK_SECONDS];
        program::run(&self.restore, &arguments, &change.to_string()).map(drop)
    }

    /// Makes the tables hold what is desired, and returns what was changed for it.
    ///
    /// # Errors
    /// Those of [`Self::observe`] and [`Self::apply`].
    pub fn ensure(&self, desired: &[Table]) -> Result<Change, Error> {
        let mut last = Change::default();
        for _ in 0..ATTEMPTS {
            let change = diff(desired, &self.observe(desired)?);
            match self.apply(&change) {
                // Somebody else was faster, unless nothing looks different now.
                Err(Error::Refused { .. }) if change != last => last = change,
                applied => return applied.map(|()| change),
            }
        }
        self.apply(&last).map(|()| last)
    }
}

impl Table {
    /// Tells whether the kernel has this chain in every such table.
    fn has_built_in(&self, chain: &str) -> bool {
        self.name.built_in().contains(&chain)
    }
}

impl TableName {
    const ALL: [Self; 4] = [Self::Filter, Self::Nat, Self::Mangle, Self::Raw];

    /// Returns what follows `-t`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Mangle => "mangle",
            Self::Raw => "raw",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.as_str() == name)
    }

    /// Their chains, see iptables(8).
    const fn built_in(self) -> &'static [&'static str] {
        match self {
            Self::Filter => &["INPUT", "FORWARD", "OUTPUT"],
            Self::Nat => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
            Self::Mangle => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
            Self::Raw => &["PREROUTING", "OUTPUT"],
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl IpVersion {
    /// Returns what the names of its programs start with.
    pub const fn program(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }
}
