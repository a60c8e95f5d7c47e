//! Packet filter rules as data, what differs from the kernel's, and the seam to the engines.
//!
//! A [`Ruleset`] says what the tables we use shall hold. [`diff`] compares it with what an engine
//! observed and yields a [`Change`] that the engine carries out in one transaction; [`ensure`] does
//! all of this. Only what our two programs need can be said; this is not a firewall language.

mod change;
#[cfg(test)]
mod examples;
pub mod iptables;
pub mod nft;
mod text;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::DecodeError;

use crate::link_name::LinkName;
use crate::mac::MacAddr;

pub use change::{Change, Operation, diff, removal, removal_with_chains};

/// How often we start again because others change the packet filter at the same time. Each time
/// somebody else made progress, so this bounds how many may start a pod at once.
const ATTEMPTS: usize = 100;

/// An engine that filters packets.
pub trait PacketFilter {
    /// Reads the tables that `desired` names.
    ///
    /// # Errors
    /// If the engine is absent, refuses, or does not come to rest.
    fn observe(&mut self, desired: &Ruleset) -> Result<Observed, Error>;

    /// Carries out `change`, all of it or nothing.
    ///
    /// # Errors
    /// [`Error::Stale`] if the packet filter is no longer the one that `change` was computed for;
    /// [`Error::Refused`] names the operation that failed first.
    fn apply(&mut self, change: &Change) -> Result<(), Error>;
}

/// Makes the tables hold what is desired, and returns what was changed for it.
///
/// # Errors
/// Those of [`PacketFilter::observe`] and [`PacketFilter::apply`].
pub fn ensure(filter: &mut impl PacketFilter, desired: &Ruleset) -> Result<Change, Error> {
    for _ in 0..ATTEMPTS {
        let change = diff(desired, &filter.observe(desired)?);
        if change.is_empty() {
            return Ok(change);
        }
        match filter.apply(&change) {
            Err(Error::Stale) => {}
            applied => return applied.map(|()| change),
        }
    }
    Err(Error::Stale)
}

/// Removes the rules whose comment `is_stale` from the tables, and returns what was changed for it.
///
/// # Errors
/// Those of [`PacketFilter::observe`] and [`PacketFilter::apply`].
pub fn remove_rules(
    filter: &mut impl PacketFilter,
    tables: &Ruleset,
    is_stale: impl Fn(&str) -> bool,
) -> Result<Change, Error> {
    remove_rules_and_chains(filter, tables, is_stale, |_| false)
}

/// Removes the rules whose comment `is_stale` and the chains whose name is, and returns what was
/// changed for it.
///
/// # Errors
/// Those of [`PacketFilter::observe`] and [`PacketFilter::apply`].
pub fn remove_rules_and_chains(
    filter: &mut impl PacketFilter,
    tables: &Ruleset,
    is_stale: impl Fn(&str) -> bool,
    is_stale_chain: impl Fn(&str) -> bool,
) -> Result<Change, Error> {
    for _ in 0..ATTEMPTS {
        let change = removal_with_chains(&filter.observe(tables)?, &is_stale, &is_stale_chain);
        if change.is_empty() {
            return Ok(change);
        }
        match filter.apply(&change) {
            Err(Error::Stale) => {}
            applied => return applied.map(|()| change),
        }
    }
    Err(Error::Stale)
}

/// What the tables we use shall hold.
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
    /// A remark for whoever lists the rules. A table that lacks only this is left as it is, because
    /// kernels before 5.10 do not keep it.
    pub comment: Option<String>,
    /// In the order in which they are made.
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
    /// What bridges forward, whatever it is.
    Bridge,
}

/// How much of a table belongs to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// All of it: whatever is not wanted is removed, and no chains means no table.
    Whole,
    /// Others use it too. Ours alone are the rules whose comment is this mark, or starts with it and
    /// a comma; chains and unmarked rules are shared: they are added where missing and never removed. They serve the
    /// marked rules: where none of these is desired, nothing is added.
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
    /// `type nat hook prerouting priority dstnat`
    NatPrerouting,
    /// `type nat hook output priority -100`, the counterpart for what the node itself sends.
    NatOutput,
    /// `type filter hook prerouting priority raw`, before addresses are translated back.
    FilterPrerouting,
    /// `type filter hook output priority raw`, before anybody else sees what the node itself sends.
    /// Unlike in a chain of type route, what is changed here does not change the route.
    FilterOutput,
}

