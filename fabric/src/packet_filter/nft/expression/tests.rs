//! Rules survive being encoded and decoded.

use netlink_packet_core::Emitable;
use proptest::prelude::*;

use super::*;
use crate::packet_filter::Transport;
use crate::packet_filter::examples::net;

#[test]
fn other_protocol_is_checked_even_where_it_cannot_occur() {
    let matches = [Match::Source(net("fd00::/64"), false)];
    let expressions = encode(Family::Ip, &matches, &Verdict::Accept);
    assert_eq!(expressions[..2], match_protocol(Protocol::V6));
    assert_eq!(encode(Family::Ip6, &matches, &Verdict::Accept), expressions[2..]);
}

#[test]
fn comparison_with_more_or_less_than_was_loaded_is_foreign() {
    for length in [1, 3, 4] {
        let expressions =
            vec![load_network(12, length), compare(true, vec![10, 1]), conclude(&Verdict::Accept)];
        assert_eq!(decode(Family::Ip, &emitted(&expressions)), None, "{length}");
    }
}

#[test]
fn unfinished_or_continued_rule_is_foreign() {
    let accept = || conclude(&Verdict::Accept);
    let [load, check] = match_protocol(Protocol::V4);
    for expressions in [
        vec![],
        vec![load.clone(), accept()],
        vec![load.clone(), check.clone(), accept()],
        vec![load_network(12, 1), compare(true, vec![10]), accept()],
        vec![accept(), load, check],
    ] {
        assert_eq!(decode(Family::Inet, &emitted(&expressions)), None, "{expressions:?}");
    }
}

#[test]
fn host_bits_are_left_out() {
    let encoded = |text| encode(Family::Ip, &[Match::Source(net(text), true)], &Verdict::Accept);
    assert_eq!(encoded("10.1.2.3/15"), encoded("10.0.0.0/15"));
    assert_eq!(encoded("10.1.2.3/16"), encoded("10.1.0.0/16"));
}

proptest! {
    #[test]
    fn decoder_understands_the_encoder(
        family in prop_oneof![Just(Family::Ip), Just(Family::Ip6), Just(Family::Inet)],
        matches in any_matches(),
        verdict in any_verdict(),
        to in (any::<[u8; 4]>(), any::<[u8; 16]>(), any::<u16>()),
        translates in any::<bool>(),
    ) {
        let verdict = match family {
            Family::Ip if translates => Verdict::DestinationNat((to.0, to.2).into()),
            Family::Ip6 if translates => Verdict::DestinationNat((to.1, to.2).into()),
            _ => verdict,
        };
        // Addresses of the other family are checked for their protocol, which says another family.
        let implied = Protocol::implied_by(family);
        let is_implied = |condition: &Match| match condition {
            Match::Source(network, _) | Match::Destination(network, _) => {
                Some(Protocol::of(network)) == implied
            }
            _ => true,
        };
        let matches: Vec<_> =
            matches.into_iter().filter(|one| !translates || is_implied(one)).collect();
        let expressions = encode(family, &matches, &verdict);
        prop_assert_eq!(decode(family, &emitted(&expressions)), Some((matches, verdict)));
    }
}

fn emitted(expressions: &[Expression]) -> Vec<u8> {
    let mut bytes = vec![0; expressions.buffer_len()];
    expressions.emit(&mut bytes);
    bytes
}

fn any_matches() -> impl Strategy<Value = Vec<Match>> {
    let v4 = (any::<[u8; 4]>().prop_map(IpAddr::from), 0..=32u8);
    let v6 = (any::<[u8; 16]>().prop_map(IpAddr::from), 0..=128u8);
    let network = || {
        let network = prop_oneof![v4.clone().boxed(), v6.clone().boxed()];
        network.prop_map(|(ip, prefix)| IpNetwork::new(ip, prefix).unwrap())
    };
    let one = prop_oneof![
        any::<u32>().prop_map(Match::Mark),
        Just(Match::LocalDestination),
        (any::<u16>(), 0..3_usize)
            .prop_map(|(port, transport)| Match::DestinationPort(Transport::ALL[transport], port)),
        "[a-z]{1,15}".prop_map(|name| Match::InputInterface(name.parse().unwrap())),
        (network(), any::<bool>()).prop_map(|(network, equal)| Match::Source(network, equal)),
        (network(), any::<bool>()).prop_map(|(network, equal)| Match::Destination(network, equal)),
    ];
    prop::collection::vec(one, 0..4)
}

fn any_verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Accept),
        Just(Verdict::Return),
        Just(Verdict::Drop),
        "[a-z]{1,9}".prop_map(Verdict::Goto),
        "[a-z]{1,9}".prop_map(Verdict::Jump),
        any::<u32>().prop_map(Verdict::ClearMark),
        any::<bool>().prop_map(|fully_random| Verdict::Masquerade { fully_random }),
    ]
}
