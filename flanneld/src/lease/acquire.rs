//! Which subnet a node takes: a decision over what is listed in the store, without side effects.

use crate::config::Pool;

use super::{Attributes, LeaseKey};

/// The candidates among which a free subnet is drawn. Many, so that nodes that boot together
/// rarely draw the same; the loser of a race draws again.
const CANDIDATES_MAX: usize = 100;

/// A key in the store.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Listed {
    pub(crate) key: LeaseKey,
    /// What it says; `None` if that is unreadable. The subnet is taken all the same.
    pub(crate) attributes: Option<Attributes>,
}

/// A key in the store, with what a guarded write needs to know.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) listed: Listed,
    /// Changes whenever anybody writes the key.
    pub(crate) revision: i64,
    /// What the key ends with, in the store's own terms; 0 for a reservation, which has no end.
    pub(crate) lease: i64,
}

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// The subnets to choose from.
    pub(crate) pool: Pool,
    /// The subnet that this node had before, if it knows.
    pub(crate) previous: Option<LeaseKey>,
    /// What the lease shall say. The public address is the node's identity.
    pub(crate) attributes: Attributes,
}

/// What this process remembers about the store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    /// The key that it held last, as it was then.
    pub(crate) held: Option<Entry>,
    /// The key that it tried to create without getting an answer.
    pub(crate) tried: Option<LeaseKey>,
    /// What was found out about the holder of a key.
    pub(crate) verdict: Option<Verdict>,
}

/// What was found out about the holder of a key at some revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) key: LeaseKey,
    pub(crate) revision: i64,
    pub(crate) alive: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Decision {
    /// This key is ours already: bring its value up to date.
    Keep(Entry),
    /// This key carries our public address and was written by a node that is gone: take it over.
    TakeOver(Entry),
    /// This key is ours, but no longer of the configured shape: remove it and decide again.
    Drop(Entry),
    /// This key may be ours or that of a living node: find out when it was last renewed.
    Ask(Entry),
    /// Another living node has our public address.
    Refuse(Entry),
    /// Nobody has this subnet: create it.
    Create(LeaseKey),
    /// All subnets are held.
    Exhausted,
}

/// Whose a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Ours,
    OfTheDead,
    Unclear,
    OfATwin,
}

/// Decides. `draw` picks one of so many candidates.
pub(crate) fn decide(
    request: &Request,
    memory: &Memory,
    entries: &[Entry],
    draw: impl FnOnce(usize) -> usize,
) -> Decision {
    if let Some((standing, entry)) = own(request, memory, entries) {
        let (key, entry) = (entry.listed.key, entry.clone());
        return match standing {
            Standing::Ours | Standing::OfTheDead if !fits(&request.pool, key) => {
                Decision::Drop(entry)
            }
            Standing::Ours => Decision::Keep(entry),
            Standing::OfTheDead => Decision::TakeOver(entry),
            Standing::Unclear => Decision::Ask(entry),
            Standing::OfATwin => Decision::Refuse(entry),
        };
    }
    let is_free = |key: &LeaseKey| !entries.iter().any(|other| other.listed.key.overlaps(key));
    let held = memory.held.as_ref().map(|held| held.listed.key);
    let wanted = [request.previous, memory.tried, held].into_iter().flatten();
    let mut wanted = wanted.filter(|key| fits(&request.pool, *key) && is_free(key));
    if let Some(key) = wanted.next() {
        return Decision::Create(key);
    }
    let subnets = request.pool.subnets().filter_map(|subnet| match subnet {
        ipnetwork::IpNetwork::V4(ipv4) => Some(LeaseKey::v4(ipv4)),
        ipnetwork::IpNetwork::V6(_) => None,
    });
    let candidates: Vec<_> = subnets.filter(is_free).take(CANDIDATES_MAX).collect();
    match candidates.get(draw(candidates.len().max(1)) % candidates.len().max(1)) {
        Some(key) => Decision::Create(*key),
        None => Decision::Exhausted,
    }
}

/// The key to hold: one that is surely ours before one that has to be looked into, what we had
/// before what we are given, a reservation before a lease, then the first in the order of keys.
fn own<'a>(
    request: &Request,
    memory: &Memory,
    entries: &'a [Entry],
) -> Option<(Standing, &'a Entry)> {
    let standing = |entry| Some((standing(request, memory, entry)?, entry));
    entries.iter().filter_map(standing).min_by_key(|(standing, entry)| {
        let key = entry.listed.key;
        (*standing, request.previous != Some(key), entry.lease != 0, key)
    })
}

/// The rule of identity, as the module above tells it.
fn standing(request: &Request, memory: &Memory, entry: &Entry) -> Option<Standing> {
    let key = entry.listed.key;
    if memory.held.as_ref() == Some(entry) {
        return Some(Standing::Ours);
    }
    if entry.lease == 0 && !fits(&request.pool, key) {
        return None;
    }
    let attributes = entry.listed.attributes.as_ref()?;
    let mark = attributes.backend_data.as_ref();
    let has_our_mark = mark.is_some() && mark == request.attributes.backend_data.as_ref();
    let has_our_address = attributes.public_ip == request.attributes.public_ip;
    let verdict =
        memory.verdict.filter(|verdict| (verdict.key, verdict.revision) == (key, entry.revision));
    match (has_our_address, verdict.map(|verdict| verdict.alive)) {
        (true, _) if has_our_mark || mark.is_none() => Some(Standing::Ours),
        // A reservation is for the address, and nobody can see whether its writer lives: who comes
        // takes it, and whoever had it gives way.
        (true, _) if entry.lease == 0 => {
            let was_ours = memory.held.as_ref().is_some_and(|held| held.listed.key == key);
            Some(if was_ours { Standing::OfATwin } else { Standing::OfTheDead })
        }
        (true, None) => Some(Standing::Unclear),
        (true, Some(false)) => Some(Standing::OfTheDead),
        (true, Some(true)) => Some(Standing::OfATwin),
        // We, before our address changed; or the machine that we are a copy of.
        (false, alive) if has_our_mark && request.previous == Some(key) && entry.lease != 0 => {
            match alive {
                None => Some(Standing::Unclear),
                Some(false) => Some(Standing::OfTheDead),
                Some(true) => None,
            }
        }
        (false, _) => None,
    }
}

fn fits(pool: &Pool, key: LeaseKey) -> bool {
    key.ipv6.is_none() && pool.offers(key.subnet4())
}

#[cfg(test)]
mod tests;
