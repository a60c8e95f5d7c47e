//! The last known state of the cluster, in a file: with it a node starts while the API server does
//! not answer. The file is worth as much as what anybody writes into the store: each part of it is
//! checked like that, and what makes no sense is left out.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use fabric::subnet_file::atomic;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tracing::warn;

use super::roster::Nodes;
use crate::family::PerFamily;
use crate::lease::acquire::Listed;
use crate::lease::wire;
use crate::lease::{Lease, LeaseKey};
use crate::store::Decoder;

/// Nobody has more nodes than would fit.
const LEN_MAX: u64 = 64 << 20;

/// The file.
pub(super) struct Memory {
    path: PathBuf,
}

/// What is known about the node itself.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Known {
    pub(super) node: String,
    /// The lease, once there is one.
    pub(super) own: Option<Lease>,
    /// What the administrator wants its addresses to be.
    pub(super) addresses: PerFamily<IpAddr>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    node: &'a str,
    own: BTreeMap<String, Box<RawValue>>,
    public_ip: Option<IpAddr>,
    #[serde(rename = "publicIPv6")]
    public_ipv6: Option<IpAddr>,
    peers: BTreeMap<&'a str, BTreeMap<String, Box<RawValue>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Read {
    node: String,
    #[serde(default)]
    own: BTreeMap<String, Box<RawValue>>,
    #[serde(default)]
    public_ip: Option<IpAddr>,
    #[serde(default, rename = "publicIPv6")]
    public_ipv6: Option<IpAddr>,
    #[serde(default)]
    peers: BTreeMap<String, BTreeMap<String, Box<RawValue>>>,
}

/// Returns where it is kept: beside the subnet file, which is lost with it when the machine boots.
pub(crate) fn memory_file(subnet_file: &Path) -> PathBuf {
    subnet_file.with_extension("leases.json")
}

impl Memory {
    pub(super) fn beside(subnet_file: &Path) -> Self {
        Self { path: memory_file(subnet_file) }
    }

    /// Writes everything anew. Failures are told and do no other harm.
    pub(super) fn write<'a>(
        &self,
        known: &'a Known,
        peers: impl Iterator<Item = (&'a String, &'a Lease)>,
    ) {
        let written = Written {
            node: &known.node,
            own: known.own.iter().map(entry).collect(),
            public_ip: known.addresses.ipv4,
            public_ipv6: known.addresses.ipv6,
            peers: peers
                .map(|(name, lease)| (name.as_str(), BTreeMap::from([entry(lease)])))
                .collect(),
        };
        let json = serde_json::to_vec(&written).expect("texts always encode");
        let written = atomic::create_parent(&self.path, 0o755)
            .and_then(|()| atomic::replace(&self.path, &json, 0o600));
        if let Err(error) = written {
            warn!(
                path = %self.path.display(), %error,
                "what is known of the cluster cannot be written: a restart will need the API server"
            );
        }
    }

    /// Returns what was known about this node and the others, or nothing.
    pub(super) fn read(&self) -> Option<(Known, Nodes)> {
        let json = match read_up_to(&self.path) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                warn!(path = %self.path.display(), %error, "the last known state cannot be read");
                return None;
            }
        };
        match serde_json::from_slice::<Read>(&json) {
            Ok(read) => Some(read.checked()),
            Err(error) => {
                warn!(path = %self.path.display(), %error, "the last known state is no JSON of ours");
                None
            }
        }
    }
}

impl Read {
    fn checked(self) -> (Known, Nodes) {
        let mut decoder = Decoder::default();
        let mut lease = |entries: BTreeMap<String, Box<RawValue>>| {
            let (key, value) = entries.into_iter().next()?;
            let listed = decoder.decode(&key, value.get().as_bytes())?;
            listed.key.is_network().then_some(listed)
        };
        let own = lease(self.own).and_then(|Listed { key, attributes }| {
            Some(Lease { subnet: key, attributes: attributes? })
        });
        let addresses = PerFamily {
            ipv4: self.public_ip.filter(IpAddr::is_ipv4),
            ipv6: self.public_ipv6.filter(IpAddr::is_ipv6),
        };
        let known = Known { node: self.node, own, addresses };
        (known, self.peers.into_iter().map(|(name, entries)| (name, lease(entries))).collect())
    }
}

/// A lease under the key and with the value that it has in etcd.
fn entry(lease: &Lease) -> (String, Box<RawValue>) {
    let value = String::from_utf8(wire::encode(&lease.attributes)).expect("JSON is UTF-8");
    let key: &LeaseKey = &lease.subnet;
    (key.to_string(), RawValue::from_string(value).expect("it was encoded as JSON"))
}

fn read_up_to(path: &Path) -> io::Result<Vec<u8>> {
    if std::fs::metadata(path)?.len() > LEN_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    std::fs::read(path)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::lease::Attributes;

    fn lease(key: &str) -> Lease {
        let attributes = Attributes {
            public_ip: Ipv4Addr::new(198, 51, 100, 1),
            public_ipv6: Some("fd99::1".parse().unwrap()),
            backend_type: "vxlan".to_owned(),
            backend_data: Some(
                serde_json::json!({ "VNI": 1, "VtepMAC": "02:00:00:00:00:01" }).into(),
            ),
            backend_v6_data: None,
        };
        Lease { subnet: LeaseKey::parse(key).unwrap(), attributes }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let memory = Memory::beside(&directory.path().join("flannel/subnet.env"));
        assert_eq!(memory.read(), None);
        let known = Known {
            node: "n1".to_owned(),
            own: Some(lease("10.244.1.0-24")),
            addresses: PerFamily { ipv4: None, ipv6: Some("fd99::9".parse().unwrap()) },
        };
        let (name, peer) = ("n2".to_owned(), lease("10.244.2.0-24&fd00:2::-64"));
        memory.write(&known, [(&name, &peer)].into_iter());
        let listed = Listed { key: peer.subnet, attributes: Some(peer.attributes.clone()) };
        assert_eq!(memory.read(), Some((known, vec![(name, Some(listed))])));
    }

    #[test]
    fn what_makes_no_sense_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let memory = Memory::beside(&directory.path().join("subnet.env"));
        for broken in ["", "[]", "{}", "\u{0}", r#"{"node":1}"#] {
            std::fs::write(&memory.path, broken).unwrap();
            assert_eq!(memory.read(), None, "{broken}");
        }
        let json = r#"{"node":"n1","own":{"../../etc":{}},"publicIp":"fd00::1","peers":{
            "a":{"10.244.2.7-24":{"PublicIP":"198.51.100.2"}},
            "b":{"lock":{}},"c":{},"d":{"10.244.3.0-24":{"PublicIP":[]}},
            "e":{"10.244.4.0-24":{"PublicIP":"198.51.100.4"}}}}"#;
        std::fs::write(&memory.path, json).unwrap();
        let (known, peers) = memory.read().unwrap();
        let nothing = PerFamily { ipv4: None, ipv6: None };
        assert_eq!((known.own, known.addresses), (None, nothing));
        let readable = peers.iter().filter_map(|(name, listed)| {
            Some(format!("{name} {}", listed.as_ref()?.attributes.as_ref()?.public_ip))
        });
        assert_eq!(readable.collect::<Vec<_>>(), ["e 198.51.100.4"]);
    }
}
