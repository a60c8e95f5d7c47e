//! Gets a lease and keeps it: a state machine without clock, randomness or store.
//!
//! ```text
//! list ─▶ decide ─┬─▶ write, guarded ─────────┐
//!   ▲             ├─▶ it is there already ────┴─▶ renew ─▶ read ─▶ confirmed ─▶ wait ─┐
//!   ├─◀─ grant ◀──┘                                         │                         │
//!   └──────── anything unexpected, or a doubt ◀─────────────┴────────────◀────────────┘
//! ```
//!
//! Whoever drives it performs [`Keeper::step`] on the store and hands back what came of it. Silence
//! is an answer too: a write that got none may still happen, at any time.
//!
//! A lease is *confirmed* for a while after each renewal that was followed by a look at the key.
//! Two nodes never have one subnet confirmed at the same time; a node that cannot confirm its lease
//! keeps its data plane all the same.

use std::time::Duration;

use super::acquire::{Decision, Entry, Fit, Listed, Memory, Request, Verdict, decide};
use super::{Attributes, Lease, LeaseKey};
use crate::family::Family;

mod notice;
mod phase;
mod step;

use notice::Holder;
pub(crate) use notice::{Notice, summary};
use phase::{Held, Phase, Target, Then};
pub(crate) use step::{Answer, Guard, Listing, Put, Renewable, Step, Time, Timing};

/// The granularity in which stores tell ages, rounded up generously.
const SLACK: Duration = Duration::from_secs(2);
/// A suspicious key is looked at again this often.
const LOOK: Duration = Duration::from_secs(3);
/// Doubts cause no more lists than one in this time.
const LIST_PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A range that is exhausted is listed again after this long; releases cause doubts before.
const EXHAUSTED_PAUSE: Duration = Duration::from_secs(20);

/// The state machine of one node.
#[derive(Clone, Debug)]
pub(crate) struct Keeper {
    request: Request,
    /// What the next decision will publish.
    publishing: Option<Attributes>,
    timing: Timing,
    phase: Phase,
    memory: Memory,
    /// When the verdict in memory was found.
    judged: Time,
    /// A key that is looked into, and since when.
    suspect: Option<(LeaseKey, i64, Time)>,
    /// What was granted and has, as far as is known, no key.
    granted: Option<i64>,
    held: Option<Held>,
    /// The key that was taken over, until its former holder is proven to be gone.
    displaced: Option<Entry>,
    /// A reservation was taken over: its former holder may be certain of it for a while.
    settling: bool,
    not_before: Option<Time>,
    /// What the data plane works with.
    served: Option<Lease>,
    pause: Duration,
    listed: Option<Time>,
    /// The revision of the store at the last list.
    revision: i64,
    trouble: Option<Notice>,
    notices: Vec<Notice>,
}

impl Keeper {
    /// Begins without a lease.
    pub(crate) fn new(request: Request, timing: Timing) -> Self {
        Self {
            request,
            publishing: None,
            timing,
            phase: Phase::Listing,
            memory: Memory::default(),
            judged: Time::ZERO,
            suspect: None,
            granted: None,
            held: None,
            displaced: None,
            settling: false,
            not_before: None,
            served: None,
            pause: PAUSE_MIN,
            listed: None,
            revision: 0,
            trouble: None,
            notices: Vec::new(),
        }
    }

    /// The lease that the data plane shall work with; it stays while it cannot be confirmed.
    pub(crate) fn served(&self) -> Option<&Lease> {
        self.served.as_ref()
    }

    /// Whether it is certain that nobody else has the subnet.
    pub(crate) fn is_confirmed(&self, now: Time) -> bool {
        let until = self.held.as_ref().and_then(|held| held.confirmed);
        until.is_some_and(|until| now < until)
    }

    /// When the lease ends unless it is renewed.
    pub(crate) fn expires(&self) -> Option<Time> {
        self.held.as_ref()?.expires
    }

    /// Takes what there is to tell.
    pub(crate) fn notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// What shall be done.
    pub(crate) fn step(&self) -> Step {
        match &self.phase {
            Phase::Waiting { until, .. } => Step::Wait(*until),
            Phase::Listing => Step::List,
            Phase::Looking(entry) => Step::Ages(vec![entry.into()]),
            Phase::Counting(_, entries) => Step::Ages(entries.iter().map(Into::into).collect()),
            Phase::Granting => Step::Grant,
            Phase::Writing(target) => Step::Put(self.put(target)),
            Phase::Deleting(entry) => {
                Step::Delete { key: entry.listed.key, revision: entry.revision }
            }
            Phase::Revoking(lease) => Step::Revoke(*lease),
            Phase::Renewing => match &self.held {
                Some(Held { entry, .. }) if entry.lease != 0 => {
                    Step::KeepAlive { key: entry.listed.key, lease: entry.lease }
                }
                Some(Held { entry, .. }) => Step::Read(entry.listed.key),
                None => Step::List,
            },
            Phase::Reading { .. } => match &self.held {
                Some(held) => Step::Read(held.entry.listed.key),
                None => Step::List,
            },
            Phase::LookingBack { before, .. } => Step::Ages(vec![before.into()]),
            Phase::Restoring(before) => Step::Put(self.restore(before)),
        }
    }

