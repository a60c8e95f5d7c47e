//! Address files, alone and with many processes at once.

use std::os::unix::fs::PermissionsExt;
use std::thread;

use super::*;

fn owner(container: &str) -> Owner {
    Owner::of(&Attachment::named("cbr0", container, "eth0"))
}

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), &Id::new("cbr0").unwrap()).unwrap();
    (directory, store)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn names(store: &Store) -> Vec<String> {
    let entries = fs::read_dir(&store.directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn files_are_those_of_host_local() {
    let (_directory, store) = store();
    let locked = store.lock().unwrap();
    locked.reserve(ip("10.1.2.5"), &owner("one"), 0).unwrap().commit();
    locked.reserve(ip("fd00:0:0::5"), &owner("one"), 1).unwrap().commit();
    let expected = ["10.1.2.5", "fd00::5", "last_reserved_ip.0", "last_reserved_ip.1", "lock"];
    assert_eq!(names(&store), expected);
    let read = |name: &str| fs::read_to_string(store.directory.join(name)).unwrap();
    assert_eq!(read("10.1.2.5"), "one\r\neth0");
    assert_eq!(read("last_reserved_ip.1"), "fd00::5");
    assert_eq!(read("lock"), "");
    for (name, expected) in [("10.1.2.5", 0o600), ("last_reserved_ip.0", 0o600), ("lock", 0o750)] {
        assert_eq!(mode(&store.directory.join(name)), expected, "{name}");
    }
    assert_eq!(locked.last_reserved(0), Some(ip("10.1.2.5")));
    assert_eq!(locked.last_reserved(2), None);
}

#[test]
fn a_reservation_goes_unless_it_is_committed() {
    let (_directory, store) = store();
    let reservation = store.lock().unwrap().reserve(ip("10.1.2.5"), &owner("one"), 0).unwrap();
    assert_eq!(store.lock().unwrap().taken().unwrap(), BTreeSet::from([ip("10.1.2.5")]));
    drop(reservation);
    assert_eq!(store.lock().unwrap().taken().unwrap(), BTreeSet::new());
}

#[test]
fn a_reservation_that_became_somebody_elses_stays() {
    let (_directory, store) = store();
    let reservation = store.lock().unwrap().reserve(ip("10.1.2.5"), &owner("one"), 0).unwrap();
    fs::write(store.directory.join("10.1.2.5"), "two\r\neth0").unwrap();
    drop(reservation);
    assert_eq!(store.lock().unwrap().addresses_of(&owner("two")).unwrap().len(), 1);
}

#[test]
fn an_address_is_not_reserved_twice() {
    let (_directory, store) = store();
    let locked = store.lock().unwrap();
    locked.reserve(ip("10.1.2.5"), &owner("one"), 0).unwrap().commit();
    let error = locked.reserve(ip("10.1.2.5"), &owner("two"), 0).unwrap_err();
    assert!(error.to_string().ends_with("cbr0/10.1.2.5"), "{error}");
}

#[test]
fn release_takes_what_is_the_owners_and_nothing_else() {
    let (_directory, store) = store();
    let locked = store.lock().unwrap();
    let other = Owner::of(&Attachment::named("cbr0", "one", "net1"));
    for (address, owner) in
        [("10.1.2.5", &owner("one")), ("10.1.2.6", &other), ("10.1.2.7", &owner("two"))]
    {
        locked.reserve(ip(address), owner, 0).unwrap().commit();
    }
    fs::write(store.directory.join("10.1.2.8"), " one\n").unwrap();
    fs::write(store.directory.join("10.1.2.9"), "").unwrap();
    fs::write(store.directory.join("10.1.2.10"), [0xff, 0xfe]).unwrap();
    fs::create_dir(store.directory.join("directory")).unwrap();
    assert_eq!(
        locked.addresses_of(&owner("one")).unwrap(),
        [ip("10.1.2.5"), ip("10.1.2.8")].into()
    );
    assert_eq!(locked.release(&owner("one")).unwrap(), [ip("10.1.2.5")].into());
    assert_eq!(
        locked.release(&owner("one")).unwrap(),
        [ip("10.1.2.8")].into(),
        "of an old version"
    );
    assert_eq!(locked.release(&owner("one")).unwrap(), BTreeSet::new());
    let left = ["10.1.2.6", "10.1.2.7", "10.1.2.9", "10.1.2.10"].map(ip);
    assert_eq!(locked.taken().unwrap(), BTreeSet::from(left));
}

#[test]
fn what_a_killed_process_left_is_overwritten() {
    let (_directory, store) = store();
    fs::write(store.directory.join(".reservation"), "half of something longer than that").unwrap();
    let locked = store.lock().unwrap();
    locked.reserve(ip("10.1.2.5"), &owner("one"), 0).unwrap().commit();
    assert_eq!(names(&store), ["10.1.2.5", "last_reserved_ip.0", "lock"]);
    assert_eq!(locked.addresses_of(&owner("one")).unwrap().len(), 1);
}

#[test]
fn there_is_no_store_before_the_first_address() {
    let directory = tempfile::tempdir().unwrap();
    assert!(Store::existing(directory.path(), &Id::new("cbr0").unwrap()).is_none());
}

#[test]
fn errors_name_the_file() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("cbr0"), "").unwrap();
    let error = Store::open(directory.path(), &Id::new("cbr0").unwrap()).unwrap_err();
    let expected = format!("cannot create {}/cbr0", directory.path().display());
    assert_eq!(error.to_string(), expected);
}

