//! A node that flannel has left is taken over as it is, and can be given back: no packet is lost on
//! the way, nothing is there twice, and flannel's own requests work on what is left.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;

use flannel_tests::cluster::{Cluster, ETCD_PREFIX, Store};
use flannel_tests::crowd::{self, Peer};
use flannel_tests::net_conf::{Stack, network};
use flannel_tests::node::Node;
use flannel_tests::pod;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::snapshot;
use flannel_tests::traffic::{Flow, ping};
use flannel_tests::wait;

/// How long flannel's leases last.
const LEASE_SECS: u32 = 86_400;

/// What flannel has made on a node of number N, byte for byte: subnet 10.244.N.0/24, and with both
/// families 2001:db8:42:N::/64.
struct Flannel {
    backend: &'static str,
    stack: Stack,
}

/// What there is once for each family.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn either<T>(self, v4: T, v6: T) -> T {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }

    fn tunnel(self) -> &'static str {
        self.either("flannel.1", "flannel-v6.1")
    }

    fn mac(self, number: u8) -> String {
        format!("c6:d2:32:6f:{}:{number:02x}", self.either("8f", "6f"))
    }

    /// The first address of a node's subnet.
    fn base(self, number: u8) -> String {
        self.either(format!("10.244.{number}.0"), format!("2001:db8:42:{number}::"))
    }

    fn subnet(self, number: u8) -> String {
        format!("{}/{}", self.base(number), self.either(24, 64))
    }

    fn address(self, node: &Node) -> String {
        self.either(node.address().to_string(), node.address6().to_string())
    }

    /// Runs `ip` for the family; `DEV` stands for its tunnel.
    fn ip(self, node: &Node, arguments: &str) -> String {
        let arguments = arguments.replace("DEV", self.tunnel());
        node.ip(&format!("{} {arguments}", self.either("-4", "-6")))
    }

    fn fdb(self, node: &Node, arguments: &str) -> String {
        node.bridge(&format!("fdb {arguments}").replace("DEV", self.tunnel()))
    }
}

