//! What goes wrong in a run, drawn from its seed.

use std::net::Ipv4Addr;

use super::random::Random;
use super::store::Writer;
use super::world::{Event, World};
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
    match random.below(if operators { 16 } else { 10 }) {
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
            attributes.backend_data = None;
            if world.random.chance(50) {
                attributes.public_ip = Ipv4Addr::new(203, 0, 113, 7);
            }
            write_free(world, |key| Listed { key, attributes: Some(attributes) });
        }
        Fault::Scribble => write_free(world, |key| Listed { key, attributes: None }),
        Fault::Hijack { agent } => {
            let Some(key) = world.agents[agent].confirmed(now) else { return };
            let mut attributes = world.agents[agent].attributes();
            attributes.backend_data = Some("somebody else".into());
            let lease = world.store.grant(now);
            world.tampered.insert(key, now);
            world.store.write(
                Listed { key, attributes: Some(attributes) },
                lease,
                Writer::Operator,
            );
        }
        Fault::Move { agent } => readdress(world, agent),
        _ => {}
    }
}

fn readdress(world: &mut World, number: usize) {
    let now = world.now;
    let octet = 100 + u8::try_from(world.random.below(100)).expect("it is below 100");
    let agent = &mut world.agents[number];
    let before = std::mem::replace(&mut agent.ip, Ipv4Addr::new(198, 51, 100, octet));
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

fn tamper_with_all(world: &mut World) {
    for subnet in all_subnets(world) {
        world.tampered.insert(subnet, world.now);
    }
}

fn all_subnets(world: &World) -> Vec<LeaseKey> {
    let subnets = world.pool.subnets();
    subnets
        .filter_map(|subnet| match subnet {
            ipnetwork::IpNetwork::V4(ipv4) => Some(LeaseKey::v4(ipv4)),
            ipnetwork::IpNetwork::V6(_) => None,
        })
        .collect()
}

fn write_free(world: &mut World, listed: impl FnOnce(LeaseKey) -> Listed) {
    let mut free = all_subnets(world);
    free.retain(|key| !world.store.keys.contains_key(key));
    if !free.is_empty() {
        let key = free[world.random.below(free.len())];
        world.tampered.insert(key, world.now);
        world.store.write(listed(key), 0, Writer::Operator);
    }
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
