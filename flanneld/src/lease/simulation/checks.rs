//! What must be true at every moment, and what at the end.

use ipnetwork::IpNetwork;

use super::store::{Stored, Writer};
use super::world::{Agent, World};
use crate::family::{Family, PerFamily};
use crate::lease::keeper::{Guard, Put, Step, Time};
use crate::lease::{LeaseKey, flannel, wire};

/// The longest way of a packet.
const SLOWEST: Time = Time::from_secs(20);

/// No two nodes are certain of one subnet, unless somebody interfered a moment ago.
pub(super) fn beliefs(world: &World) -> Result<(), String> {
    let confirmed: Vec<_> = world.agents.iter().map(|agent| agent.confirmed(world.now)).collect();
    for (n, one) in confirmed.iter().enumerate() {
        for (m, other) in confirmed.iter().enumerate().skip(n + 1) {
            if let (Some(one), Some(other)) = (one, other)
                && one.overlaps(other)
                && !tampered_lately(world, one)
            {
                return Err(format!("{n} and {m} are both certain of {one}"));
            }
        }
    }
    Ok(())
}

fn tampered_lately(world: &World, key: &LeaseKey) -> bool {
    let lately = |at: Time| world.now <= at + world.timing.alive_for;
    world.tampered.iter().any(|(tampered, at)| tampered.overlaps(key) && lately(*at))
}

/// Nobody writes a key of somebody else, or leaves a subnet that could have been kept.
pub(super) fn write(world: &World, agent: usize, step: &Step) -> Result<(), String> {
    if let Step::Put(put) = step {
        is_readable_for_flannel(put)?;
    }
    match step {
        Step::Put(Put { key, guard: Guard::Free { .. }, replaces: Some(from), .. }) => {
            let keeper = world.agents[agent].keeper.as_ref();
            // A request of an agent that was started again was decided on what was configured then.
            let is_current = keeper.is_some_and(|keeper| keeper.step() == *step);
            if is_current { may_move(world, agent, from, key) } else { Ok(()) }
        }
        Step::Put(Put { key, guard: Guard::Free { .. }, .. })
            if !world.store.keys.contains_key(key) =>
        {
            may_create(world, agent, key)
        }
        Step::Put(Put { key, guard: Guard::At(revision), .. }) | Step::Delete { key, revision } => {
            match at_revision(world, key, *revision) {
                Some(stored) => may_change(world, agent, stored),
                None => Ok(()),
            }
        }
        Step::Revoke(lease) => {
            let attached = world.store.keys.values().filter(|key| key.entry.lease == *lease);
            attached.into_iter().try_for_each(|stored| may_change(world, agent, stored))
        }
        _ => Ok(()),
    }
}

fn at_revision<'a>(world: &'a World, key: &LeaseKey, revision: i64) -> Option<&'a Stored> {
    world.store.keys.get(key).filter(|stored| stored.entry.revision == revision)
}

/// What a move can keep, it keeps.
fn may_move(
    world: &World,
    agent: usize,
    (from, revision): &(LeaseKey, i64),
    to: &LeaseKey,
) -> Result<(), String> {
    let Some(stored) = at_revision(world, from, *revision) else { return Ok(()) };
    may_change(world, agent, stored)?;
    let pools = &world.agents[agent].pools;
    let kept = |family| {
        let is_on_offer = |subnet| pools.get(family).is_some_and(|pool| pool.offers(subnet));
        let before = from.subnet(family).filter(|subnet| is_on_offer(*subnet));
        before.is_none() || before == to.subnet(family)
    };
    if pools.families().all(kept) {
        return Ok(());
    }
    Err(format!("{agent} moves {from} to {to}, and could have kept its subnets"))
}

/// A single key or value that flannel cannot read would cost its nodes all their peers.
fn is_readable_for_flannel(put: &Put) -> Result<(), String> {
    let (key, value) = (put.key.to_string(), wire::encode(&put.attributes));
    let is_good = put.key.is_network()
        && flannel::read(&key, &value).is_some_and(|seen| {
            put.key.ipv4().is_none_or(|ipv4| seen.ipv4 == IpNetwork::V4(ipv4))
                && seen.ipv6 == put.key.ipv6().map(IpNetwork::V6)
                && seen.public_ip == put.attributes.public_ip
        });
    if is_good { Ok(()) } else { Err(format!("{key} = {}", String::from_utf8_lossy(&value))) }
}

