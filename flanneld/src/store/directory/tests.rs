use tempfile::TempDir;

use super::*;
use crate::config::NetworkConfig;
use crate::lease::Attributes;

fn store(directory: &TempDir) -> DirectoryStore {
    let path = directory.path().join("leases");
    DirectoryStore::open(path, directory.path().join("net-conf.json")).unwrap()
}

fn request(last: u8, previous: Option<&str>) -> Request {
    let json = br#"{"Network":"10.3.0.0/20","Backend":{"Type":"vxlan"}}"#;
    Request {
        pool: NetworkConfig::parse(json).unwrap().ipv4.unwrap(),
        previous: previous.map(|text| LeaseKey::parse(text).unwrap()),
        attributes: Attributes {
            public_ip: [198, 51, 100, last].into(),
            public_ipv6: None,
            backend_type: "vxlan".to_owned(),
            backend_data: Some(serde_json::json!({"VNI": 1, "VtepMAC": "02:00:00:00:00:01"})),
            backend_v6_data: None,
        },
    }
}

fn age(path: &Path, age: Duration) {
    let then = SystemTime::now() - age;
    File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
}

#[tokio::test]
async fn a_lease_is_a_file_as_flannel_would_write_the_value() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let held = store.acquire(&request(1, Some("10.3.5.0-24"))).await.unwrap();
    assert_eq!(held.lease.subnet.to_string(), "10.3.5.0-24");
    let value = fs::read_to_string(store.subnets().join("10.3.5.0-24")).unwrap();
    assert_eq!(
        value,
        r#"{"PublicIP":"198.51.100.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}"#
    );
    let again = store.acquire(&request(1, None)).await.unwrap();
    assert_eq!(again.lease.subnet, held.lease.subnet);
    assert_eq!(fs::read_dir(store.subnets()).unwrap().count(), 1);
}

#[tokio::test]
async fn every_node_gets_another_subnet_until_none_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let mut subnets = std::collections::BTreeSet::new();
    for node in 1..=15 {
        subnets.insert(store.acquire(&request(node, None)).await.unwrap().lease.subnet);
    }
    assert_eq!(subnets.len(), 15);
    let error = store.acquire(&request(16, None)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "every subnet of 10.3.0.0/20 is held, by 15 leases; release one, or widen the network"
    );
}

#[tokio::test]
async fn what_is_no_lease_harms_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    fs::write(store.subnets().join("notes.txt"), "hello").unwrap();
    fs::write(store.subnets().join(".tmp"), "half a le").unwrap();
    fs::write(store.subnets().join("10.3.1.0-24"), "{").unwrap();
    let held = store.acquire(&request(1, Some("10.3.1.0-24"))).await.unwrap();
    assert_ne!(held.lease.subnet.to_string(), "10.3.1.0-24");
    assert_eq!(fs::read_to_string(store.subnets().join("10.3.1.0-24")).unwrap(), "{");
}

#[tokio::test]
async fn a_lease_ends_a_day_after_its_last_renewal() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let held = store.acquire(&request(1, Some("10.3.5.0-24"))).await.unwrap();
    let path = store.file(&held.lease.subnet);
    age(&path, LEASE_TTL - Duration::from_secs(60));
    assert!(matches!(store.renew(&held).await.unwrap(), Renewal::Until(Some(_))));
    age(&path, LEASE_TTL + Duration::from_secs(60));
    assert_eq!(store.renew(&held).await.unwrap(), Renewal::Lost);
    let other = store.acquire(&request(2, Some("10.3.5.0-24"))).await.unwrap();
    assert_eq!(other.lease.subnet, held.lease.subnet);
    assert_eq!(store.renew(&held).await.unwrap(), Renewal::Lost);
}

#[tokio::test]
async fn a_reservation_has_no_end_and_stays_one() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let path = store.subnets().join("10.3.7.0-24");
    fs::write(&path, r#"{"PublicIP":"198.51.100.1"}"#).unwrap();
    age(&path, LEASE_TTL * 10);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    let held = store.acquire(&request(1, None)).await.unwrap();
    assert_eq!((held.lease.subnet.to_string().as_str(), held.expires), ("10.3.7.0-24", None));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o444);
    assert!(fs::read_to_string(&path).unwrap().contains("vxlan"));
    assert_eq!(store.renew(&held).await.unwrap(), Renewal::Until(None));
}

#[tokio::test]
async fn changes_are_told_as_snapshots() {
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
        let held = store.acquire(&request(1, None)).await.unwrap();
        count(&mut received, 1).await;
        fs::remove_file(store.file(&held.lease.subnet)).unwrap();
        count(&mut received, 0).await;
    };
    let changed = async {
        tokio::select! {
            () = store.watch(updates) => panic!("the watch ended"),
            () = change => {}
        }
    };
    timeout(Duration::from_secs(10), changed).await.expect("changes are told");
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
