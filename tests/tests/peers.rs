//! What a node does when the leases of others come, change and go.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests")]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use flannel_tests::cluster::{Cluster, Store};
use flannel_tests::pod::{self, Pod};
use flannel_tests::sandbox::sandboxed;
use flannel_tests::traffic::{Flow, ping};
use flannel_tests::wait;
use nix::sys::signal::Signal;

#[test]
fn peer_whose_lease_is_deleted_in_etcd_disappears_from_the_others() {
    sandboxed(|| peer_whose_lease_is_deleted_disappears(Store::Etcd));
}

#[test]
fn peer_whose_lease_is_deleted_in_the_directory_disappears_from_the_others() {
    sandboxed(|| peer_whose_lease_is_deleted_disappears(Store::Directory));
}

#[test]
fn peer_whose_node_is_deleted_in_kubernetes_disappears_from_the_others() {
    sandboxed(|| peer_whose_lease_is_deleted_disappears(Store::Kube));
}

fn peer_whose_lease_is_deleted_disappears(store: Store) {
    let mut cluster = Cluster::running(3, store);
    let pods = pod::attach_to_each(cluster.nodes(), 1);
    let gone = cluster.node(3).clone();
    let (key, lease) = cluster.store().lease_of(&gone).unwrap();
    let subnet = key.replace('-', "/");
    let base = key.split('-').next().unwrap().to_owned();
    let mac = lease.split(r#""VtepMAC":""#).nth(1).unwrap().split('"').next().unwrap().to_owned();
    // Its own flanneld would ask for the lease again.
    cluster.kill(3);
    assert!(cluster.store().delete(&format!("subnets/{key}")));
    for node in &cluster.nodes()[..2] {
        wait::until(&format!("{} has forgotten {}", node.name(), gone.name()), || {
            let left = [
                node.ip("route show dev flannel.1"),
                node.ip("neighbour show dev flannel.1"),
                node.bridge("fdb show dev flannel.1"),
            ]
            .concat();
            let any = [&subnet, &base, &mac].into_iter().find(|trace| left.contains(&***trace));
            any.map_or(Ok(()), |_| Err(left))
        });
    }
    ping(pods[0].namespace(), pods[1].address()).unwrap();
}

#[test]
fn node_that_joins_is_reached_by_the_others() {
    sandboxed(|| {
        let mut cluster = Cluster::new(3, Store::Etcd);
        for number in [1, 2] {
            cluster.start(number);
        }
        for number in [1, 2] {
            cluster.wait_until_ready(number);
        }
        let early = [Pod::attach(cluster.node(1), "p1"), Pod::attach(cluster.node(2), "p2")];
        cluster.start(3);
        cluster.wait_until_ready(3);
        cluster.wait_for_peers();
        let late = Pod::attach(cluster.node(3), "p3");
        for pod in &early {
            ping(pod.namespace(), late.address()).unwrap();
            ping(late.namespace(), pod.address()).unwrap();
        }
    });
}

#[test]
fn peer_that_went_away_while_flanneld_was_down_is_forgotten_at_its_start() {
    sandboxed(|| {
        let mut cluster = Cluster::running(3, Store::Etcd);
        cluster.stop(1);
        cluster.kill(3);
        let (key, _) = cluster.store().lease_of(cluster.node(3)).unwrap();
        assert!(cluster.store().delete(&format!("subnets/{key}")));
        cluster.start(1);
        cluster.wait_until_ready(1);
        let node = cluster.node(1);
        wait::until("one peer is left", || {
            let tables = [
                node.ip("route show dev flannel.1"),
                node.ip("neighbour show dev flannel.1"),
                node.bridge("fdb show dev flannel.1"),
            ];
            let one_each = tables.iter().all(|table| table.lines().count() == 1);
            if one_each { Ok(()) } else { Err(tables.concat()) }
        });
    });
}

#[test]
fn peer_with_a_new_mac_leaves_no_old_entry() {
    sandboxed(|| {
        let mut cluster = Cluster::running(2, Store::Etcd);
        let pods = pod::attach_to_each(cluster.nodes(), 1);
        let entries = |cluster: &Cluster| cluster.node(1).bridge("fdb show dev flannel.1");
        let before = entries(&cluster);
        cluster.stop(2);
        cluster.node(2).ip("link delete flannel.1");
        cluster.start(2);
        cluster.wait_until_ready(2);
        let old = before.split(' ').next().unwrap();
        // The new entries are made before the old ones go.
        wait::until("the node has another MAC for its peer, and no other one", || {
            let tables = [entries(&cluster), cluster.node(1).ip("neighbour show dev flannel.1")];
            let is_new = |table: &String| table.lines().count() == 1 && !table.contains(old);
            if tables.iter().all(is_new) { Ok(()) } else { Err(tables.concat()) }
        });
        for (from, to) in pod::pairs(&pods) {
            ping(from.namespace(), to.address()).unwrap();
        }
    });
}

#[test]
fn who_claims_what_an_older_peer_has_is_left_out_and_counted() {
    sandboxed(|| {
        let mut cluster = Cluster::running(2, Store::Etcd);
        let pods = pod::attach_to_each(cluster.nodes(), 1);
        let (key, _) = cluster.store().lease_of(cluster.node(2)).unwrap();
        let route = cluster.node(1).ip("route show dev flannel.1");
        let [_, _, third, _] = key.split('-').next().unwrap().parse::<Ipv4Addr>().unwrap().octets();
        // A lower key than that of the peer, whose subnet is inside of it.
        let claim = format!("10.244.{}.0-17", third & 0x80);
        let lease = r#"{"PublicIP":"198.51.100.9","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}}"#;
        cluster.store().put(&format!("subnets/{claim}"), lease);
        let told = |cluster: &mut Cluster, text: &str| {
            wait::until_true(text, || cluster.flanneld(1).log().contains(text));
        };
        told(&mut cluster, "a peer is left out");
        // Whoever sees both for the first time knows which one is older.
        cluster.stop(1);
        cluster.start(1);
        cluster.wait_until_ready(1);
        told(&mut cluster, "a peer is left out");
        cluster.flanneld(1).signal(Signal::SIGUSR1);
        told(
            &mut cluster,
            "what was done so far peers=1 left_out=1 overlapping conflicts=1 passes=",
        );
        assert_eq!(cluster.node(1).ip("route show dev flannel.1"), route);
        for (from, to) in pod::pairs(&pods) {
            ping(from.namespace(), to.address()).unwrap();
        }
    });
}

#[test]
fn peer_that_cannot_be_programmed_delays_no_other_and_is_tried_again() {
    sandboxed(|| {
        let mut cluster = Cluster::running(2, Store::Etcd);
        let held = cluster.store().leases();
        let free = (1..=255).map(|number| format!("10.244.{number}.0"));
        let mut free = free.filter(|base| !held.keys().any(|key| key.starts_with(&**base)));
        let [stuck, others @ ..] = std::array::from_fn::<_, 4, _>(|_| free.next().unwrap());
        let node = cluster.node(1).clone();
        // Somebody else has a route there, which the kernel does not let us double.
        node.ip("link add foreign0 type bridge");
        node.ip("link set foreign0 up");
        node.ip(&format!("route add {stuck}/24 dev foreign0"));
        let put = |cluster: &Cluster, base: &str, last: usize| {
            let lease = format!(
                r#"{{"PublicIP":"198.51.100.{last}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:{last}"}}}}"#
            );
            cluster.store().put(&format!("subnets/{base}-24"), &lease);
        };
        put(&cluster, &stuck, 30);
        let refused = format!("the kernel refused: ip route add {stuck}/24");
        wait::until("the kernel refuses one peer", || {
            let log = cluster.flanneld(1).log();
            if log.contains(&refused) { Ok(()) } else { Err(log) }
        });
        for (last, base) in (31..).zip(&others) {
            let start = Instant::now();
            put(&cluster, base, last);
            wait::until("the next peer is programmed", || {
                let routes = node.ip("route show dev flannel.1");
                if routes.contains(&**base) { Ok(()) } else { Err(routes) }
            });
            let time = start.elapsed();
            println!("programmed in {time:.0?}");
            assert!(time < Duration::from_secs(5), "{time:?}");
        }
        node.ip(&format!("route delete {stuck}/24 dev foreign0"));
        wait::until("the peer is programmed when nothing is in its way any more", || {
            let routes = node.ip("route show dev flannel.1");
            if routes.contains(&*stuck) { Ok(()) } else { Err(routes) }
        });
        assert_eq!(cluster.flanneld(1).log().matches(&refused).count(), 1, "it is told once");
    });
}

#[test]
fn foreign_keys_and_values_under_the_prefix_never_remove_a_peer() {
    sandboxed(|| {
        let cluster = Cluster::running(3, Store::Etcd);
        foreign_keys_change_nothing(&cluster);
    });
}

#[test]
fn foreign_files_in_the_directory_never_remove_a_peer() {
    sandboxed(|| {
        let cluster = Cluster::running(3, Store::Directory);
        foreign_keys_change_nothing(&cluster);
    });
}

fn foreign_keys_change_nothing(cluster: &Cluster) {
    let pods = pod::attach_to_each(cluster.nodes(), 1);
    let before: Vec<_> = cluster.nodes().iter().map(|node| node.ip("route show")).collect();
    let (from, to) = (&pods[0], &pods[1]);
    let flow = Flow::start(from.namespace(), to.namespace(), to.address(), 200).unwrap();
    let held = cluster.store().leases();
    let mut free = (1..=255)
        .map(|number| format!("subnets/10.244.{number}.0-24"))
        .filter(|key| !held.keys().any(|held| key.ends_with(held)));
    let mut free = || free.next().unwrap();
    let foreign = [
        ("subnets/lock".to_owned(), "held"),
        ("subnets/10.244.196.0-24hi".to_owned(), "{}"),
        ("subnets/10.244.300.0-24".to_owned(), r#"{"PublicIP":"198.51.100.9"}"#),
        ("subnets/10.244.195.0-32".to_owned(), r#"{"PublicIP":"198.51.100.9"}"#),
        ("subnets-x".to_owned(), "sibling"),
        ("unrelated".to_owned(), ""),
        (free(), "not JSON"),
        (free(), r#"{"PublicIP":"a-host-name"}"#),
        (free(), r#"{"PublicIP":198}"#),
        // A lease, but of another backend: nothing to program.
        (free(), r#"{"PublicIP":"198.51.100.9"}"#),
    ];
    for (key, value) in &foreign {
        cluster.store().put(key, value);
    }
    let all_as_before = || {
        let now: Vec<_> = cluster.nodes().iter().map(|node| node.ip("route show")).collect();
        now == before
    };
    wait::while_true(Duration::from_secs(2), "all peers are there", all_as_before);
    for (key, _) in &foreign {
        cluster.store().delete(key);
    }
    wait::while_true(Duration::from_secs(1), "all peers are there", all_as_before);
    let report = flow.finish().unwrap();
    println!("{report}");
    assert_eq!(report.lost(), 0, "{report}");
    for (from, to) in pod::pairs(&pods) {
        ping(from.namespace(), to.address()).unwrap();
    }
}
