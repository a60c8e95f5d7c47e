//! flanneld as a process: how it starts, what it says, how it ends.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Output};
use std::time::Duration;

use flannel_tests::cluster::{Cluster, ETCD_PREFIX, LeaseStore, STOCK_NETWORK, Store};
use flannel_tests::daemon::Daemon;
use flannel_tests::etcd::Etcd;
use flannel_tests::net_conf::{Stack, network};
use flannel_tests::pod::{self, Pod};
use flannel_tests::program;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::traffic::{Flow, http_get, ping};
use flannel_tests::underlay::Underlay;
use flannel_tests::wait;

/// What flanneld promises for SIGTERM, at any moment.
const TERMINATION_TIME_MAX: Duration = Duration::from_secs(1);

fn flanneld(arguments: &[&str]) -> Output {
    let mut command = Command::new(program::flanneld());
    program::outcome(command.env_clear().args(arguments))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A node whose etcd host is there, but has no etcd running yet.
fn node_before_etcd() -> Cluster {
    let underlay = Underlay::create();
    let store = LeaseStore::Etcd(Etcd::stopped(&underlay));
    Cluster::on(underlay, 1, store)
}

#[test]
fn version_is_printed() {
    for flag in ["--version", "-version"] {
        let output = flanneld(&[flag]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stderr).contains(env!("CARGO_PKG_VERSION")), "{output:?}");
    }
}

#[test]
fn help_names_every_flag_of_upstream() {
    let output = flanneld(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout) + &text(&output.stderr);
    let flags = [
        "etcd-endpoints",
        "etcd-prefix",
        "etcd-keyfile",
        "etcd-certfile",
        "etcd-cafile",
        "etcd-username",
        "etcd-password",
        "iface",
        "iface-regex",
        "iface-can-reach",
        "public-ip",
        "public-ipv6",
        "subnet-file",
        "subnet-lease-renew-margin",
        "ip-masq",
        "ip-masq-fully-random-disable",
        "net-config-path",
        "healthz-ip",
        "healthz-port",
        "iptables-resync",
        "iptables-forward-rules",
        "version",
        "lease-dir",
    ];
    for flag in flags {
        assert!(help.contains(&format!("-{flag}")), "--{flag} is missing in:\n{help}");
    }
}

