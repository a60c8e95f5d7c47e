//! What flanneld leaves in kernel, store and subnet file for IPv6, to the letter, and how it gets
//! there and back.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests")]

use std::fs;

use flannel_tests::cluster::{Cluster, Store, subnets};
use flannel_tests::net_conf::{Stack, network};
use flannel_tests::node::Node;
use flannel_tests::pod::{self, Pod};
use flannel_tests::program;
use flannel_tests::sandbox::sandboxed;
use flannel_tests::traffic::{Flow, ping, tcp_stream};
use flannel_tests::wait;

/// What each TCP stream carries.
const STREAM_LEN: usize = 1 << 20;

/// Key and value of a node's lease.
fn lease(cluster: &Cluster, number: u8) -> (String, String) {
    wait::until(&format!("n{number} says where it is"), || {
        let lease = cluster.store().lease_of(cluster.node(number));
        lease.ok_or_else(|| format!("{:?}", cluster.store().leases()))
    })
}

/// The base address of the IPv6 subnet in a key: `2001:db8:42:7::`
fn base6(key: &str) -> String {
    subnets(key).pop().unwrap().replace("/64", "")
}

fn mac(node: &Node, device: &str) -> String {
    let link = node.ip(&format!("-oneline link show {device}"));
    link.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned()
}

