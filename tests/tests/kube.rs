//! Leases in the Kubernetes API, through the real programs and a small API server.

use std::fs;
use std::time::Duration;

use flannel_tests::cluster::{Cluster, STOCK_NETWORK, Store};
use flannel_tests::kube_api::PREFIX;
use flannel_tests::kube_api::rules::{Rules, deployed_rules};
use flannel_tests::pod;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::traffic::{http_get, ping};
use flannel_tests::wait;
use serde_json::json;

/// What the stock manifest of flannel allows.
fn stock_rules() -> Rules {
    [("nodes", &["get", "list", "watch"][..]), ("nodes/status", &["patch"]), ("pods", &["get"])]
        .map(|(resource, verbs)| {
            (resource.to_owned(), verbs.iter().map(|&verb| verb.to_owned()).collect())
        })
        .into()
}

#[test]
fn pods_on_three_nodes_reach_each_other_with_no_more_permissions_than_flannel_has() {
    sandboxed(|| {
        let mut allowed = deployed_rules();
        allowed.sort();
        assert_eq!(allowed, stock_rules());
        let cluster = Cluster::running(3, Store::Kube);
        let pods = pod::attach_to_each(cluster.nodes(), 1);
        for (from, to) in pod::pairs(&pods) {
            ping(from.namespace(), to.address()).unwrap();
        }
    });
}

#[test]
fn a_node_says_what_flannel_says() {
    sandboxed(|| {
        let cluster = Cluster::running(2, Store::Kube);
        let api = cluster.store().kube();
        let node = cluster.node(1);
        let mac = mac_of_device(&cluster);
        let expected = [
            ("backend-data", format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#)),
            ("backend-type", "vxlan".to_owned()),
            ("kube-subnet-manager", "true".to_owned()),
            ("public-ip", node.address().to_string()),
        ];
        let said: Vec<_> = api.annotations("n1", PREFIX).into_iter().collect();
        assert_eq!(said, expected.map(|(name, value)| (name.to_owned(), value)));
        wait::until("the node condition is set", || {
            let node = api.node("n1").unwrap_or_default();
            let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let found = conditions.iter().find(|c| c["type"] == "NetworkUnavailable").cloned();
            let Some(found) = found else { return Err(format!("{conditions:?}")) };
            assert_eq!(found["status"], "False");
            assert_eq!(found["reason"], "FlannelIsUp");
            assert_eq!(found["message"], "Flannel is running on this node");
            assert!(found["lastTransitionTime"].as_str().unwrap().ends_with('Z'));
            Ok(())
        });
    });
}

#[test]
fn a_subnet_that_is_not_assigned_yet_is_waited_for() {
    sandboxed(|| {
        let mut cluster = Cluster::new(1, Store::Kube);
        let api = cluster.store().kube();
        api.delete_node("n1");
        api.add_node("n1", &[]);
        cluster.start(1);
        let message = "node n1 was assigned no subnet (spec.podCIDR) yet";
        wait::until_true("it says what is missing", || cluster.flanneld(1).log().contains(message));
        assert!(cluster.node(1).subnet_file().is_none());
        cluster.store().kube().assign("n1", &["10.9.1.0/24"]);
        wait::until_true("it says what does not fit", || {
            cluster.flanneld(1).log().contains("10.9.1.0/24, which is not inside 10.244.0.0/16")
        });
        cluster.store().kube().recreate_node("n1", &["10.244.7.0/24"]);
        cluster.wait_until_ready(1);
        let file = cluster.node(1).subnet_file().unwrap();
        assert!(file.contains("FLANNEL_SUBNET=10.244.7.1/24\n"), "{file}");
    });
}

#[test]
fn a_node_is_found_by_its_pod() {
    sandboxed(|| {
        let cluster = Cluster::new(1, Store::Kube);
        let mut command = cluster.flanneld_command(1);
        command
            .env_remove("NODE_NAME")
            .env("POD_NAME", "ds-x")
            .env("POD_NAMESPACE", "kube-flannel");
        let mut flanneld = flannel_tests::daemon::Daemon::start("flanneld", &mut command);
        wait::until_true("it misses its pod", || {
            flanneld.log().contains("pods \"ds-x\" not found")
        });
        cluster.store().kube().add_pod("kube-flannel", "ds-x", "n1");
        wait::until_true("it has its subnet", || cluster.node(1).subnet_file().is_some());
        flanneld.terminate();
    });
}

#[test]
fn a_deleted_and_recreated_node_leaves_no_old_subnet() {
    sandboxed(|| {
        let mut cluster = Cluster::running(2, Store::Kube);
        let api = cluster.store().kube();
        api.recreate_node("n2", &["10.244.22.0/24"]);
        wait::until("n1 has a route to the new subnet only", || {
            let routes = cluster.node(1).ip("route show");
            let has = |subnet: &str| routes.contains(subnet);
            if has("10.244.22.0/24") && !has("10.244.2.0/24") { Ok(()) } else { Err(routes) }
        });
        wait::until_true("the subnet file of n2 is new", || {
            let file = cluster.node(2).subnet_file().unwrap_or_default();
            file.contains("FLANNEL_SUBNET=10.244.22.1/24\n")
        });
        assert!(cluster.flanneld(2).log().contains("this node got another subnet"));
    });
}

#[test]
fn changed_data_of_one_node_reaches_the_others() {
    sandboxed(|| {
        let cluster = Cluster::running(2, Store::Kube);
        let data = r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}"#;
        let api = cluster.store().kube();
        api.put_lease("subnets/10.244.9.0-24", &format!(
            r#"{{"PublicIP":"198.51.100.9","PublicIPv6":null,"BackendType":"vxlan","BackendData":{data}}}"#
        ));
        let entries = || cluster.node(1).bridge("fdb show dev flannel.1");
        wait::until_true("n1 knows the node", || {
            entries().contains("02:00:00:00:00:09 dst 198.51.100.9")
        });
        api.annotate("peer-10-244-9-0-24", &format!("{PREFIX}public-ip"), Some("198.51.100.19"));
        wait::until_true("the address is another one", || {
            entries().contains("09 dst 198.51.100.19")
        });
        // A foreign text is no reason to lose what works.
        api.annotate("peer-10-244-9-0-24", &format!("{PREFIX}backend-data"), Some("{"));
        api.annotate("peer-10-244-9-0-24", &format!("{PREFIX}public-ip"), Some("nowhere"));
        wait::while_true(Duration::from_secs(1), "the entry is there", || {
            entries().contains("02:00:00:00:00:09 dst 198.51.100.19")
        });
        api.annotate("peer-10-244-9-0-24", &format!("{PREFIX}kube-subnet-manager"), None);
        wait::until_true("the node takes no part", || !entries().contains("02:00:00:00:00:09"));
    });
}

