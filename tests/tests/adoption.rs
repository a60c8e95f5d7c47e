//! A node that flannel has left is taken over as it is, and can be given back: no packet is lost on
//! the way, nothing is there twice, and flannel's own requests work on what is left.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::fs;

use flannel_tests::cluster::{Cluster, ETCD_PREFIX, Store};
use flannel_tests::node::Node;
use flannel_tests::pod;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::snapshot;
use flannel_tests::traffic::Flow;
use flannel_tests::wait;

/// How long flannel's leases last.
const LEASE_SECS: u32 = 86_400;

/// What flannel has made on a node of number N, byte for byte: subnet 10.244.N.0/24.
struct Flannel {
    backend: &'static str,
}

impl Flannel {
    fn mac(node: &Node) -> String {
        format!("c6:d2:32:6f:8f:{:02x}", node.number())
    }

    fn lease(&self, node: &Node) -> (String, String) {
        let key = format!("{ETCD_PREFIX}/subnets/10.244.{}.0-24", node.number());
        let data = match self.backend {
            "vxlan" => format!(r#","BackendData":{{"VNI":1,"VtepMAC":"{}"}}"#, Self::mac(node)),
            _ => String::new(),
        };
        let (address, backend) = (node.address(), self.backend);
        let value = format!(
            r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"{backend}"{data}}}"#
        );
        (key, value)
    }

    fn make_device(&self, node: &Node) {
        let mtu = if self.backend == "vxlan" { 1450 } else { 1500 };
        let number = node.number();
        if self.backend == "vxlan" {
            node.ip(&format!(
                "link add flannel.1 address {} mtu 1450 txqueuelen 0 type vxlan id 1 dev eth0 \
                 local {} dstport 8472 nolearning ttl 0 tos 0",
                Self::mac(node),
                node.address()
            ));
            node.ip(&format!("address add 10.244.{number}.0/32 dev flannel.1"));
            node.ip("link set flannel.1 up");
        }
        let file = format!(
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.{number}.1/24\n\
             FLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=true\n"
        );
        fs::write(node.directory("/run/flannel/subnet.env"), file).unwrap();
    }

    /// The requests for a peer, in flannel's order, as they are made for every event.
    fn replace_peer(&self, node: &Node, peer: &Node) {
        let (subnet, address) = (format!("10.244.{}.0", peer.number()), peer.address());
        if self.backend == "vxlan" {
            let mac = Self::mac(peer);
            node.ip(&format!(
                "neighbour replace {subnet} lladdr {mac} dev flannel.1 nud permanent"
            ));
            node.bridge(&format!("fdb replace {mac} dev flannel.1 dst {address} self permanent"));
            node.ip(&format!("route replace {subnet}/24 via {subnet} dev flannel.1 onlink"));
        } else {
            node.ip(&format!("route replace {subnet}/24 via {address} dev eth0"));
        }
    }

    /// The requests for a peer that is gone; none of them names a protocol.
    fn delete_peer(&self, node: &Node, peer: &Node) {
        let (subnet, address) = (format!("10.244.{}.0", peer.number()), peer.address());
        if self.backend == "vxlan" {
            let mac = Self::mac(peer);
            node.ip(&format!("neighbour delete {subnet} lladdr {mac} dev flannel.1"));
            node.bridge(&format!("fdb delete {mac} dev flannel.1 dst {address} self"));
            node.ip(&format!("route delete {subnet}/24 via {subnet} dev flannel.1 onlink"));
        } else {
            node.ip(&format!("route delete {subnet}/24 via {address} dev eth0"));
        }
    }

    /// A node that was there when flannel ran, and is not any more.
    fn leave_stale_entries(&self, node: &Node) {
        if self.backend == "vxlan" {
            let mac = "c6:d2:32:6f:8f:63";
            node.ip(&format!("neighbour add 10.244.99.0 lladdr {mac} dev flannel.1 nud permanent"));
            node.bridge(&format!("fdb add {mac} dev flannel.1 dst 198.51.100.99 self permanent"));
            node.ip("route add 10.244.99.0/24 via 10.244.99.0 dev flannel.1 onlink");
        }
    }
}

