//! What must not grow with a cluster.

use std::fs;
use std::path::Path;

use flannel_tests::crowd::{self, Peer};
use flannel_tests::daemon::Daemon;
use flannel_tests::node::Node;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::underlay::Underlay;
use flannel_tests::{program, wait};

#[test]
fn the_kernel_is_asked_in_batches() {
    const PEERS: u32 = 1000;
    const TRACE: &str = "/run/trace";
    sandboxed(|| {
        let underlay = Underlay::create();
        let node = Node::create(&underlay, 1);
        let store = crowd::in_directory(Path::new("/run/leases"), &Peer::several(PEERS));
        let mut command = node.installed("strace");
        command.args(["-f", "-o", TRACE, "-e", "trace=sendto,sendmsg,recvfrom,recvmsg"]);
        command.arg(program::flanneld()).args(store.flags());
        let _flanneld = Daemon::start("flanneld", &mut command);
        wait::until_true("the peers are programmed", || node.subnet_file().is_some());
        let routes = node.ip("route show dev flannel.1").lines().count();
        assert_eq!(routes, PEERS as usize);
        let trace = fs::read_to_string(TRACE).unwrap();
        let count = |name: &str| trace.lines().filter(|line| line.contains(name)).count();
        let (sent, received) = (count(" send"), count(" recv"));
        println!("{sent} sends and {received} receives for {} objects", 3 * PEERS);
        // One for each object would be 3000. On a busy machine there is more than one comparison, and what
        // the kernel tells on the way is received too, as far as there is room for it.
        assert!(sent < 500, "{sent} sends");
        assert!(received < 1500, "{received} receives");
    });
}