impl Flannel {
    fn families(&self) -> &'static [Family] {
        if self.stack == Stack::Dual { &[Family::V4, Family::V6] } else { &[Family::V4] }
    }

    fn lease(&self, node: &Node) -> (String, String) {
        let number = node.number();
        let subnets = self.families().iter().map(|family| family.subnet(number).replace('/', "-"));
        let key = format!("{ETCD_PREFIX}/subnets/{}", subnets.collect::<Vec<_>>().join("&"));
        let ipv6 = match self.stack {
            Stack::Dual => format!(r#""{}""#, node.address6()),
            _ => "null".to_owned(),
        };
        let data = |family: &Family| {
            let name = family.either("BackendData", "BackendV6Data");
            format!(r#","{name}":{{"VNI":1,"VtepMAC":"{}"}}"#, family.mac(number))
        };
        let data: String = match self.backend {
            "vxlan" => self.families().iter().map(data).collect(),
            _ => String::new(),
        };
        let (address, backend) = (node.address(), self.backend);
        let value = format!(
            r#"{{"PublicIP":"{address}","PublicIPv6":{ipv6},"BackendType":"{backend}"{data}}}"#
        );
        (key, value)
    }

    fn make_devices(&self, node: &Node) {
        if self.backend != "vxlan" {
            return;
        }
        let number = node.number();
        for family in self.families() {
            let (mac, address) = (family.mac(number), family.address(node));
            let device = format!(
                "link add DEV address {mac} mtu 1450 txqueuelen 0 type vxlan id 1 dev eth0 \
                 local {address} dstport 8472 nolearning ttl 0 tos 0"
            );
            family.ip(node, &device);
            let host = family.either("/32", "/128 nodad");
            family.ip(node, &format!("address add {}{host} dev DEV", family.base(number)));
            family.ip(node, "link set DEV up");
        }
    }

    fn write_subnet_file(&self, node: &Node) {
        let number = node.number();
        let networks = |family: &Family| {
            let base = family.base(number);
            let network = family.either("10.244.0.0/16", "2001:db8:42::/56");
            let gateway = family.either(base.replace(".0", ".1"), format!("{base}1"));
            let (name, length) = (family.either("", "IPV6_"), family.either(24, 64));
            format!("FLANNEL_{name}NETWORK={network}\nFLANNEL_{name}SUBNET={gateway}/{length}\n")
        };
        let networks: String = self.families().iter().map(networks).collect();
        let mtu = if self.backend == "vxlan" { 1450 } else { 1500 };
        let file = format!("{networks}FLANNEL_MTU={mtu}\nFLANNEL_IPMASQ=true\n");
        fs::write(node.directory("/run/flannel/subnet.env"), file).unwrap();
    }

    /// The requests for a peer, in flannel's order, as they are made for every event.
    fn replace_peer(&self, node: &Node, peer: &Node) {
        for family in self.families() {
            let number = peer.number();
            let (subnet, address) = (family.subnet(number), family.address(peer));
            if self.backend == "vxlan" {
                let (base, mac) = (family.base(number), family.mac(number));
                let entry = format!("neighbour replace {base} lladdr {mac} dev DEV nud permanent");
                family.ip(node, &entry);
                family.fdb(node, &format!("replace {mac} dev DEV dst {address} self permanent"));
                family.ip(node, &format!("route replace {subnet} via {base} dev DEV onlink"));
            } else {
                family.ip(node, &format!("route replace {subnet} via {address} dev eth0"));
            }
        }
    }

    /// The requests for a peer that is gone; none of them names a protocol.
    fn delete_peer(&self, node: &Node, peer: &Node) {
        for family in self.families() {
            let number = peer.number();
            let (subnet, address) = (family.subnet(number), family.address(peer));
            if self.backend == "vxlan" {
                let (base, mac) = (family.base(number), family.mac(number));
                family.ip(node, &format!("neighbour delete {base} lladdr {mac} dev DEV"));
                family.fdb(node, &format!("delete {mac} dev DEV dst {address} self"));
                family.ip(node, &format!("route delete {subnet} via {base} dev DEV onlink"));
            } else {
                family.ip(node, &format!("route delete {subnet} via {address} dev eth0"));
            }
        }
    }

    /// A node that was there when flannel ran, and is not any more.
    fn leave_stale_entries(&self, node: &Node) {
        if self.backend != "vxlan" {
            return;
        }
        for family in self.families() {
            let (base, subnet, mac) = (family.base(99), family.subnet(99), family.mac(99));
            let vtep = family.either("198.51.100.99", "fd99::99");
            family.ip(node, &format!("neighbour add {base} lladdr {mac} dev DEV nud permanent"));
            family.fdb(node, &format!("add {mac} dev DEV dst {vtep} self permanent"));
            family.ip(node, &format!("route add {subnet} via {base} dev DEV onlink"));
        }
    }

    /// What there is for peers, whoever made it.
    fn entries(&self, node: &Node) -> String {
        let mut lines = Vec::new();
        let mut add = |text: String| lines.extend(text.lines().map(|line| line.trim().to_owned()));
        for family in self.families() {
            let network = family.either("10.244.0.0/16", "2001:db8:42::/56");
            let routes = family.ip(node, &format!("route show root {network}"));
            let of_this_node = |route: &str| {
                [" dev cni0 ", " proto kernel "].iter().any(|own| route.contains(own))
            };
            let to_peers = routes.lines().filter(|route| !of_this_node(route));
            add(to_peers.map(|route| route.replace(" proto 199", "") + "\n").collect());
            if self.backend == "vxlan" {
                add(family.ip(node, "neighbour show dev DEV nud permanent"));
                add(family.fdb(node, "show dev DEV"));
            }
        }
        lines.sort();
        lines.join("\n")
    }

    /// The tunnels, with their numbers, which one that is made anew does not keep. The MTU of that
    /// for IPv6 is put right.
    fn tunnels(&self, node: &Node) -> Vec<String> {
        let tunnels = self.families().iter().filter(|_| self.backend == "vxlan");
        let links = tunnels.map(|family| family.ip(node, "-details -oneline link show DEV"));
        links.map(|link| link.replace(" mtu 1430 ", " mtu 1450 ")).collect()
    }
}

#[test]
fn vxlan_node_of_flannel_is_taken_over_and_given_back_without_losing_a_packet() {
    sandboxed(|| taken_over_and_given_back(&Flannel { backend: "vxlan", stack: Stack::Ipv4 }));
}

#[test]
fn host_gw_node_of_flannel_is_taken_over_and_given_back_without_losing_a_packet() {
    sandboxed(|| taken_over_and_given_back(&Flannel { backend: "host-gw", stack: Stack::Ipv4 }));
}

#[test]
fn vxlan_node_of_both_families_is_taken_over_and_given_back_without_losing_a_packet() {
    sandboxed(|| taken_over_and_given_back(&Flannel { backend: "vxlan", stack: Stack::Dual }));
}

#[test]
fn host_gw_node_of_both_families_is_taken_over_and_given_back_without_losing_a_packet() {
    sandboxed(|| taken_over_and_given_back(&Flannel { backend: "host-gw", stack: Stack::Dual }));
}

fn taken_over_and_given_back(flannel: &Flannel) {
    let mut cluster = Cluster::unconfigured(3, Store::Etcd);
    let (nodes, backend) = ([1, 2, 3], flannel.backend);
    cluster.store().configure(&network(flannel.stack, backend));
    let leases: BTreeMap<_, _> = cluster.nodes().iter().map(|node| flannel.lease(node)).collect();
    cluster.store().etcd().put_all(&leases, LEASE_SECS);
    for node in cluster.nodes() {
        flannel.make_devices(node);
        flannel.write_subnet_file(node);
    }
    for (node, peer) in pairs(cluster.nodes()) {
        flannel.replace_peer(node, peer);
    }
    let pods = pod::attach_to_each(cluster.nodes(), 1);
    let before: Vec<_> = cluster.nodes().iter().map(|node| flannel.entries(node)).collect();
    let devices: Vec<_> = cluster.nodes().iter().map(|node| flannel.tunnels(node)).collect();
    cluster.nodes().iter().for_each(|node| flannel.leave_stale_entries(node));

    let (from, to) = (&pods[0], &pods[1]);
    let to_ip = to.addresses().last().unwrap();
    wait::until_true("the pods reach each other", || ping(from.namespace(), to_ip).is_ok());
    let flow = Flow::start(from.namespace(), to.namespace(), to_ip, 1000).unwrap();
    let go_on = || {
        let count = flow.received();
        wait::until_true("the flow goes on", || flow.received() > count + 100);
    };
    go_on();
    for number in nodes {
        cluster.start(number);
        cluster.wait_until_ready(number);
        let place = usize::from(number) - 1;
        assert_eq!(
            flannel.entries(cluster.node(number)),
            before[place],
            "entries when it is ready"
        );
        assert_eq!(
            flannel.tunnels(cluster.node(number)),
            devices[place],
            "the devices are the same"
        );
        go_on();
    }
    assert_eq!(cluster.store().leases().len(), 3);
    for number in nodes {
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
        assert_eq!(flannel.entries(node), before[usize::from(node.number()) - 1]);
    }
    let report = flow.finish().unwrap();
    println!("{backend}: {report}");
    assert_eq!(report.lost(), 0, "{report}");
    for (node, peer) in pairs(cluster.nodes()) {
        flannel.delete_peer(node, peer);
    }
    for node in cluster.nodes() {
        assert_eq!(flannel.entries(node), "", "flannel's own requests remove everything");
    }
}

#[test]
fn routes_of_a_large_network_are_kept_and_given_back_whatever_their_protocol() {
    sandboxed(|| {
        let peers = [1_u8, 2, 55, 56].map(|octet| {
            Peer::at(u32::from(octet - 1) << 8, Ipv4Addr::new(198, 51, 100, 100 + octet))
        });
        let mut cluster = Cluster::unconfigured(1, Store::any());
        cluster.store().configure(crowd::NETWORK);
        for (key, lease) in peers.iter().map(Peer::lease) {
            cluster.store().put(&format!("subnets/{key}"), &lease);
        }
        cluster.start_all();
        let node = cluster.node(1).clone();
        let wait_for = |wanted: &[&str]| {
            wait::until("there are certain routes", || {
                let routes = node.ip("route show dev flannel.1");
                let found: Vec<_> = routes.lines().map(str::trim).collect();
                if found == wanted { Ok(()) } else { Err(routes) }
            });
        };
        let marked = [
            "10.1.0.0/24 via 10.1.0.0 proto 200 onlink",
            "10.2.0.0/24 via 10.2.0.0 proto 201 onlink",
            "10.55.0.0/24 via 10.55.0.0 proto 254 onlink",
            "10.56.0.0/24 via 10.56.0.0 proto 199 onlink",
        ];
        wait_for(&marked);
        node.ip("route flush proto 201");
        wait_for(&marked);
        assert!(cluster.store().delete("subnets/10.56.0.0-24"));
        wait_for(&marked[..3]);
        cluster.stop(1);
        node.ip("route delete 10.1.0.0/24 via 10.1.0.0 dev flannel.1 onlink");
        node.ip("route replace 10.2.0.0/24 via 10.2.0.0 dev flannel.1 onlink");
        node.ip("route replace 10.55.0.0/24 via 10.55.0.0 dev flannel.1 onlink");
        wait_for(&["10.2.0.0/24 via 10.2.0.0 onlink", "10.55.0.0/24 via 10.55.0.0 onlink"]);
        cluster.start(1);
        cluster.wait_until_ready(1);
        wait_for(&marked[..3]);
    });
}

fn pairs(nodes: &[Node]) -> impl Iterator<Item = (&Node, &Node)> {
    let all = nodes.iter().flat_map(move |node| nodes.iter().map(move |peer| (node, peer)));
    all.filter(|(node, peer)| node.number() != peer.number())
}