#[test]
fn vxlan_node_of_flannel_is_taken_over_and_given_back_without_losing_a_packet() {
    sandboxed(|| taken_over_and_given_back(&Flannel { backend: "vxlan" }));
}

#[test]
fn host_gw_node_of_flannel_is_taken_over_and_given_back_without_losing_a_packet() {
    sandboxed(|| taken_over_and_given_back(&Flannel { backend: "host-gw" }));
}

fn taken_over_and_given_back(flannel: &Flannel) {
    let mut cluster = Cluster::unconfigured(3, Store::Etcd);
    let backend = flannel.backend;
    cluster
        .store()
        .configure(&format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"{backend}"}}}}"#));
    let leases: BTreeMap<_, _> = cluster.nodes().iter().map(|node| flannel.lease(node)).collect();
    cluster.store().etcd().put_all(&leases, LEASE_SECS);
    cluster.nodes().iter().for_each(|node| flannel.make_device(node));
    for (node, peer) in pairs(cluster.nodes()) {
        flannel.replace_peer(node, peer);
    }
    let pods = pod::attach_to_each(cluster.nodes(), 1);
    let before: Vec<_> = cluster.nodes().iter().map(entries).collect();
    let devices: Vec<_> = cluster.nodes().iter().map(device).collect();
    cluster.nodes().iter().for_each(|node| flannel.leave_stale_entries(node));

    let (from, to) = (&pods[0], &pods[1]);
    let flow = Flow::start(from.namespace(), to.namespace(), to.address(), 1000).unwrap();
    let go_on = || {
        let count = flow.received();
        wait::until_true("the flow goes on", || flow.received() > count + 100);
    };
    go_on();
    for number in [1, 2, 3] {
        cluster.start(number);
        cluster.wait_until_ready(number);
        let place = usize::from(number) - 1;
        assert_eq!(entries(cluster.node(number)), before[place], "entries when it is ready");
        assert_eq!(device(cluster.node(number)), devices[place], "the device is the same");
        go_on();
    }
    assert_eq!(cluster.store().leases().len(), 3);
    for number in [1, 2, 3] {
        cluster.stop(number);
        go_on();
    }
    let left: Vec<_> = cluster.nodes().iter().map(|node| snapshot::of(node).unwrap()).collect();
    for (node, peer) in pairs(cluster.nodes()) {
        flannel.replace_peer(node, peer);
    }
    go_on();
    for (node, left) in cluster.nodes().iter().zip(left) {
        let now = snapshot::of(node).unwrap();
        let as_flannels = left.replace(" proto 199", "");
        assert_eq!(snapshot::difference(&as_flannels, &now), "", "flannel made nothing twice");
        assert_eq!(entries(node), before[usize::from(node.number()) - 1]);
    }
    let report = flow.finish().unwrap();
    println!("{backend}: {report}");
    assert_eq!(report.lost(), 0, "{report}");
    for (node, peer) in pairs(cluster.nodes()) {
        flannel.delete_peer(node, peer);
    }
    for node in cluster.nodes() {
        assert_eq!(entries(node), "", "flannel's own requests remove everything");
    }
}

fn pairs(nodes: &[Node]) -> impl Iterator<Item = (&Node, &Node)> {
    let all = nodes.iter().flat_map(move |node| nodes.iter().map(move |peer| (node, peer)));
    all.filter(|(node, peer)| node.number() != peer.number())
}

/// What there is for peers, whoever made it.
fn entries(node: &Node) -> String {
    let routes = node.ip("route show root 10.244.0.0/16").replace(" proto 199", "");
    let routes = routes.lines().filter(|route| !route.contains(" dev cni0 "));
    let mut lines: Vec<_> = routes.map(str::to_owned).collect();
    if device(node).is_some() {
        lines.extend(node.ip("neighbour show dev flannel.1").lines().map(str::to_owned));
        lines.extend(node.bridge("fdb show dev flannel.1").lines().map(str::to_owned));
    }
    lines.sort();
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join("\n")
}

/// The tunnel, with its number, which one that is made anew does not keep.
fn device(node: &Node) -> Option<String> {
    node.namespace().try_ip("-details -oneline link show flannel.1").ok()
}
