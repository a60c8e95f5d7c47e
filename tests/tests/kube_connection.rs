//! How flanneld reaches the Kubernetes API, and what it does when that fails.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use flannel_tests::certificates::{make_ca, make_certificate};
use flannel_tests::cluster::{Cluster, LeaseStore, STOCK_NETWORK, Store};
use flannel_tests::daemon::Daemon;
use flannel_tests::http_proxy::HttpProxy;
use flannel_tests::kube_api::{Fault, KubeApi, PREFIX, tls};
use flannel_tests::sandbox::sandboxed;
use flannel_tests::underlay::Underlay;
use flannel_tests::wait;

const KUBECONFIG: [&str; 2] = ["--kube-api-url=", "--kubeconfig-file=/run/kubeconfig"];

/// Writes a file that leads to this server, with these fields about the server and about us.
fn write_kubeconfig(api: &KubeApi, server: &str, user: &str) {
    let text = format!(
        "current-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: \"{}\", {server}}}}}]\n\
         users: [{{name: u, user: {{{user}}}}}]\n",
        api.url()
    );
    fs::write("/run/kubeconfig", text).unwrap();
}

/// A node, and an API server that demands certificates of this CA.
fn with_tls(clients: Option<&str>) -> Cluster {
    let underlay = Underlay::create();
    tls::make_server_certificate();
    let api = KubeApi::with_tls(&underlay, tls::server_config(clients));
    let cluster = Cluster::on(underlay, 1, LeaseStore::Kube(api));
    cluster.store().configure(STOCK_NETWORK);
    cluster
}

fn make_client_certificate(ca: &str) {
    make_certificate("client", ca, &[IpAddr::V4(Ipv4Addr::LOCALHOST)]);
}

#[test]
fn certificates_are_read_again_when_they_are_replaced() {
    sandboxed(|| {
        ["clients", "others"].into_iter().for_each(make_ca);
        make_client_certificate("others");
        let mut cluster = with_tls(Some("clients"));
        let api = cluster.store().kube();
        let user = "client-certificate: client.pem, client-key: /run/client.key";
        write_kubeconfig(api, "certificate-authority: kube-ca.pem", user);
        cluster.start_with(1, &KUBECONFIG);
        wait::until("it is refused", || {
            let log = cluster.flanneld(1).log();
            if log.contains("no answer from https://198.51.100.250:6443") {
                Ok(())
            } else {
                Err(log)
            }
        });
        make_client_certificate("clients");
        cluster.wait_until_ready(1);
        // The server gets a certificate of another CA, as when a cluster is rolled over.
        tls::make_server_certificate();
        let api = cluster.store().kube();
        api.use_tls(tls::server_config(Some("clients")));
        api.drop_connections();
        says_again_who_it_is(&cluster);
    });
}

/// Takes something away that the node says of itself, and waits until it says so again.
fn says_again_who_it_is(cluster: &Cluster) {
    let api = cluster.store().kube();
    api.annotate("n1", &format!("{PREFIX}public-ip"), None);
    wait::until_true("it says again who it is", || {
        api.annotations("n1", PREFIX).contains_key("public-ip")
    });
}

#[test]
fn a_server_that_proves_to_be_another_one_is_told_nothing() {
    sandboxed(|| {
        let mut cluster = with_tls(None);
        make_ca("others");
        fs::write("/run/token", "secret").unwrap();
        let api = cluster.store().kube();
        write_kubeconfig(api, "certificate-authority: others.pem", "tokenFile: token");
        cluster.start_with(1, &KUBECONFIG);
        wait::until("it says so", || {
            let log = cluster.flanneld(1).log();
            if log.contains("invalid peer certificate") { Ok(()) } else { Err(log) }
        });
        assert!(cluster.store().kube().requests().is_empty());
        assert!(!cluster.flanneld(1).log().contains("secret"));
    });
}

#[test]
fn a_proxy_leads_to_the_api_server_but_not_to_exceptions() {
    sandboxed(|| {
        let cluster = with_tls(None);
        let proxy = HttpProxy::running(cluster.underlay());
        write_kubeconfig(cluster.store().kube(), "certificate-authority: kube-ca.pem", "token: x");
        let start = |exceptions: &str| {
            let mut command = cluster.flanneld_command(1);
            command.args(KUBECONFIG).env("HTTPS_PROXY", proxy.url()).env("NO_PROXY", exceptions);
            Daemon::start("flanneld", &mut command)
        };
        let is_seen = || cluster.store().kube().requests().iter().any(|r| r.contains("/nodes/n1"));
        let mut flanneld = start("10.0.0.0/8,.example.org");
        wait::until_true("its question arrives", is_seen);
        flanneld.terminate();
        let asked = proxy.asked();
        assert!(asked.iter().all(|target| target == "198.51.100.250:6443"), "{asked:?}");
        assert!(!asked.is_empty(), "nobody asked the proxy");
        let _earlier = cluster.store().kube().requests();
        let _flanneld = start("10.0.0.0/8,198.51.100.0/24");
        wait::until_true("its question arrives without the proxy", is_seen);
        assert_eq!(proxy.asked(), asked);
    });
}

