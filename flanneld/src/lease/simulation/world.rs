//! Agents, the network between them and the store, and a queue of what happens when.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::json;

use super::checks;
use super::faults::{self, Fault};
use super::random::Random;
use super::store::{Store, Writer};
use crate::config::Pool;
use crate::family::{Family, PerFamily};
use crate::lease::acquire::{Entry, Listed, Request};
use crate::lease::follow::{Follow, Source};
use crate::lease::keeper::{Answer, Keeper, Notice, Step, Time, Timing};
use crate::lease::table::{LeaseTable, LeaseUpdate};
use crate::lease::{Attributes, LeaseKey};

/// No answer after this long counts as none.
const DEADLINE: Time = Time::from_secs(5);
/// A dead connection is noticed after this long.
const NOTICED: Time = Time::from_secs(6);
const FAULTS: Time = Time::from_secs(120);
const CALM: Time = Time::from_secs(150);

#[derive(Debug)]
pub(super) enum Event {
    Start { agent: usize },
    Request { agent: usize, boot: u64, id: u64, step: Step },
    Reply { agent: usize, boot: u64, id: u64, answer: Answer },
    Silence { agent: usize, boot: u64, id: u64 },
    Wake { agent: usize, boot: u64, id: u64 },
    Follow { agent: usize, boot: u64, stream: u64 },
    FollowAsked { agent: usize, boot: u64, stream: u64, source: Source },
    Snapshot { agent: usize, boot: u64, stream: u64, revision: i64, all: Vec<Listed> },
    Opened { agent: usize, boot: u64, stream: u64, revision: i64, gone: bool },
    Change { agent: usize, boot: u64, stream: u64, revision: i64, update: LeaseUpdate },
    Fault(Fault),
}

/// A node: what survives a crash of the program, and the program.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) ip: IpAddr,
    pub(super) former_ips: Vec<IpAddr>,
    pub(super) mark: u64,
    /// What the subnet file says; lost when the machine boots.
    pub(super) previous: Option<LeaseKey>,
    pub(super) keeper: Option<Keeper>,
    /// What was configured when it started.
    pub(super) pools: PerFamily<Pool>,
    pub(super) boot: u64,
    pub(super) table: LeaseTable,
    /// What the last decision was based on.
    pub(super) last_list: Vec<Entry>,
    /// When it saw a key that nobody had renewed for long.
    pub(super) saw_dead: Option<Time>,
    pub(super) cut_until: Time,
    pub(super) paused_until: Time,
    follow: Follow,
    stream: u64,
    streaming: bool,
    last_change: Time,
    request: u64,
    asked: Time,
    /// What its clock shows more than the true time.
    pub(super) offset: Time,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) now: Time,
    pub(super) random: Random,
    pub(super) store: Store,
    pub(super) agents: Vec<Agent>,
    /// What is configured; agents see it when they start.
    pub(super) pools: PerFamily<Pool>,
    /// The length of IPv4 subnets was changed while the agents booted: every other one read the
    /// configuration before.
    lengths_differ: bool,
    pub(super) timing: Timing,
    /// When operators, or a lost store, interfered with a key.
    pub(super) tampered: BTreeMap<LeaseKey, Time>,
    pub(super) down_until: Time,
    pub(super) calm: bool,
    pub(super) slow: bool,
    /// What happened, for a run that failed.
    pub(super) trace: Option<Vec<String>>,
    sent: usize,
    sequence: u64,
    queue: BinaryHeap<Reverse<(Time, u64)>>,
    events: BTreeMap<u64, Box<Event>>,
}

