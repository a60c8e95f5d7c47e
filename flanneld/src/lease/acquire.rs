//! Which subnet a node takes: a decision over what is listed in the store, without side effects.

use ipnetwork::IpNetwork;

use crate::config::Pool;
use crate::family::{Family, PerFamily};

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
    /// What `revision` was when the key was made; 0 where the store does not know.
    pub(crate) created: i64,
    /// What the key ends with, in the store's own terms; 0 for a reservation, which has no end.
    pub(crate) lease: i64,
}

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// The subnets to choose from; the lease has one of each.
    pub(crate) pools: PerFamily<Pool>,
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
    /// This key is ours, but only some of its subnets are, or can be, of the configured families:
    /// keep those under this other key.
    Move(Entry, LeaseKey),
    /// This key is ours, but no longer of the configured shape, or what is left of a move: remove it
    /// and decide again.
    Drop(Entry),
    /// This key may be ours or that of a living node: find out when it was last renewed.
    Ask(Entry),
    /// Another living node has our public address.
    Refuse(Entry),
    /// Nobody has these subnets: create the key.
    Create(LeaseKey),
    /// All subnets of this family are held.
    Exhausted(Family),
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
    draw: impl FnMut(usize) -> usize,
) -> Decision {
    let Some((standing, entry)) = own(request, memory, entries) else {
        return choose(request, memory, None, entries, draw)
            .map_or_else(Decision::Exhausted, Decision::Create);
    };
    match (standing, request.fit(entry.listed.key)) {
        (Standing::Unclear, _) => Decision::Ask(entry.clone()),
        (Standing::OfATwin, _) => Decision::Refuse(entry.clone()),
        (_, Fit::None) => Decision::Drop(entry.clone()),
        (Standing::OfTheDead, _) => Decision::TakeOver(entry.clone()),
        (Standing::Ours, Fit::Part) => choose(request, memory, Some(entry), entries, draw)
            .map_or_else(Decision::Exhausted, |key| Decision::Move(entry.clone(), key)),
        (Standing::Ours, Fit::Whole) => {
            let is_left = |other: &&Entry| is_left_of_a_move(request, memory, entry, other);
            match entries.iter().find(is_left) {
                Some(rest) => Decision::Drop(rest.clone()),
                None if came_too_late(entry, entries) => Decision::Drop(entry.clone()),
                None => Decision::Keep(entry.clone()),
            }
        }
    }
}

/// A store that cannot write and delete in one step may have done the one without the other.
fn is_left_of_a_move(request: &Request, memory: &Memory, now: &Entry, other: &Entry) -> bool {
    let key = other.listed.key;
    key.overlaps(&now.listed.key)
        && request.fit(key) != Fit::Whole
        && standing(request, memory, other) == Some(Standing::Ours)
}

/// Two nodes that want subnets of different lengths may make overlapping keys at the same time,
/// which the store cannot prevent: who was second gives way.
fn came_too_late(entry: &Entry, entries: &[Entry]) -> bool {
    let is_older = |other: &Entry| (1..entry.created).contains(&other.created);
    let overlaps = |other: &Entry| other.listed.key.overlaps(&entry.listed.key);
    entry.lease != 0 && entries.iter().any(|other| is_older(other) && overlaps(other))
}

/// Chooses a subnet of each family: that of the key to move, then one that we had, then a free one.
/// Names the family that has none.
fn choose(
    request: &Request,
    memory: &Memory,
    from: Option<&Entry>,
    entries: &[Entry],
    mut draw: impl FnMut(usize) -> usize,
) -> Result<LeaseKey, Family> {
    let moved = from.map(|entry| entry.listed.key);
    let held = memory.held.as_ref().map(|held| held.listed.key);
    let wanted = [moved, request.previous, memory.tried, held];
    let others = || entries.iter().map(|other| other.listed.key).filter(|key| Some(*key) != moved);
    let subnets = PerFamily::try_from_fn(|family| {
        let Some(pool) = request.pools.get(family) else { return Ok(None) };
        let is_free =
            |subnet: &IpNetwork| !others().any(|key| overlap(key.subnet(family), *subnet));
        let wanted = wanted.iter().flatten().filter_map(|key| key.subnet(family));
        let mut wanted = wanted.filter(|subnet| pool.offers(*subnet) && is_free(subnet));
        if let Some(subnet) = wanted.next() {
            return Ok(Some(subnet));
        }
        let candidates: Vec<_> = pool.subnets().filter(is_free).take(CANDIDATES_MAX).collect();
        let count = candidates.len().max(1);
        candidates.get(draw(count) % count).map(|subnet| Some(*subnet)).ok_or(family)
    })?;
    Ok(LeaseKey::new(subnets).expect("a configuration has at least one family"))
}

fn overlap(one: Option<IpNetwork>, other: IpNetwork) -> bool {
    match (one, other) {
        (Some(IpNetwork::V4(one)), IpNetwork::V4(other)) => one.overlaps(other),
        (Some(IpNetwork::V6(one)), IpNetwork::V6(other)) => one.overlaps(other),
        _ => false,
    }
}

/// The key to hold: one that is surely ours before one that has to be looked into, one that can stay
/// as it is before others, what we had before what we are given, a reservation before a lease, then
/// the first in the order of keys.
fn own<'a>(
    request: &Request,
    memory: &Memory,
    entries: &'a [Entry],
) -> Option<(Standing, &'a Entry)> {
    let standing = |entry| Some((standing(request, memory, entry)?, entry));
    entries.iter().filter_map(standing).min_by_key(|(standing, entry)| {
        let key = entry.listed.key;
        let had = request.previous == Some(key);
        (*standing, request.fit(key), !had, entry.lease != 0, key)
    })
}

/// The rule of identity, as the module above tells it.
fn standing(request: &Request, memory: &Memory, entry: &Entry) -> Option<Standing> {
    let key = entry.listed.key;
    if memory.held.as_ref() == Some(entry) {
        return Some(Standing::Ours);
    }
    // What an administrator wrote may be added to, but nothing is taken from it.
    if entry.lease == 0 && !request.has_all_on_offer(key) {
        return None;
    }
    let attributes = entry.listed.attributes.as_ref()?;
    let data = |family| attributes.data(family);
    let mark = Family::ALL.into_iter().find_map(data);
    // IPv6 may have been switched on since.
    let both = |family| data(family).zip(request.attributes.data(family));
    let both = Family::ALL.into_iter().find_map(both);
    let has_our_mark = both.is_some_and(|(theirs, ours)| theirs == ours);
    let has_our_address = attributes.is_same_node(&request.attributes);
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

/// How much of a key is what the configuration wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fit {
    /// Everything, and nothing else.
    Whole,
    /// A subnet at least.
    Part,
    None,
}

impl Request {
    /// How much of a key can stay.
    pub(crate) fn fit(&self, key: LeaseKey) -> Fit {
        let is_whole = Family::ALL
            .into_iter()
            .all(|family| self.pools.get(family).is_some() == key.subnet(family).is_some());
        if is_whole && self.has_all_on_offer(key) {
            return Fit::Whole;
        }
        if key.subnets().any(|subnet| self.offers(subnet)) { Fit::Part } else { Fit::None }
    }

    fn has_all_on_offer(&self, key: LeaseKey) -> bool {
        key.subnets().all(|subnet| self.offers(subnet))
    }

    fn offers(&self, subnet: IpNetwork) -> bool {
        self.pools.get(Family::of_network(subnet)).is_some_and(|pool| pool.offers(subnet))
    }
}

#[cfg(test)]
mod tests;