    fn put(&self, target: &Target) -> Put {
        let granted = self.granted.unwrap_or_default();
        let free = Guard::Free { since: self.revision };
        let (guard, lease, replaces) = match target {
            Target::Create(_) => (free, granted, None),
            Target::TakeOver(entry) => (Guard::At(entry.revision), granted, None),
            Target::Update(entry) => (Guard::At(entry.revision), entry.lease, None),
            Target::Move(from, _) => (free, from.lease, Some((from.listed.key, from.revision))),
        };
        let attributes = self.request.attributes.clone();
        Put { key: target.key(), attributes, guard, lease, replaces }
    }

    fn restore(&self, before: &Entry) -> Put {
        let attributes = before.listed.attributes.clone();
        Put {
            key: before.listed.key,
            attributes: attributes.unwrap_or_else(|| self.request.attributes.clone()),
            guard: Guard::At(self.held.as_ref().map_or(-1, |held| held.entry.revision)),
            lease: before.lease,
            replaces: None,
        }
    }

    /// The store may hold something else under our key: look before the time.
    pub(crate) fn doubt(&mut self, now: Time) {
        if let Phase::Waiting { until, then } = &mut self.phase {
            let earliest = self.listed.map_or(now, |listed| listed + LIST_PAUSE).max(now);
            if *then == Then::Renew || earliest < *until {
                (*until, *then) = (earliest.min(*until), Then::List);
            }
        }
    }

    /// Publishes other attributes from now on, under the same key.
    pub(crate) fn publish(&mut self, attributes: Attributes, now: Time) {
        self.publishing = Some(attributes);
        self.doubt(now);
    }

    /// Takes in what came of the step that was begun at `asked`.
    pub(crate) fn answer(
        &mut self,
        (asked, now): (Time, Time),
        answer: Answer,
        draw: impl FnMut(usize) -> usize,
    ) {
        let phase = std::mem::replace(&mut self.phase, Phase::Listing);
        self.phase = match (phase, answer) {
            (Phase::Waiting { then, .. }, _) => match then {
                Then::List => Phase::Listing,
                Then::Renew => Phase::Renewing,
            },
            (phase, Answer::Silence) => self.silence(&phase, now),
            (Phase::Listing, Answer::Listed(listing)) => self.judge(listing, now, draw),
            (Phase::Looking(entry), Answer::Ages(ages)) => {
                self.looked(&entry, ages.first().copied().flatten(), (asked, now))
            }
            (Phase::Counting(family, entries), Answer::Ages(ages)) => {
                self.counted(family, &entries, &ages, now)
            }
            (Phase::Granting, Answer::Granted(lease)) => {
                // The list that a write is decided on is of a store that knows what it ends with,
                // and not of one that was lost in the meantime with all its revisions.
                self.granted = Some(lease);
                Phase::Listing
            }
            (Phase::Writing(target), answer) => self.wrote(target, &answer, now),
            (Phase::Revoking(_), _) => {
                (self.granted, self.memory.tried) = (None, None);
                Phase::Listing
            }
            (Phase::Renewing, Answer::KeptAlive(Some(left))) => {
                Phase::Reading { asked, left: Some(left) }
            }
            (Phase::Renewing, Answer::Read(entry)) => self.read(asked, None, entry, now),
            (Phase::Renewing, _) => {
                self.lost(None);
                Phase::Listing
            }
            (Phase::Reading { asked, left }, Answer::Read(entry)) => {
                self.read(asked, left, entry, now)
            }
            (Phase::LookingBack { asked, left, before }, Answer::Ages(ages)) => {
                let renewed = ages.first().copied().flatten();
                if renewed.is_some_and(|age| age < self.timing.alive_for + SLACK) {
                    return self.phase = Phase::Restoring(before);
                }
                self.displaced = None;
                self.confirm(asked, left, now)
            }
            (Phase::Restoring(_), _) => {
                (self.displaced, self.memory.held, self.held) = (None, None, None);
                Phase::Listing
            }
            // Deleted; and answers that do not belong to the question, which no store gives.
            _ => Phase::Listing,
        };
    }

    /// Nothing is known about what was asked for: look again, later and later.
    fn silence(&mut self, phase: &Phase, now: Time) -> Phase {
        if let Phase::Writing(target @ (Target::Create(_) | Target::TakeOver(_))) = phase {
            self.memory.tried = Some(target.key());
        }
        let then = match phase {
            Phase::Renewing | Phase::Reading { .. } => Then::Renew,
            _ => Then::List,
        };
        let until = now + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Phase::Waiting { until, then }
    }

