//! What is deleted by hand comes back by itself, and traffic with it.

#![expect(clippy::print_stdout, reason = "helpers of tests are tests")]

use flannel_tests::cluster::{Cluster, Store};
use flannel_tests::node::Node;
use flannel_tests::pod;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::traffic::ping;
use flannel_tests::wait;
use std::time::Instant;

/// Everything on a node that its flanneld made, without what the kernel numbers anew.
fn made_by_flanneld(node: &Node) -> Result<String, String> {
    let namespace = node.namespace();
    let device = namespace.try_ip("-oneline link show flannel.1")?;
    let addresses = namespace.try_ip("-4 -oneline address show dev flannel.1")?;
    let sorted = |text: String| {
        let mut lines: Vec<_> = text.lines().map(|line| line.trim().to_owned()).collect();
        lines.sort();
        lines.join("\n")
    };
    let without_index = |line: &str| line.split_once(": ").unwrap_or_default().1.to_owned();
    let parts = [
        without_index(&device),
        addresses.lines().map(without_index).collect(),
        sorted(namespace.try_ip("route show")?),
        sorted(namespace.try_ip("neighbour show dev flannel.1")?),
        sorted(namespace.try_bridge("fdb show dev flannel.1")?),
    ];
    Ok(parts.join("\n"))
}

/// Deletes something on the first node of three, and expects it back.
fn comes_back(delete: impl Fn(&Node)) {
    let cluster = Cluster::running(3, Store::Directory);
    let pods = pod::attach_to_each(cluster.nodes(), 1);
    let node = cluster.node(1);
    let before = made_by_flanneld(node).expect("the node is ready");
    delete(node);
    let start = Instant::now();
    wait::until("everything is as before", || {
        let now = made_by_flanneld(node)?;
        if now == before { Ok(()) } else { Err(format!("\n{now}\nbefore:\n{before}")) }
    });
    println!("healed in {:.0?}", start.elapsed());
    for (from, to) in pod::pairs(&pods) {
        ping(from.namespace(), to.address()).expect("the network is whole again");
    }
}

#[test]
fn device_comes_back_with_its_mac_and_all_entries() {
    sandboxed(|| {
        comes_back(|node| {
            node.ip("link delete flannel.1");
        });
    });
}

#[test]
fn address_comes_back() {
    sandboxed(|| {
        comes_back(|node| {
            node.ip("address flush dev flannel.1");
        });
    });
}

#[test]
fn route_comes_back() {
    sandboxed(|| {
        comes_back(|node| {
            let routes = node.ip("route show dev flannel.1");
            let destination = routes.split(' ').next().expect("there are two peers");
            node.ip(&format!("route delete {destination}"));
        });
    });
}

#[test]
fn neighbour_comes_back() {
    sandboxed(|| {
        comes_back(|node| {
            let neighbours = node.ip("neighbour show dev flannel.1");
            let address = neighbours.split(' ').next().expect("there are two peers");
            node.ip(&format!("neighbour delete {address} dev flannel.1"));
        });
    });
}

#[test]
fn fdb_entry_comes_back() {
    sandboxed(|| {
        comes_back(|node| {
            let entries = node.bridge("fdb show dev flannel.1");
            let mac = entries.split(' ').next().expect("there are two peers");
            node.bridge(&format!("fdb delete {mac} dev flannel.1"));
        });
    });
}

#[test]
fn device_that_is_down_comes_up_with_its_routes() {
    sandboxed(|| {
        comes_back(|node| {
            node.ip("link set flannel.1 down");
        });
    });
}
