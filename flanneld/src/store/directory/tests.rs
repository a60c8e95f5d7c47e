//! Leases as files.

use tempfile::TempDir;

use super::*;
use crate::config::NetworkConfig;
use crate::lease::Attributes;
use crate::lease::acquire::Request;
use crate::lease::keeper::{Keeper, Notice, Timing, summary};

fn store(directory: &TempDir) -> DirectoryStore {
    let path = directory.path().join("leases");
    DirectoryStore::open(path, directory.path().join("net-conf.json")).unwrap()
}

fn request(last: u8, previous: Option<&str>) -> Request {
    let json = br#"{"Network":"10.3.0.0/20","Backend":{"Type":"vxlan"}}"#;
    Request {
        pools: NetworkConfig::parse(json).unwrap().pools,
        previous: previous.map(|text| LeaseKey::parse(text).unwrap()),
        attributes: Attributes {
            public_ip: [198, 51, 100, last].into(),
            public_ipv6: None,
            backend_type: "vxlan".to_owned(),
            backend_data: Some(
                serde_json::json!({"VNI": 1, "VtepMAC": "02:00:00:00:00:01"}).into(),
            ),
            backend_v6_data: None,
        },
    }
}

/// Lets a keeper work until it has a lease or gives up hope, in no time.
async fn acquire(store: &DirectoryStore, request: Request) -> Result<LeaseKey, Vec<Notice>> {
    let timing = Timing::with_margin(LEASE_TTL, Duration::from_secs(60 * 60));
    let (mut keeper, mut now) = (Keeper::new(request, timing), Duration::ZERO);
    let mut notices = Vec::new();
    for _ in 0..100 {
        let answer = match keeper.step() {
            Step::Wait(until) => {
                if let Some(lease) = keeper.served() {
                    return Ok(lease.subnet);
                }
                now = until;
                Answer::Waited
            }
            step => store.perform(&step).await.unwrap(),
        };
        keeper.answer((now, now), answer, |_| 0);
        notices.extend(keeper.notices());
    }
    Err(notices)
}

async fn renew(store: &DirectoryStore, key: LeaseKey) -> Answer {
    store.perform(&Step::KeepAlive { key, lease: 1 }).await.unwrap()
}

fn set_age(path: &Path, age: Duration) {
    let then = SystemTime::now() - age;
    File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
}

#[tokio::test]
async fn a_lease_is_a_file_as_flannel_would_write_the_value() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let key = acquire(&store, request(1, Some("10.3.5.0-24"))).await.unwrap();
    assert_eq!(key.to_string(), "10.3.5.0-24");
    let value = fs::read_to_string(store.subnets().join("10.3.5.0-24")).unwrap();
    assert_eq!(
        value,
        r#"{"PublicIP":"198.51.100.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}"#
    );
    assert_eq!(acquire(&store, request(1, None)).await, Ok(key));
    assert_eq!(fs::read_dir(store.subnets()).unwrap().count(), 1);
}

#[tokio::test]
async fn every_node_gets_another_subnet_until_none_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let mut subnets = std::collections::BTreeSet::new();
    for node in 1..=15 {
        subnets.insert(acquire(&store, request(node, None)).await.unwrap());
    }
    assert_eq!(subnets.len(), 15);
    set_age(&store.subnets().join("10.3.4.0-24"), Duration::from_secs(2 * 60 * 60));
    let notices = acquire(&store, request(16, None)).await.unwrap_err();
    let Notice::Exhausted { holders, .. } = &notices[0] else { panic!("{notices:?}") };
    assert_eq!(
        summary(holders),
        "15 keys, of which 0 are reservations and 1 were not renewed for 5 min: \
         10.3.4.0-24 of 198.51.100.4 (120 min)"
    );
}

#[tokio::test]
async fn what_is_no_lease_harms_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    fs::write(store.subnets().join("notes.txt"), "hello").unwrap();
    fs::write(store.subnets().join(".tmp"), "half a le").unwrap();
    fs::write(store.subnets().join("10.3.1.0-24"), "{").unwrap();
    let key = acquire(&store, request(1, Some("10.3.1.0-24"))).await.unwrap();
    assert_ne!(key.to_string(), "10.3.1.0-24");
    assert_eq!(fs::read_to_string(store.subnets().join("10.3.1.0-24")).unwrap(), "{");
}

#[tokio::test]
async fn a_lease_ends_a_day_after_its_last_renewal() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let key = acquire(&store, request(1, Some("10.3.5.0-24"))).await.unwrap();
    let path = store.file(&key);
    set_age(&path, LEASE_TTL - Duration::from_secs(60));
    assert_eq!(renew(&store, key).await, Answer::KeptAlive(Some(LEASE_TTL)));
    set_age(&path, LEASE_TTL + Duration::from_secs(60));
    assert_eq!(renew(&store, key).await, Answer::KeptAlive(None));
    assert_eq!(acquire(&store, request(2, Some("10.3.5.0-24"))).await, Ok(key));
}

