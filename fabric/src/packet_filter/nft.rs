//! nf_tables over netlink, without the `nft` program.
//!
//! Reading asks for the tables that we use and no others, since a node may have tens of thousands
//! of rules. Writing is one transaction that is bound to the generation that was read, so that what
//! others do meanwhile is neither overlooked nor undone.

mod connection;
mod conntrack;
mod expression;
mod message;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Arguments;
use std::io;

use netlink_packet_core::DecodeError;

use super::{
    ATTEMPTS, Change, Error, Observed, ObservedChain, ObservedRule, ObservedTable, PacketFilter,
    Ruleset, Table, TableId,
};
use connection::{Connection, Failure};
pub use conntrack::{Flow, forget_udp_flows};
use message::Request;

/// The nf_tables of one network namespace, over a blocking socket.
///
/// Closing it after something was deleted takes the kernel 12 to 16 ms.
#[derive(Debug)]
pub struct Nft {
    connection: Connection,
}

impl Nft {
    /// Opens the nf_tables of the current network namespace.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the kernel has no nf_tables; otherwise if it refuses.
    pub fn open() -> Result<Self, Error> {
        let connection = Connection::open().map_err(|errno| match errno.raw_os_error() {
            Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => Error::Unavailable(errno),
            _ => Error::Socket(errno),
        })?;
        let mut nft = Self { connection };
        match nft.generation() {
            // So answers nfnetlink if there is no such subsystem, after it tried to load it.
            Err(Error::Refused { errno, .. })
                if matches!(errno.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) =>
            {
                Err(Error::Unavailable(errno))
            }
            answer => answer.map(|_| nft),
        }
    }

    /// Tells whether a table has a chain of this name, without reading the rest of it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn has_chain(&mut self, table: &TableId, chain: &str) -> Result<bool, Error> {
        let request = format_args!("list chain {table} {chain}");
        Ok(self.find(Request::chain(table, chain), request, message::hook)?.is_some())
    }

    fn generation(&mut self) -> Result<u32, Error> {
        let request = format_args!("read the generation");
        let answers = self.ask(Request::generation(), request, message::generation)?;
        answers.last().copied().ok_or(Error::Stale)
    }

    fn table(&mut self, desired: &Table) -> Result<Option<ObservedTable>, Error> {
        let id = &desired.id;
        let request = format_args!("list table {id}");
        let Some(facts) = self.find(Request::table(id), request, message::table)? else {
            return Ok(None);
        };
        let mut chains = BTreeMap::new();
        for (name, rules) in self.rules(desired)? {
            let request = format_args!("list chain {id} {name}");
            if let Some(hook) = self.find(Request::chain(id, &name), request, message::hook)? {
                chains.insert(name, ObservedChain { hook, rules });
            }
        }
        let foreign = facts.dormant || facts.objects != chains.len();
        Ok(Some(ObservedTable { chains, foreign }))
    }

    /// The rules of all chains, and no rules for those that are desired but have none. A request for
    /// all chains is not made because it yields those of all tables.
    fn rules(&mut self, desired: &Table) -> Result<BTreeMap<String, Vec<ObservedRule>>, Error> {
        let id = &desired.id;
        let request = format_args!("list rules of table {id}");
        let read = |payload: &[u8]| message::rule(id.family, payload);
        let rules = match self.ask(Request::rules(id), request, read) {
            // The table is gone, which the generation will tell.
            Err(Error::Refused { errno, .. }) if is_absent(&errno) => Vec::new(),
            answers => answers?,
        };
        let chains = desired.chains.iter().map(|chain| (chain.name.clone(), Vec::new()));
        let mut chains: BTreeMap<_, Vec<_>> = chains.collect();
        for (chain, rule) in rules {
            chains.entry(chain).or_default().push(rule);
        }
        Ok(chains)
    }

    /// Asks for one thing that may be absent.
    fn find<T>(
        &mut self,
        request: Request,
        text: Arguments<'_>,
        read: impl Fn(&[u8]) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, Error> {
        match self.ask(request, text, read) {
            Err(Error::Refused { errno, .. }) if is_absent(&errno) => Ok(None),
            answers => Ok(answers?.pop()),
        }
    }

    fn ask<T>(
        &mut self,
        request: Request,
        text: Arguments<'_>,
        read: impl Fn(&[u8]) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, Error> {
        let answers = self.connection.ask(request).map_err(|failure| error(failure, text))?;
        let answers = answers.iter().map(|payload| read(payload)).collect::<Result<_, _>>();
        answers.map_err(|source| Error::Undecodable { request: text.to_string(), source })
    }
}

impl PacketFilter for Nft {
    fn observe(&mut self, desired: &Ruleset) -> Result<Observed, Error> {
        for _ in 0..ATTEMPTS {
            let generation = self.generation()?;
            let mut tables = BTreeMap::new();
            for table in &desired.tables {
                if let Some(observed) = self.table(table)? {
                    tables.insert(table.id.clone(), observed);
                }
            }
            // A dump is interrupted (NLM_F_DUMP_INTR) if and only if the generation changes.
            if self.generation()? == generation {
                return Ok(Observed { generation, tables });
            }
        }
        Err(Error::Stale)
    }

    fn apply(&mut self, change: &Change) -> Result<(), Error> {
        if change.is_empty() {
            return Ok(());
        }
        self.connection.transact(transaction(change)?).map_err(|(place, failure)| {
            match place.checked_sub(1).and_then(|place| change.operations.get(place)) {
                Some(operation) => error(failure, format_args!("{operation}")),
                None => whole_error(failure),
            }
        })
    }
}

/// The requests for a change, from the begin of the transaction to its end.
fn transaction(change: &Change) -> Result<Vec<Request>, Error> {
    let mut requests = vec![Request::begin(change.generation)];
    for operation in &change.operations {
        let request = Request::operation(operation);
        requests
            .push(request.ok_or_else(|| Error::CommentTooLong { request: operation.to_string() })?);
    }
    requests.push(Request::end());
    Ok(requests)
}

fn whole_error(failure: Failure) -> Error {
    match failure {
        Failure::Refused { errno, .. } if errno.raw_os_error() == Some(libc::ERESTART) => {
            Error::Stale
        }
        failure => error(failure, format_args!("commit the transaction")),
    }
}

fn error(failure: Failure, request: Arguments<'_>) -> Error {
    match failure {
        Failure::Socket(error) => Error::Socket(error),
        Failure::Refused { errno, reason } => {
            Error::Refused { request: request.to_string(), reason, errno }
        }
    }
}

fn is_absent(errno: &io::Error) -> bool {
    errno.kind() == io::ErrorKind::NotFound
}
