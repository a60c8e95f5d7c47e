//! The lease protocol under every fault, in virtual time: several [`Keeper`]s with their tables
//! against a model of the store. A seed reproduces a run.
//!
//! `cargo test -p flanneld simulation` runs 100 000 seeds, and
//! `LEASE_SEEDS=1000000 cargo test -p flanneld simulation` a million in some ten minutes.
//! `LEASE_SEED=n` runs one, and
//! prints what happened after `-- --nocapture`.
//!
//! [`Keeper`]: super::keeper::Keeper

mod checks;
mod faults;
mod random;
mod store;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use world::World;

/// They take half a minute; the test profile optimises this crate for their sake.
const SEEDS: u64 = 100_000;

fn seeds() -> u64 {
    std::env::var("LEASE_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS)
}

#[test]
fn every_run_keeps_the_invariants() {
    if let Some(seed) = std::env::var("LEASE_SEED").ok().and_then(|text| text.parse().ok()) {
        return show(seed);
    }
    let next = AtomicU64::new(0);
    let failed: Vec<_> = std::thread::scope(|scope| {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let work = || {
            let mut failed = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds() || failed.len() > 5 {
                    return failed;
                }
                if let Err(reason) = World::new(seed, false).run() {
                    failed.push((seed, reason));
                }
            }
        };
        let handles: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        handles.into_iter().flat_map(|handle| handle.join().unwrap()).collect()
    });
    assert!(failed.is_empty(), "run LEASE_SEED=n for one of {failed:#?}");
}

fn show(seed: u64) {
    let mut world = World::new(seed, true);
    let result = world.run();
    for line in world.trace.unwrap_or_default() {
        println!("{line}");
    }
    result.unwrap();
}

#[test]
fn a_seed_reproduces_a_run() {
    let run = |seed| {
        let mut world = World::new(seed, true);
        world.run().unwrap();
        world.trace
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
