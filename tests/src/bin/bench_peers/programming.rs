//! How long it takes to make the kernel equal to the leases.

use std::path::Path;
use std::time::Duration;

use flannel_tests::cluster::LeaseStore;
use flannel_tests::crowd::{self, Peer};
use flannel_tests::node::Node;
use flannel_tests::statistics::Samples;
use flannel_tests::underlay::Underlay;
use flannel_tests::wait;

use crate::agent::{Agent, UNCHANGED};
use crate::batches::Batches;
use crate::{MANY, VERY_MANY};

const ROUNDS: u8 = 5;

/// Peers from nothing, against the same objects by `ip -batch` and `bridge -batch`.
pub(crate) fn start() {
    let underlay = Underlay::create();
    let peers = Peer::several(MANY);
    let directory = crowd::in_directory(Path::new("/run/leases"), &peers);
    let etcd = crowd::in_etcd(&underlay, &peers);
    let batches = Batches::new(&peers);
    let nodes = [1, 2, 3].map(|number| Node::create(&underlay, number));
    let (mut by_batch, mut by_pass) = <(Samples, Samples)>::default();
    let (mut from_directory, mut from_etcd) = <(Samples, Samples)>::default();
    for round in 0..ROUNDS {
        // Whoever comes first has the machine in another state than whoever comes last.
        for place in 0..3 {
            match (round + place) % 3 {
                0 => by_batch.push(load(&batches, &nodes[0])),
                1 => from_directory.push(measure(&nodes[1], &directory, MANY).0),
                _ => {
                    let (started_in, pass) = measure(&nodes[2], &etcd, MANY);
                    from_etcd.push(started_in);
                    by_pass.push(pass);
                }
            }
        }
    }
    println!("  {MANY} peers from nothing");
    println!("  {:<28}{by_batch}", "ip -batch, bridge -batch");
    for (label, samples, want) in [
        ("from leases in memory", &by_pass, 1.0),
        ("from the start, etcd", &from_etcd, 2.0),
        ("from the start, directory", &from_directory, 2.0),
    ] {
        let ratio = samples.ratio_to(&by_batch);
        println!("  {label:<28}{samples}   {ratio:.2} of the batches (want {want})");
    }
}

/// More peers against many, and the same by hand.
pub(crate) fn growth() {
    const ROUNDS: usize = 9;
    let underlay = Underlay::create();
    let sizes = [MANY, VERY_MANY];
    let crowds = sizes.map(Peer::several);
    let store = |crowd: &Vec<Peer>| {
        crowd::in_directory(Path::new(&format!("/run/leases-{}", crowd.len())), crowd)
    };
    let stores = [store(&crowds[0]), store(&crowds[1])];
    let nodes = [1, 2].map(|number| Node::create(&underlay, number));
    let (mut by_pass, mut by_batch) = <([Samples; 2], [Samples; 2])>::default();
    let mut by_one_protocol = <[Samples; 2]>::default();
    for _ in 0..ROUNDS {
        for (place, crowd) in crowds.iter().enumerate() {
            let node = &nodes[place];
            by_batch[place].push(load(&Batches::new(crowd), node));
            by_one_protocol[place].push(load(&Batches::of_one_protocol(crowd), node));
            by_pass[place].push(measure(node, &stores[place], sizes[place]).1);
        }
    }
    for (place, size) in sizes.iter().enumerate() {
        println!("  {size} peers");
        for (label, samples) in [
            ("ip -batch, bridge -batch", &by_batch),
            ("with routes of one protocol", &by_one_protocol),
            ("from leases in memory", &by_pass),
        ] {
            println!("  {label:<28}{}", samples[place]);
        }
    }
    let growth = |samples: &[Samples; 2]| samples[1].ratio_to(&samples[0]);
    println!("  {:.2} times as long (want 2.6)", growth(&by_pass));
    println!("  {:.2} times as long by ip -batch and bridge -batch", growth(&by_batch));
}

/// Loads the batches on a fresh node, and clears up.
fn load(batches: &Batches, node: &Node) -> Duration {
    let time = batches.load(node, "10.0.255.0", "02:00:00:00:ff:ff");
    node.ip("link delete flannel.1");
    time
}

/// Starts flanneld on a fresh node. Returns the time from the start of the process until everything
/// was there, and from the leases in memory on.
fn measure(node: &Node, store: &LeaseStore, peers: u32) -> (Duration, Duration) {
    let _ = std::fs::remove_file(node.directory("/run/flannel/subnet.env"));
    let agent = Agent::start(node, store, &[]);
    agent.assert_programmed(peers);
    let times = (agent.started_in, agent.first_pass());
    agent.end();
    times
}

/// Comparisons that find nothing to do.
pub(crate) fn nothing_to_do() {
    const PASSES: usize = 31;
    let underlay = Underlay::create();
    let store = crowd::in_directory(Path::new("/run/leases"), &Peer::several(MANY));
    let node = Node::create(&underlay, 1);
    let agent = Agent::start(&node, &store, &["-v", "2"]);
    agent.assert_programmed(MANY);
    let mut passes = agent.passes(UNCHANGED);
    for number in 0..PASSES {
        let before = passes.len();
        // Of no interest, but told.
        node.ip(&format!("link set flannel.1 alias look-{number}"));
        passes = wait::until("it has been compared", || {
            let passes = agent.passes(UNCHANGED);
            if passes.len() > before { Ok(passes) } else { Err(format!("{before} passes")) }
        });
    }
    let mut samples = Samples::default();
    passes.into_iter().rev().take(PASSES).for_each(|pass| samples.push(pass));
    println!("  {MANY} peers, nothing to do   {samples}   (want 25 ms)");
}
