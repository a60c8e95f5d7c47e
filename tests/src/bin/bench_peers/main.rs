//! What many peers cost a node: time, memory and processors.
//!
//! `bench_peers [PART]...` measures the parts that are named, by default all of them; each is a
//! function of its own. What has a counterpart is measured in turns with it, on fresh namespaces.

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

mod agent;
mod batches;

mod join;
mod programming;
mod resources;
mod throughput;

use std::process::ExitCode;

use flannel_tests::sandbox;
use flannel_tests::statistics::machine;

/// Peers of a large cluster, and of a very large one.
const MANY: u32 = 4_000;
const VERY_MANY: u32 = 10_000;

type Part = (&'static str, fn());

const PARTS: [Part; 8] = [
    ("start", programming::start),
    ("growth", programming::growth),
    ("nothing-to-do", programming::nothing_to_do),
    ("join", || join::new_peer(1)),
    ("join-many", || join::new_peer(MANY)),
    ("memory", resources::memory),
    ("idle", resources::idle),
    ("throughput", throughput::between_pods),
];

fn main() -> ExitCode {
    let names: Vec<_> = std::env::args().skip(1).collect();
    if names.iter().any(|name| PARTS.iter().all(|(part, _)| part != name)) {
        println!("usage: bench_peers [PART]...   of {}", PARTS.map(|(part, _)| part).join(", "));
        return ExitCode::from(2);
    }
    let mut code = ExitCode::SUCCESS;
    // A sandbox starts this program again: there it is one part.
    match names.as_slice() {
        [name] => {
            let part = PARTS.iter().find(|(part, _)| part == name);
            let (name, measure) = part.expect("all names are those of parts");
            code = sandbox::main_in_sandbox(|| {
                println!("{name}   ({})", machine());
                measure();
                println!("  ({})\n", machine());
            });
        }
        _ => {
            let all = PARTS.map(|(part, _)| part.to_owned()).to_vec();
            for name in if names.is_empty() { all } else { names } {
                let this = std::process::Command::new("/proc/self/exe").arg(name).status();
                if !this.is_ok_and(|status| status.success()) {
                    code = ExitCode::FAILURE;
                }
            }
        }
    }
    code
}