#[test]
fn what_an_administrator_writes_is_published_or_used() {
    sandboxed(|| {
        let mut cluster = Cluster::new(1, Store::Kube);
        let api = cluster.store().kube();
        api.annotate("n1", &format!("{PREFIX}node-public-ip"), Some("198.51.100.77"));
        cluster.node(1).ip("address add 198.51.100.77/24 dev eth0");
        cluster.start(1);
        cluster.wait_until_ready(1);
        let api = cluster.store().kube();
        let said = |name: &str| api.annotations("n1", PREFIX).get(name).cloned();
        wait::until_true("the address is used", || {
            said("public-ip").as_deref() == Some("198.51.100.77")
        });
        api.annotate("n1", &format!("{PREFIX}public-ip-overwrite"), Some("203.0.113.7"));
        wait::until_true("the other one is published", || {
            said("public-ip").as_deref() == Some("203.0.113.7")
        });
        assert_eq!(said("node-public-ip").as_deref(), Some("198.51.100.77"));
    });
}

#[test]
fn what_somebody_removes_of_the_own_annotations_comes_back() {
    sandboxed(|| {
        let cluster = Cluster::running(1, Store::Kube);
        let api = cluster.store().kube();
        let said = || api.annotations("n1", PREFIX);
        wait::until_true("the node says who it is", || said().len() == 4);
        let before = said();
        for name in ["backend-data", "kube-subnet-manager"] {
            api.annotate("n1", &format!("{PREFIX}{name}"), None);
        }
        wait::until_true("it says so again", || said() == before);
        let patches = api.requests().iter().filter(|line| line.starts_with("PATCH")).count();
        // What others change about the node is none of our business.
        for images in 0..5 {
            let image = json!([{ "names": ["localhost/a"], "sizeBytes": images }]);
            api.edit("n1", |node| node["status"]["images"] = image.clone());
        }
        wait::while_true(Duration::from_secs(1), "nothing is patched or read for it", || {
            !api.requests().iter().any(|line| line.starts_with("PATCH"))
        });
        assert!((1..=6).contains(&patches), "{patches} patches");
    });
}

