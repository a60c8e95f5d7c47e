//! What goes wrong in a run, drawn from its seed.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::json;

use super::random::Random;
use super::store::Writer;
use super::world::{self, Event, World};
use crate::config::Pool;
use crate::family::{Family, PerFamily};
use crate::lease::LeaseKey;
use crate::lease::acquire::Listed;
use crate::lease::keeper::Time;

#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// The program is killed and started again.
    Crash {
        agent: usize,
        restart: Time,
    },
    /// The machine boots: the subnet file is lost, and so is the device with its address.
    Boot {
        agent: usize,
        restart: Time,
    },
    /// The machine is suspended.
    Pause {
        agent: usize,
        span: Time,
    },
    /// No packets between a node and the store.
    Cut {
        agent: usize,
        span: Time,
    },
    /// The store is down.
    Down {
        span: Time,
    },
    /// Packets take up to 20 s.
    Slow {
        on: bool,
    },
    Compact,
    ChangeLeader,
    /// The clock of the store is set forward, or back.
    ClockJump {
        ahead: bool,
        span: Time,
    },
    /// The store loses everything.
    Wipe,
    /// An operator deletes a key.
    Delete,
    /// An operator reserves a subnet, for a node or for nobody.
    Reserve {
        agent: usize,
    },
    /// Somebody writes what nobody can read under the key of a free subnet.
    Scribble,
    /// Something else with the same public address writes a node's key, and never comes back.
    Hijack {
        agent: usize,
    },
    /// A node gets another address.
    Move {
        agent: usize,
    },
    /// An administrator switches IPv6 on or off beside IPv4, and starts all agents again.
    Families {
        restart: Time,
    },
    /// From now on nothing goes wrong.
    Heal,
}

pub(super) fn plan(random: &mut Random, agents: usize, span: Time) -> Vec<(Time, Fault)> {
    let operators = random.chance(50);
    let count = random.below(12);
    let end = usize::try_from(span.as_millis()).expect("a run is short");
    let mut faults: Vec<_> =
        (0..count).map(|_| (random.millis(0..end), draw(random, agents, operators))).collect();
    faults.push((span, Fault::Heal));
    faults
}

fn draw(random: &mut Random, agents: usize, operators: bool) -> Fault {
    let agent = random.below(agents);
    let restart = random.millis(100..40_000);
    let span = random.millis(100..70_000);
    match random.below(if operators { 17 } else { 10 }) {
        0 | 1 => Fault::Crash { agent, restart },
        2 => Fault::Boot { agent, restart },
        3 => Fault::Pause { agent, span },
        4 => Fault::Cut { agent, span },
        5 => Fault::Down { span },
        6 => Fault::Slow { on: random.chance(50) },
        7 => Fault::Compact,
        8 => Fault::ChangeLeader,
        9 => Fault::ClockJump { ahead: random.chance(50), span },
        10 => Fault::Wipe,
        11 => Fault::Reserve { agent },
        12 => Fault::Scribble,
        13 => Fault::Hijack { agent },
        14 => Fault::Move { agent },
        15 => Fault::Families { restart },
        _ => Fault::Delete,
    }
}

pub(super) fn strike(world: &mut World, fault: Fault) {
    let now = world.now;
    match fault {
        Fault::Crash { agent, restart } => {
            world.crash(agent);
            world.at(now + restart, Event::Start { agent });
        }
        Fault::Boot { agent, restart } => {
            world.crash(agent);
            world.agents[agent].previous = None;
            world.agents[agent].mark = world.random.next();
            // Its clock starts again.
            world.agents[agent].offset = world.random.millis(0..1_000_000_000);
            world.at(now + restart, Event::Start { agent });
        }
        Fault::Pause { agent, span } => {
            // What waits for the end of one pause must not be overtaken in the next.
            if world.agents[agent].paused_until <= now {
                world.agents[agent].paused_until = now + span;
            }
        }
        Fault::Cut { agent, span } => {
            world.agents[agent].cut_until = now + span;
            world.break_stream(agent, Time::from_secs(6));
        }
        Fault::Down { span } => {
            world.down_until = now + span;
            world.break_all_streams();
        }
        Fault::Slow { on } => world.slow = on,
        Fault::Compact => {
            world.store.compact();
            world.history_is_gone();
        }
        Fault::ChangeLeader => world.store.change_leader(now),
        Fault::ClockJump { ahead: true, span } => {
            tamper_with_all(world);
            world.store.jump_ahead(span);
        }
        // What was renewed in the future counts as renewed now.
        Fault::ClockJump { ahead: false, .. } => world.store.change_leader(now),
        Fault::Heal => heal(world),
        by_operator => interfere(world, by_operator),
    }
}

