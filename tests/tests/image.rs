//! The container image, run by podman. Containers need root, so this does too.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use flannel_tests::cluster::{Cluster, Store};
use flannel_tests::daemon::Daemon;
use flannel_tests::etcd::Etcd;
use flannel_tests::pod::{self, Pod};
use flannel_tests::podman::Podman;
use flannel_tests::sandbox::sandboxed_as_root;
use flannel_tests::traffic::{http_get, ping};
use flannel_tests::{program, wait};

const IMAGE: &str = "localhost/flannel:latest";
const HEALTH: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8081);

/// Starts flanneld of the image on a node with one capability, for this user.
fn start(podman: &Podman, cluster: &Cluster, number: u8, user: &str) -> Daemon {
    let node = cluster.node(number);
    let run = node.directory("/run/flannel");
    fs::set_permissions(&run, fs::Permissions::from_mode(0o777)).unwrap();
    let etcd = Etcd::endpoint();
    let etcd = etcd.trim_start_matches("http://").trim_end_matches(":2379");
    let mut command = podman.command(&["run", "--rm", "--name", node.name()]);
    command.args(["--read-only", "--read-only-tmpfs=false", "--security-opt", "no-new-privileges"]);
    command.args(["--cap-drop", "all", "--cap-add", "NET_ADMIN", "--user", user]);
    command.arg(format!("--network=ns:{}", node.namespace().path().display()));
    command.arg(format!("--volume={}:/run/flannel", run.display()));
    // The only server that this node knows, and it knows it by its name.
    command.arg(format!("--add-host=etcd:{etcd}"));
    command.args([IMAGE, "--etcd-endpoints=http://etcd:2379", "--ip-masq"]);
    command.args(["--healthz-ip=127.0.0.1", "--healthz-port=8081"]);
    Daemon::start(&format!("flanneld-{}", node.name()), &mut command)
}

fn wait_until_ready(cluster: &Cluster, number: u8, flanneld: &mut Daemon) {
    let node = cluster.node(number);
    wait::until(&format!("the container on {} is ready", node.name()), || {
        if let Some(status) = flanneld.status() {
            panic!("it ended ({status}): {}", flanneld.log());
        }
        match http_get(node.namespace(), HEALTH, "/readyz") {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}: {}", flanneld.log())),
        }
    });
}

fn assert_all_reach_each_other(pods: &[Pod]) {
    for (from, to) in pod::pairs(pods) {
        ping(from.namespace(), to.address()).unwrap();
    }
}

#[test]
fn containers_of_the_image_join_a_cluster_of_plain_processes() {
    sandboxed_as_root(|| {
        let podman = Podman::new("/run");
        podman.load(&program::image());
        let mut cluster = Cluster::new(3, Store::Etcd);
        cluster.start(1);
        cluster.wait_until_ready(1);
        let mut containers = [(2, "0:0"), (3, "65532:65532")]
            .map(|(number, user)| (number, start(&podman, &cluster, number, user)));
        for (number, flanneld) in &mut containers {
            wait_until_ready(&cluster, *number, flanneld);
        }
        let writer = |number| {
            let file = cluster.node(number).directory("/run/flannel/subnet.env");
            fs::metadata(file).unwrap().uid()
        };
        assert_eq!([2, 3].map(writer), [0, 65532]);
        cluster.wait_for_peers();
        let pods = pod::attach_to_each(cluster.nodes(), 1);
        wait::until("the pods reach each other", || {
            let mut pairs = pod::pairs(&pods);
            let failed = pairs.find(|(from, to)| ping(from.namespace(), to.address()).is_err());
            failed.map_or(Ok(()), |(from, to)| Err(format!("{} and {}", from.name(), to.name())))
        });
        for (number, mut flanneld) in containers {
            podman.run(&["stop", "--time", "30", cluster.node(number).name()]);
            assert!(flanneld.wait().success(), "{}", flanneld.log());
        }
        assert_all_reach_each_other(&pods);
    });
}

#[test]
fn the_image_holds_the_programs_and_nothing_else() {
    sandboxed_as_root(|| {
        let podman = Podman::new("/run");
        podman.load(&program::image());
        let container = podman.run(&["create", IMAGE]);
        let root = "/run/root.tar";
        podman.run(&["export", "--output", root, container.trim()]);
        let list = |arguments: &[&str]| {
            program::run(program::installed("tar").args(["-tf", root]).args(arguments))
        };
        let everything = list(&[]);
        let mut files: Vec<_> = everything.lines().filter(|name| !name.ends_with('/')).collect();
        files.sort_unstable();
        let ours =
            ["bin/cp", "flannel", "opt/bin/flannel", "opt/bin/flanneld", "opt/bin/install-conf"];
        assert_eq!(files, ours);
    });
}