    fn judge(&mut self, listing: Listing, now: Time, draw: impl FnMut(usize) -> usize) -> Phase {
        let Listing { entries, revision } = listing;
        (self.listed, self.revision) = (Some(now), revision);
        if let Some(attributes) = self.publishing.take() {
            self.request.attributes = attributes;
        }
        self.forget_verdict(now);
        self.compare(&entries);
        let decision = decide(&self.request, &self.memory, &entries, draw);
        let key = match &decision {
            Decision::Keep(entry) | Decision::TakeOver(entry) => Some(entry.listed.key),
            Decision::Create(key) => Some(*key),
            _ => None,
        };
        // A write without an answer may still happen: it is fenced off before another one.
        if let (Some(tried), Some(lease)) = (self.memory.tried, self.granted)
            && key != Some(tried)
        {
            return Phase::Revoking(lease);
        }
        match decision {
            Decision::Keep(entry) => self.keep(entry, now),
            Decision::TakeOver(entry) if entry.lease == 0 => {
                self.settling = true;
                Phase::Writing(Target::Update(entry))
            }
            Decision::TakeOver(entry) => {
                self.displaced = Some(entry.clone());
                self.write(Target::TakeOver(entry))
            }
            Decision::Create(key) => self.write(Target::Create(key)),
            Decision::Move(from, key) => Phase::Writing(Target::Move(from, key)),
            Decision::Drop(entry) => Phase::Deleting(entry),
            Decision::Ask(entry) => Phase::Looking(entry),
            Decision::Refuse(entry) => self.refuse(entry, now),
            Decision::Exhausted(family) => Phase::Counting(family, entries),
        }
    }

    /// A death is certain for a moment only.
    fn forget_verdict(&mut self, now: Time) {
        let lasts = match self.memory.verdict {
            Some(Verdict { alive: false, .. }) => SLACK,
            _ => self.timing.heartbeat,
        };
        if now >= self.judged + lasts {
            self.memory.verdict = None;
        }
    }

    /// Whether what we hold is still there.
    fn compare(&mut self, entries: &[Entry]) {
        let Some(held) = &self.held else { return };
        let key = held.entry.listed.key;
        let found = entries.iter().find(|entry| entry.listed.key == key);
        if found != Some(&held.entry) {
            self.lost(found.cloned());
        }
    }

    fn write(&self, target: Target) -> Phase {
        match self.granted {
            Some(_) => Phase::Writing(target),
            None => Phase::Granting,
        }
    }

    fn keep(&mut self, entry: Entry, now: Time) -> Phase {
        if entry.listed.attributes.as_ref() != Some(&self.request.attributes) {
            return Phase::Writing(Target::Update(entry));
        }
        if self.granted == Some(entry.lease) {
            (self.granted, self.memory.tried) = (None, None);
        }
        self.hold(entry, now)
    }

    /// From now on the key is ours in the store; whether that is certain is found out next.
    fn hold(&mut self, entry: Entry, now: Time) -> Phase {
        if std::mem::take(&mut self.settling) {
            self.not_before = Some(now + self.timing.alive_for + SLACK);
        }
        self.memory.held = Some(entry.clone());
        let before = self.held.take().filter(|held| held.entry == entry);
        self.held = Some(before.unwrap_or(Held { entry, expires: None, confirmed: None }));
        Phase::Renewing
    }

    fn wrote(&mut self, target: Target, answer: &Answer, now: Time) -> Phase {
        let Answer::Written(Some(revision)) = *answer else {
            if *answer == Answer::NoSuchLease {
                (self.granted, self.memory.tried) = (None, None);
            }
            if let Phase::Waiting { until, .. } = self.silence(&Phase::Listing, now) {
                return Phase::Waiting { until: until.min(now + PAUSE_MIN), then: Then::List };
            }
            return Phase::Listing;
        };
        let put = self.put(&target);
        if matches!(target, Target::Create(_) | Target::TakeOver(_)) {
            (self.granted, self.memory.tried) = (None, None);
        }
        let created = match &target {
            Target::TakeOver(entry) | Target::Update(entry) => entry.created,
            // A store without revisions makes nothing that overlaps.
            Target::Create(_) | Target::Move(..) if self.revision == 0 => 0,
            Target::Create(_) | Target::Move(..) => revision,
        };
        let listed = Listed { key: put.key, attributes: Some(put.attributes) };
        let entry = Entry { listed, revision, created, lease: put.lease };
        if created == revision && revision != self.revision + 1 {
            // Something else was written since the list: the new one tells who was first.
            self.memory.held = Some(entry);
            return Phase::Listing;
        }
        self.hold(entry, now)
    }

