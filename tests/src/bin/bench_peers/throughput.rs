//! What pods on two nodes send to each other, against the same objects made by hand.

use std::fs;
use std::path::Path;
use std::time::Duration;

use flannel_tests::cluster::LeaseStore;
use flannel_tests::crowd::{self, Peer};
use flannel_tests::node::Node;
use flannel_tests::pod::Pod;
use flannel_tests::program;
use flannel_tests::traffic::{stream_for, wait_until_reached};
use flannel_tests::underlay::Underlay;

use crate::agent::Agent;
use crate::batches::Batches;

const ROUNDS: usize = 11;
const TIME: Duration = Duration::from_secs(2);

/// One TCP stream between pods over vxlan, in turns.
pub(crate) fn between_pods() {
    let underlay = Underlay::create();
    let nodes = [1, 2, 3, 4].map(|number| Node::create(&underlay, number));
    let store = crowd::in_directory(Path::new("/run/leases"), &[]);
    let (_agents, by_agent) = leased(&nodes[..2], &store);
    let by_hand = made_by_hand(&nodes[2..]);
    for (leased, by_hand) in nodes[..2].iter().zip(&nodes[2..]) {
        copy_rules(leased, by_hand);
    }
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (rates, [from, to]) in rates.iter_mut().zip([&by_agent, &by_hand]) {
            let bytes = stream_for(from.namespace(), to.namespace(), to.address(), TIME);
            rates.push(gigabits_per_second(bytes));
        }
    }
    let [by_agent, by_hand] = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates
    });
    for (label, rates) in [("flanneld", &by_agent), ("the same by hand", &by_hand)] {
        println!(
            "  {label:<28}median {:6.2} Gbit/s   from {:.2} to {:.2}   n {ROUNDS}",
            rates[ROUNDS / 2],
            rates[0],
            rates[ROUNDS - 1]
        );
    }
    println!("  {:.2} of what is made by hand", by_agent[ROUNDS / 2] / by_hand[ROUNDS / 2]);
}

fn leased<'a>(nodes: &'a [Node], store: &'a LeaseStore) -> (Vec<Agent<'a>>, [Pod; 2]) {
    let agents = nodes.iter().map(|node| Agent::start(node, store, &[])).collect();
    (agents, pods(nodes, "leased"))
}

fn made_by_hand(nodes: &[Node]) -> [Pod; 2] {
    for (node, other) in [(&nodes[0], &nodes[1]), (&nodes[1], &nodes[0])] {
        let own = Peer::at(node.number().into(), node.address());
        let peer = Peer::at(other.number().into(), other.address());
        Batches::new(&[peer]).load(node, &own.base.to_string(), &own.mac);
        let [a, b, c, _] = own.base.octets();
        let file = format!(
            "FLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_SUBNET={a}.{b}.{c}.1/24\nFLANNEL_MTU=1450\n\
             FLANNEL_IPMASQ=true\n"
        );
        fs::write(node.directory("/run/flannel/subnet.env"), file)
            .expect("the sandbox is writable");
    }
    pods(nodes, "by-hand")
}

/// Rules cost their share of every packet; these are those of flannel, by the usual programs.
fn copy_rules(from: &Node, to: &Node) {
    let [own, others] = [to, from].map(|node| {
        let subnet = node.subnet_file_value("FLANNEL_SUBNET").expect("the node has a subnet");
        subnet.strip_suffix("1/24").expect("a gateway").to_owned()
    });
    let rules = program::run(&mut from.command("iptables-save")).replace(&others, &own);
    let file = format!("/run/rules-of-{}", to.name());
    fs::write(&file, rules).expect("the sandbox is writable");
    program::run(to.command("iptables-restore").arg(&file));
}

fn pods(nodes: &[Node], name: &str) -> [Pod; 2] {
    let pods = [0, 1].map(|place| Pod::attach(&nodes[place], &format!("{name}-{place}")));
    wait_until_reached(pods[0].namespace(), pods[1].address());
    pods
}

fn gigabits_per_second(bytes: u64) -> f64 {
    let megabytes = f64::from(u32::try_from(bytes >> 20).unwrap_or(u32::MAX));
    megabytes * f64::from(1 << 20) * 8e-9 / TIME.as_secs_f64()
}