fn may_change(world: &World, agent: usize, stored: &Stored) -> Result<(), String> {
    let now = world.now;
    let attributes = stored.entry.listed.attributes.as_ref();
    let node = &world.agents[agent];
    let has_address = attributes.is_some_and(|attributes| {
        let ip = attributes.identity();
        ip.is_some_and(|ip| ip == node.ip || node.former_ips.contains(&ip))
    });
    // The request may have been under way for as long as anything can be.
    let is_dead = world.agents[agent].saw_dead.is_some_and(|at| now <= at + SLOWEST * 2);
    let allowed = match stored.writer {
        Writer::Machine(writer) => {
            writer == agent || has_address && (is_dead || stored.entry.lease == 0)
        }
        Writer::Operator => has_address,
    };
    let key = stored.entry.listed.key;
    if allowed { Ok(()) } else { Err(format!("{agent} writes {key} of {:?}", stored.writer)) }
}

fn may_create(world: &World, number: usize, key: &LeaseKey) -> Result<(), String> {
    let agent = &world.agents[number];
    // A request that was under way for long was decided on another list.
    let Some(keeper) = &agent.keeper else { return Ok(()) };
    let is_current = matches!(keeper.step(), Step::Put(put) if put.key == *key);
    let keepable = |family| {
        let previous = agent.previous?.subnet(family)?;
        let is_on_offer = agent.pools.get(family)?.offers(previous);
        let of_family = LeaseKey::new(PerFamily::from_fn(|f| (f == family).then_some(previous)))?;
        let others = agent.last_list.iter().map(|entry| entry.listed.key);
        let is_free = !others.into_iter().any(|other| other.overlaps(&of_family));
        let is_kept = key.subnet(family) == Some(previous);
        (is_on_offer && is_free && !is_kept).then_some(previous)
    };
    match agent.pools.families().find_map(keepable) {
        Some(previous) if is_current => {
            Err(format!("{number} takes {key} although {previous} is free"))
        }
        _ => Ok(()),
    }
}

/// Some time after the last fault everybody has a lease who can, and all know the same.
pub(super) fn agreement(world: &World) -> Result<(), String> {
    for (n, agent) in world.agents.iter().enumerate() {
        has_lease(world, n, agent)?;
        if agent.confirmed(world.now).is_some() {
            knows_all(world, n, agent)?;
        }
    }
    Ok(())
}

fn has_lease(world: &World, n: usize, agent: &Agent) -> Result<(), String> {
    if let Some(key) = agent.confirmed(world.now) {
        let stored = world.store.keys.get(&key);
        let attributes = stored.and_then(|stored| stored.entry.listed.attributes.as_ref());
        let agrees = attributes == Some(&agent.attributes());
        if !world.pools.families().eq(key.subnets().map(Family::of_network)) {
            return Err(format!("{n} has {key}, which is not what is configured"));
        }
        return if agrees { Ok(()) } else { Err(format!("{n} has {key}, but not in the store")) };
    }
    let twin = world.agents.iter().any(|other| {
        other.ip == agent.ip && other.mark != agent.mark && other.confirmed(world.now).is_some()
    });
    let keys = || world.store.keys.keys();
    let exhausted = agent.pools.iter().any(|(family, pool)| {
        pool.subnets().all(|subnet| {
            let is_held =
                |held: IpNetwork| subnet.contains(held.ip()) || held.contains(subnet.ip());
            keys().any(|key| key.subnet(family).is_some_and(is_held))
        })
    });
    if twin || exhausted || gave_way(world, n, agent) {
        Ok(())
    } else {
        Err(format!("{n} has no lease: {:?}", agent.keeper))
    }
}

/// A reservation shows no sign of life: who wrote it last has it, even if that one has gone away
/// since, until the node starts anew or the subnet is reserved again.
fn gave_way(world: &World, n: usize, agent: &Agent) -> bool {
    world.store.keys.values().any(|stored| {
        let attributes = stored.entry.listed.attributes.as_ref();
        let is_for_us =
            attributes.is_some_and(|attributes| attributes.identity() == Some(agent.ip));
        let is_of_another = matches!(stored.writer, Writer::Machine(writer) if writer != n);
        stored.entry.lease == 0 && is_for_us && is_of_another
    })
}

fn knows_all(world: &World, n: usize, agent: &Agent) -> Result<(), String> {
    for stored in world.store.keys.values() {
        let listed = &stored.entry.listed;
        if listed.attributes.is_some() && agent.table.get(&listed.key) != listed.attributes.as_ref()
        {
            return Err(format!("{n} does not know {}", listed.key));
        }
    }
    let mut table = agent.table.clone();
    table.forget(world.now);
    let nobody = LeaseKey::parse("0.0.0.0-0").expect("it is a key");
    match table.peers(&nobody).into_iter().find(|(key, _)| !world.store.keys.contains_key(key)) {
        Some((key, _)) => Err(format!("{n} still knows {key}")),
        None => Ok(()),
    }
}
