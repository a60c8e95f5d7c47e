//! The fixtures themselves: what the other tests rely on.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use flannel_tests::daemon::Daemon;
use flannel_tests::etcd::Etcd;
use flannel_tests::namespace::Namespace;
use flannel_tests::node::Node;
use flannel_tests::program;
use flannel_tests::sandbox::{is_inside, sandboxed};
use flannel_tests::traffic::{Flow, ping, source_seen_by, tcp_stream, wait_until_reached};
use flannel_tests::underlay::Underlay;
use flannel_tests::wait;

#[test]
fn sandbox_has_only_a_loopback_and_nothing_of_the_host() {
    sandboxed(|| {
        assert!(is_inside());
        let links = program::run(program::installed("ip").args(["-br", "link"]));
        assert_eq!(links.lines().count(), 1, "{links}");
        let mut run: Vec<_> =
            fs::read_dir("/run").unwrap().map(|entry| entry.unwrap().file_name()).collect();
        run.sort();
        assert_eq!(run, ["log", "outside"]);
        assert!(!fs::exists("/etc/cni").unwrap());
        assert!(!fs::exists("/var/lib/cni").unwrap());
        assert!(fs::exists("/etc/passwd").unwrap());
    });
}

#[test]
fn sandbox_names_do_not_collide_between_tests() {
    sandboxed(|| {
        let node = Namespace::create("n1");
        node.ip("link add cni0 type bridge");
    });
}

#[test]
fn hosts_on_the_underlay_reach_each_other_until_disconnected() {
    sandboxed(|| {
        let underlay = Underlay::create();
        let (one, two) = (underlay.host("one", 1), underlay.host("two", 2));
        let address = Underlay::address(2);
        println!("round trip {:?}", ping(&one, address).unwrap());
        println!("4 MiB in {:?}", tcp_stream(&one, &two, address, 4 << 20).unwrap());
        assert_eq!(source_seen_by(&one, &two, address).unwrap(), Underlay::address(1));

        underlay.disconnect(&two);
        two.ip("link set eth0 down");
        underlay.reconnect(&two);
        two.ip("link set eth0 up");
        wait_until_reached(&one, address);
    });
}

#[test]
fn flow_counts_what_is_lost() {
    sandboxed(|| {
        let underlay = Underlay::create();
        let (one, two) = (underlay.host("one", 1), underlay.host("two", 2));
        let address = Underlay::address(2);
        let flow = Flow::start(&one, &two, address, 1000).unwrap();
        wait::until_true("500 datagrams arrived", || flow.received() > 500);
        let report = flow.finish().unwrap();
        println!("{report}");
        assert_eq!(report.lost(), 0, "{report}");

        let flow = Flow::start(&one, &two, address, 1000).unwrap();
        wait::until_true("100 datagrams arrived", || flow.received() > 100);
        underlay.disconnect(&two);
        wait::while_true(Duration::from_secs(1), "nothing to check", || true);
        underlay.reconnect(&two);
        let before = flow.received();
        wait::until_true("it flows again", || flow.received() > before + 100);
        let report = flow.finish().unwrap();
        println!("{report}");
        assert!(report.lost() > 10, "{report}");
    });
}

#[test]
fn etcd_stores_and_survives_a_restart() {
    sandboxed(|| {
        let underlay = Underlay::create();
        let host = underlay.host("n1", 1);
        let mut etcd = Etcd::running(&underlay);
        etcd.put("/a/1", r#"{"text":"with \"quotes\" "}"#);
        let many: BTreeMap<_, _> =
            (0..300).map(|n| (format!("/b/{n}"), format!(r#"{{"n":{n}}}"#))).collect();
        etcd.put_all(&many, 86400);
        etcd.stop();
        etcd.start();
        assert_eq!(etcd.list("/a/")["/a/1"].value, r#"{"text":"with \"quotes\" "}"#);
        assert_eq!(etcd.list("/a/")["/a/1"].lease, 0);
        let listed = etcd.list("/b/");
        assert_eq!(listed.len(), 300);
        assert_eq!(listed["/b/17"].value, r#"{"n":17}"#);
        let (granted, left) = etcd.lease_ttl_secs(listed["/b/17"].lease);
        assert_eq!(granted, 86400);
        assert!(left > 86000, "{left}");
        assert!(etcd.delete("/b/17"));
        assert!(!etcd.delete("/b/17"));

        let mut from_outside = host.command("etcdctl");
        from_outside.env("ETCDCTL_API", "3").args(["--endpoints", &Etcd::endpoint()]);
        let keys = program::run(from_outside.args(["get", "--prefix", "--keys-only", "/a"]));
        assert_eq!(keys.trim(), "/a/1");
    });
}

#[test]
fn node_programs_see_their_own_directories_at_the_stock_paths() {
    sandboxed(|| {
        let underlay = Underlay::create();
        let nodes = [1, 2].map(|number| Node::create(&underlay, number));
        for node in &nodes {
            let script =
                format!("echo {} >/run/flannel/subnet.env; ls /sys/class/net", node.name());
            let links = program::run(node.installed("sh").args(["-c", &script]));
            assert_eq!(links.split_whitespace().collect::<Vec<_>>(), ["eth0", "lo"]);
        }
        for node in &nodes {
            assert_eq!(node.subnet_file().unwrap().trim(), node.name());
        }
        assert_eq!(fs::read_dir("/run/flannel").unwrap().count(), 0);
    });
}

#[test]
fn long_running_program_on_a_node_does_not_keep_deleted_pods_alive() {
    sandboxed(|| {
        let underlay = Underlay::create();
        let node = Node::create(&underlay, 1);
        let before = Namespace::create("before");
        let _daemon = Daemon::start("sleep", node.installed("sleep").arg("1000"));
        let after = Namespace::create("after");
        for (pod, veth) in [(&before, "veth1"), (&after, "veth2")] {
            pod.ip(&format!("link add eth0 type veth peer name {veth} netns {}", node.name()));
            pod.delete();
            wait::until_true("the pod's interface is gone", || !node.ip("link").contains(veth));
        }
    });
}

#[test]
#[should_panic(expected = "Debian package iproute2")]
fn missing_program_is_named_with_its_package() {
    panic!("{}", program::missing("bridge"));
}
