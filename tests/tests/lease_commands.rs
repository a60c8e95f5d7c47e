//! `flanneld lease …` beside running nodes, and killed in the middle.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::process::Command;

use flannel_tests::cluster::{Cluster, Store};
use flannel_tests::fault::{End, run_killed_at};
use flannel_tests::program;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::wait;
use serde_json::Value;

#[test]
fn leases_are_listed_shown_reserved_and_released_with_etcd() {
    sandboxed(|| leases_are_listed_shown_reserved_and_released(Store::Etcd));
}

#[test]
fn leases_are_listed_shown_reserved_and_released_with_a_directory_store() {
    sandboxed(|| leases_are_listed_shown_reserved_and_released(Store::Directory));
}

#[test]
fn leases_are_listed_and_shown_with_kubernetes_which_alone_changes_them() {
    sandboxed(|| {
        let cluster = Cluster::running(2, Store::Kube);
        let text = lease(&cluster, "list");
        assert!(text.contains("10.244.2.0/24") && text.contains("with node n2\n"), "{text}");
        let list: Value = serde_json::from_str(&lease(&cluster, "list --json")).unwrap();
        let address = cluster.node(1).address().to_string();
        assert_eq!(list[0]["key"], "10.244.1.0-24");
        assert_eq!((&list[0]["node"], &list[1]["node"]), (&"n1".into(), &"n2".into()));
        assert_eq!(list[0]["lease"]["PublicIP"], *address);
        assert_eq!(lease(&cluster, "show 10.244.2.0/24").lines().count(), 2);
        for verb in ["release 10.244.2.0/24", "reserve 10.244.2.0/24 --public-ip 198.51.100.9"] {
            let refused = program::outcome(&mut lease_command(&cluster, verb));
            assert_eq!(refused.status.code(), Some(1));
            let reason = String::from_utf8_lossy(&refused.stderr);
            assert!(reason.contains("kubectl delete node"), "{reason}");
        }
    });
}

fn leases_are_listed_shown_reserved_and_released(store: Store) {
    let mut cluster = Cluster::new(2, store);
    let [one, two] = [1, 2].map(|number| cluster.node(number).address().to_string());
    lease(&cluster, &format!("reserve 10.244.200.0/24 --public-ip {one}"));
    cluster.start_all();
    let subnet = cluster.node(1).subnet_file_value("FLANNEL_SUBNET").unwrap();
    assert_eq!(subnet, "10.244.200.1/24", "a reservation is for its node");

    let list: Value = serde_json::from_str(&lease(&cluster, "list --json")).unwrap();
    let rows = list.as_array().unwrap();
    assert_eq!(rows.len(), 2, "{list}");
    let of = |address: &str| rows.iter().find(|row| row["lease"]["PublicIP"] == address).unwrap();
    assert_eq!(of(&one)["reserved"], true);
    assert_eq!(of(&two)["reserved"], false);
    let left = of(&two)["ends_in_secs"].as_u64().unwrap();
    assert!((86_000..=86_400).contains(&left), "{left}");
    let text = lease(&cluster, "list");
    assert!(text.contains(&one) && text.contains("reserved") && text.contains("ends in"), "{text}");

    let key = of(&two)["key"].as_str().unwrap().to_owned();
    let shown: Value =
        serde_json::from_str(&lease(&cluster, &format!("show {key} --json"))).unwrap();
    assert_eq!(shown[0]["lease"]["BackendType"], "vxlan");
    // Who runs takes what was released again; who does not is gone.
    lease(&cluster, &format!("release {key}"));
    wait::until("the lease is there again", || {
        let leases = cluster.store().leases();
        if leases.contains_key(&key) { Ok(()) } else { Err(format!("{leases:?}")) }
    });
    cluster.stop(2);
    lease(&cluster, &format!("release {key}"));
    let leases = cluster.store().leases();
    assert_eq!(leases.keys().collect::<Vec<_>>(), ["10.244.200.0-24"]);
    let refused = cluster.node(2).command(program::flanneld()).args(["lease", "burn"]).output();
    assert_eq!(refused.unwrap().status.code(), Some(2));
}

/// Runs a command about leases on a node, as an administrator would.
fn lease(cluster: &Cluster, arguments: &str) -> String {
    program::run(&mut lease_command(cluster, arguments))
}

fn lease_command(cluster: &Cluster, arguments: &str) -> Command {
    let mut command = cluster.node(2).command(program::flanneld());
    command.arg("lease").args(arguments.split(' ')).args(cluster.store().flags());
    command
}

#[test]
fn directory_holds_valid_leases_wherever_a_writer_is_killed() {
    sandboxed(|| {
        let cluster = Cluster::new(2, Store::Directory);
        let reserve = "reserve 10.244.7.0/24 --public-ip 198.51.100.7";
        let release = "release 10.244.7.0/24";
        for (before, step, after) in [(0, reserve, 1), (1, release, 0)] {
            let mut count = 0;
            loop {
                let end = run_killed_at(&mut lease_command(&cluster, step), "", count);
                let held = assert_valid(&cluster);
                if end == End::Exited(0) {
                    assert_eq!(held, after, "{step}");
                    break;
                }
                assert_eq!(end, End::Killed, "{step} at {count}");
                if held == after {
                    // It was done before the process died: undo it for the next try.
                    lease(&cluster, if after == 1 { release } else { reserve });
                }
                assert_eq!(assert_valid(&cluster), before);
                count += 1;
            }
            println!("{step}: killed at {count} system calls");
            assert!(count > 50, "{count}");
        }
        // What the killed ones left does not grow.
        let files = fs::read_dir("/run/leases/subnets").unwrap().count();
        assert!(files <= 1, "{files}");
    });
}

/// Returns how many leases there are; each must be whole.
fn assert_valid(cluster: &Cluster) -> usize {
    let leases = cluster.store().leases();
    for (key, value) in &leases {
        let wanted = r#"{"PublicIP":"198.51.100.7","PublicIPv6":null}"#;
        assert_eq!((key.as_str(), value.as_str()), ("10.244.7.0-24", wanted));
    }
    leases.len()
}
