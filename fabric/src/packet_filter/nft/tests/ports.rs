//! Rules that lead ports of the node to pods, and the flows that they made.

use std::net::{IpAddr, UdpSocket};

use flannel_tests::sandbox::sandboxed;

use super::*;
use crate::packet_filter::nft::{Flow, forget_udp_flows};
use crate::packet_filter::{Hook, Match, Transport};

fn ports(family: Family, pod: &str, loopback: &str) -> Ruleset {
    let to_pod = |transport, port| {
        let to = Verdict::DestinationNat((pod.parse::<IpAddr>().unwrap(), 80).into());
        rule(&[Match::DestinationPort(transport, port)], to, Some("x"))
    };
    let local = || rule(&[Match::LocalDestination], Verdict::Jump("ports".to_owned()), None);
    let loopback = Match::Destination(net(loopback), true);
    let foreign = [Match::InputInterface("cni0".parse().unwrap()), loopback];
    let mut ruleset = Ruleset {
        tables: vec![table(
            family,
            vec![
                chain(
                    "ports",
                    None,
                    vec![
                        to_pod(Transport::Tcp, 8080),
                        to_pod(Transport::Udp, 53),
                        to_pod(Transport::Sctp, 7),
                    ],
                ),
                chain("prerouting", Some(Hook::NatPrerouting), vec![local()]),
                chain("output", Some(Hook::NatOutput), vec![local()]),
                chain(
                    "early",
                    Some(Hook::FilterPrerouting),
                    vec![rule(&foreign, Verdict::Drop, None)],
                ),
            ],
        )],
    };
    ruleset.tables[0].ownership = Ownership::Whole;
    ruleset
}

#[test]
fn ports_lead_to_pods() {
    sandboxed(|| {
        let mut filter = Nft::open().unwrap();
        ensure(&mut filter, &ports(Family::Ip, "10.0.0.2", "127.0.0.0/8")).unwrap();
        ensure(&mut filter, &ports(Family::Ip6, "fd00::2", "::1/128")).unwrap();
        assert_settled(&ports(Family::Ip, "10.0.0.2", "127.0.0.0/8"));
        assert_settled(&ports(Family::Ip6, "fd00::2", "::1/128"));
        let expected = "\
table ip t {
\tchain ports {
\t\ttcp dport 8080 dnat to 10.0.0.2:80 comment \"x\"
\t\tudp dport 53 dnat to 10.0.0.2:80 comment \"x\"
\t\tsctp dport 7 dnat to 10.0.0.2:80 comment \"x\"
\t}

\tchain prerouting {
\t\ttype nat hook prerouting priority dstnat; policy accept;
\t\tfib daddr type local jump ports
\t}

\tchain output {
\t\ttype nat hook output priority -100; policy accept;
\t\tfib daddr type local jump ports
\t}

\tchain early {
\t\ttype filter hook prerouting priority raw; policy accept;
\t\tiifname \"cni0\" ip daddr 127.0.0.0/8 drop
\t}
}
";
        let table = |family| TableId { family, name: "t".to_owned() };
        assert_eq!(listing_of(&table(Family::Ip)), expected);
        assert!(listing_of(&table(Family::Ip6)).contains("dnat to [fd00::2]:80"));

        // The commands are understood by nft, and what it makes of them by us.
        let desired = ports(Family::Ip6, "fd00::2", "::1/128");
        nft("delete table ip6 t");
        nft(&diff(&desired, &filter.observe(&desired).unwrap()).to_string());
        assert_settled(&desired);
    });
}

#[test]
fn flows_are_forgotten_by_who_answers() {
    sandboxed(|| {
        nft("add table ip t\n\
             add chain ip t out { type nat hook output priority -100; }\n\
             add rule ip t out udp dport 53 dnat to 127.0.0.9:80\n");
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for port in [53, 54] {
            socket.send_to(b"x", ("127.0.0.1", port)).unwrap();
        }
        let mut seen = Vec::new();
        let pod: IpAddr = "127.0.0.9".parse().unwrap();
        let forget = |flow: &Flow| flow.answered_by == pod && flow.destination.port() == 53;
        assert_eq!(forget_udp_flows(forget).unwrap(), 1);
        assert_eq!(forget_udp_flows(forget).unwrap(), 0);
        let cell = std::cell::RefCell::new(&mut seen);
        forget_udp_flows(|flow| {
            cell.borrow_mut().push(flow.destination.port());
            false
        })
        .unwrap();
        assert!(seen.contains(&54), "{seen:?}");
    });
}