impl Hook {
    /// All of them.
    pub(crate) const ALL: [Self; 6] = [
        Self::FilterForward,
        Self::NatPostrouting,
        Self::NatPrerouting,
        Self::NatOutput,
        Self::FilterPrerouting,
        Self::FilterOutput,
    ];
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// Returns the name that `nft` has for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// What happens to a packet for which all matches hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// All must hold; none means every packet.
    pub matches: Vec<Match>,
    /// What then happens.
    pub verdict: Verdict,
    /// A remark, and for shared tables the mark of the owner; at most 128 bytes, without `"`.
    pub comment: Option<String>,
}

/// A condition on a packet. A packet of the other address family never fulfils it.
#[derive(Clone, Copy, Debug)]
pub enum Match {
    /// `ip saddr NET`; false stands for `!=`.
    Source(IpNetwork, bool),
    /// `ip daddr NET`; false stands for `!=`.
    Destination(IpNetwork, bool),
    /// `meta mark & BITS == BITS`
    Mark(u32),
    /// `fib daddr type local`: sent to an address of the node itself.
    LocalDestination,
    /// `tcp dport PORT`
    DestinationPort(Transport, u16),
    /// `iifname NAME`
    InputInterface(LinkName),
    /// `ether saddr ADDRESS`, where packets are Ethernet frames.
    EtherSource(MacAddr),
}

impl PartialEq for Match {
    /// Address bits behind the prefix mean nothing.
    fn eq(&self, other: &Self) -> bool {
        let same =
            |a: &IpNetwork, b: &IpNetwork| (a.network(), a.prefix()) == (b.network(), b.prefix());
        match (self, other) {
            (Self::Source(a, equal), Self::Source(b, also_equal))
            | (Self::Destination(a, equal), Self::Destination(b, also_equal)) => {
                equal == also_equal && same(a, b)
            }
            (Self::Mark(a), Self::Mark(b)) => a == b,
            (Self::LocalDestination, Self::LocalDestination) => true,
            (Self::DestinationPort(a, port), Self::DestinationPort(b, other)) => {
                (a, port) == (b, other)
            }
            (Self::InputInterface(a), Self::InputInterface(b)) => a == b,
            (Self::EtherSource(a), Self::EtherSource(b)) => a == b,
            (
                Self::Source(..)
                | Self::Destination(..)
                | Self::Mark(_)
                | Self::LocalDestination
                | Self::DestinationPort(..)
                | Self::InputInterface(_)
                | Self::EtherSource(_),
                _,
            ) => false,
        }
    }
}

impl Eq for Match {}

/// What a rule decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let it pass this hook.
    Accept,
    /// Go on behind the jump, or with the policy of a base chain.
    Return,
    /// Go on in another chain, without coming back.
    Goto(String),
    /// Go on in another chain, and come back from its end.
    Jump(String),
    /// Let it vanish.
    Drop,
    /// Send it to another address and port, which is of the family of the table.
    DestinationNat(SocketAddr),
    /// Take these bits off its mark, and go on: `meta mark set meta mark & ~BITS`.
    ClearMark(u32),
    /// Give it the address of the interface that it leaves by.
    Masquerade {
        /// Pick the source port at random, so that two CPUs do not race for one.
        fully_random: bool,
    },
}

/// What the tables we use do hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Differs from the previous observation if anything was changed in between, by anyone; zero if
    /// the engine does not count changes.
    pub generation: u32,
    /// The tables that were asked for and exist.
    pub tables: BTreeMap<TableId, ObservedTable>,
}

/// A table as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedTable {
    /// The chains that were asked for or have rules.
    pub chains: BTreeMap<String, ObservedChain>,
    /// Whether there is more to it: further chains, sets, or that it is dormant.
    pub foreign: bool,
}