#[test]
fn the_ethernet_address_survives_the_loss_of_the_device() {
    sandboxed(|| device_comes_back_with_its_address("flannel.alpha.coreos.com"));
}

#[test]
fn the_ethernet_address_survives_with_a_name_in_the_prefix() {
    sandboxed(|| device_comes_back_with_its_address("example.org/net"));
}

fn device_comes_back_with_its_address(prefix: &str) {
    let mut cluster = Cluster::new(1, Store::Kube);
    let flag = format!("--kube-annotation-prefix={prefix}");
    cluster.start_with(1, &[&flag]);
    cluster.wait_until_ready(1);
    let before = mac_of_device(&cluster);
    wait::until_true("it is published", || {
        let node = cluster.store().kube().node("n1").unwrap_or_default();
        node["metadata"]["annotations"].to_string().contains(&before)
    });
    cluster.stop(1);
    // As when the machine boots: neither the device nor the files of /run are there.
    cluster.node(1).ip("link delete flannel.1");
    let run = cluster.node(1).directory("/run/flannel");
    fs::remove_dir_all(&run).expect("it is there");
    fs::create_dir(&run).expect("it is not there");
    cluster.start_with(1, &[&flag]);
    cluster.wait_until_ready(1);
    assert_eq!(mac_of_device(&cluster), before, "{prefix}");
}

fn mac_of_device(cluster: &Cluster) -> String {
    let link = cluster.node(1).ip("-o link show flannel.1");
    let mac = link.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    mac.expect("links have an Ethernet address").to_owned()
}

#[test]
fn an_outage_of_the_api_server_is_survived_and_so_is_a_restart_in_it() {
    sandboxed(|| {
        let mut cluster = Cluster::running(2, Store::Kube);
        let pods = pod::attach_to_each(cluster.nodes(), 1);
        let state = cluster.node(1).directory("/run/flannel/subnet.leases.json");
        wait::until_true("the state is written with the other node", || {
            fs::read_to_string(&state).is_ok_and(|text| text.contains("10.244.2.0-24"))
        });
        cluster.store().kube().go_down();
        ping(pods[0].namespace(), pods[1].address()).unwrap();
        cluster.kill(1);
        fs::remove_file(cluster.node(1).directory("/run/flannel/subnet.env")).unwrap();
        cluster.start(1);
        cluster.wait_until_ready(1);
        let routes = cluster.node(1).ip("route show");
        assert!(routes.contains("10.244.2.0/24"), "{routes}");
        ping(pods[0].namespace(), pods[1].address()).unwrap();
        assert!(cluster.flanneld(1).log().contains("this node is what it was"));
        cluster.store().kube().come_up();
        cluster.store().kube().add_node("n3", &["10.244.3.0/24"]);
        cluster.store().kube().put_lease(
            "subnets/10.244.9.0-24",
            r#"{"PublicIP":"198.51.100.9","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}}"#,
        );
        wait::until_true("what changed meanwhile is seen", || {
            cluster.node(1).ip("route show").contains("10.244.9.0/24")
        });
        ping(pods[0].namespace(), pods[1].address()).unwrap();
    });
}

