//! What a start says when something around it is wrong, and whether it heals.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::path::Path;
use std::process::Command;

use flannel_tests::certificates::{self, make_ca};
use flannel_tests::cluster::{Cluster, ETCD_PREFIX, STOCK_NETWORK, Store};
use flannel_tests::daemon::Daemon;
use flannel_tests::etcd::Etcd;
use flannel_tests::node::Node;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::underlay::Underlay;
use flannel_tests::{program, wait};
use nix::mount::{MsFlags, mount};

const PASSWORD: &str = "correct-horse";

#[test]
fn wrong_password_is_one_line_and_a_corrected_file_heals_it() {
    sandboxed(|| {
        let cluster = cluster_with_password();
        fs::write("/run/password", "wrong-horse\n").unwrap();
        let mut command = cluster.flanneld_command(1);
        command.args(["--etcd-username=root", "--etcd-password-file=/run/password"]);
        let mut flanneld = Daemon::start("flanneld", &mut command);
        let line = only_complaint(&mut flanneld, "authentication failed");
        assert!(line.contains("etcd refused"), "{line}");
        assert!(!flanneld.log().contains("horse"), "{}", flanneld.log());
        fs::write("/run/password", format!("{PASSWORD}\n")).unwrap();
        ready(&mut flanneld, cluster.node(1));
    });
}

/// A node, and an etcd that lets in whoever knows the password.
fn cluster_with_password() -> Cluster {
    let cluster = Cluster::new(1, Store::Etcd);
    let etcd = cluster.store().etcd();
    for arguments in [&["user", "add", &format!("root:{PASSWORD}")][..], &["auth", "enable"]] {
        program::run(etcd.etcdctl().args(arguments));
    }
    cluster
}

#[test]
fn password_is_nowhere_in_proc_or_the_log() {
    sandboxed(|| {
        let cluster = cluster_with_password();
        let mut command = cluster.flanneld_command(1);
        command.args(["-v=9", "--etcd-username=root", "--etcd-password", PASSWORD]);
        command.env("FLANNELD_ETCD_PASSWORD", PASSWORD);
        let mut flanneld = Daemon::start("flanneld", &mut command);
        ready(&mut flanneld, cluster.node(1));
        for file in ["cmdline", "environ"] {
            let text = fs::read(format!("/proc/{}/{file}", flanneld.pid())).unwrap();
            assert!(!String::from_utf8_lossy(&text).contains(PASSWORD), "{file}");
        }
        assert!(!flanneld.log().contains(PASSWORD), "{}", flanneld.log());
    });
}

#[test]
fn wrong_ca_is_one_line_and_the_right_one_alone_is_enough() {
    sandboxed(|| {
        let (node, _server) = node_and_tls_server(&[]);
        make_ca("other");
        let line =
            only_complaint(&mut secure(&node, &["--etcd-cafile=/run/other.pem"]), "certificate");
        assert!(line.contains("no answer from etcd"), "{line}");
        ready(&mut secure(&node, &["--etcd-cafile=/run/ca.pem"]), &node);
    });
}

#[test]
fn ca_is_read_again_when_it_changes() {
    sandboxed(|| {
        let (node, _server) = node_and_tls_server(&[]);
        make_ca("other");
        fs::copy("/run/other.pem", "/run/trusted.pem").unwrap();
        let mut flanneld = secure(&node, &["--etcd-cafile=/run/trusted.pem"]);
        only_complaint(&mut flanneld, "certificate");
        fs::copy("/run/ca.pem", "/run/trusted.pem").unwrap();
        ready(&mut flanneld, &node);
    });
}

#[test]
fn https_without_a_ca_is_checked_against_the_roots_of_the_system() {
    sandboxed(|| {
        let (node, _server) = node_and_tls_server(&[]);
        let line = only_complaint(&mut secure(&node, &[]), "certificate");
        assert!(line.contains("no answer from etcd"), "{line}");
        // Where OpenSSL, and all who follow it, find the roots of the system.
        let mut command = secure_command(&node, &[]);
        ready(&mut Daemon::start("flanneld", command.env("SSL_CERT_FILE", "/run/ca.pem")), &node);
    });
}

#[test]
fn client_certificates_are_read_again_when_they_change() {
    sandboxed(|| {
        let trusted = ["--client-cert-auth", "--trusted-ca-file=/run/ca.pem"];
        let (node, _server) = node_and_tls_server(&trusted);
        make_ca("other");
        make_certificate("client", "other");
        let files = ["cafile=/run/ca.pem", "certfile=/run/client.pem", "keyfile=/run/client.key"];
        let flags = files.map(|file| format!("--etcd-{file}"));
        let mut flanneld = secure(&node, &flags.each_ref().map(String::as_str));
        wait::until("it is refused", || {
            let log = flanneld.log();
            if log.contains("no answer from etcd") { Ok(()) } else { Err(log) }
        });
        make_certificate("client", "ca");
        ready(&mut flanneld, &node);
    });
}

fn secure(node: &Node, flags: &[&str]) -> Daemon {
    Daemon::start("flanneld", &mut secure_command(node, flags))
}

fn secure_command(node: &Node, flags: &[&str]) -> Command {
    let endpoint = Etcd::endpoint().replace("http:", "https:");
    let mut command = node.command(program::flanneld());
    command.arg(format!("--etcd-endpoints={endpoint}")).args(flags);
    command
}

/// A node, and an etcd that speaks TLS only, with its host.
fn node_and_tls_server(flags: &[&str]) -> (Node, (Daemon, Etcd)) {
    let underlay = Underlay::create();
    let etcd = Etcd::stopped(&underlay);
    (Node::create(&underlay, 1), (start_with_tls(&etcd, flags), etcd))
}

