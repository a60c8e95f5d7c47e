//! Connections to etcd that die without a word.

use std::time::{Duration, Instant};

use flannel_tests::cluster::{ETCD_PREFIX, STOCK_NETWORK};
use flannel_tests::daemon::Daemon;
use flannel_tests::etcd_cluster::{EtcdCluster, Release};
use flannel_tests::node::Node;
use flannel_tests::partition::{self, Direction};
use flannel_tests::sandbox::sandboxed;
use flannel_tests::underlay::Underlay;
use flannel_tests::{program, wait};

/// What is promised; nothing of it depends on how busy the machine is.
const NOTICED_MAX: Duration = Duration::from_secs(10);

const PEER: &str = r#"{"PublicIP":"198.51.100.77","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}}"#;

#[test]
fn half_open_connection_is_noticed_and_another_member_asked() {
    sandboxed(|| {
        let underlay = Underlay::create();
        let etcd = EtcdCluster::running(&underlay, Release::V3_4);
        let put = |key: &str, value: &str| {
            wait::until("etcd stores it", || {
                let key = format!("{ETCD_PREFIX}/{key}");
                etcd.etcdctl(1, &["put", &key, value]).ok_or_else(|| "it refuses".to_owned())
            })
        };
        put("config", STOCK_NETWORK);
        let node = Node::create(&underlay, 1);
        let mut command = node.command(program::flanneld());
        command.arg(format!("--etcd-endpoints={}", EtcdCluster::endpoints()));
        let flanneld = Daemon::start("flanneld", &mut command);
        wait::until("the node has a subnet", || {
            node.subnet_file().map(drop).ok_or_else(|| flanneld.log())
        });
        let connected =
            node.namespace().command("ss").args(["-Hnt", "state", "established"]).output();
        let connected = String::from_utf8(connected.unwrap().stdout).unwrap();
        assert!(connected.contains("198.51.100.251:2379"), "to the first member: {connected}");

        // The connection stays open, and nothing comes any more.
        partition::cut(etcd.host(0), Direction::Both);
        let start = Instant::now();
        put("subnets/10.244.77.0-24", PEER);
        wait::until("the node has heard of the new peer", || {
            let routes = node.ip("route show dev flannel.1");
            if routes.contains("10.244.77.0/24") { Ok(()) } else { Err(flanneld.log()) }
        });
        let time = start.elapsed();
        println!("noticed after {time:.1?}");
        assert!(time < NOTICED_MAX, "{time:?}: {}", flanneld.log());
    });
}
