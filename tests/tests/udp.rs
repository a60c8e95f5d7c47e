//! The udp backend: nodes that carry packets themselves, among each other and with peers that
//! speak the plain wire.

use flannel_tests::cluster::{Cluster, Store};
use flannel_tests::pod::{self, Pod};
use flannel_tests::sandbox::sandboxed;
use flannel_tests::traffic::{ping, source_seen_by, tcp_stream};
use flannel_tests::wait;

const NETWORK: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}"#;

/// What each TCP stream carries.
const STREAM_LEN: usize = 8 << 20;

fn cluster(size: u8) -> Cluster {
    let mut cluster = Cluster::unconfigured(size, Store::Directory);
    cluster.store().configure(NETWORK);
    for number in 1..=size {
        cluster.start(number);
    }
    for number in 1..=size {
        cluster.wait_until_ready(number);
    }
    cluster
}

/// Pods that reach each other: nodes have no routes that would tell when they know each other.
fn pods(cluster: &Cluster, count: u8) -> Vec<Pod> {
    let pods = pod::attach_to_each(cluster.nodes(), count);
    for (from, to) in pod::pairs(&pods) {
        wait::until(&format!("{} reaches {}", from.name(), to.name()), || {
            ping(from.namespace(), to.address()).map_err(|e| e.to_string())
        });
    }
    pods
}

#[test]
fn pods_reach_each_other() {
    sandboxed(|| {
        let cluster = cluster(3);
        let pods = pods(&cluster, 2);
        for (from, to) in pod::pairs(&pods) {
            let names = format!("{} to {}", from.name(), to.name());
            ping(from.namespace(), to.address()).unwrap_or_else(|e| panic!("ping {names}: {e}"));
            tcp_stream(from.namespace(), to.namespace(), to.address(), STREAM_LEN)
                .unwrap_or_else(|e| panic!("TCP stream {names}: {e}"));
            let seen = source_seen_by(from.namespace(), to.namespace(), to.address()).unwrap();
            assert_eq!(seen, from.address(), "{names}");
        }
        for node in cluster.nodes() {
            for pod in &pods {
                ping(node.namespace(), pod.address()).unwrap();
            }
        }
    });
}