impl World {
    pub(super) fn new(seed: u64, traced: bool) -> Self {
        let mut random = Random::new(seed);
        let count = 2 + random.below(4);
        let ttl = if random.chance(30) { Time::from_secs(60) } else { Time::from_secs(86400) };
        let subnets = if random.chance(25) { count } else { 12 };
        let twins = random.chance(20);
        let pools = draw_pools(&mut random, subnets);
        let lengths_differ = random.chance(15);
        let family = pools.families().next().expect("there is a family");
        let agents = (0..count).map(|n| Agent::new(n, twins, family, &mut random)).collect();
        let mut world = Self {
            now: Time::ZERO,
            random,
            store: Store::new(ttl),
            agents,
            pools,
            lengths_differ,
            timing: Timing::with_margin(Time::from_secs(86400), Time::from_secs(3600)),
            tampered: BTreeMap::new(),
            down_until: Time::ZERO,
            calm: false,
            slow: false,
            trace: traced.then(Vec::new),
            sent: 0,
            sequence: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
        };
        world.plan();
        world
    }

    fn plan(&mut self) {
        for agent in 0..self.agents.len() {
            let at = self.random.millis(0..3000);
            self.at(at, Event::Start { agent });
        }
        for (at, fault) in faults::plan(&mut self.random, self.agents.len(), FAULTS) {
            self.at(at, Event::Fault(fault));
        }
    }

    /// Runs to the end, and says what went wrong.
    pub(super) fn run(&mut self) -> Result<(), String> {
        while let Some(Reverse((at, sequence))) = self.queue.pop() {
            if at > FAULTS + CALM {
                break;
            }
            self.now = at;
            self.calm = at > FAULTS;
            self.store.expire(at);
            self.tell();
            let event = self.events.remove(&sequence).expect("each is queued once");
            self.happen(*event)?;
            self.tell();
            checks::beliefs(self)?;
        }
        checks::agreement(self)
    }