fn trimmed(text: &str) -> Vec<String> {
    text.lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn a_node_has_a_device_and_three_entries_for_each_peer() {
    sandboxed(|| {
        let cluster = Cluster::running_with(2, Store::Etcd, &network(Stack::Dual, "vxlan"));
        let (node, peer) = (cluster.node(1), cluster.node(2));
        let ((own, _), (key, _)) = (lease(&cluster, 1), lease(&cluster, 2));
        let (base, peer_mac) = (base6(&key), mac(peer, "flannel-v6.1"));

        let link = node.ip("-d link show flannel-v6.1");
        let lines = trimmed(&link);
        assert!(lines[0].contains("<BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1430 "), "{link}");
        let wanted = format!(
            "vxlan id 1 local {} dev eth0 srcport 0 0 dstport 8472 nolearning",
            node.address6()
        );
        assert!(link.contains(&wanted), "{link}\nwanted: {wanted}");
        let addresses = node.ip("-6 -oneline address show dev flannel-v6.1 scope global");
        let wanted = format!("inet6 {}/128 scope global", base6(&own));
        assert!(addresses.contains(&wanted) && addresses.lines().count() == 1, "{addresses}");

        let neighbours = trimmed(&node.ip("-6 neighbour show dev flannel-v6.1 nud permanent"));
        assert_eq!(neighbours, [format!("{base} lladdr {peer_mac} PERMANENT")]);
        let fdb = trimmed(&node.bridge("fdb show dev flannel-v6.1"));
        assert_eq!(fdb, [format!("{peer_mac} dst {} self permanent", peer.address6())]);
        let routes = trimmed(&node.ip("-6 route show proto 199"));
        let wanted =
            format!("{base}/64 via {base} dev flannel-v6.1 metric 1024 onlink pref medium");
        assert_eq!(routes, [wanted]);
    });
}

#[test]
fn leases_and_subnet_files_are_those_that_flannel_writes() {
    sandboxed(|| {
        let mut cluster = Cluster::running_with(1, Store::Etcd, &network(Stack::Dual, "vxlan"));
        let node = cluster.node(1).clone();
        let (key, value) = lease(&cluster, 1);
        let [mac4, mac6] = ["flannel.1", "flannel-v6.1"].map(|device| mac(&node, device));
        let (ip4, ip6) = (node.address(), node.address6());
        let data = |mac| format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
        assert_eq!(
            value,
            format!(
                r#"{{"PublicIP":"{ip4}","PublicIPv6":"{ip6}","BackendType":"vxlan","BackendData":{},"BackendV6Data":{}}}"#,
                data(&mac4),
                data(&mac6)
            )
        );
        let subnets = subnets(&key);
        let (subnet4, subnet6) = (&subnets[0], &subnets[1]);
        let ipv6 = format!(
            "FLANNEL_IPV6_NETWORK=2001:db8:42::/56\nFLANNEL_IPV6_SUBNET={}\nFLANNEL_MTU=1430\n\
             FLANNEL_IPMASQ=true\n",
            subnet6.replace("::/", "::1/")
        );
        assert_eq!(
            node.subnet_file().unwrap(),
            format!(
                "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={}\n{ipv6}",
                subnet4.replace(".0/", ".1/")
            )
        );

        // Without IPv4, the node is known by its other address, and keeps its subnet.
        cluster.stop(1);
        cluster.store().configure(&network(Stack::Ipv6, "vxlan"));
        cluster.start(1);
        wait::until_true("the lease is one of IPv6", || lease(&cluster, 1).0 != key);
        let (key, value) = lease(&cluster, 1);
        assert_eq!(key, format!("0.0.0.0-0&{}", subnet6.replace('/', "-")));
        assert_eq!(
            value,
            format!(
                r#"{{"PublicIP":"0.0.0.0","PublicIPv6":"{ip6}","BackendType":"vxlan","BackendV6Data":{}}}"#,
                data(&mac6)
            )
        );
        cluster.wait_until_ready(1);
        wait::until("the subnet file is of IPv6", || {
            let file = node.subnet_file().unwrap();
            if file == ipv6 { Ok(()) } else { Err(file) }
        });
        let links = node.ip("link show type vxlan");
        assert!(links.contains("flannel-v6.1") && !links.contains("flannel.1"), "{links}");
    });
}

#[test]
fn ipv6_is_switched_on_and_off_without_losing_the_ipv4_subnet_in_etcd() {
    sandboxed(|| switched_on_and_off(Store::Etcd));
}

#[test]
fn ipv6_is_switched_on_and_off_without_losing_the_ipv4_subnet_in_a_directory() {
    sandboxed(|| switched_on_and_off(Store::Directory));
}

fn switched_on_and_off(store: Store) {
    let mut cluster = Cluster::running_with(2, store, &network(Stack::Ipv4, "vxlan"));
    let before = [lease(&cluster, 1).0, lease(&cluster, 2).0];
    let pods = pod::attach_to_each(cluster.nodes(), 1);
    let (from, to) = (&pods[0], &pods[1]);
    let flow = Flow::start(from.namespace(), to.namespace(), to.address(), 1000).unwrap();

    restart_with(&mut cluster, &network(Stack::Dual, "vxlan"));
    for (number, before) in [1, 2].into_iter().zip(&before) {
        let (key, _) = lease(&cluster, number);
        assert_eq!(key.split('&').next(), Some(&**before), "the IPv4 subnet is kept");
        assert_eq!(subnets(&key).len(), 2, "{key}");
    }
    assert_eq!(cluster.store().leases().len(), 2, "nothing is left of the old keys");
    let new: Vec<_> = cluster
        .nodes()
        .iter()
        .map(|node| Pod::attach(node, &format!("{}-both", node.name())))
        .collect();
    for (from, to) in pod::pairs(&new) {
        assert_eq!(to.addresses().count(), 2);
        for ip in to.addresses() {
            ping(from.namespace(), ip).unwrap();
        }
    }

    restart_with(&mut cluster, &network(Stack::Ipv4, "vxlan"));
    assert_eq!([lease(&cluster, 1).0, lease(&cluster, 2).0], before);
    assert_eq!(cluster.store().leases().len(), 2);
    let rules = program::run(cluster.node(1).namespace().command("nft").args(["list", "tables"]));
    assert!(!rules.contains("flannel-ipv6"), "{rules}");
    let links = cluster.node(1).ip("link show");
    assert!(!links.contains("flannel-v6"), "{links}");
    let report = flow.finish().unwrap();
    println!("{report}");
    assert_eq!(report.lost(), 0, "{report}");
}

#[test]
fn plain_routes_of_a_family_that_is_switched_off_are_removed() {
    sandboxed(|| {
        let mut cluster = Cluster::running_with(2, Store::any(), &network(Stack::Dual, "host-gw"));
        for (stack, gone, kept) in [(Stack::Ipv4, "-6", "-4"), (Stack::Ipv6, "-4", "-6")] {
            restart_with(&mut cluster, &network(stack, "host-gw"));
            for node in cluster.nodes() {
                let routes = |family| node.ip(&format!("{family} route show proto 199"));
                assert_eq!(routes(gone), "", "{stack:?}");
                assert_eq!(routes(kept).lines().count(), 1, "{stack:?}: {}", routes(kept));
            }
            restart_with(&mut cluster, &network(Stack::Dual, "host-gw"));
        }
    });
}

/// One node after the other, as a rolling update does it.
fn restart_with(cluster: &mut Cluster, network: &str) {
    cluster.store().configure(network);
    for number in [1, 2] {
        cluster.stop(number);
        cluster.start(number);
        cluster.wait_until_ready(number);
    }
    cluster.wait_for_peers();
}

#[test]
fn full_sized_segments_pass_over_vxlan_with_an_underlay_of_1500_bytes() {
    sandboxed(|| full_sized_segments_pass(Stack::Dual, "vxlan", 1500, 1430));
}

#[test]
fn full_sized_segments_pass_over_vxlan_with_the_smallest_underlay_that_can_carry_ipv6() {
    sandboxed(|| full_sized_segments_pass(Stack::Ipv6, "vxlan", 1350, 1280));
}

#[test]
fn full_sized_segments_of_ipv4_pass_over_vxlan_with_an_underlay_of_1280_bytes() {
    sandboxed(|| full_sized_segments_pass(Stack::Ipv4, "vxlan", 1280, 1230));
}

#[test]
fn full_sized_segments_pass_over_plain_routes_with_an_underlay_of_1280_bytes() {
    sandboxed(|| full_sized_segments_pass(Stack::Dual, "host-gw", 1280, 1280));
}

fn full_sized_segments_pass(stack: Stack, backend: &str, underlay: u32, pod_mtu: u32) {
    let mut cluster = Cluster::unconfigured(2, Store::any());
    cluster.nodes().iter().for_each(|node| cluster.underlay().set_mtu(node.namespace(), underlay));
    cluster.store().configure(&network(stack, backend));
    cluster.start_all();
    let pods = pod::attach_to_each(cluster.nodes(), 1);
    for (from, to) in pod::pairs(&pods) {
        let link = from.namespace().ip("link show eth0");
        assert!(link.contains(&format!(" mtu {pod_mtu} ")), "{link}");
        for ip in to.addresses() {
            let time = tcp_stream(from.namespace(), to.namespace(), ip, STREAM_LEN).unwrap();
            println!("{backend} over {underlay} bytes to {ip}: {STREAM_LEN} bytes in {time:.1?}");
        }
    }
    for node in cluster.nodes() {
        let counters =
            node.namespace().inside(|| fs::read_to_string("/proc/thread-self/net/snmp6").unwrap());
        for counter in ["Ip6FragCreates", "Ip6FragFails", "Ip6InTooBigErrors"] {
            let line = counters.lines().find(|line| line.starts_with(counter)).unwrap();
            assert_eq!(line.split_whitespace().last(), Some("0"), "{line}");
        }
    }
}

#[test]
fn an_underlay_that_leaves_ipv6_no_room_is_refused_with_the_size_that_does() {
    sandboxed(|| {
        let mut cluster = Cluster::unconfigured(1, Store::any());
        cluster.underlay().set_mtu(cluster.node(1).namespace(), 1280);
        cluster.store().configure(&network(Stack::Dual, "vxlan"));
        cluster.start(1);
        let flanneld = cluster.flanneld(1);
        assert_eq!(flanneld.wait().code(), Some(1));
        let log = flanneld.log();
        assert!(log.contains("MTU 1280 leaves no room for IPv6 pods"), "{log}");
        assert!(log.contains("1350 are needed"), "{log}");
        cluster.node(1).assert_untouched();
    });
}

#[test]
fn nodes_that_start_at_the_same_time_share_out_the_last_ipv6_subnets() {
    sandboxed(|| {
        let network = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,
            "IPv6Network":"2001:db8:42::/62","Backend":{"Type":"vxlan"}}"#;
        let cluster = Cluster::running_with(3, Store::Etcd, network);
        let leases = cluster.store().leases();
        let mut held: Vec<_> = leases.keys().map(|key| base6(key)).collect();
        held.sort();
        assert_eq!(held, ["2001:db8:42:1::", "2001:db8:42:2::", "2001:db8:42:3::"], "{leases:?}");
    });
}

