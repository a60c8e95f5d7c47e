//! Golden plans, options and peers of the backend.

use fabric::netstate::NetState;
use fabric::plan::diff;
use serde_json::json;

use super::*;
use crate::family::Family;
use crate::lease::{Attributes, LeaseKey, wire};

fn underlay(mtu: u32) -> Underlay {
    Underlay {
        link: "eth0".parse().unwrap(),
        mtu: Mtu::new(mtu).unwrap(),
        ip: [198, 51, 100, 1].into(),
        public_ip: [203, 0, 113, 1].into(),
        on_link: crate::on_link::OnLink::default(),
    }
}

fn configure(options: &Value, mtu: u32) -> Result<Udp, BackendError> {
    let udp = Udp::configure(options, "10.244.0.0/16".parse().unwrap(), underlay(mtu));
    udp.map(|udp| Udp { has_ipv6: true, ..udp })
}

fn lease(key: &str, json: &str) -> (LeaseKey, Attributes) {
    (LeaseKey::parse(key).unwrap(), wire::decode(json.as_bytes()).unwrap())
}

fn desired(leases: &[(LeaseKey, Attributes)]) -> Desired {
    let peers = leases.iter().filter_map(|(key, attributes)| Peer::of(Family::V4, key, attributes));
    let own = "10.244.1.0/24".parse().unwrap();
    configure(&json!({}), 1500).unwrap().desired(own, &peers.collect::<Vec<_>>())
}

#[test]
fn a_node_has_one_device_and_one_route_for_the_network() {
    let plan = diff(&desired(&[]).state, &NetState::default());
    assert_eq!(
        plan.to_string(),
        "\
ip tuntap add dev flannel0 mode tun multi_queue vnet_hdr
ip link set flannel0 mtu 1472
sysctl -w net/ipv4/conf/flannel0/accept_local=1
sysctl -w net/ipv6/conf/flannel0/addr_gen_mode=1
ip address replace 10.244.1.0/32 dev flannel0
ip link set flannel0 up
ip route add 10.244.0.0/16 dev flannel0 proto 199
"
    );
}

#[test]
fn options_are_the_port_and_nothing_else() {
    for (options, port) in [
        (Value::Null, 8285),
        (json!({}), 8285),
        (json!({"Type": "udp", "port": 0}), 8285),
        (json!({"PORT": 4000, "Other": 1}), 4000),
    ] {
        let udp = configure(&options, 9000).unwrap();
        assert_eq!(udp.listen, SocketAddr::from(([198, 51, 100, 1], port)));
        assert_eq!(udp.pod_mtu(), Mtu::new(8972).unwrap());
        assert_eq!(udp.published(), ("", None));
    }
    for (port, text) in [
        (65_536, "Backend.Port 65536 is out of range: want 0 to 65535"),
        (-1, "Backend.Port -1 is out of range: want 0 to 65535"),
    ] {
        assert_eq!(configure(&json!({"Port": port}), 1500).unwrap_err().to_string(), text);
    }
    assert!(matches!(configure(&json!({"Port": "8285"}), 1500), Err(BackendError::Json(_))));
}