    pub(super) fn at(&mut self, at: Time, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((at, self.sequence)));
        self.events.insert(self.sequence, Box::new(event));
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:?} {event:?}", self.now));
        }
        match event {
            Event::Start { agent } => self.start(agent),
            Event::Request { agent, boot, id, step } => return self.serve(agent, boot, id, &step),
            Event::FollowAsked { agent, boot, stream, source } => {
                self.serve_follow(agent, boot, stream, source);
            }
            Event::Fault(fault) => faults::strike(self, fault),
            event => {
                if let Some((agent, boot)) = addressee(&event)
                    && self.agents[agent].boot == boot
                    && self.agents[agent].keeper.is_some()
                {
                    let resumes = self.agents[agent].paused_until;
                    if resumes > self.now {
                        self.at(resumes, event);
                    } else {
                        self.deliver(agent, event);
                    }
                }
            }
        }
        Ok(())
    }

    fn deliver(&mut self, agent: usize, event: Event) {
        let cut = self.agents[agent].cut_until > self.now;
        let current = |stream: u64, world: &Self| world.agents[agent].stream == stream && !cut;
        match event {
            Event::Reply { id, answer, .. } if !cut => self.answered(agent, id, answer),
            Event::Silence { id, .. } => self.answered(agent, id, Answer::Silence),
            Event::Wake { id, .. } => self.answered(agent, id, Answer::Waited),
            Event::Follow { stream, .. }
                if self.agents[agent].stream == stream && !self.agents[agent].streaming =>
            {
                self.follow(agent);
            }
            Event::Snapshot { stream, revision, all, .. } if current(stream, self) => {
                self.agents[agent].follow.listed(revision);
                self.update(agent, LeaseUpdate::Snapshot(all));
                self.follow(agent);
            }
            Event::Opened { stream, revision, gone, .. } if current(stream, self) => {
                let follow = &mut self.agents[agent].follow;
                if gone {
                    follow.restart();
                }
                if !follow.opened(revision) {
                    self.break_stream(agent, Time::from_millis(100));
                }
            }
            Event::Change { stream, revision, update, .. } if current(stream, self) => {
                self.agents[agent].follow.changed(revision);
                self.update(agent, update);
            }
            _ => {}
        }
    }

    fn start(&mut self, agent: usize) {
        let (timing, mut pools) = (self.timing, self.pools);
        if let Some(ipv4) = &mut pools.ipv4
            && self.lengths_differ
            && self.agents[agent].boot == 0
            && agent % 2 == 1
        {
            ipv4.subnet_len += 1;
        }
        let agent_ref = &mut self.agents[agent];
        if agent_ref.keeper.is_some() {
            return;
        }
        let request =
            Request { pools, previous: agent_ref.previous, attributes: agent_ref.attributes() };
        agent_ref.boot += 1;
        agent_ref.pools = pools;
        agent_ref.keeper = Some(Keeper::new(request, timing));
        agent_ref.table = LeaseTable::default();
        agent_ref.follow = Follow::default();
        agent_ref.paused_until = Time::ZERO;
        self.drive(agent);
        self.follow(agent);
    }

    pub(super) fn crash(&mut self, agent: usize) {
        self.agents[agent].keeper = None;
        self.agents[agent].streaming = false;
        self.agents[agent].stream += 1;
    }

    /// Performs what the keeper wants.
    pub(super) fn drive(&mut self, agent: usize) {
        let now = self.now;
        let delays = [self.delay(), self.delay()];
        let (lost, twice) = (self.random.chance(self.loss()), self.random.chance(self.loss()));
        let a = &mut self.agents[agent];
        let Some(keeper) = &a.keeper else { return };
        a.request += 1;
        a.asked = now + a.offset;
        let (boot, id, cut) = (a.boot, a.request, a.cut_until > now);
        match keeper.step() {
            Step::Wait(until) => {
                let until = until.saturating_sub(a.offset).max(now);
                self.at(until, Event::Wake { agent, boot, id });
            }
            step => {
                if !cut && !lost {
                    let copies = if twice { 2 } else { 1 };
                    for delay in &delays[..copies] {
                        let step = step.clone();
                        self.at(now + *delay, Event::Request { agent, boot, id, step });
                    }
                }
                self.at(now + DEADLINE, Event::Silence { agent, boot, id });
            }
        }
    }

    fn delay(&mut self) -> Time {
        match (self.calm, self.slow) {
            (false, true) => self.random.millis(1..20_000),
            _ => self.random.millis(1..50),
        }
    }

    fn loss(&self) -> usize {
        if self.calm { 0 } else { 2 }
    }

    fn serve(&mut self, agent: usize, boot: u64, id: u64, step: &Step) -> Result<(), String> {
        if self.down_until > self.now {
            return Ok(());
        }
        checks::write(self, agent, step)?;
        let answer = self.store.perform(step, self.writer(agent, step), self.now);
        let (delay, lost) = (self.delay(), self.random.chance(self.loss()));
        if !lost {
            self.at(self.now + delay, Event::Reply { agent, boot, id, answer });
        }
        Ok(())
    }

    /// A node that puts back what another one had written does not make it its own.
    fn writer(&self, agent: usize, step: &Step) -> Writer {
        let Step::Put(put) = step else { return Writer::Machine(agent) };
        let data = |other: &Agent| {
            let ours = other.attributes();
            Family::ALL.iter().all(|family| ours.data(*family) == put.attributes.data(*family))
        };
        Writer::Machine(self.agents.iter().position(data).unwrap_or(agent))
    }

    fn answered(&mut self, agent: usize, id: u64, answer: Answer) {
        let a = &mut self.agents[agent];
        if a.request != id {
            return;
        }
        match &answer {
            Answer::Listed(listing) => a.last_list.clone_from(&listing.entries),
            Answer::Ages(ages) if ages.iter().flatten().any(|age| *age > self.timing.alive_for) => {
                a.saw_dead = Some(self.now);
            }
            _ => {}
        }
        let drawn = self.random.next();
        let at = (a.asked, self.now + a.offset);
        let Some(keeper) = &mut a.keeper else { return };
        keeper.answer(at, answer, |count| {
            usize::try_from(drawn % (count as u64)).expect("it is below a usize")
        });
        if let Some(lease) = keeper.served() {
            a.previous = Some(lease.subnet);
        }
        let notices = keeper.notices();
        let out_of_step = notices.iter().any(Notice::casts_doubt_on_the_table);
        if let Some(trace) = self.trace.as_mut().filter(|_| !notices.is_empty()) {
            trace.push(format!("  {agent}: {notices:?}"));
        }
        if out_of_step {
            self.agents[agent].follow.restart();
            self.break_stream(agent, Time::from_millis(100));
        }
        self.drive(agent);
    }

    fn update(&mut self, agent: usize, update: LeaseUpdate) {
        let now = self.now;
        let a = &mut self.agents[agent];
        a.table.apply(update, now);
        a.table.forget(now);
        let Some(keeper) = &mut a.keeper else { return };
        let agrees = keeper.served().is_none_or(|lease| a.table.agrees_with(lease));
        if !agrees {
            let before = keeper.step();
            keeper.doubt(now + a.offset);
            if keeper.step() != before {
                self.drive(agent);
            }
        }
    }

    fn follow(&mut self, agent: usize) {
        let delay = self.delay();
        let a = &mut self.agents[agent];
        a.stream += 1;
        a.streaming = false;
        let (boot, stream, source) = (a.boot, a.stream, a.follow.source());
        if a.cut_until <= self.now {
            self.at(self.now + delay, Event::FollowAsked { agent, boot, stream, source });
        }
        // If nothing came of it, it is tried again.
        self.at(self.now + NOTICED, Event::Follow { agent, boot, stream });
    }

    fn serve_follow(&mut self, agent: usize, boot: u64, stream: u64, source: Source) {
        if self.down_until > self.now || self.agents[agent].stream != stream {
            return;
        }
        let (at, revision) = (self.now + self.delay(), self.store.revision);
        let from = match source {
            Source::List => {
                let all = self.store.listed();
                return self.at(at, Event::Snapshot { agent, boot, stream, revision, all });
            }
            Source::Changes { from } => from,
        };
        let gone = from <= self.store.compacted;
        self.at(at, Event::Opened { agent, boot, stream, revision, gone });
        if gone || revision + 1 < from {
            return;
        }
        // A stream that stands is not tried again.
        self.agents[agent].streaming = true;
        self.agents[agent].last_change = at;
        let missed: Vec<_> =
            self.store.history.iter().filter(|(rev, _)| *rev >= from).cloned().collect();
        for (revision, update) in missed {
            self.send_change(agent, revision, update);
        }
    }

    fn send_change(&mut self, agent: usize, revision: i64, update: LeaseUpdate) {
        let at = (self.now + self.delay()).max(self.agents[agent].last_change);
        let twice = self.random.chance(self.loss());
        let a = &mut self.agents[agent];
        a.last_change = at;
        let (boot, stream) = (a.boot, a.stream);
        if twice {
            let update = update.clone();
            self.at(at, Event::Change { agent, boot, stream, revision, update });
        }
        self.at(at, Event::Change { agent, boot, stream, revision, update });
    }

    /// Sends what changed to every open stream.
    fn tell(&mut self) {
        let known = self.store.history.len();
        self.sent = self.sent.min(known);
        let changes: Vec<_> = self.store.history[self.sent..].to_vec();
        self.sent = known;
        for (revision, update) in changes {
            for agent in 0..self.agents.len() {
                if self.agents[agent].streaming {
                    self.send_change(agent, revision, update.clone());
                }
            }
        }
    }

    /// The stream is dead; the agent notices after a while.
    pub(super) fn break_stream(&mut self, agent: usize, noticed: Time) {
        let a = &mut self.agents[agent];
        a.stream += 1;
        a.streaming = false;
        let (boot, stream) = (a.boot, a.stream);
        self.at(self.now + noticed, Event::Follow { agent, boot, stream });
    }

    pub(super) fn break_all_streams(&mut self) {
        (0..self.agents.len()).for_each(|agent| self.break_stream(agent, NOTICED));
    }

    /// Nothing is told any more of what was in the history until now.
    pub(super) fn history_is_gone(&mut self) {
        self.sent = 0;
    }
}

