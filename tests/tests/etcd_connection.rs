//! Connections to etcd that die, without a word or at a bad moment, and what goes over them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use flannel_tests::cluster::{Cluster, ETCD_PREFIX, STOCK_NETWORK, Store};
use flannel_tests::daemon::Daemon;
use flannel_tests::etcd_cluster::{EtcdCluster, Release};
use flannel_tests::node::Node;
use flannel_tests::partition::{self, Direction};
use flannel_tests::sandbox::sandboxed;
use flannel_tests::traffic::http_get;
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
        put("subnets/10.244.177.0-24", PEER);
        let stored = start.elapsed();
        wait::until("the node has heard of the new peer", || {
            let routes = node.ip("route show dev flannel.1");
            if routes.contains("10.244.177.0/24") { Ok(()) } else { Err(flanneld.log()) }
        });
        let time = start.elapsed();
        println!("noticed after {time:.1?}, of which storing took {stored:.1?}");
        // The others may have to choose a leader first.
        assert!(time < NOTICED_MAX + stored, "{time:?}: {}", flanneld.log());
    });
}

/// etcd goes away after the configuration was read and before leases can be listed.
#[test]
fn leases_that_cannot_be_listed_at_first_are_listed_later_and_no_peer_is_missing() {
    sandboxed(|| {
        let mut cluster = Cluster::running(2, Store::Etcd);
        cluster.stop(1);
        let node = cluster.node(1).clone();
        // Until its interface is back, it has read the configuration and waits.
        let default = node.ip("route show default");
        node.ip("link set eth0 name later");
        cluster.start_with(1, &["--iface=eth0"]);
        wait::until("it waits for the interface", || {
            let log = cluster.flanneld(1).log();
            if log.contains("waiting for it") { Ok(()) } else { Err(log) }
        });
        cluster.store_mut().etcd_mut().stop();
        node.ip("link set later name eth0");
        node.ip(&format!("route replace {default}"));
        wait::until("it cannot list the leases", || {
            let log = cluster.flanneld(1).log();
            if log.contains("cannot list the leases") { Ok(()) } else { Err(log) }
        });
        cluster.store_mut().etcd_mut().start();
        cluster.wait_until_ready(1);
        cluster.wait_for_peers();
    });
}

#[test]
fn listing_leases_takes_one_request_however_many_there_are() {
    sandboxed(|| {
        let mut cluster = Cluster::new(1, Store::Etcd);
        let lease = |n: u8| {
            let key = format!("{ETCD_PREFIX}/subnets/10.244.{n}.0-24");
            let value =
                PEER.replace("100.77", &format!("100.{n}")).replace("00:77", &format!("00:{n}"));
            (key, value)
        };
        let leases: BTreeMap<_, _> = (10..90).map(lease).collect();
        cluster.store().etcd().put_all(&leases, 86_400);
        cluster.start(1);
        cluster.wait_until_ready(1);
        // Not by looking into the store, which would be one more request.
        wait::until("all of them are programmed", || {
            let routes = cluster.node(1).ip("route show proto 199").lines().count();
            if routes == leases.len() { Ok(()) } else { Err(format!("{routes} routes")) }
        });
        let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, 2379));
        let (_, metrics) = http_get(cluster.store().etcd().host(), metrics, "/metrics").unwrap();
        let started = |method: &str| {
            let line = metrics.lines().find(|line| {
                line.starts_with("grpc_server_started_total")
                    && line.contains(&format!("grpc_method=\"{method}\""))
            });
            line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
        };
        assert_eq!(started("LeaseTimeToLive"), 0, "nobody is asked about");
        let ranges: u32 = started("Range");
        assert!((2..20).contains(&ranges), "{ranges} reads for 80 leases");
    });
}