/// A server with a certificate of the CA `ca`, and the stock configuration.
fn start_with_tls(etcd: &Etcd, flags: &[&str]) -> Daemon {
    make_ca("ca");
    make_certificate("server", "ca");
    let clients = Etcd::endpoint().replace("http:", "https:");
    let mut command = etcd.host().command("etcd");
    command
        .args(["--data-dir", "/run/etcd", "--cert-file=/run/server.pem"])
        .args(["--key-file=/run/server.key", "--logger", "zap"])
        .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
        .args(flags);
    let server = Daemon::start("etcd", &mut command);
    wait::until("etcd stores the configuration", || {
        let mut etcdctl = etcd.host().command("etcdctl");
        etcdctl.env("ETCDCTL_API", "3").args(["--endpoints", &clients, "--cacert=/run/ca.pem"]);
        etcdctl.args(["--cert=/run/server.pem", "--key=/run/server.key", "put"]);
        let output = etcdctl.args([&format!("{ETCD_PREFIX}/config"), STOCK_NETWORK]);
        let output = program::outcome(output);
        let reason = || String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(()) } else { Err(reason()) }
    });
    server
}

/// Makes `/run/NAME.pem` and its key, signed by a CA, for the host of etcd.
fn make_certificate(name: &str, ca: &str) {
    let address = Etcd::endpoint().replace("http://", "").replace(":2379", "");
    certificates::make_certificate(name, ca, &[address.parse().unwrap()]);
}

#[test]
fn full_disk_under_the_directory_store_is_one_line_and_heals() {
    sandboxed(|| {
        let underlay = Underlay::create();
        let node = Node::create(&underlay, 1);
        let leases = Path::new("/run/small");
        fs::create_dir(leases).unwrap();
        let options = Some("size=32k");
        mount(Some("tmpfs"), leases, Some("tmpfs"), MsFlags::empty(), options).unwrap();
        fs::write(leases.join("config"), STOCK_NETWORK).unwrap();
        fs::create_dir(leases.join("subnets")).unwrap();
        fs::write(leases.join("lock"), "").unwrap();
        let full = fs::write(leases.join("ballast"), vec![b'x'; 1 << 20]);
        assert!(full.is_err());
        let mut command = node.command(program::flanneld());
        let mut flanneld = Daemon::start("flanneld", command.arg("--lease-dir=/run/small"));
        let line = only_complaint(&mut flanneld, "No space left on device");
        assert!(line.contains("cannot write /run/small/subnets/"), "{line}");
        fs::remove_file(leases.join("ballast")).unwrap();
        ready(&mut flanneld, &node);
    });
}

#[test]
fn read_only_run_is_one_line_and_heals() {
    sandboxed(|| {
        let cluster = Cluster::new(1, Store::Directory);
        let node = cluster.node(1);
        let run = node.directory("/run/flannel");
        mount(Some("tmpfs"), &run, Some("tmpfs"), MsFlags::MS_RDONLY, None::<&str>).unwrap();
        let mut flanneld = Daemon::start("flanneld", &mut cluster.flanneld_command(1));
        let line = only_complaint(&mut flanneld, "Read-only file system");
        assert!(line.contains("/run/flannel/subnet.env"), "{line}");
        // It sees a mount of its own; the start is what counts here.
        assert_eq!(flanneld.status(), None);
    });
}

/// In a container without privileges the device keeps parameters that it should not have. That is said
/// once, and is no reason to compare everything again and again.
#[test]
fn parameters_that_cannot_be_set_are_one_line_and_let_it_rest() {
    sandboxed(|| {
        let cluster = Cluster::new(1, Store::Directory);
        let node = cluster.node(1);
        let (parameters, nothing) = (Some("/proc/sys"), None::<&str>);
        mount(parameters, "/proc/sys", nothing, MsFlags::MS_BIND, nothing).unwrap();
        let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(nothing, "/proc/sys", nothing, read_only, nothing).unwrap();
        let mut command = cluster.flanneld_command(1);
        let mut flanneld = Daemon::start("flanneld", command.args(["-v", "2"]));
        ready(&mut flanneld, node);
        let comparisons = || flanneld.log().matches("kernel state is as it shall be").count();
        wait::until("nothing is compared for two seconds", || {
            let before = comparisons();
            std::thread::park_timeout(std::time::Duration::from_secs(2));
            if comparisons() == before { Ok(()) } else { Err(flanneld.log()) }
        });
        assert_eq!(flanneld.log().matches("/proc/sys is read-only").count(), 1);
    });
}

/// Waits for the complaint, and checks that there is only one, although it is tried again.
fn only_complaint(flanneld: &mut Daemon, about: &str) -> String {
    wait::until(&format!("flanneld complains about: {about}"), || {
        assert_eq!(flanneld.status(), None, "{}", flanneld.log());
        let log = flanneld.log();
        if log.contains(about) { Ok(()) } else { Err(log) }
    });
    std::thread::park_timeout(std::time::Duration::from_secs(3));
    let log = flanneld.log();
    let complaints: Vec<_> = log.lines().filter(|line| line.contains(about)).collect();
    assert_eq!(complaints.len(), 1, "{log}");
    complaints[0].to_owned()
}

fn ready(flanneld: &mut Daemon, node: &Node) {
    wait::until("the node has a subnet", || {
        assert_eq!(flanneld.status(), None, "{}", flanneld.log());
        node.subnet_file().map(drop).ok_or_else(|| flanneld.log())
    });
}