impl Agent {
    fn new(number: usize, twins: bool, family: Family, random: &mut Random) -> Self {
        let last = if twins && number == 1 { 0 } else { number };
        Self {
            ip: address(family, u8::try_from(last + 1).expect("there are few")),
            former_ips: Vec::new(),
            mark: random.next(),
            previous: None,
            keeper: None,
            pools: PerFamily::default(),
            boot: 0,
            table: LeaseTable::default(),
            last_list: Vec::new(),
            saw_dead: None,
            cut_until: Time::ZERO,
            paused_until: Time::ZERO,
            follow: Follow::default(),
            stream: 0,
            streaming: false,
            last_change: Time::ZERO,
            request: 0,
            asked: Time::ZERO,
            offset: random.millis(0..1_000_000_000),
        }
    }

    pub(super) fn attributes(&self) -> Attributes {
        let (public_ip, public_ipv6) = match self.ip {
            IpAddr::V4(ip) => (ip, None),
            IpAddr::V6(ip) => (Ipv4Addr::UNSPECIFIED, Some(ip)),
        };
        let mark = Some(json!({ "VtepMAC": self.mark }).into());
        Attributes {
            public_ip,
            public_ipv6,
            backend_type: "vxlan".to_owned(),
            backend_data: mark.clone().filter(|_| public_ipv6.is_none()),
            backend_v6_data: mark.filter(|_| public_ipv6.is_some()),
        }
    }

