//! What the commands show and change.

use super::*;

const NETWORK: &[u8] = br#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}"#;

struct Lab(tempfile::TempDir);

impl Lab {
    fn new() -> Self {
        let lab = Self(tempfile::tempdir().unwrap());
        lab.flanneld("list").unwrap();
        std::fs::write(lab.0.path().join("config"), NETWORK).unwrap();
        lab
    }

    fn flanneld(&self, command: &str) -> Result<String, String> {
        let directory = format!("--lease-dir={}", self.0.path().display());
        let words = ["lease"].into_iter().chain(command.split(' ')).chain([&*directory]);
        let command = crate::cli::parse(words.map(str::to_owned), |_| None);
        match command.map_err(|error| error.to_string())? {
            crate::cli::Command::Lease(command) => run(*command).map_err(|error| error.to_string()),
            other => panic!("{other:?}"),
        }
    }

    fn lease(&self, key: &str, ip: &str) {
        let value = format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan"}}"#);
        std::fs::write(self.0.path().join("subnets").join(key), value).unwrap();
    }
}

#[test]
fn leases_are_listed_shown_and_released() {
    let lab = Lab::new();
    lab.lease("10.3.5.0-24", "198.51.100.1");
    lab.lease("10.3.7.0-24", "198.51.100.2");
    assert_eq!(
        lab.flanneld("list").unwrap(),
        "SUBNET               PUBLIC IP        BACKEND    RENEWED\n\
         10.3.5.0/24          198.51.100.1     vxlan      0 s ago, ends in 23 h\n\
         10.3.7.0/24          198.51.100.2     vxlan      0 s ago, ends in 23 h\n"
    );
    assert_eq!(lab.flanneld("show 10.3.7.0/24").unwrap().lines().count(), 2);
    lab.flanneld("release 10.3.7.0-24").unwrap();
    let gone = "nobody holds 10.3.7.0-24; see flanneld lease list";
    assert_eq!(lab.flanneld("show 10.3.7.0/24").unwrap_err(), gone);
    assert_eq!(lab.flanneld("release 10.3.7.0/24").unwrap_err(), gone);
}

#[test]
fn a_subnet_is_reserved_if_it_is_free_or_the_nodes_own() {
    let lab = Lab::new();
    lab.lease("10.3.5.0-24", "198.51.100.1");
    let reserved = lab.flanneld("reserve 10.3.9.0/24 --public-ip 198.51.100.9").unwrap();
    assert!(reserved.ends_with("reserved\n"), "{reserved}");
    lab.flanneld("reserve 10.3.5.0/24 --public-ip 198.51.100.1").unwrap();
    let listed: Value = serde_json::from_str(&lab.flanneld("list --json").unwrap()).unwrap();
    assert_eq!(listed[0]["reserved"], true);
    assert_eq!(listed[0]["lease"]["BackendType"], "vxlan");
    assert_eq!(listed[1]["lease"], json!({"PublicIP": "198.51.100.9", "PublicIPv6": null}));
    for (command, error) in [
        (
            "reserve 10.3.5.0/24 --public-ip 198.51.100.2",
            "10.3.5.0-24 cannot be reserved: 10.3.5.0-24 is held by 198.51.100.1; release that first",
        ),
        (
            "reserve 10.4.5.0/24 --public-ip 198.51.100.2",
            "10.4.5.0-24 is none of the subnets that nodes can lease in this network",
        ),
    ] {
        assert_eq!(lab.flanneld(command).unwrap_err(), error);
    }
}

#[test]
fn both_families_are_shown_and_reserved() {
    let lab = Lab::new();
    let network = br#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fd03::/56",
                       "Backend":{"Type":"vxlan"}}"#;
    std::fs::write(lab.0.path().join("config"), network).unwrap();
    lab.lease("0.0.0.0-0&fd03:0:0:4::-64", "0.0.0.0");
    let value = r#"{"PublicIP":"198.51.100.1","PublicIPv6":"fd99::1","BackendType":"vxlan"}"#;
    let key = "10.3.5.0-24&fd03:0:0:5::-64";
    std::fs::write(lab.0.path().join("subnets").join(key), value).unwrap();
    lab.flanneld("reserve 10.3.6.0/24 --public-ip 198.51.100.6").unwrap();
    lab.flanneld("reserve fd03:0:0:7::/64 --public-ipv6 fd99::7").unwrap();
    assert_eq!(
        lab.flanneld("list").unwrap(),
        "SUBNET                      PUBLIC IP            BACKEND    RENEWED\n\
         fd03:0:0:4::/64                                  vxlan      0 s ago, ends in 23 h\n\
         fd03:0:0:7::/64             fd99::7                         reserved\n\
         10.3.5.0/24&fd03:0:0:5::/64 198.51.100.1&fd99::1 vxlan      0 s ago, ends in 23 h\n\
         10.3.6.0/24                 198.51.100.6                    reserved\n"
    );
    lab.flanneld("reserve 10.3.5.0/24&fd03:0:0:5::/64 --public-ip 198.51.100.1").unwrap();
    assert_eq!(
        lab.flanneld("reserve fd03:0:0:5::/64 --public-ipv6 fd99::9").unwrap_err(),
        "0.0.0.0-0&fd03:0:0:5::-64 cannot be reserved: 10.3.5.0-24&fd03:0:0:5::-64 is held by \
         198.51.100.1; release that first"
    );
    lab.flanneld("release fd03:0:0:4::/64").unwrap();
}

#[test]
fn what_is_missing_is_said_together_with_the_usage() {
    let lab = Lab::new();
    for (command, says) in [
        ("show", "show needs a subnet"),
        ("release 10.3.5.0", "10.3.5.0 is no subnet: want 10.5.52.0/24"),
        ("reserve 10.3.5.0/24", "reserve needs --public-ip, or --public-ipv6"),
        ("burn 10.3.5.0/24", "burn is not known"),
    ] {
        let error = lab.flanneld(command).unwrap_err();
        assert!(error.contains(says) && error.contains("usage: "), "{error}");
    }
}
