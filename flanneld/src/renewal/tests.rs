//! The keeper is driven as it asks, and what it tells is told.

use std::cell::RefCell;

use tokio::time::Instant;

use super::*;
use crate::config::NetworkConfig;
use crate::lease::acquire::{Entry, Listed};
use crate::lease::keeper::Listing;

const MARGIN: Duration = Duration::from_secs(60 * 60);

/// A store with one key, that notes what it was asked.
struct Script {
    entry: RefCell<Option<Entry>>,
    /// So many requests get no answer.
    silent: RefCell<usize>,
    asked: RefCell<Vec<&'static str>>,
}

impl Script {
    fn holding(entry: Option<Entry>) -> Self {
        Self { entry: entry.into(), silent: 0.into(), asked: RefCell::default() }
    }
}

impl SharedStore for Script {
    async fn perform(&self, step: &Step) -> Result<Answer, StoreError> {
        if *self.silent.borrow() > 0 {
            *self.silent.borrow_mut() -= 1;
            let (attempt, reason) = ("renew the lease".to_owned(), "connection refused".to_owned());
            return Err(StoreError::Unavailable { attempt, endpoints: String::new(), reason });
        }
        let entry = self.entry.borrow().clone();
        let (name, answer) = match step {
            Step::List => (
                "list",
                Answer::Listed(Listing { entries: entry.into_iter().collect(), revision: 4 }),
            ),
            Step::Grant => ("grant", Answer::Granted(7)),
            Step::KeepAlive { .. } => ("renew", Answer::KeptAlive(entry.map(|_| LEASE_TTL))),
            Step::Read(_) => ("read", Answer::Read(entry)),
            Step::Put(put) => {
                *self.entry.borrow_mut() = Some(Entry { lease: put.lease, ..self::entry(put.key) });
                ("put", Answer::Written(Some(5)))
            }
            other => unreachable!("{other:?}"),
        };
        self.asked.borrow_mut().push(name);
        Ok(answer)
    }
}

fn key(text: &str) -> LeaseKey {
    LeaseKey::parse(text).unwrap()
}

fn entry(key: LeaseKey) -> Entry {
    let attributes = Some(request().attributes);
    Entry { listed: Listed { key, attributes }, revision: 5, created: 5, lease: 7 }
}

fn request() -> Request {
    let json = br#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}"#;
    Request {
        pools: NetworkConfig::parse(json).unwrap().pools,
        previous: Some(key("10.3.5.0-24")),
        attributes: Attributes {
            public_ip: [198, 51, 100, 1].into(),
            public_ipv6: None,
            backend_type: "vxlan".to_owned(),
            backend_data: None,
            backend_v6_data: None,
        },
    }
}

/// Lets it work for a while, during which `meanwhile` happens; returns the subnet it then has.
async fn keep_while(store: &Script, meanwhile: impl AsyncFnOnce(mpsc::Sender<()>)) -> LeaseKey {
    let (published, current) = watch::channel(None);
    let (doubt, doubts) = mpsc::channel(1);
    let (_attributes, attributes) = watch::channel(request().attributes);
    let start = Instant::now();
    let relist = Notify::new();
    let (_ready, ready) = watch::channel(Readiness::default());
    let channels =
        Channels { doubts, attributes, published, relist: &relist, ready, margin: MARGIN };
    tokio::select! {
        () = keep(store, request(), || start.elapsed(), channels) => panic!("it ended"),
        () = meanwhile(doubt) => {}
    }
    current.borrow().as_ref().unwrap().subnet
}

async fn sleep_secs(secs: u64) {
    sleep(Duration::from_secs(secs)).await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_made_once_and_renewed_without_writing() {
    let store = Script::holding(None);
    keep_while(&store, async |_doubt| sleep_secs(60).await).await;
    let asked = store.asked.take();
    assert_eq!(asked[..5], ["list", "grant", "list", "put", "renew"]);
    assert!(asked[4..].iter().all(|asked| ["renew", "read"].contains(asked)), "{asked:?}");
    let renewals = asked.iter().filter(|asked| **asked == "renew").count();
    assert!((5..=7).contains(&renewals), "{renewals}");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_fails_is_tried_again() {
    let store = Script::holding(Some(entry(key("10.3.5.0-24"))));
    let outage = async |_doubt| {
        sleep_secs(5).await;
        *store.silent.borrow_mut() = 20;
        sleep_secs(200).await;
    };
    keep_while(&store, outage).await;
    assert_eq!(*store.silent.borrow(), 0);
    assert_eq!(store.asked.borrow().last(), Some(&"read"));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_deleted_is_made_again_in_process() {
    let store = Script::holding(Some(entry(key("10.3.5.0-24"))));
    let delete = async |doubt: mpsc::Sender<()>| {
        sleep_secs(3).await;
        *store.entry.borrow_mut() = None;
        doubt.send(()).await.unwrap();
        sleep_secs(3).await;
    };
    assert_eq!(keep_while(&store, delete).await, key("10.3.5.0-24"));
    assert!(store.entry.borrow().is_some());
}