/// A chain as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedChain {
    /// Where packets enter it.
    pub hook: ObservedHook,
    /// In the order in which packets meet them.
    pub rules: Vec<ObservedRule>,
}

/// Where packets enter a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObservedHook {
    /// It is only jumped to.
    Absent,
    /// One that we use ourselves.
    Known(Hook),
    /// One that we have no word for: another hook, priority or policy.
    Foreign,
}

/// A rule as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedRule {
    /// Identifies it in its table for as long as the table exists.
    pub handle: u64,
    /// The remark of its maker.
    pub comment: Option<String>,
    /// What it says; `None` if we have no words for it, and then it equals no rule of ours.
    pub rule: Option<Rule>,
}

/// Why the packet filter could not be observed or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no such engine, or does not let us load it.
    #[error("nf_tables is not available in this kernel")]
    Unavailable(#[source] io::Error),
    /// The socket failed, not the request.
    #[error("talk to nf_tables")]
    Socket(#[source] io::Error),
    /// The kernel refused; `reason` is its extended ACK, if it gave one.
    #[error("{request}{}", reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    Refused {
        /// The operation as an `nft` command.
        request: String,
        /// The kernel's explanation.
        reason: Option<String>,
        /// The kernel's error number.
        #[source]
        errno: io::Error,
    },
    /// The kernel told something that cannot be read.
    #[error("read the answer to {request}")]
    Undecodable {
        /// The request as an `nft` command.
        request: String,
        /// What is wrong with the answer.
        #[source]
        source: DecodeError,
    },
    /// A comment does not fit the attribute that holds it.
    #[error("{request}: the comment is too long")]
    CommentTooLong {
        /// The operation as an `nft` command.
        request: String,
    },
    /// Somebody else changed the packet filter meanwhile.
    #[error("the packet filter was changed by others meanwhile")]
    Stale,
}

impl Error {
    /// Tells whether the same attempt may succeed a little later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Stale => true,
            Self::Socket(errno) | Self::Refused { errno, .. } => matches!(
                errno.raw_os_error(),
                Some(libc::EAGAIN | libc::EBUSY | libc::EINTR | libc::ENOBUFS | libc::ENOMEM)
            ),
            Self::Unavailable(_) | Self::Undecodable { .. } | Self::CommentTooLong { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::examples::agent;
    use super::*;

    /// Holds nothing, and changes behind the back of its user this many times.
    struct Busy(usize);

    impl PacketFilter for Busy {
        fn observe(&mut self, _desired: &Ruleset) -> Result<Observed, Error> {
            Ok(Observed::default())
        }

        fn apply(&mut self, _change: &Change) -> Result<(), Error> {
            match self.0.checked_sub(1) {
                None => Ok(()),
                Some(left) => {
                    self.0 = left;
                    Err(Error::Stale)
                }
            }
        }
    }

    #[test]
    fn ensure_starts_again_while_others_change_the_filter() {
        let change = ensure(&mut Busy(ATTEMPTS - 1), &agent()).unwrap();
        assert_eq!(change, diff(&agent(), &Observed::default()));
        let error = ensure(&mut Busy(ATTEMPTS), &agent()).unwrap_err();
        assert!(matches!(error, Error::Stale), "{error:?}");
        assert!(ensure(&mut Busy(usize::MAX), &Ruleset::default()).unwrap().is_empty());
    }

    #[test]
    fn refusal_reads_as_request_and_reason() {
        let refused = |errno, reason: Option<&str>| Error::Refused {
            request: "add table ip t".to_owned(),
            reason: reason.map(str::to_owned),
            errno: io::Error::from_raw_os_error(errno),
        };
        assert_eq!(refused(libc::EEXIST, None).to_string(), "add table ip t");
        assert_eq!(refused(libc::EEXIST, Some("why")).to_string(), "add table ip t: why");
        assert!(refused(libc::EBUSY, None).is_transient());
        assert!(!refused(libc::EEXIST, None).is_transient());
    }
}