fn interfere(world: &mut World, fault: Fault) {
    let now = world.now;
    match fault {
        Fault::Wipe => {
            tamper_with_all(world);
            world.store.wipe();
            world.history_is_gone();
            world.break_all_streams();
        }
        Fault::Delete => {
            let keys: Vec<_> = world.store.keys.keys().copied().collect();
            if !keys.is_empty() {
                let key = keys[world.random.below(keys.len())];
                world.tampered.insert(key, now);
                world.store.delete(&key);
            }
        }
        Fault::Reserve { agent } => {
            let mut attributes = world.agents[agent].attributes();
            (attributes.backend_data, attributes.backend_v6_data) = (None, None);
            if world.random.chance(50) {
                match &mut attributes.public_ipv6 {
                    None => attributes.public_ip = Ipv4Addr::new(203, 0, 113, 7),
                    Some(ip) => *ip = Ipv6Addr::LOCALHOST,
                }
            }
            write_free(world, |key| Listed { key, attributes: Some(attributes) });
        }
        Fault::Scribble => write_free(world, |key| Listed { key, attributes: None }),
        Fault::Hijack { agent } => {
            let Some(key) = world.agents[agent].confirmed(now) else { return };
            // In a store that was wiped, it may overlap what somebody else has by now.
            if !world.store.keys.contains_key(&key) {
                return;
            }
            let mut attributes = world.agents[agent].attributes();
            let data = match attributes.public_ipv6 {
                None => &mut attributes.backend_data,
                Some(_) => &mut attributes.backend_v6_data,
            };
            *data = Some(json!("somebody else").into());
            let lease = world.store.grant(now);
            world.tampered.insert(key, now);
            world.store.write(
                Listed { key, attributes: Some(attributes) },
                lease,
                Writer::Operator,
            );
        }
        Fault::Move { agent } => readdress(world, agent),
        Fault::Families { restart } => {
            if let Some(ipv4) = world.pools.ipv4 {
                let subnets = ipv4.subnets().count();
                let ipv6 = world::pool(Family::V6, subnets);
                world.pools.ipv6 = world.pools.ipv6.xor(Some(ipv6));
                for agent in 0..world.agents.len() {
                    world.crash(agent);
                    let delay = world.random.millis(1..20_000);
                    world.at(now + restart + delay, Event::Start { agent });
                }
            }
        }
        _ => {}
    }
}

fn readdress(world: &mut World, number: usize) {
    let now = world.now;
    let octet = 100 + u8::try_from(world.random.below(100)).expect("it is below 100");
    let agent = &mut world.agents[number];
    let ip = world::address(Family::of(agent.ip), octet);
    let before = std::mem::replace(&mut agent.ip, ip);
    agent.former_ips.push(before);
    let attributes = agent.attributes();
    let now = now + agent.offset;
    if let Some(keeper) = &mut agent.keeper {
        let before = keeper.step();
        keeper.publish(attributes, now);
        if keeper.step() != before {
            world.drive(number);
        }
    }
}

/// A key for each subnet of each family.
fn single_keys(world: &World) -> Vec<LeaseKey> {
    let single = |(family, pool): (Family, &Pool)| {
        let key =
            move |subnet| LeaseKey::new(PerFamily::from_fn(|f| (f == family).then_some(subnet)));
        pool.subnets().filter_map(key).collect::<Vec<_>>()
    };
    world.pools.iter().flat_map(single).collect()
}

fn tamper_with_all(world: &mut World) {
    for key in single_keys(world) {
        world.tampered.insert(key, world.now);
    }
}

/// Writes a key of a free subnet, or of one of each family.
fn write_free(world: &mut World, listed: impl FnOnce(LeaseKey) -> Listed) {
    let mut free = single_keys(world);
    free.retain(|key| !world.store.keys.keys().any(|other| other.overlaps(key)));
    if free.is_empty() {
        return;
    }
    let [one, other] = [(); 2].map(|()| free[world.random.below(free.len())]);
    let subnet = |family| one.subnet(family).or(other.subnet(family));
    let key = LeaseKey::new(PerFamily::from_fn(subnet)).expect("one has a subnet");
    world.tampered.insert(key, world.now);
    world.store.write(listed(key), 0, Writer::Operator);
}

fn heal(world: &mut World) {
    let now = world.now;
    world.slow = false;
    world.down_until = now;
    for agent in 0..world.agents.len() {
        world.agents[agent].cut_until = now;
        world.at(now, Event::Start { agent });
    }
}