#[test]
fn a_new_ipv6_address_is_published_under_the_same_key() {
    sandboxed(|| {
        let cluster = Cluster::running_with(2, Store::any(), &network(Stack::Ipv6, "vxlan"));
        let keys: Vec<_> = cluster.store().leases().into_keys().collect();
        let pods = pod::attach_to_each(cluster.nodes(), 1);
        let to = pods[1].addresses().next().unwrap();
        let (node, peer) = (cluster.node(2), cluster.node(1));
        node.ip("address add fd99::102/64 dev eth0 nodad");
        node.ip(&format!("address delete {}/64 dev eth0", node.address6()));
        wait::until("the peer sends to the new address", || {
            let entries = peer.bridge("fdb show dev flannel-v6.1");
            if entries.contains("dst fd99::102 ") { Ok(()) } else { Err(entries) }
        });
        ping(pods[0].namespace(), to).unwrap();
        assert_eq!(cluster.store().leases().into_keys().collect::<Vec<_>>(), keys);
    });
}

#[test]
fn an_interface_is_found_by_an_ipv6_address_and_by_a_route_over_several() {
    sandboxed(|| {
        let mut cluster = Cluster::unconfigured(2, Store::any());
        cluster.store().configure(&network(Stack::Dual, "vxlan"));
        let node = cluster.node(2);
        node.ip("link add eth1 type veth peer name eth1-peer");
        node.ip("link set eth1 up");
        node.ip("link set eth1-peer up");
        node.ip("address add 203.0.113.2/24 dev eth1");
        let hops = "nexthop via 203.0.113.254 dev eth1 nexthop via 198.51.100.254 dev eth0";
        node.ip(&format!("route replace default {hops}"));
        cluster.start_with(1, &["--iface=fd99::1"]);
        cluster.start(2);
        for number in [1, 2] {
            cluster.wait_until_ready(number);
            let (_, value) = lease(&cluster, number);
            let wanted =
                format!(r#""PublicIP":"198.51.100.{number}","PublicIPv6":"fd99::{number}""#);
            assert!(value.contains(&wanted), "{value}");
        }
    });
}