#[test]
fn missing_permissions_are_named() {
    sandboxed(|| {
        let mut cluster = Cluster::new(1, Store::Kube);
        let mut rules = stock_rules();
        rules.retain(|(resource, _)| resource != "nodes/status");
        cluster.store().kube().allow_only(rules);
        cluster.start(1);
        wait::until_true("it says what is missing", || {
            let log = cluster.flanneld(1).log();
            log.contains("cannot annotate this node")
                && log.contains(r#"cannot patch resource "nodes/status""#)
        });
        cluster.store().kube().allow_only(stock_rules());
        wait::until_true("it goes on by itself", || {
            cluster.store().kube().annotations("n1", PREFIX).len() == 4
        });
    });
}

#[test]
fn limits_on_subnets_in_the_configuration_do_not_count() {
    sandboxed(|| {
        let mut cluster = Cluster::unconfigured(1, Store::Kube);
        let network = r#"{"Network":"10.244.1.0/24","SubnetLen":3,"Backend":{"Type":"host-gw"}}"#;
        assert_ne!(network, STOCK_NETWORK);
        cluster.store().configure(network);
        cluster.start(1);
        cluster.wait_until_ready(1);
        let file = cluster.node(1).subnet_file().unwrap();
        assert!(file.contains("FLANNEL_NETWORK=10.244.1.0/24\nFLANNEL_SUBNET=10.244.1.1/24\n"));
    });
}

#[test]
fn a_change_of_one_family_reaches_the_others() {
    sandboxed(|| {
        let network = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"2001:db8:42::/56","Backend":{"Type":"vxlan"}}"#;
        let cluster = Cluster::running_with(1, Store::Kube, network);
        let api = cluster.store().kube();
        let data = |mac: &str| format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:00:{mac}"}}"#);
        let [data4, data6] = [data("04"), data("06")];
        api.put_lease("subnets/10.244.9.0-24&2001:db8:42:9::-64", &format!(
            r#"{{"PublicIP":"198.51.100.9","PublicIPv6":"fd99::9","BackendType":"vxlan","BackendData":{data4},"BackendV6Data":{data6}}}"#
        ));
        let entries = || {
            let of = |device: &str| cluster.node(1).bridge(&format!("fdb show dev {device}"));
            of("flannel.1") + &of("flannel-v6.1")
        };
        let becomes = |ipv4: &str, ipv6: &str| {
            wait::until(&format!("{ipv4} and {ipv6}"), || {
                let entries = entries();
                if entries.contains(ipv4) && entries.contains(ipv6) { Ok(()) } else { Err(entries) }
            });
        };
        let peer = api.node_names().into_iter().find(|name| name.starts_with("peer")).unwrap();
        let say =
            |name: &str, value: &str| api.annotate(&peer, &format!("{PREFIX}{name}"), Some(value));
        becomes("02:00:00:00:00:04 dst 198.51.100.9", "02:00:00:00:00:06 dst fd99::9");
        say("backend-data", &data("14"));
        becomes("02:00:00:00:00:14 dst 198.51.100.9", "02:00:00:00:00:06 dst fd99::9");
        say("public-ipv6", "fd99::19");
        becomes("02:00:00:00:00:14 dst 198.51.100.9", "02:00:00:00:00:06 dst fd99::19");
        // One that cannot be read does not take the other along.
        api.annotate(&peer, &format!("{PREFIX}public-ipv6"), None);
        wait::until_true("IPv6 is gone", || !entries().contains("02:00:00:00:00:06"));
        becomes("02:00:00:00:00:14 dst 198.51.100.9", "");
    });
}

#[test]
fn readiness_says_what_the_node_can_do_and_liveness_whether_a_restart_would_help() {
    sandboxed(|| {
        let mut cluster = Cluster::new(1, Store::Kube);
        let node = cluster.node(1).clone();
        cluster.store().kube().delete_node("n1");
        cluster.store().kube().add_node("n1", &[]);
        cluster.start(1);
        let status = |path| http_get(node.namespace(), ([127, 0, 0, 1], 8081).into(), path);
        let becomes = |ready: u16, why: &str| {
            wait::until(&format!("/readyz answers {ready} {why}"), || match status("/readyz") {
                Ok((status, _)) if status == ready => Ok(()),
                other => Err(format!("{other:?}")),
            });
            assert_eq!(status("/healthz").unwrap().0, 200, "{why}");
        };
        let message = "was assigned no subnet";
        wait::until_true("it says what is missing", || cluster.flanneld(1).log().contains(message));
        becomes(503, "without a subnet");
        let api = cluster.store().kube();
        assert!(!api.node("n1").unwrap().to_string().contains("FlannelIsUp"));
        api.assign("n1", &["10.244.1.0/24"]);
        becomes(200, "when all is there");
        // Somebody else's route is in the way of a peer.
        node.ip("route add 10.244.9.0/24 dev eth0");
        api.put_lease(
            "subnets/10.244.9.0-24",
            r#"{"PublicIP":"198.51.100.9","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}}"#,
        );
        becomes(503, "while a peer cannot be reached");
        node.ip("route delete 10.244.9.0/24 dev eth0");
        becomes(200, "when it can");
        api.go_down();
        wait::while_true(Duration::from_secs(2), "it is ready without the API server", || {
            status("/readyz").is_ok_and(|(status, _)| status == 200)
        });
        becomes(200, "without the API server");
    });
}