#[test]
fn peers_are_who_speaks_this_way_and_makes_sense() {
    let at = |last: u8| format!(r#"{{"PublicIP":"198.51.100.{last}","PublicIPv6":null}}"#);
    let desired = desired(&[
        lease("10.243.0.0-24", &at(9)),
        lease("10.244.2.0-24", &at(2)),
        lease("10.244.2.128-25", &at(3)),
        lease("10.244.3.0-24", r#"{"PublicIP":"198.51.100.4","BackendType":"vxlan"}"#),
        lease("10.244.4.0-24", r#"{"PublicIP":"0.0.0.0"}"#),
        lease("10.244.5.0-24", r#"{"PublicIP":"203.0.113.1"}"#),
        lease("10.244.6.0-23", &at(6)),
    ]);
    let expected = ["10.244.2.0/24 198.51.100.2:8285", "10.244.6.0/23 198.51.100.6:8285"];
    assert_eq!(carried(&desired), expected);
    let left_out: Vec<_> =
        desired.left_out.iter().map(|(key, reason)| format!("{key}: {reason}")).collect();
    assert_eq!(
        left_out,
        [
            "10.243.0.0/24: its subnet is not inside the network 10.244.0.0/16",
            "10.244.2.128/25: its subnet overlaps that of 10.244.2.0/24",
            "10.244.3.0/24: its backend is \"vxlan\", not \"\"",
            "10.244.4.0/24: it has no public IPv4 address",
            "10.244.5.0/24: its public address 203.0.113.1 is ours",
        ]
    );
}

fn carried(desired: &Desired) -> Vec<String> {
    let peers = desired.forwarding.iter().flat_map(|forwarding| &forwarding.peers);
    peers.map(|(subnet, address)| format!("{subnet} {address}")).collect()
}

#[test]
fn ipv6_has_a_device_of_its_own_and_only_peers_that_say_so() {
    let underlay = |mtu| Underlay {
        ip: "fd99::1".parse().unwrap(),
        public_ip: "fd99::1".parse().unwrap(),
        ..underlay(mtu)
    };
    let network: IpNetwork = "2001:db8:42::/56".parse().unwrap();
    let udp = Udp::configure(&json!({"Port": 4000}), network, underlay(1500)).unwrap();
    assert_eq!(udp.published(), ("", Some(json!({"Port": 4000}))));
    let leases = [
        lease(
            "10.244.2.0-24&2001:db8:42:2::-64",
            r#"{"PublicIP":"198.51.100.2","PublicIPv6":"fd99::2","BackendV6Data":{"Port":4001}}"#,
        ),
        lease(
            "10.244.3.0-24&2001:db8:42:3::-64",
            r#"{"PublicIP":"198.51.100.3","PublicIPv6":"fd99::3"}"#,
        ),
        lease(
            "10.244.4.0-24&2001:db8:42:4::-64",
            r#"{"PublicIP":"198.51.100.4","PublicIPv6":"fd99::4","BackendV6Data":{"Port":70000}}"#,
        ),
        lease("10.244.5.0-24", r#"{"PublicIP":"198.51.100.5","PublicIPv6":null}"#),
    ];
    let peers = leases.iter().filter_map(|(key, attributes)| Peer::of(Family::V6, key, attributes));
    let own = "2001:db8:42:1::/64".parse().unwrap();
    let desired = Udp { has_ipv6: true, ..udp }.desired(own, &peers.collect::<Vec<_>>());
    assert_eq!(
        diff(&desired.state, &NetState::default()).to_string(),
        "\
ip tuntap add dev flannel0-v6 mode tun multi_queue vnet_hdr
ip link set flannel0-v6 mtu 1452
sysctl -w net/ipv4/conf/flannel0-v6/accept_local=1
sysctl -w net/ipv6/conf/flannel0-v6/addr_gen_mode=1
ip address replace 2001:db8:42:1::/128 dev flannel0-v6
ip link set flannel0-v6 up
ip route add 2001:db8:42::/56 dev flannel0-v6 proto 199
"
    );
    assert_eq!(carried(&desired), ["2001:db8:42:2::/64 [fd99::2]:4001"]);
    let left_out: Vec<_> = desired.left_out.iter().map(|(_, reason)| reason.to_string()).collect();
    assert_eq!(left_out[0], "it does not carry IPv6 over udp");
    assert!(left_out[1].starts_with("its backend data does not decode: "), "{}", left_out[1]);
    assert_eq!(left_out.len(), 2);
    let narrow = Udp::configure(&json!({}), network, underlay(1300)).unwrap_err();
    assert_eq!(narrow, BackendError::Ipv6Mtu { mtu: 1300, overhead: 48 });
}
