use std::cell::RefCell;

use super::*;
use crate::config::NetworkConfig;
use crate::lease::table::LeaseUpdate;
use crate::lease::{Attributes, Lease, LeaseKey};
use crate::store::{LEASE_TTL, StoreError};

const MARGIN: Duration = Duration::from_secs(60 * 60);

/// A store that answers from scripts and notes what it was asked.
#[derive(Default)]
struct Script {
    renewals: RefCell<Vec<Result<Renewal, StoreError>>>,
    subnets: RefCell<Vec<&'static str>>,
    asked: RefCell<Vec<&'static str>>,
}

impl LeaseStore for Script {
    async fn network_config(&self) -> Result<Vec<u8>, StoreError> {
        unreachable!("nobody asks for the configuration")
    }

    async fn acquire(&self, request: &Request) -> Result<Held, StoreError> {
        self.asked.borrow_mut().push("acquire");
        let previous = request.previous.expect("the lease that was lost is known");
        let scripted = self.subnets.borrow_mut().pop();
        let subnet = scripted.map_or(previous, |text| LeaseKey::parse(text).unwrap());
        Ok(held(subnet))
    }

    async fn renew(&self, _held: &Held) -> Result<Renewal, StoreError> {
        self.asked.borrow_mut().push("renew");
        let scripted = self.renewals.borrow_mut().pop();
        scripted.unwrap_or(Ok(Renewal::Until(end())))
    }

    async fn watch(&self, _updates: mpsc::Sender<LeaseUpdate>) {
        unreachable!("nobody watches")
    }
}

/// Paused time only moves this clock.
fn end() -> Option<Instant> {
    Some((TokioInstant::now() + LEASE_TTL).into_std())
}

fn held(subnet: LeaseKey) -> Held {
    let attributes = request().attributes;
    Held { lease: Lease { subnet, attributes }, id: 7, expires: end() }
}

fn request() -> Request {
    let json = br#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}"#;
    Request {
        pool: NetworkConfig::parse(json).unwrap().ipv4.unwrap(),
        previous: None,
        attributes: Attributes {
            public_ip: [198, 51, 100, 1].into(),
            public_ipv6: None,
            backend_type: "vxlan".to_owned(),
            backend_data: None,
            backend_v6_data: None,
        },
    }
}

/// Keeps a lease of 10.3.5.0/24 for `hours`, and returns what was asked and what is held then.
async fn keep_for(hours: u64, store: &Script, doubts: usize) -> (Vec<&'static str>, LeaseKey) {
    let first = held(LeaseKey::parse("10.3.5.0-24").unwrap());
    let (published, current) = watch::channel(first);
    let (doubt, doubted) = mpsc::channel(1);
    let raise = async {
        for _ in 0..doubts {
            doubt.send(()).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(hours * 60 * 60)).await;
    };
    tokio::select! {
        () = keep(store, request(), MARGIN, doubted, published) => panic!("it ended"),
        () = raise => {}
    }
    let subnet = current.borrow().lease.subnet;
    (store.asked.take(), subnet)
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_when_only_the_margin_is_left() {
    let store = Script::default();
    assert_eq!(keep_for(22, &store, 0).await.0, [""; 0]);
    let asked = keep_for(72, &store, 0).await.0;
    assert!(!asked.is_empty() && asked.iter().all(|asked| *asked == "renew"), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_fails_is_tried_again() {
    let failure = || {
        let (attempt, reason) = ("renew the lease".to_owned(), "connection refused".to_owned());
        Err(StoreError::Unavailable { attempt, endpoints: String::new(), reason })
    };
    let store = Script { renewals: vec![failure(), failure()].into(), ..Script::default() };
    let (asked, _) = keep_for(24, &store, 0).await;
    assert!(asked.len() >= 3, "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_is_taken_again_and_everybody_told() {
    let store = Script { renewals: vec![Ok(Renewal::Lost)].into(), ..Script::default() };
    let (asked, subnet) = keep_for(24, &store, 0).await;
    assert_eq!(asked[..2], ["renew", "acquire"]);
    assert_eq!(subnet.to_string(), "10.3.5.0-24");

    let store = Script { subnets: vec!["10.3.9.0-24"].into(), ..Script::default() };
    let (asked, subnet) = keep_for(1, &store, 1).await;
    assert_eq!(asked, ["acquire"]);
    assert_eq!(subnet.to_string(), "10.3.9.0-24");
}

#[test]
fn the_time_of_renewal_follows_from_the_end_and_the_margin() {
    let now = Instant::now();
    let lease = |left: Option<u64>| Held {
        expires: left.map(|minutes| now + Duration::from_secs(minutes * 60)),
        ..held(LeaseKey::parse("10.3.5.0-24").unwrap())
    };
    let minutes = |left, margin: u64| {
        let at = renewal_time(&lease(left), Duration::from_secs(margin * 60)).into_std();
        (at.saturating_duration_since(now).as_secs_f64() / 60.0).round()
    };
    assert_eq!(minutes(Some(24 * 60), 60), 23.0 * 60.0);
    assert_eq!(minutes(Some(30), 60), 1.0);
    assert_eq!(minutes(Some(0), 60), 0.0);
    assert_eq!(minutes(None, 60), 23.0 * 60.0);
}
