//! Whose a key is, and what is taken.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::config::NetworkConfig;

const ME: [u8; 4] = [198, 51, 100, 1];
const OTHER: [u8; 4] = [198, 51, 100, 2];

fn request(previous: Option<&str>) -> Request {
    let json = br#"{"Network":"10.3.0.0/20","Backend":{"Type":"vxlan"}}"#;
    Request {
        pools: NetworkConfig::parse(json).unwrap().pools,
        previous: previous.map(key),
        attributes: attributes(ME, 1),
    }
}

fn attributes(public_ip: [u8; 4], mark: u8) -> Attributes {
    Attributes {
        public_ip: public_ip.into(),
        public_ipv6: None,
        backend_type: "vxlan".to_owned(),
        backend_data: Some(
            json!({"VNI": 1, "VtepMAC": format!("02:00:00:00:00:{mark:02x}")}).into(),
        ),
        backend_v6_data: None,
    }
}

fn key(text: &str) -> LeaseKey {
    LeaseKey::parse(text).unwrap()
}

fn marked(text: &str, public_ip: [u8; 4], mark: u8) -> Entry {
    let attributes = Some(attributes(public_ip, mark));
    Entry { listed: Listed { key: key(text), attributes }, revision: 5, created: 5, lease: 77 }
}

fn ours(text: &str) -> Entry {
    marked(text, ME, 1)
}

fn others(text: &str) -> Entry {
    marked(text, OTHER, 2)
}

fn reserved(text: &str) -> Entry {
    let mut entry = Entry { lease: 0, ..ours(text) };
    entry.listed.attributes.as_mut().unwrap().backend_data = None;
    entry
}

fn verdict(alive: bool) -> Memory {
    let verdict = Verdict { key: key("10.3.5.0-24"), revision: 5, alive };
    Memory { verdict: Some(verdict), ..Memory::default() }
}

fn first(_: usize) -> usize {
    0
}

/// What is held, and what is decided then: with what it shows, and the subnet that was ours before.
type Case = (&'static str, Option<&'static str>, Vec<Entry>, Decision);

fn expect(cases: Vec<Case>, request: fn(Option<&str>) -> Request) {
    for (name, previous, entries, decision) in cases {
        let decided = decide(&request(previous), &Memory::default(), &entries, first);
        assert_eq!(decided, decision, "{name}");
    }
}

#[test]
fn keys_of_ours_are_kept_unless_they_do_not_fit() {
    let cases = vec![
        (
            "our key is found again",
            Some("10.3.9.0-24"),
            vec![others("10.3.2.0-24"), ours("10.3.5.0-24")],
            Decision::Keep(ours("10.3.5.0-24")),
        ),
        (
            "the first of two keys of ours is kept",
            None,
            vec![ours("10.3.7.0-24"), ours("10.3.5.0-24")],
            Decision::Keep(ours("10.3.5.0-24")),
        ),
        (
            "of two keys of ours the one that we had is kept",
            Some("10.3.7.0-24"),
            vec![ours("10.3.7.0-24"), ours("10.3.5.0-24")],
            Decision::Keep(ours("10.3.7.0-24")),
        ),
        (
            "our key has a length that is no longer configured",
            None,
            vec![ours("10.3.5.0-25")],
            Decision::Drop(ours("10.3.5.0-25")),
        ),
        (
            "our key has a family that is not configured",
            None,
            vec![ours("10.3.5.0-24&fd00::-64")],
            Decision::Move(ours("10.3.5.0-24&fd00::-64"), key("10.3.5.0-24")),
        ),
    ];
    expect(cases, request);
}

#[test]
fn reservations_come_first_where_they_fit() {
    let cases = vec![
        (
            "a reservation comes before a lease",
            None,
            vec![ours("10.3.5.0-24"), reserved("10.3.7.0-24")],
            Decision::Keep(reserved("10.3.7.0-24")),
        ),
        (
            "a reservation does not move a node that has a subnet",
            Some("10.3.5.0-24"),
            vec![ours("10.3.5.0-24"), reserved("10.3.7.0-24")],
            Decision::Keep(ours("10.3.5.0-24")),
        ),
        (
            "a reservation that does not fit is not dropped",
            None,
            vec![reserved("10.3.0.0-22")],
            Decision::Create(key("10.3.4.0-24")),
        ),
    ];
    expect(cases, request);
}

#[test]
fn a_subnet_is_created_where_none_is_held() {
    let unreadable = Entry {
        listed: Listed { key: key("10.3.1.0-24"), attributes: None },
        ..others("10.3.1.0-24")
    };
    let cases = vec![
        ("nothing is held", None, vec![], Decision::Create(key("10.3.1.0-24"))),
        (
            "the previous subnet is free",
            Some("10.3.9.0-24"),
            vec![others("10.3.2.0-24")],
            Decision::Create(key("10.3.9.0-24")),
        ),
        (
            "the previous subnet is somebody else's now",
            Some("10.3.9.0-24"),
            vec![others("10.3.9.0-24")],
            Decision::Create(key("10.3.1.0-24")),
        ),
        (
            "the previous subnet is outside of the network now",
            Some("10.9.9.0-24"),
            vec![],
            Decision::Create(key("10.3.1.0-24")),
        ),
        (
            "an unreadable key holds its subnet",
            None,
            vec![unreadable],
            Decision::Create(key("10.3.2.0-24")),
        ),
        (
            "a shorter prefix holds all subnets in it",
            None,
            vec![others("10.3.0.0-21")],
            Decision::Create(key("10.3.8.0-24")),
        ),
    ];
    expect(cases, request);
}

