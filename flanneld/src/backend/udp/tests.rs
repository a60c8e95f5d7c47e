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
    udp.map(|udp| Udp { has_ipv6: true, ..udp.expect("it is IPv4") })
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
        assert_eq!(udp.listen, SocketAddrV4::new([198, 51, 100, 1].into(), port));
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
    let peers = desired.forwarding.unwrap().peers;
    let peers: Vec<_> =
        peers.iter().map(|(subnet, address)| format!("{subnet} {address}")).collect();
    assert_eq!(peers, ["10.244.2.0/24 198.51.100.2", "10.244.6.0/23 198.51.100.6"]);
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