    pub(super) fn confirmed(&self, now: Time) -> Option<LeaseKey> {
        let keeper = self.keeper.as_ref()?;
        let confirmed = keeper.is_confirmed(now + self.offset);
        keeper.served().filter(|_| confirmed).map(|lease| lease.subnet)
    }
}

/// An underlay address.
pub(super) fn address(family: Family, last: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(198, 51, 100, last).into(),
        Family::V6 => Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, last.into()).into(),
    }
}

/// Most clusters have IPv4, some both families, and some only IPv6.
fn draw_pools(random: &mut Random, subnets: usize) -> PerFamily<Pool> {
    let drawn = random.below(10);
    let has = |family| match family {
        Family::V4 => drawn < 8,
        Family::V6 => drawn >= 5,
    };
    PerFamily::from_fn(|family| has(family).then(|| pool(family, subnets)))
}

/// A pool of so many subnets.
pub(super) fn pool(family: Family, subnets: usize) -> Pool {
    let last = u8::try_from(subnets).expect("there are few");
    match family {
        Family::V4 => Pool {
            network: "10.3.0.0/20".parse().expect("it is one"),
            subnet_len: 24,
            min: [10, 3, 1, 0].into(),
            max: [10, 3, last, 0].into(),
        },
        Family::V6 => Pool {
            network: "fd03::/60".parse().expect("it is one"),
            subnet_len: 64,
            min: [0xfd03, 0, 0, 1, 0, 0, 0, 0].into(),
            max: [0xfd03, 0, 0, last.into(), 0, 0, 0, 0].into(),
        },
    }
}

fn addressee(event: &Event) -> Option<(usize, u64)> {
    match event {
        Event::Reply { agent, boot, .. }
        | Event::Silence { agent, boot, .. }
        | Event::Wake { agent, boot, .. }
        | Event::Follow { agent, boot, .. }
        | Event::Snapshot { agent, boot, .. }
        | Event::Opened { agent, boot, .. }
        | Event::Change { agent, boot, .. } => Some((*agent, *boot)),
        _ => None,
    }
}