#[test]
fn answers_that_are_cut_off_are_asked_for_again() {
    sandboxed(|| {
        let mut cluster = Cluster::new(1, Store::Kube);
        let api = cluster.store().kube();
        for number in 10..20 {
            api.add_large_node(&format!("other-{number}"), &[&format!("10.244.{number}.0/24")], 40);
        }
        api.order([20, 90, 2000, 30_000, 60_000, 100].map(Fault::CutOff));
        api.put_lease(
            "subnets/10.244.9.0-24",
            r#"{"PublicIP":"198.51.100.9","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}}"#,
        );
        cluster.start(1);
        cluster.wait_until_ready(1);
        wait::until_true("what was in the list is there", || {
            cluster.node(1).ip("route show").contains("10.244.9.0/24")
        });
    });
}

#[test]
fn faults_of_the_api_server_cost_nothing_but_time() {
    sandboxed(|| {
        let mut cluster = Cluster::new(2, Store::Kube);
        let refuse = |status, retry_after_secs| Fault::Refuse { status, retry_after_secs };
        cluster.store().kube().order([
            Fault::Reset,
            refuse(500, None),
            refuse(429, Some(1)),
            Fault::Latency(Duration::from_millis(300)),
            refuse(503, None),
            Fault::Reset,
            refuse(401, None),
        ]);
        cluster.start(1);
        cluster.wait_until_ready(1);
        cluster.start(2);
        cluster.wait_until_ready(2);
        cluster.wait_for_peers();
        let api = cluster.store().kube();
        let mut number = 10;
        let mut arrives = |cluster: &Cluster, after: &str| {
            number += 1;
            let subnet = format!("10.244.{number}.0");
            cluster.store().kube().put_lease(
                &format!("subnets/{subnet}-24"),
                &format!(
                    r#"{{"PublicIP":"198.51.100.{number}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:{number}"}}}}"#
                ),
            );
            wait::until(&format!("a new node is known after {after}"), || {
                let routes = cluster.node(1).ip("route show");
                if routes.contains(&subnet) { Ok(()) } else { Err(routes) }
            });
        };
        arrives(&cluster, "the start");
        api.drop_connections();
        arrives(&cluster, "a reset");
        api.compact();
        arrives(&cluster, "410 Gone");
        api.order([refuse(410, None), refuse(500, None), refuse(429, Some(1))]);
        api.drop_connections();
        arrives(&cluster, "refusals");
        let lines = api.requests();
        assert!(lines.len() < 200, "{} requests", lines.len());
    });
}

#[test]
fn a_watch_that_ends_goes_on_from_the_last_bookmark_without_another_list() {
    sandboxed(|| {
        let cluster = Cluster::running(1, Store::Kube);
        let api = cluster.store().kube();
        api.outlive_history();
        let _earlier = api.requests();
        api.drop_connections();
        api.put_lease(
            "subnets/10.244.9.0-24",
            r#"{"PublicIP":"198.51.100.9","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}}"#,
        );
        wait::until_true("what changed is told", || {
            cluster.node(1).ip("route show").contains("10.244.9.0/24")
        });
        let requests = api.requests();
        let asked = |request: &str| requests.iter().any(|line| line == request);
        assert!(asked("WATCH /api/v1/nodes") && !asked("GET /api/v1/nodes"), "{requests:?}");
    });
}

#[test]
fn a_rotated_token_is_used_at_once() {
    sandboxed(|| {
        let mut cluster = Cluster::new(1, Store::Kube);
        let api = cluster.store().kube();
        api.demand_token("one");
        write_kubeconfig(api, "", "tokenFile: token");
        fs::write("/run/token", "one\n").unwrap();
        cluster.start_with(1, &KUBECONFIG);
        cluster.wait_until_ready(1);
        let api = cluster.store().kube();
        api.demand_token("two");
        api.drop_connections();
        api.annotate("n1", &format!("{PREFIX}public-ip"), None);
        wait::until_true("it is refused", || cluster.flanneld(1).log().contains("401"));
        fs::write("/run/token", "two\n").unwrap();
        wait::until_true("it says again who it is", || {
            cluster.store().kube().annotations("n1", PREFIX).contains_key("public-ip")
        });
        let log = cluster.flanneld(1).log();
        assert!(!log.contains("one\n") && !log.contains("Bearer"), "{log}");
    });
}
