//! Packet filter rules as data, what differs from the kernel's, and the seam to the engines.
//!
//! A [`Ruleset`] says what the tables we use shall hold. [`diff`] compares it with what an engine
//! observed and yields a [`Change`] that the engine carries out in one transaction.
//! Only what our two programs need can be said; this is not a firewall language.

pub mod nft;

use std::fmt;

use ipnetwork::IpNetwork;

/// What the tables we use shall hold, or do hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// In the order in which they are made.
    pub tables: Vec<Table>,
}

/// A table and what of it is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Family and name, which identify it.
    pub id: TableId,
    /// How much of it belongs to us.
    pub ownership: Ownership,
    /// A remark for whoever lists the rules.
    pub comment: Option<String>,
    /// In the order in which they are made: a chain comes before the rules that jump to it.
    pub chains: Vec<Chain>,
}

/// Identifies a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableId {
    /// The packets it sees.
    pub family: Family,
    /// Its name, unique in its family.
    pub name: String,
}

/// The packets that a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 only.
    Ip,
    /// IPv6 only.
    Ip6,
    /// Both.
    Inet,
}

/// How much of a table belongs to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// All of it: whatever is not wanted is removed, and no chains means no table.
    Whole,
    /// Others use it too. Ours alone are the rules whose comment starts with this mark; chains and
    /// unmarked rules are shared: they are added where missing and never removed.
    Marked(String),
}

/// A list of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name, unique in its table.
    pub name: String,
    /// Where packets enter it; `None` for a chain that is only jumped to.
    pub hook: Option<Hook>,
    /// In the order in which packets meet them.
    pub rules: Vec<Rule>,
}

/// Where packets enter a base chain. The policy is always accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `type filter hook forward priority filter`
    FilterForward,
    /// `type nat hook postrouting priority srcnat`
    NatPostrouting,
}

/// What happens to a packet for which all matches hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// All must hold; none means every packet.
    pub matches: Vec<Match>,
    /// What then happens.
    pub verdict: Verdict,
    /// A remark, and for shared tables the mark of the owner; at most 128 bytes.
    pub comment: Option<String>,
}

/// A condition on a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// `ip saddr NET`; false stands for `!=`.
    Source(IpNetwork, bool),
    /// `ip daddr NET`; false stands for `!=`.
    Destination(IpNetwork, bool),
    /// `meta mark & BITS == BITS`
    Mark(u32),
}

/// What a rule decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let it pass this hook.
    Accept,
    /// Go on behind the jump, or with the policy of a base chain.
    Return,
    /// Go on in another chain, without coming back.
    Goto(String),
    /// Give it the address of the interface that it leaves by.
    Masquerade {
        /// Pick the source port at random, so that two CPUs do not race for one.
        fully_random: bool,
    },
}
