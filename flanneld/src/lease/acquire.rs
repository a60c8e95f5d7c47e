//! Which subnet a node takes: a decision over what is listed in the store, without side effects.

use std::net::Ipv4Addr;

use crate::config::Pool;

use super::{Attributes, LeaseKey};

/// The candidates among which a free subnet is drawn. Many, so that nodes that boot together
/// rarely draw the same; the loser of a race draws again.
const CANDIDATES_MAX: usize = 100;

/// A key in the store.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Listed {
    pub(crate) key: LeaseKey,
    /// What it says; `None` if that is unreadable. The subnet is taken all the same.
    pub(crate) attributes: Option<Attributes>,
}

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// The subnets to choose from.
    pub(crate) pool: Pool,
    /// The subnet that this node had before, if it knows.
    pub(crate) previous: Option<LeaseKey>,
    /// What the lease shall say. The public address is the node's identity.
    pub(crate) attributes: Attributes,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Decision {
    /// This key is ours already: bring its value up to date.
    Keep(LeaseKey),
    /// This key is ours, but no longer of the configured shape: remove it and decide again.
    Drop(LeaseKey),
    /// Nobody has this subnet: create it.
    Create(LeaseKey),
    /// All subnets are held.
    Exhausted {
        /// How many keys there are.
        held: usize,
    },
}

/// Decides. `draw` picks one of so many candidates.
pub(crate) fn decide(
    request: &Request,
    listed: &[Listed],
    draw: impl FnOnce(usize) -> usize,
) -> Decision {
    if let Some(key) = own(request.attributes.public_ip, listed) {
        return if fits(&request.pool, key) { Decision::Keep(key) } else { Decision::Drop(key) };
    }
    let is_free = |key: &LeaseKey| !listed.iter().any(|other| other.key.overlaps(key));
    if let Some(key) = request.previous.filter(|key| fits(&request.pool, *key) && is_free(key)) {
        return Decision::Create(key);
    }
    let subnets = request.pool.subnets().filter_map(|subnet| match subnet {
        ipnetwork::IpNetwork::V4(ipv4) => Some(LeaseKey::v4(ipv4)),
        ipnetwork::IpNetwork::V6(_) => None,
    });
    let candidates: Vec<_> = subnets.filter(is_free).take(CANDIDATES_MAX).collect();
    match candidates.get(draw(candidates.len().max(1)) % candidates.len().max(1)) {
        Some(key) => Decision::Create(*key),
        None => Decision::Exhausted { held: listed.len() },
    }
}

/// The first key, in the order of keys, that carries the node's public address.
fn own(public_ip: Ipv4Addr, listed: &[Listed]) -> Option<LeaseKey> {
    let is_own = |listed: &&Listed| {
        listed.attributes.as_ref().is_some_and(|attributes| attributes.public_ip == public_ip)
    };
    listed.iter().filter(is_own).map(|listed| listed.key).min()
}

fn fits(pool: &Pool, key: LeaseKey) -> bool {
    key.ipv6.is_none() && pool.offers(key.subnet4())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::NetworkConfig;

    const ME: [u8; 4] = [198, 51, 100, 1];

    fn request(previous: Option<&str>) -> Request {
        let json = br#"{"Network":"10.3.0.0/20","Backend":{"Type":"vxlan"}}"#;
        Request {
            pool: NetworkConfig::parse(json).unwrap().ipv4.unwrap(),
            previous: previous.map(key),
            attributes: attributes(ME),
        }
    }

    fn attributes(public_ip: [u8; 4]) -> Attributes {
        Attributes {
            public_ip: public_ip.into(),
            public_ipv6: None,
            backend_type: "vxlan".to_owned(),
            backend_data: None,
            backend_v6_data: None,
        }
    }

    fn key(text: &str) -> LeaseKey {
        LeaseKey::parse(text).unwrap()
    }

    fn held(text: &str, public_ip: [u8; 4]) -> Listed {
        Listed { key: key(text), attributes: Some(attributes(public_ip)) }
    }

    fn first(_: usize) -> usize {
        0
    }

    #[test]
    fn decisions() {
        let other = [198, 51, 100, 2];
        let unreadable = Listed { key: key("10.3.1.0-24"), attributes: None };
        let wide = held("10.3.0.0-21", other);
        let cases: Vec<(&str, Option<&str>, Vec<Listed>, Decision)> = vec![
            ("nothing is held", None, vec![], Decision::Create(key("10.3.1.0-24"))),
            (
                "our public address is found again",
                Some("10.3.9.0-24"),
                vec![held("10.3.2.0-24", other), held("10.3.5.0-24", ME)],
                Decision::Keep(key("10.3.5.0-24")),
            ),
            (
                "the first of two keys of ours is kept",
                None,
                vec![held("10.3.7.0-24", ME), held("10.3.5.0-24", ME)],
                Decision::Keep(key("10.3.5.0-24")),
            ),
            (
                "our key has a length that is no longer configured",
                None,
                vec![held("10.3.5.0-25", ME)],
                Decision::Drop(key("10.3.5.0-25")),
            ),
            (
                "our key has a family that is not configured",
                None,
                vec![held("10.3.5.0-24&fd00::-64", ME)],
                Decision::Drop(key("10.3.5.0-24&fd00::-64")),
            ),
            (
                "the previous subnet is free",
                Some("10.3.9.0-24"),
                vec![held("10.3.2.0-24", other)],
                Decision::Create(key("10.3.9.0-24")),
            ),
            (
                "the previous subnet is somebody else's now",
                Some("10.3.9.0-24"),
                vec![held("10.3.9.0-24", other)],
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
                vec![wide],
                Decision::Create(key("10.3.8.0-24")),
            ),
        ];
        for (name, previous, listed, decision) in cases {
            assert_eq!(decide(&request(previous), &listed, first), decision, "{name}");
        }
    }

    #[test]
    fn when_all_are_held_it_says_how_many() {
        let listed: Vec<_> =
            (0..16).map(|n| held(&format!("10.3.{n}.0-24"), [198, 51, 100, 100 + n])).collect();
        assert_eq!(decide(&request(None), &listed, first), Decision::Exhausted { held: 16 });
    }

    proptest! {
        #[test]
        fn what_is_created_overlaps_nothing_and_is_on_offer(
            taken in proptest::collection::vec((0..16_u8, 22..28_u8), 0..20),
            drawn in any::<usize>(),
        ) {
            let listed: Vec<_> = taken
                .iter()
                .map(|(n, len)| held(&format!("10.3.{n}.0-{len}"), [198, 51, 100, 200]))
                .collect();
            let request = request(None);
            match decide(&request, &listed, |count| drawn % count) {
                Decision::Create(key) => {
                    prop_assert!(listed.iter().all(|other| !other.key.overlaps(&key)));
                    prop_assert!(request.pool.offers(key.subnet4()));
                }
                Decision::Exhausted { held } => prop_assert_eq!(held, listed.len()),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