#[test]
fn what_may_be_ours_is_looked_into() {
    let cases = vec![
        (
            "our address with another mark has to be looked into",
            None,
            vec![marked("10.3.5.0-24", ME, 9)],
            Decision::Ask(marked("10.3.5.0-24", ME, 9)),
        ),
        (
            "our mark on the previous subnet, with another address, has to be looked into",
            Some("10.3.5.0-24"),
            vec![marked("10.3.5.0-24", OTHER, 1)],
            Decision::Ask(marked("10.3.5.0-24", OTHER, 1)),
        ),
    ];
    expect(cases, request);
}

fn dual_request(previous: Option<&str>) -> Request {
    let json = br#"{"Network":"10.3.0.0/20","EnableIPv6":true,"IPv6Network":"fd03::/60",
                    "Backend":{"Type":"vxlan"}}"#;
    Request { pools: NetworkConfig::parse(json).unwrap().pools, ..request(previous) }
}

#[test]
fn decisions_with_both_families() {
    let both = "10.3.5.0-24&fd03:0:0:7::-64";
    let cases = vec![
        ("nothing is held", None, vec![], Decision::Create(key("10.3.1.0-24&fd03:0:0:1::-64"))),
        ("our key is found again", None, vec![ours(both)], Decision::Keep(ours(both))),
        (
            "IPv6 was switched on: the IPv4 subnet stays",
            None,
            vec![ours("10.3.5.0-24"), others("10.3.6.0-24&fd03:0:0:1::-64")],
            Decision::Move(ours("10.3.5.0-24"), key("10.3.5.0-24&fd03:0:0:2::-64")),
        ),
        (
            "IPv4 was switched on: the IPv6 subnet stays",
            None,
            vec![ours("0.0.0.0-0&fd03:0:0:7::-64")],
            Decision::Move(ours("0.0.0.0-0&fd03:0:0:7::-64"), key("10.3.1.0-24&fd03:0:0:7::-64")),
        ),
        (
            "what a move left over is removed",
            None,
            vec![ours("10.3.5.0-24"), ours(both)],
            Decision::Drop(ours("10.3.5.0-24")),
        ),
        (
            "a reservation of IPv4 gets an IPv6 subnet too",
            None,
            vec![reserved("10.3.9.0-24")],
            Decision::Move(reserved("10.3.9.0-24"), key("10.3.9.0-24&fd03:0:0:1::-64")),
        ),
        (
            "each previous subnet that is free is taken again",
            Some("10.3.9.0-24&fd03:0:0:9::-64"),
            vec![others("10.3.2.0-24&fd03:0:0:9::-64")],
            Decision::Create(key("10.3.9.0-24&fd03:0:0:1::-64")),
        ),
        (
            "a subnet is held by whatever key it is in",
            None,
            vec![others("10.3.1.0-24"), others("0.0.0.0-0&fd03::-62")],
            Decision::Create(key("10.3.2.0-24&fd03:0:0:4::-64")),
        ),
        (
            "all IPv6 subnets are held",
            None,
            vec![others("10.3.1.0-24&fd03::-60")],
            Decision::Exhausted(Family::V6),
        ),
    ];
    expect(cases, dual_request);
}

#[test]
fn nodes_without_ipv4_are_told_apart_by_their_other_address() {
    let json = br#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd03::/60",
                    "Backend":{"Type":"host-gw"}}"#;
    let node = |last: u16| Attributes {
        public_ip: [0; 4].into(),
        public_ipv6: Some([0xfd99, 0, 0, 0, 0, 0, 0, last].into()),
        backend_data: None,
        ..attributes(ME, 1)
    };
    let pools = NetworkConfig::parse(json).unwrap().pools;
    let request = Request { pools, previous: None, attributes: node(1) };
    let entry = |text, last| {
        let listed = Listed { key: key(text), attributes: Some(node(last)) };
        Entry { listed, revision: 5, created: 1, lease: 77 }
    };
    let other = entry("0.0.0.0-0&fd03:0:0:1::-64", 2);
    let own = entry("0.0.0.0-0&fd03:0:0:5::-64", 1);
    let entries = [other, own.clone()];
    let decide = |entries| decide(&request, &Memory::default(), entries, first);
    assert_eq!(decide(&entries), Decision::Keep(own));
    assert_eq!(decide(&entries[..1]), Decision::Create(key("0.0.0.0-0&fd03:0:0:2::-64")));
}

