//! The same objects by hand: `ip -batch` and `bridge -batch`.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use flannel_tests::crowd::Peer;
use flannel_tests::node::Node;
use flannel_tests::program;

/// Command files for the tunnel of a node with these peers.
pub(crate) struct Batches {
    directory: PathBuf,
    neighbours: String,
    fdb: String,
    routes: String,
}

impl Batches {
    /// With the protocol of each route that flanneld gives it.
    pub(crate) fn new(peers: &[Peer]) -> Self {
        // The network is a /8.
        Self::with(peers, |base| 199 + base.octets()[1] % 56)
    }

    /// With one protocol for all routes, as flannel's have.
    pub(crate) fn of_one_protocol(peers: &[Peer]) -> Self {
        Self::with(peers, |_| 3)
    }

    fn with(peers: &[Peer], protocol: impl Fn(Ipv4Addr) -> u8) -> Self {
        let directory = PathBuf::from("/run/batches");
        fs::create_dir_all(&directory).expect("the sandbox is writable");
        let (mut neighbours, mut fdb, mut routes) = <(String, String, String)>::default();
        for Peer { base, address, mac } in peers {
            let _ = writeln!(
                neighbours,
                "neighbour replace {base} lladdr {mac} dev flannel.1 nud permanent"
            );
            let _ = writeln!(fdb, "fdb replace {mac} dev flannel.1 dst {address}");
            let protocol = protocol(*base);
            let _ = writeln!(
                routes,
                "route replace {base}/24 via {base} dev flannel.1 onlink proto {protocol}"
            );
        }
        Self { directory, neighbours, fdb, routes }
    }

    /// Loads them on a fresh node, in the order in which flanneld needs them, and returns how long
    /// that took.
    pub(crate) fn load(&self, node: &Node, own: &str, mac: &str) -> Duration {
        let device = format!(
            "link add flannel.1 address {mac} mtu 1450 type vxlan id 1 dev eth0 local {} dstport 8472 nolearning\n\
             address add {own}/32 dev flannel.1\nlink set flannel.1 up\n",
            node.address()
        );
        let files = [
            ("ip", "neighbours", device + &self.neighbours),
            ("bridge", "fdb", self.fdb.clone()),
            ("ip", "routes", self.routes.clone()),
        ];
        let commands = files.map(|(program, name, text)| {
            let file = self.directory.join(name);
            fs::write(&file, text).expect("the sandbox is writable");
            let mut command: Command = program::installed(program);
            command.args(["-n", node.name(), "-batch"]).arg(file);
            command
        });
        let start = Instant::now();
        for mut command in commands {
            program::run(&mut command);
        }
        let time = start.elapsed();
        assert!(!node.ip("route show dev flannel.1").is_empty());
        time
    }
}