#[tokio::test]
async fn a_dead_node_with_our_address_is_succeeded_and_a_living_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let key = acquire(&store, request(1, Some("10.3.5.0-24"))).await.unwrap();
    let mut twin = request(1, None);
    twin.attributes.backend_data = Some(serde_json::json!({"VtepMAC": "02:00:00:00:00:09"}).into());
    // Time stands still for the file, so that it always looks as if it had just been renewed.
    let notices = acquire(&store, twin.clone()).await.unwrap_err();
    assert!(notices.iter().any(|n| matches!(n, Notice::Twin { .. })), "{notices:?}");
    set_age(&store.file(&key), Duration::from_secs(60));
    assert_eq!(acquire(&store, twin).await, Ok(key));
    assert!(fs::read_to_string(store.file(&key)).unwrap().contains("02:00:00:00:00:09"));
}

#[tokio::test]
async fn a_reservation_has_no_end_and_stays_one() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let path = store.subnets().join("10.3.7.0-24");
    fs::write(&path, r#"{"PublicIP":"198.51.100.1"}"#).unwrap();
    set_age(&path, LEASE_TTL * 10);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    let key = acquire(&store, request(1, None)).await.unwrap();
    assert_eq!(key.to_string(), "10.3.7.0-24");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o444);
    assert!(fs::read_to_string(&path).unwrap().contains("vxlan"));
    set_age(&path, LEASE_TTL * 10);
    assert_eq!(acquire(&store, request(1, None)).await, Ok(key));
}

#[tokio::test]
async fn changes_are_told_as_snapshots_and_what_was_removed_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let (updates, mut received) = mpsc::channel(8);
    let count = async |received: &mut mpsc::Receiver<LeaseUpdate>, wanted: usize| loop {
        match received.recv().await.unwrap() {
            LeaseUpdate::Snapshot(all) if all.len() == wanted => return,
            LeaseUpdate::Snapshot(_) => {}
            other => panic!("{other:?}"),
        }
    };
    let change = async {
        count(&mut received, 0).await;
        let key = acquire(&store, request(1, None)).await.unwrap();
        count(&mut received, 1).await;
        fs::remove_file(store.file(&key)).unwrap();
        while received.recv().await.unwrap() != LeaseUpdate::Removed(key) {}
        count(&mut received, 0).await;
    };
    let relist = Notify::new();
    let changed = async {
        tokio::select! {
            () = store.watch(updates, &relist) => panic!("the watch ended"),
            () = change => {}
        }
    };
    timeout(Duration::from_secs(60), changed).await.expect("changes are told");
}

#[tokio::test]
async fn the_configuration_is_in_the_directory_or_else_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let error = store.network_config().await.unwrap_err().to_string();
    assert!(error.starts_with("there is no network configuration at "), "{error}");
    fs::write(directory.path().join("net-conf.json"), "file").unwrap();
    assert_eq!(store.network_config().await.unwrap(), b"file");
    fs::write(directory.path().join("leases/config"), "directory").unwrap();
    assert_eq!(store.network_config().await.unwrap(), b"directory");
}

fn dual_request(last: u8, previous: Option<&str>) -> Request {
    let json = br#"{"Network":"10.3.0.0/20","EnableIPv6":true,"IPv6Network":"fd03::/62",
                    "Backend":{"Type":"vxlan"}}"#;
    let mut request = request(last, previous);
    request.pools = crate::config::NetworkConfig::parse(json).unwrap().pools;
    request
}

#[tokio::test]
async fn a_subnet_of_ipv6_is_not_given_twice() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let one = acquire(&store, dual_request(1, None)).await.unwrap();
    assert_eq!(one.to_string(), "10.3.1.0-24&fd03:0:0:1::-64");
    let other = LeaseKey::parse("10.3.2.0-24&fd03:0:0:1::-64").unwrap();
    let attributes = dual_request(2, None).attributes;
    let guard = Guard::Free { since: 0 };
    let put = Put { key: other, attributes, guard, lease: 1, replaces: None };
    assert_eq!(store.perform(&Step::Put(put)).await.unwrap(), Answer::Written(None));
}

#[tokio::test]
async fn a_lease_gets_a_subnet_of_the_family_that_was_switched_on() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let before = acquire(&store, request(1, Some("10.3.7.0-24"))).await.unwrap();
    assert_eq!(before.to_string(), "10.3.7.0-24");
    let now = acquire(&store, dual_request(1, None)).await.unwrap();
    assert_eq!(now.to_string(), "10.3.7.0-24&fd03:0:0:1::-64");
    // As if the process had died between writing the one and removing the other.
    let value = fs::read(store.file(&now)).unwrap();
    fs::write(store.file(&before), value).unwrap();
    assert_eq!(acquire(&store, dual_request(1, None)).await.unwrap(), now);
    assert!(!store.file(&before).exists());
}