#[test]
fn another_living_node_with_our_address_is_never_overwritten() {
    let twin = marked("10.3.5.0-24", ME, 9);
    let decide = |memory| decide(&request(None), &memory, std::slice::from_ref(&twin), first);
    assert_eq!(decide(verdict(true)), Decision::Refuse(twin.clone()));
    assert_eq!(decide(verdict(false)), Decision::TakeOver(twin.clone()));
}

#[test]
fn a_node_whose_address_changed_gets_its_subnet_back_unless_it_is_a_copy() {
    let before = marked("10.3.5.0-24", OTHER, 1);
    let request = request(Some("10.3.5.0-24"));
    let decide = |memory| decide(&request, &memory, std::slice::from_ref(&before), first);
    assert_eq!(decide(verdict(false)), Decision::TakeOver(before.clone()));
    assert_eq!(decide(verdict(true)), Decision::Create(key("10.3.1.0-24")));
}

#[test]
fn what_we_wrote_last_is_ours_whatever_it_says() {
    let before = marked("10.3.5.0-24", OTHER, 9);
    let memory = Memory { held: Some(before.clone()), ..Memory::default() };
    let decided = decide(&request(None), &memory, std::slice::from_ref(&before), first);
    assert_eq!(decided, Decision::Keep(before));
}

#[test]
fn a_reservation_is_for_the_address_and_the_last_who_came_stays() {
    let entry = Entry { lease: 0, ..marked("10.3.5.0-24", ME, 9) };
    let decide = |memory| decide(&request(None), &memory, std::slice::from_ref(&entry), first);
    assert_eq!(decide(Memory::default()), Decision::TakeOver(entry.clone()));
    let before =
        Memory { held: Some(Entry { lease: 0, ..ours("10.3.5.0-24") }), ..Memory::default() };
    assert_eq!(decide(before), Decision::Refuse(entry.clone()));
}

/// Who wants a /24 and who wants a /25 cannot see each other's key while they write.
#[test]
fn of_two_that_overlap_the_second_gives_way_unless_it_is_reserved() {
    let mine = Entry { created: 7, ..ours("10.3.5.0-24") };
    let decided = |mine: &Entry, created| {
        let other = Entry { created, ..others("10.3.5.128-25") };
        decide(&request(None), &Memory::default(), &[mine.clone(), other], first)
    };
    assert_eq!(decided(&mine, 6), Decision::Drop(mine.clone()));
    assert_eq!(decided(&mine, 8), Decision::Keep(mine.clone()));
    // A directory lets nobody write what overlaps, and knows no revisions.
    assert_eq!(decided(&mine, 0), Decision::Keep(mine.clone()));
    let mine = Entry { lease: 0, ..mine };
    assert_eq!(decided(&mine, 6), Decision::Keep(mine));
}

#[test]
fn when_all_are_held_there_is_nothing_to_create() {
    let entries: Vec<_> = (0..16).map(|n| others(&format!("10.3.{n}.0-24"))).collect();
    assert_eq!(
        decide(&request(None), &Memory::default(), &entries, first),
        Decision::Exhausted(Family::V4)
    );
}

proptest! {
    #[test]
    fn what_is_created_or_moved_to_overlaps_nothing_in_either_family(
        taken in proptest::collection::vec((0..16_u8, 22..28_u8, 0..16_u8, 61..66_u8), 0..10),
        own in proptest::option::of(0..16_u8),
        drawn in any::<usize>(),
    ) {
        let taken = taken.iter().map(|(n, len, m, len6)| {
            others(&format!("10.3.{n}.0-{len}&fd03:0:0:{m:x}::-{len6}"))
        });
        let own = own.map(|n| ours(&format!("10.3.{n}.0-24")));
        let entries: Vec<_> = taken.chain(own).collect();
        let request = dual_request(None);
        let chosen = match decide(&request, &Memory::default(), &entries, |count| drawn % count) {
            Decision::Create(key) => Some((None, key)),
            Decision::Move(from, key) => Some((Some(from.listed.key), key)),
            _ => None,
        };
        if let Some((from, key)) = chosen {
            let others = entries.iter().map(|other| other.listed.key);
            let mut others = others.filter(|other| Some(*other) != from);
            prop_assert!(!others.any(|other| other.overlaps(&key)), "{}", key);
            prop_assert_eq!(request.fit(key), Fit::Whole);
        }
    }

    #[test]
    fn what_is_created_overlaps_nothing_and_is_on_offer(
        taken in proptest::collection::vec((0..16_u8, 22..28_u8), 0..20),
        drawn in any::<usize>(),
    ) {
        let entries: Vec<_> =
            taken.iter().map(|(n, len)| others(&format!("10.3.{n}.0-{len}"))).collect();
        let request = request(None);
        match decide(&request, &Memory::default(), &entries, |count| drawn % count) {
            Decision::Create(key) => {
                prop_assert!(entries.iter().all(|other| !other.listed.key.overlaps(&key)));
                prop_assert!(request.fit(key) == Fit::Whole);
            }
            Decision::Exhausted(_) => {}
            other => prop_assert!(false, "{:?}", other),
        }
    }
}
