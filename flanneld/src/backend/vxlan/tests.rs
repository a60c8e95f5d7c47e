//! Golden plans, options and peers of the backend.

use fabric::netlink::Way;
use fabric::plan::diff;

use super::*;
use crate::lease::{Attributes, LeaseKey, wire};
use crate::on_link::OnLink;

fn underlay(family: Family) -> Underlay {
    let (ip, public_ip) = match family {
        Family::V4 => ("198.51.100.1", "203.0.113.1"),
        Family::V6 => ("fd99::1", "fd99:113::1"),
    };
    Underlay {
        link: "eth0".parse().unwrap(),
        mtu: Mtu::new(1500).unwrap(),
        ip: ip.parse().unwrap(),
        public_ip: public_ip.parse().unwrap(),
        on_link: OnLink::default(),
    }
}

fn configure_for(family: Family, options: Value) -> Result<Vxlan, BackendError> {
    let network = match family {
        Family::V4 => "10.244.0.0/16".parse().unwrap(),
        Family::V6 => "2001:db8:42::/56".parse().unwrap(),
    };
    let mac = |_, _| MacAddr([2, 0, 0, 0, 0, 1]);
    let vxlan = Vxlan::configure(&options, network, underlay(family), mac);
    vxlan.map(|vxlan| Vxlan { has_ipv6: true, ..vxlan })
}

fn configure(options: Value) -> Result<Vxlan, BackendError> {
    configure_for(Family::V4, options)
}

fn key(text: &str) -> LeaseKey {
    LeaseKey::parse(text).unwrap()
}

fn attributes(last: u8, mac: &str) -> Attributes {
    let json = format!(
        r#"{{"PublicIP":"198.51.100.{last}","PublicIPv6":"fd99::{last}","BackendType":"vxlan",
            "BackendData":{{"VtepMAC":"{mac}"}},"BackendV6Data":{{"VtepMAC":"{mac}"}}}}"#
    );
    wire::decode(json.as_bytes()).unwrap()
}

fn desired_for(family: Family, own: &str, leases: &[(LeaseKey, Attributes)]) -> Desired {
    let peers = leases.iter().filter_map(|(key, attributes)| Peer::of(family, key, attributes));
    let vxlan = configure_for(family, json!({})).unwrap();
    vxlan.desired(own.parse().unwrap(), &peers.collect::<Vec<_>>())
}

fn desired(leases: &[(LeaseKey, Attributes)]) -> Desired {
    desired_for(Family::V4, "10.244.1.0/24", leases)
}

/// The plan for this peer of a node on 198.51.100.0/24 and fd99::/64.
fn plan_of_peer(family: Family, direct_routing: bool, lease: (LeaseKey, Attributes)) -> String {
    let mut vxlan = configure_for(family, json!({ "DirectRouting": direct_routing })).unwrap();
    let networks = ["198.51.100.0/24", "fd99::/64"].map(|network| Way {
        destination: network.parse().unwrap(),
        metric: 0,
        interface: vxlan.underlay.link,
        on_link: true,
    });
    vxlan.underlay.on_link = OnLink::by(vxlan.underlay.link, &networks);
    let own = match family {
        Family::V4 => "10.244.1.0/24",
        Family::V6 => "2001:db8:42:1::/64",
    };
    let peer = Peer::of(family, &lease.0, &lease.1).unwrap();
    let desired = vxlan.desired(own.parse().unwrap(), &[peer]);
    let none = vxlan.desired(own.parse().unwrap(), &[]);
    let left_out = desired.left_out.iter().map(|(_, reason)| format!("{reason}\n"));
    left_out.chain([diff(&desired.state, &none.state).to_string()]).collect()
}

#[test]
fn direct_routing_is_one_route_to_a_peer_on_the_network_and_the_tunnel_to_others() {
    let lease = |ip: &str, ipv6: &str| {
        let mut attributes = attributes(2, "02:00:00:00:00:02");
        attributes.public_ip = ip.parse().unwrap();
        attributes.public_ipv6 = Some(ipv6.parse().unwrap());
        (key("10.244.2.0-24&2001:db8:42:2::-64"), attributes)
    };
    let near = lease("198.51.100.2", "fd99::2");
    let far = lease("203.0.113.2", "fd98::2");
    assert_eq!(
        plan_of_peer(Family::V4, true, near.clone()),
        "ip route add 10.244.2.0/24 via 198.51.100.2 dev eth0 proto 199\n"
    );
    assert_eq!(
        plan_of_peer(Family::V6, true, near.clone()),
        "ip route add 2001:db8:42:2::/64 via fd99::2 dev eth0 proto 199\n"
    );
    for family in Family::ALL {
        assert_eq!(
            plan_of_peer(family, true, far.clone()),
            plan_of_peer(family, false, far.clone()),
            "a router is in between"
        );
    }
    assert!(plan_of_peer(Family::V4, false, near).contains("dev flannel.1"));
}