#[test]
fn bad_flags_exit_2_with_one_line() {
    for arguments in [
        &["--no-such-flag"][..],
        &["-no-such-flag=1"],
        &["--healthz-port=many"],
        &["--ip-masq=perhaps"],
        &["--healthz-port"],
    ] {
        let output = flanneld(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        let reason = text(&output.stderr);
        assert_eq!(reason.trim().lines().count(), 1, "{reason}");
        let flag = arguments[0].trim_start_matches('-').split('=').next().unwrap();
        assert!(reason.contains(flag), "{reason}");
    }
}

#[test]
fn interface_that_is_not_there_exits_1_with_one_line_and_leaves_nothing() {
    sandboxed(|| {
        let cluster = Cluster::new(1, Store::any());
        let output = program::outcome(cluster.flanneld_command(1).arg("--iface=eth9"));
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let log = text(&output.stderr);
        let last = log.trim().lines().last().unwrap();
        assert!(last.contains("eth9"), "{log}");
        cluster.node(1).assert_untouched();
        assert!(cluster.store().leases().is_empty());
    });
}

#[test]
fn flags_come_from_the_environment_and_the_command_line_wins() {
    sandboxed(|| {
        let cluster = Cluster::new(1, Store::Directory);
        let node = cluster.node(1);
        let LeaseStore::Directory(leases) = cluster.store() else { unreachable!() };
        let mut command = node.command(program::flanneld());
        command
            .arg("--subnet-file=/run/flannel/flag.env")
            .env("FLANNELD_LEASE_DIR", leases)
            .env("FLANNELD_SUBNET_FILE", "/run/flannel/environment.env")
            .env("FLANNELD_IFACE", "eth0")
            .env("FLANNELD_IP_MASQ", "true")
            .env("FLANNELD_PUBLIC_IP", "")
            // Logged and skipped, as upstream does.
            .env("FLANNELD_HEALTHZ_PORT", "many");
        let mut flanneld = Daemon::start("flanneld", &mut command);
        let written = wait::until("the subnet file is there", || {
            assert_eq!(flanneld.status(), None, "{}", flanneld.log());
            node.read("/run/flannel/flag.env").ok_or_else(|| flanneld.log())
        });
        assert!(written.contains("FLANNEL_IPMASQ=true"), "{written}");
        assert_eq!(node.read("/run/flannel/environment.env"), None);
        assert!(flanneld.log().contains("FLANNELD_HEALTHZ_PORT"), "{}", flanneld.log());
    });
}

#[test]
fn single_dashes_separate_values_and_another_prefix_work() {
    sandboxed(|| {
        let cluster = Cluster::unconfigured(1, Store::Etcd);
        let etcd = cluster.store().etcd();
        etcd.put("/other/net/config", STOCK_NETWORK);
        let node = cluster.node(1);
        let mut command = node.command(program::flanneld());
        let endpoints = format!("http://127.0.0.1:1,{}", Etcd::endpoint());
        command.args(["-etcd-endpoints", &endpoints, "-etcd-prefix=/other//net/"]);
        command.args(["-iface", "eth0", "-ip-masq", "-healthz-port", "0x1f91"]);
        let mut flanneld = Daemon::start("flanneld", &mut command);
        wait::until("the subnet file is there", || {
            assert_eq!(flanneld.status(), None, "{}", flanneld.log());
            node.subnet_file().ok_or_else(|| flanneld.log())
        });
        assert_eq!(etcd.list("/other/net/subnets/").len(), 1);
        assert_eq!(etcd.list(ETCD_PREFIX).len(), 0);
        let health = SocketAddr::from((Ipv4Addr::LOCALHOST, 0x1f91));
        assert_eq!(http_get(node.namespace(), health, "/healthz").unwrap().0, 200);
    });
}

#[test]
fn health_tells_running_from_ready() {
    sandboxed(|| {
        let mut cluster = node_before_etcd();
        cluster.start(1);
        let node = cluster.node(1).clone();
        let health = SocketAddr::from((Ipv4Addr::LOCALHOST, 8081));
        let get = |path| http_get(node.namespace(), health, path);
        let answer =
            wait::until("the health port answers", || get("/healthz").map_err(|e| e.to_string()));
        assert_eq!(answer, (200, "flanneld is running".to_owned()));
        assert_eq!(get("/readyz").unwrap(), (503, "flanneld is not ready yet".to_owned()));
        assert_eq!(get("/other").unwrap().0, 404);
        cluster.store_mut().etcd_mut().start();
        cluster.store().configure(STOCK_NETWORK);
        cluster.wait_until_ready(1);
        assert_eq!(get("/readyz").unwrap(), (200, "flanneld is ready".to_owned()));
    });
}

#[test]
fn sigterm_ends_it_within_a_second_with_etcd() {
    sandboxed(|| sigterm_leaves_the_network_as_it_is(Store::Etcd));
}

#[test]
fn sigterm_ends_it_within_a_second_with_a_directory_store() {
    sandboxed(|| sigterm_leaves_the_network_as_it_is(Store::Directory));
}

#[test]
fn sigterm_ends_it_within_a_second_with_kubernetes() {
    sandboxed(|| sigterm_leaves_the_network_as_it_is(Store::Kube));
}

fn sigterm_leaves_the_network_as_it_is(store: Store) {
    let mut cluster = Cluster::running(2, store);
    let pods = pod::attach_to_each(cluster.nodes(), 1);
    for number in [1, 2] {
        let (status, time) = cluster.stop(number);
        println!("ended in {time:.0?}");
        assert_eq!(status.code(), Some(0));
        assert!(time < TERMINATION_TIME_MAX, "{time:?}");
        assert!(cluster.node(number).subnet_file().is_some());
    }
    assert_eq!(cluster.store().leases().len(), 2);
    ping(pods[0].namespace(), pods[1].address()).unwrap();
}

#[test]
fn sigterm_ends_it_within_a_second_while_it_waits_for_etcd() {
    sandboxed(|| {
        let mut cluster = node_before_etcd();
        // Refused at once, and no answer at all.
        for reachable in [true, false] {
            if !reachable {
                cluster.underlay().disconnect(cluster.store().etcd().host());
            }
            cluster.start(1);
            wait::until("flanneld says what it waits for", || {
                let log = cluster.flanneld(1).log();
                if log.contains("etcd") { Ok(()) } else { Err(log) }
            });
            let (status, time) = cluster.stop(1);
            println!("ended in {time:.0?}");
            assert_eq!(status.code(), Some(0));
            assert!(time < TERMINATION_TIME_MAX, "{time:?}");
            cluster.node(1).assert_untouched();
        }
    });
}

#[test]
fn etcd_that_is_down_at_start_is_waited_for() {
    sandboxed(|| {
        let mut cluster = node_before_etcd();
        cluster.start(1);
        wait::until("flanneld says which etcd it waits for", || {
            let log = cluster.flanneld(1).log();
            if log.contains("198.51.100.253:2379") { Ok(()) } else { Err(log) }
        });
        cluster.node(1).assert_untouched();
        cluster.store_mut().etcd_mut().start();
        wait::until("flanneld says that there is no configuration", || {
            let log = cluster.flanneld(1).log();
            if log.contains("/coreos.com/network/config") { Ok(()) } else { Err(log) }
        });
        cluster.store().configure(STOCK_NETWORK);
        cluster.wait_until_ready(1);
    });
}

#[test]
fn etcd_outage_leaves_the_network_alone_and_is_survived() {
    sandboxed(|| {
        let mut cluster = Cluster::new(3, Store::Etcd);
        for number in [1, 2] {
            cluster.start(number);
            cluster.wait_until_ready(number);
        }
        cluster.wait_for_peers();
        let pods = [Pod::attach(cluster.node(1), "p1"), Pod::attach(cluster.node(2), "p2")];
        cluster.store_mut().etcd_mut().stop();
        let reachable = || ping(pods[0].namespace(), pods[1].address()).is_ok();
        wait::while_true(Duration::from_secs(2), "the pods reach each other", reachable);
        cluster.store_mut().etcd_mut().start();
        cluster.start(3);
        cluster.wait_until_ready(3);
        cluster.wait_for_peers();
        let late = Pod::attach(cluster.node(3), "p3");
        ping(pods[0].namespace(), late.address()).unwrap();
    });
}

#[test]
fn restart_keeps_the_subnet_that_etcd_has_for_this_address() {
    sandboxed(|| restart_without_a_subnet_file_keeps_the_subnet(Store::Etcd, "vxlan"));
}

#[test]
fn restart_keeps_the_subnet_that_the_directory_has_for_this_address() {
    sandboxed(|| restart_without_a_subnet_file_keeps_the_subnet(Store::Directory, "vxlan"));
}

#[test]
fn restart_keeps_the_subnet_with_udp() {
    sandboxed(|| restart_without_a_subnet_file_keeps_the_subnet(Store::Directory, "udp"));
}

#[test]
fn restart_keeps_the_subnet_that_kubernetes_has_for_this_node() {
    sandboxed(|| restart_without_a_subnet_file_keeps_the_subnet(Store::Kube, "vxlan"));
}

fn restart_without_a_subnet_file_keeps_the_subnet(store: Store, backend: &str) {
    let mut cluster = Cluster::running_with(2, store, &network(Stack::Ipv4, backend));
    let before = cluster.node(1).subnet_file().unwrap();
    cluster.stop(1);
    fs::remove_file(cluster.node(1).directory("/run/flannel/subnet.env")).unwrap();
    let device = if backend == "udp" { "flannel0" } else { "flannel.1" };
    cluster.node(1).ip(&format!("link delete {device}"));
    cluster.start(1);
    cluster.wait_until_ready(1);
    assert_eq!(cluster.node(1).subnet_file().unwrap(), before);
    assert_eq!(cluster.store().leases().len(), 2);
    cluster.wait_for_peers();
}

#[test]
fn restart_keeps_the_subnet_of_the_file_when_etcd_has_lost_it() {
    sandboxed(|| restart_without_a_lease_keeps_the_subnet(Store::Etcd));
}

#[test]
fn restart_keeps_the_subnet_of_the_file_when_the_directory_has_lost_it() {
    sandboxed(|| restart_without_a_lease_keeps_the_subnet(Store::Directory));
}

fn restart_without_a_lease_keeps_the_subnet(store: Store) {
    let mut cluster = Cluster::running(2, store);
    let before = cluster.node(1).subnet_file().unwrap();
    cluster.stop(1);
    let (key, _) = cluster.store().lease_of(cluster.node(1)).unwrap();
    cluster.store().delete(&format!("subnets/{key}"));
    cluster.start(1);
    cluster.wait_until_ready(1);
    assert_eq!(cluster.node(1).subnet_file().unwrap(), before);
}

#[test]
fn kill_and_restart_lose_no_packet_of_a_flow_with_etcd() {
    sandboxed(|| kill_and_restart_lose_no_packet(Store::Etcd));
}

#[test]
fn kill_and_restart_lose_no_packet_of_a_flow_with_a_directory_store() {
    sandboxed(|| kill_and_restart_lose_no_packet(Store::Directory));
}

#[test]
fn kill_and_restart_lose_no_packet_of_a_flow_with_kubernetes() {
    sandboxed(|| kill_and_restart_lose_no_packet(Store::Kube));
}

fn kill_and_restart_lose_no_packet(store: Store) {
    let mut cluster = Cluster::running(3, store);
    let pods = pod::attach_to_each(cluster.nodes(), 1);
    let (from, to) = (&pods[0], &pods[1]);
    let flow = Flow::start(from.namespace(), to.namespace(), to.address(), 1000).unwrap();
    let go_on = |count: u64| {
        let before = flow.received();
        wait::until_true("the flow goes on", || flow.received() > before + count);
    };
    go_on(500);
    for number in [1, 2, 1, 2] {
        cluster.kill(number);
        go_on(200);
        cluster.start(number);
        cluster.wait_until_ready(number);
        go_on(500);
    }
    let report = flow.finish().unwrap();
    println!("{report}");
    assert_eq!(report.lost(), 0, "{report}");
}
