//! What an agent takes when nothing happens any more: memory, and time of the processors.

use std::thread::park_timeout;
use std::time::{Duration, Instant};

use flannel_tests::crowd::{self, Peer};
use flannel_tests::node::Node;
use flannel_tests::underlay::Underlay;
use flannel_tests::usage::{Memory, cpu_time};

use crate::MANY;
use crate::agent::Agent;

/// Everything that follows a start has been done by then.
const SETTLING: Duration = Duration::from_secs(10);

/// Memory of agents that have programmed their peers.
pub(crate) fn memory() {
    settled(|agents| {
        for (agent, (size, want)) in agents.iter().zip([("2 nodes", 8), ("4000 nodes", 16)]) {
            let Memory { resident, peak, anonymous } = Memory::of(agent.daemon.pid());
            let [resident, peak, anonymous] = [resident, peak, anonymous].map(mebibytes);
            println!(
                "  {size:<28}{resident:5.1} MiB (want {want}), {anonymous:.1} MiB of it not of \
                 the file; {peak:.1} MiB at most"
            );
        }
    });
}

/// Time of the processors that agents take.
pub(crate) fn idle() {
    const MINUTE: Duration = Duration::from_secs(60);
    settled(|agents| {
        let used = || agents.iter().map(|agent| cpu_time(agent.daemon.pid())).collect::<Vec<_>>();
        let (start, before) = (Instant::now(), used());
        sleep(MINUTE);
        let (time, after) = (start.elapsed(), used());
        for (place, size) in ["2 nodes", "4000 nodes"].iter().enumerate() {
            let used = after[place].saturating_sub(before[place]);
            let share = used.as_secs_f64() / time.as_secs_f64() * 100.0;
            println!("  {size:<28}{share:.4} % of one processor (want 0.05)");
        }
    });
}

/// Starts the agent of a cluster of two nodes, and one of a large one, and looks at them when
/// everything was done.
fn settled(look: impl FnOnce(&[Agent<'_>])) {
    let underlay = Underlay::create();
    let large = crowd::in_etcd(&underlay, &Peer::several(MANY));
    let (key, lease) = Peer::new(0).lease();
    large.etcd().put("/small/config", crowd::NETWORK);
    large.etcd().put(&format!("/small/subnets/{key}"), &lease);
    let nodes = [1, 2].map(|number| Node::create(&underlay, number));
    let small = Agent::start(&nodes[0], &large, &["--etcd-prefix=/small"]);
    let large = Agent::start(&nodes[1], &large, &[]);
    small.assert_programmed(1);
    large.assert_programmed(MANY);
    sleep(SETTLING);
    look(&[small, large]);
}

fn mebibytes(kibibytes: u64) -> f64 {
    f64::from(u32::try_from(kibibytes).unwrap_or(u32::MAX)) / 1024.0
}

fn sleep(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        park_timeout(left);
    }
}