#[test]
fn a_peer_that_changes_to_host_gw_takes_plain_packets() {
    let lease = |ip: &str| {
        let json = format!(r#"{{"PublicIP":"{ip}","BackendType":"host-gw"}}"#);
        (key("10.244.2.0-24"), wire::decode(json.as_bytes()).unwrap())
    };
    assert_eq!(
        plan_of_peer(Family::V4, false, lease("198.51.100.2")),
        "ip route add 10.244.2.0/24 via 198.51.100.2 dev eth0 proto 199\n"
    );
    assert_eq!(
        plan_of_peer(Family::V4, false, lease("203.0.113.2")),
        "its public address 203.0.113.2 is behind a router, where only a tunnel reaches, not on \
         the network of eth0\n"
    );
}

#[test]
fn a_node_with_one_peer() {
    let desired = desired(&[(key("10.244.2.0-24"), attributes(2, "02:00:00:00:00:02"))]);
    assert_eq!(desired.left_out, []);
    assert_eq!(
        diff(&desired.state, &NetState::default()).to_string(),
        "\
ip link add flannel.1 address 02:00:00:00:00:01 mtu 1450 type vxlan id 1 local 198.51.100.1 \
dev eth0 dstport 8472 nolearning
sysctl -w net/ipv6/conf/flannel.1/accept_ra=0
ip address replace 10.244.1.0/32 dev flannel.1
ip link set flannel.1 up
ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent
bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 198.51.100.2 self permanent
ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto 199 onlink
"
    );
}

#[test]
fn ipv6_has_a_device_of_its_own() {
    let peer = (key("10.244.2.0-24&2001:db8:42:2::-64"), attributes(2, "02:00:00:00:00:02"));
    let desired = desired_for(Family::V6, "2001:db8:42:1::/64", &[peer]);
    assert_eq!(desired.left_out, []);
    assert_eq!(
        diff(&desired.state, &NetState::default()).to_string(),
        "\
ip link add flannel-v6.1 address 02:00:00:00:00:01 mtu 1430 type vxlan id 1 local fd99::1 \
dev eth0 dstport 8472 nolearning
sysctl -w net/ipv6/conf/flannel-v6.1/accept_ra=0
ip address replace 2001:db8:42:1::/128 dev flannel-v6.1
ip link set flannel-v6.1 up
ip neigh replace 2001:db8:42:2:: lladdr 02:00:00:00:00:02 dev flannel-v6.1 nud permanent
bridge fdb replace 02:00:00:00:00:02 dev flannel-v6.1 dst fd99::2 self permanent
ip route add 2001:db8:42:2::/64 via 2001:db8:42:2:: dev flannel-v6.1 proto 199 onlink
"
    );
}

#[test]
fn options_shape_the_device() {
    let options = json!({"vni": 4096, "PORT": 4789, "MTU": 1400, "Learning": true, "GBP": true});
    let vxlan = configure(options).unwrap();
    let own = "10.244.1.0/24".parse().unwrap();
    let plan = diff(&vxlan.desired(own, &[]).state, &NetState::default()).to_string();
    assert!(
        plan.starts_with(
            "ip link add flannel.4096 address 02:00:00:00:00:01 mtu 1350 type vxlan id 4096 \
             local 198.51.100.1 dev eth0 dstport 4789 learning gbp\n"
        ),
        "{plan}"
    );
    assert_eq!(vxlan.pod_mtu(), Mtu::new(1350).unwrap());
    let jumbo = configure(json!({"MTU": 9000})).unwrap();
    assert_eq!(jumbo.pod_mtu(), Mtu::new(1450).unwrap());
    let (kind, data) = vxlan.published();
    assert_eq!(kind, "vxlan");
    assert_eq!(data.unwrap().to_string(), r#"{"VNI":4096,"VtepMAC":"02:00:00:00:00:01"}"#);
}

#[test]
fn checksums_are_computed_early_where_it_is_said_or_the_kernel_is_old() {
    let switched = |text: &str, release: &str| {
        Options { tx_checksum: text.to_owned(), ..Options::default() }.tx_checksum(release).unwrap()
    };
    for release in ["3.10.0-1160.el7.x86_64", "4.19.0-27-amd64", "5.4.0-150-generic", "5.6"] {
        assert_eq!(switched("", release), Some(false), "{release}");
    }
    for release in ["5.7.0", "5.10.0-32-amd64", "6.18.44", "", "unknown"] {
        assert_eq!(switched("auto", release), None, "{release}");
    }
    assert_eq!((switched("on", "4.19"), switched("off", "6.1")), (Some(true), Some(false)));
    let vxlan = configure(json!({"TxChecksum": "off"})).unwrap();
    let own = "10.244.3.0/24".parse().unwrap();
    let plan = diff(&vxlan.desired(own, &[]).state, &fabric::netstate::NetState::default());
    assert!(plan.to_string().contains("\nethtool -K flannel.1 tx off\n"), "{plan}");
    let error = configure(json!({"TxChecksum": "maybe"})).unwrap_err().to_string();
    assert!(error.contains("TxChecksum \"maybe\""), "{error}");
}

#[test]
fn options_that_cannot_be_are_refused() {
    for (options, text) in [
        (json!({"VNI": 16_777_216}), "Backend.VNI 16777216 is out of range: want 0 to 9999999"),
        (json!({"VNI": -1}), "Backend.VNI -1 is out of range: want 0 to 9999999"),
        (json!({"Port": 65_536}), "Backend.Port 65536 is out of range: want 0 to 65535"),
        (json!({"MTU": 60}), "Backend.MTU 60 is out of range: want 118 to 65535"),
        (
            json!({"MTU": 100}),
            "MTU 100 leaves no room for pods: 50 bytes are added to every packet",
        ),
    ] {
        assert_eq!(configure(options).unwrap_err().to_string(), text);
    }
    assert!(matches!(configure(json!({"VNI": "1"})), Err(BackendError::Json(_))));
    assert_eq!(
        configure_for(Family::V6, json!({"VNI": 10_000})).unwrap_err().to_string(),
        "Backend.VNI 10000 is out of range: want 0 to 9999 with IPv6"
    );
    assert_eq!(
        configure_for(Family::V6, json!({"MTU": 1349})).unwrap_err().to_string(),
        "MTU 1349 leaves no room for IPv6 pods: 70 bytes are added to every packet, so that 1350 \
         are needed; use host-gw, or leave EnableIPv6 out"
    );
    assert_eq!(configure_for(Family::V6, json!({"MTU": 1350})).unwrap().pod_mtu().get(), 1280);
}

#[test]
fn a_peer_that_makes_no_sense_is_left_out_and_the_others_stay() {
    let mac = |last: u8| format!("02:00:00:00:01:{last:02x}");
    let good = |subnet: &str, last: u8| (key(subnet), attributes(last, &mac(last)));
    let mut other_backend = good("10.244.9.0-24", 9);
    other_backend.1.backend_type = "ipip".to_owned();
    let mut no_data = good("10.244.16.0-24", 10);
    no_data.1.backend_data = None;
    let mut no_address = good("10.244.11.0-24", 11);
    no_address.1.public_ip = [0, 0, 0, 0].into();
    let mut ours = good("10.244.12.0-24", 12);
    ours.1.public_ip = [203, 0, 113, 1].into();
    let leases = [
        (key("10.243.0.0-24"), attributes(20, &mac(20))),
        (key("10.244.0.0-23"), attributes(21, &mac(21))),
        good("10.244.2.0-24", 2),
        (key("10.244.3.0-24"), attributes(3, &mac(2))),
        (key("10.244.4.0-24"), attributes(4, "ff:ff:ff:ff:ff:ff")),
        (key("10.244.5.0-24"), attributes(5, "02:00:00:00:00:01")),
        (key("10.244.6.0-22"), attributes(6, &mac(6))),
        (key("10.244.8.0-22"), attributes(8, &mac(8))),
        other_backend,
        no_address,
        ours,
        no_data,
        (key("0.0.0.0-0"), attributes(30, &mac(30))),
        good("10.244.20.0-24", 40),
    ];
    let desired = desired(&leases);
    let routes: Vec<_> =
        desired.state.routes.keys().map(|key| key.destination.to_string()).collect();
    assert_eq!(routes, ["10.244.2.0/24", "10.244.8.0/22", "10.244.20.0/24"]);
    let left_out: Vec<_> =
        desired.left_out.iter().map(|(key, reason)| format!("{key}: {reason}")).collect();
    assert_eq!(
        left_out,
        [
            "10.243.0.0/24: its subnet is not inside the network 10.244.0.0/16",
            "10.244.0.0/23: its subnet overlaps our own",
            "10.244.3.0/24: its Ethernet address is that of 10.244.2.0/24",
            "10.244.4.0/24: its backend data does not decode: VtepMAC ff:ff:ff:ff:ff:ff is not of \
             one station",
            "10.244.5.0/24: its Ethernet address is that of this node",
            "10.244.6.0/22: its key has host bits",
            "10.244.9.0/24: its backend is \"ipip\", not \"vxlan\"",
            "10.244.11.0/24: it has no public IPv4 address",
            "10.244.12.0/24: its public address 203.0.113.1 is ours",
            "10.244.16.0/24: its backend data does not decode: there is none",
            "0.0.0.0/0: its subnet is not inside the network 10.244.0.0/16",
        ]
    );
}

#[test]
fn a_peer_inside_the_subnet_of_another_is_left_out() {
    let leases = [
        (key("10.244.8.0-22"), attributes(8, "02:00:00:00:01:08")),
        (key("10.244.9.0-24"), attributes(9, "02:00:00:00:01:09")),
    ];
    let reason = Reason::OverlapsPeer("10.244.8.0/22".parse().unwrap());
    assert_eq!(desired(&leases).left_out, [("10.244.9.0/24".parse().unwrap(), reason)]);
}