    fn looked(&mut self, entry: &Entry, age: Option<Duration>, at: (Time, Time)) -> Phase {
        let (asked, now) = at;
        let Some(age) = age else { return self.wait_and_list(now + PAUSE_MIN) };
        let (key, revision) = (entry.listed.key, entry.revision);
        let known = self.suspect.filter(|(k, r, _)| (*k, *r) == (key, revision));
        let (_, _, since) = *self.suspect.insert(known.unwrap_or((key, revision, now)));
        let alive = asked.saturating_sub(age) > since;
        if !alive && age <= self.timing.alive_for + SLACK {
            if !matches!(&self.trouble, Some(Notice::Twin { key: twin, .. }) if *twin == key) {
                self.report(Notice::Unclear { key, age });
            }
            let gone = now + (self.timing.alive_for + SLACK + SLACK - age);
            return self.wait_and_list(gone.min(now + LOOK));
        }
        self.suspect = None;
        self.judged = if alive { now } else { asked };
        self.memory.verdict = Some(Verdict { key, revision, alive });
        Phase::Listing
    }

    fn refuse(&mut self, entry: Entry, now: Time) -> Phase {
        self.doubtful();
        let Listed { key, attributes } = entry.listed;
        self.report(Notice::Twin { key, attributes });
        self.wait_and_list(now + self.timing.heartbeat)
    }

    fn counted(
        &mut self,
        family: Family,
        entries: &[Entry],
        ages: &[Option<Duration>],
        now: Time,
    ) -> Phase {
        self.doubtful();
        let Some(pool) = self.request.pools.get(family) else { return Phase::Listing };
        let network = pool.network;
        let holders = entries.iter().zip(ages).map(|(entry, age)| Holder::new(entry, *age));
        let holders = holders.collect();
        self.report(Notice::Exhausted { network, holders });
        self.wait_and_list(now + EXHAUSTED_PAUSE)
    }

    fn read(
        &mut self,
        asked: Time,
        left: Option<Duration>,
        entry: Option<Entry>,
        now: Time,
    ) -> Phase {
        if entry.is_none() || entry.as_ref() != self.held.as_ref().map(|held| &held.entry) {
            self.lost(entry);
            return Phase::Listing;
        }
        match self.displaced.clone() {
            Some(before) => Phase::LookingBack { asked, left, before },
            None => self.confirm(asked, left, now),
        }
    }

    fn confirm(&mut self, asked: Time, left: Option<Duration>, now: Time) -> Phase {
        if let Some(until) = self.not_before.filter(|until| now < *until) {
            return Phase::Waiting { until, then: Then::Renew };
        }
        (self.not_before, self.pause) = (None, PAUSE_MIN);
        let Some(held) = &mut self.held else { return Phase::Listing };
        held.expires = left.map(|left| asked + left);
        held.confirmed = Some(asked + self.timing.alive_for);
        let listed = held.entry.listed.clone();
        // Taken over from a time when other families were configured.
        if self.request.fit(listed.key) != Fit::Whole {
            return Phase::Listing;
        }
        let wanted = self.publishing.as_ref().unwrap_or(&self.request.attributes);
        let is_current = listed.attributes.as_ref() == Some(wanted);
        let lease = Lease {
            subnet: listed.key,
            attributes: listed.attributes.unwrap_or_else(|| self.request.attributes.clone()),
        };
        self.request.previous = Some(lease.subnet);
        let before = self.served.replace(lease).map(|lease| lease.subnet);
        if before != Some(listed.key) || self.trouble.is_some() {
            self.trouble = None;
            self.notices.push(Notice::Acquired { key: listed.key, before });
        }
        if !is_current {
            return Phase::Listing;
        }
        let until = (asked + self.timing.heartbeat).max(now + PAUSE_MIN);
        Phase::Waiting { until, then: Then::Renew }
    }

    /// The key is not as we left it.
    fn lost(&mut self, found: Option<Entry>) {
        if let Some(held) = self.held.take() {
            let listed = held.entry.listed;
            if found.as_ref().is_some_and(|found| found.listed == listed) {
                return;
            }
            let key = listed.key;
            let attributes = found.map(|entry| entry.listed.attributes);
            self.report(match attributes {
                Some(attributes) => Notice::Changed { key, attributes },
                None => Notice::Gone { key },
            });
        }
    }

    /// Nothing is certain any more.
    fn doubtful(&mut self) {
        self.held = None;
    }

    fn wait_and_list(&self, until: Time) -> Phase {
        Phase::Waiting { until, then: Then::List }
    }

    /// Tells about a trouble once.
    fn report(&mut self, notice: Notice) {
        if !self.trouble.as_ref().is_some_and(|before| before.is_like(&notice)) {
            self.notices.push(notice.clone());
            self.trouble = Some(notice);
        }
    }
}
