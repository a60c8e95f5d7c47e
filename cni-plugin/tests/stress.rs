//! Many processes take addresses from a small pool at the same time and give them back, on the real
//! lock and the real files. No address may be handed out twice, and none may get lost.
//!
//! Each process of the test does thousands of operations through the library: what a process of the
//! plugin does with the store, without the start of the process.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]
#![expect(clippy::print_stdout, reason = "the test harness captures it")]

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use cni_plugin::error::chain;
use cni_plugin::invocation::{Attachment, Id};
use cni_plugin::ipam::config::HostLocal;
use cni_plugin::ipam::range::{Range, RangeSet};
use cni_plugin::ipam::{self, IpamError, NoAddress};
use flannel_tests::sandbox::sandboxed;

const OPERATIONS: usize = 100_000;
const PROCESSES: usize = 16;
/// Fewer addresses than the processes together want.
const POOL: &str = "10.9.0.0/27";
const POOL_SIZE: usize = 29;
/// Attachments that a process has at most.
const HELD_MAX: usize = 4;

const DATA_DIR: &str = "/run/networks";
/// Here a process says which addresses it has, for the others to run into.
const CLAIMS: &str = "/run/claims";
/// The number of a process of the test.
const WORKER: &str = "STRESS_WORKER";

#[test]
fn no_address_is_handed_out_twice_and_none_is_lost() {
    match env::var(WORKER) {
        Ok(number) => work(number.parse().unwrap()),
        Err(_) => sandboxed(|| {
            compete();
        }),
    }
}

fn compete() {
    fs::create_dir_all(CLAIMS).unwrap();
    let start = Instant::now();
    let workers: Vec<Child> = (0..PROCESSES).map(spawn).collect();
    for mut worker in workers {
        assert!(worker.wait().unwrap().success(), "its output is above");
    }
    println!("{OPERATIONS} operations of {PROCESSES} processes took {:?}", start.elapsed());
    let claimed = names(CLAIMS);
    assert_eq!(addresses(), claimed, "what is noted is what somebody has");
    assert!(!claimed.is_empty(), "the last operations are not all releases");

    // Whoever had them is gone; all can be had again.
    for number in 0..PROCESSES {
        for slot in 0..HELD_MAX {
            ipam::release(DATA_DIR.as_ref(), &attachment(number, slot)).unwrap();
        }
    }
    assert_eq!(addresses(), Vec::<String>::new());
    for slot in 0..POOL_SIZE {
        drop(ipam::allocate(&pool(), &attachment(0, slot), false).unwrap().commit());
    }
    assert_eq!(addresses().len(), POOL_SIZE);
}

fn spawn(number: usize) -> Child {
    Command::new("/proc/self/exe")
        .args(["no_address_is_handed_out_twice_and_none_is_lost", "--exact", "--nocapture"])
        .env(WORKER, number.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// One process: takes and gives back at random.
fn work(number: usize) {
    let mut random = Random(number as u64 + 1);
    let mut held: BTreeMap<usize, IpAddr> = BTreeMap::new();
    for _ in 0..OPERATIONS / PROCESSES {
        let slot = random.below(HELD_MAX);
        match held.remove(&slot) {
            None => held.extend(take(number, slot, &mut random).map(|ip| (slot, ip))),
            Some(ip) => give_back(number, slot, ip, &mut random),
        }
    }
}

fn take(number: usize, slot: usize, random: &mut Random) -> Option<IpAddr> {
    let mut pool = pool();
    if random.below(4) == 0 {
        let last = u8::try_from(2 + random.below(POOL_SIZE)).unwrap();
        pool.requested = vec![IpAddr::from([10, 9, 0, last])];
    }
    let attachment = attachment(number, slot);
    let allocation = match ipam::allocate(&pool, &attachment, random.below(2) == 0) {
        Ok(allocation) => allocation,
        Err(IpamError::Range {
            reason: NoAddress::Exhausted(_) | NoAddress::Taken(..), ..
        }) => {
            return None;
        }
        Err(error) => panic!("{}", chain(&error)),
    };
    let ip = allocation.ips[0].address.ip();
    claim(ip);
    if random.below(8) == 0 {
        // An ADD that fails.
        disclaim(ip);
        drop(allocation);
        return None;
    }
    allocation.commit();
    Some(ip)
}

fn give_back(number: usize, slot: usize, ip: IpAddr, random: &mut Random) {
    disclaim(ip);
    for _ in 0..=random.below(2) {
        let released = ipam::release(DATA_DIR.as_ref(), &attachment(number, slot)).unwrap();
        assert!(released.iter().all(|one| *one == ip), "{released:?} instead of {ip}");
    }
}

fn claim(ip: IpAddr) {
    match File::create_new(Path::new(CLAIMS).join(ip.to_string())) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            panic!("{ip} was handed out, and somebody has it")
        }
        Err(error) => panic!("{error}"),
    }
}

fn disclaim(ip: IpAddr) {
    fs::remove_file(Path::new(CLAIMS).join(ip.to_string())).unwrap();
}

fn pool() -> HostLocal {
    HostLocal {
        data_dir: DATA_DIR.into(),
        sets: vec![RangeSet(vec![Range::of(POOL.parse().unwrap()).unwrap()])],
        requested: Vec::new(),
        routes: Vec::new(),
        resolv_conf: None,
    }
}

fn attachment(number: usize, slot: usize) -> Attachment {
    Attachment {
        network: Id::new("pool").unwrap(),
        container: Id::new(&format!("p{number}-{slot}")).unwrap(),
        if_name: "eth0".parse().unwrap(),
    }
}

/// What the store has noted.
fn addresses() -> Vec<String> {
    let mut names = names(&format!("{DATA_DIR}/pool"));
    names.retain(|name| name.parse::<IpAddr>().is_ok());
    names
}

fn names(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = entries.map(|name| name.to_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// The generator of Marsaglia's "Xorshift RNGs", so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 32).unwrap() % limit
    }
}