#[test]
fn only_one_works_in_the_store_at_a_time() {
    let (_directory, store) = store();
    let take = |worker: usize| {
        for turn in 0..20 {
            let locked = store.lock().unwrap();
            let taken = locked.taken().unwrap();
            let free = (2..=254).map(|host| IpAddr::from([10, 1, 2, host]));
            let free = free.into_iter().find(|ip| !taken.contains(ip)).unwrap();
            let owner = owner(&format!("{worker}-{turn}"));
            locked.reserve(free, &owner, 0).unwrap().commit();
        }
    };
    let take = &take;
    thread::scope(|scope| {
        for worker in 0..8 {
            scope.spawn(move || take(worker));
        }
    });
    assert_eq!(store.lock().unwrap().taken().unwrap().len(), 8 * 20);
}

#[test]
fn what_was_reserved_before_the_machine_started_is_free() {
    let (_directory, store) = store();
    let locked = store.lock().unwrap();
    for (ip_text, container) in [("10.1.2.5", "one"), ("10.1.2.6", "two")] {
        locked.reserve(ip(ip_text), &owner(container), 0).unwrap().commit();
    }
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    let old = File::options().write(true).open(store.directory.join("10.1.2.5")).unwrap();
    old.set_modified(long_ago).unwrap();

    locked.forget_earlier_boots().unwrap();
    assert_eq!(locked.taken().unwrap().len(), 2, "nobody knows of which boot they are");
    locked.forget_earlier_boots().unwrap();
    assert_eq!(locked.taken().unwrap().len(), 2, "they are of this boot");
    fs::write(store.directory.join(".boot_id"), "another").unwrap();
    locked.forget_earlier_boots().unwrap();
    assert_eq!(locked.taken().unwrap(), [ip("10.1.2.6")].into());
}

#[test]
fn stale_holders_are_told_from_others() {
    let (_directory, store) = store();
    let contents: [(&str, &[u8]); 6] = [
        ("10.1.2.1", b"one\r\neth0"),
        ("10.1.2.2", b"one"),
        ("10.1.2.3", b""),
        ("10.1.2.4", b"\0\0\xff"),
        ("10.1.2.5", b"  two \r\neth1\n"),
        ("10.1.2.6", b"a/b\r\neth1"),
    ];
    for (name, content) in contents {
        fs::write(store.directory.join(name), content).unwrap();
    }
    let locked = store.lock().unwrap();
    let damaged = [ip("10.1.2.3"), ip("10.1.2.4"), ip("10.1.2.6")].into();
    assert_eq!(locked.release_damaged().unwrap(), damaged);
    let two = Holder::Attachment(Id::new("two").unwrap(), "eth1".to_owned());
    assert_eq!(locked.release_stale(|holder| *holder == two).unwrap(), [ip("10.1.2.5")].into());
    let one = Holder::Container(Id::new("one").unwrap());
    assert_eq!(locked.release_stale(|holder| *holder == one).unwrap(), [ip("10.1.2.2")].into());
}
