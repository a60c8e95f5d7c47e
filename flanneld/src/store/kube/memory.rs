//! The last known state of the cluster, in a file: with it a node starts while the API server does
//! not answer. The file is worth as much as what anybody writes into the store: each part of it is
//! checked like that, and what makes no sense is left out.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use fabric::subnet_file::atomic;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use tracing::warn;

use super::roster::Nodes;
use crate::family::PerFamily;
use crate::lease::Lease;
use crate::lease::acquire::Listed;
use crate::lease::wire;
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

/// Written as it is gone through: the leases of a large cluster are not there twice.
#[derive(Serialize)]
#[serde(rename_all = "camelCase", bound = "Peers<I>: Serialize")]
struct Written<'a, I> {
    node: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    own: Option<Entry<'a>>,
    public_ip: Option<IpAddr>,
    #[serde(rename = "publicIPv6")]
    public_ipv6: Option<IpAddr>,
    peers: Peers<I>,
}

/// A lease under the key and with the value that it has in etcd.
struct Entry<'a>(&'a Lease);

/// Leases under the names of their nodes.
struct Peers<I>(I);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Read<'a> {
    node: String,
    #[serde(default, borrow)]
    own: Option<&'a RawValue>,
    #[serde(default)]
    public_ip: Option<IpAddr>,
    #[serde(default, rename = "publicIPv6")]
    public_ipv6: Option<IpAddr>,
    #[serde(default, borrow)]
    peers: BTreeMap<&'a str, &'a RawValue>,
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
        peers: impl Iterator<Item = (&'a String, &'a Lease)> + Clone,
    ) {
        let written = Written {
            node: &known.node,
            own: known.own.as_ref().map(Entry),
            public_ip: known.addresses.ipv4,
            public_ipv6: known.addresses.ipv6,
            peers: Peers(peers),
        };
        let written = atomic::create_parent(&self.path, 0o755).and_then(|()| {
            atomic::replace_with(&self.path, 0o600, |file| {
                serde_json::to_writer(file, &written).map_err(io::Error::from)
            })
        });
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
        match serde_json::from_slice::<Read<'_>>(&json) {
            Ok(read) => Some(read.checked()),
            Err(error) => {
                warn!(path = %self.path.display(), %error, "the last known state is no JSON of ours");
                None
            }
        }
    }
}

impl Read<'_> {
    fn checked(self) -> (Known, Nodes) {
        let mut decoder = Decoder::default();
        let mut lease = |entry: &RawValue| {
            let entry: BTreeMap<String, &RawValue> = serde_json::from_str(entry.get()).ok()?;
            let (key, value) = entry.into_iter().next()?;
            let listed = decoder.decode(&key, value.get().as_bytes())?;
            listed.key.is_network().then_some(listed)
        };
        let own = self.own.and_then(&mut lease).and_then(|Listed { key, attributes }| {
            Some(Lease { subnet: key, attributes: attributes? })
        });
        let addresses = PerFamily {
            ipv4: self.public_ip.filter(IpAddr::is_ipv4),
            ipv6: self.public_ipv6.filter(IpAddr::is_ipv6),
        };
        let known = Known { node: self.node, own, addresses };
        let peers = self.peers.into_iter().map(|(name, entry)| (name.to_owned(), lease(entry)));
        (known, peers.collect())
    }
}

impl Serialize for Entry<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Lease { subnet, attributes } = self.0;
        serializer.collect_map([(subnet.to_string(), wire::Encoded::from(attributes))])
    }
}

impl<'a, I: Iterator<Item = (&'a String, &'a Lease)> + Clone> Serialize for Peers<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.clone().map(|(name, lease)| (name, Entry(lease))))
    }
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
    use crate::lease::{Attributes, LeaseKey};

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
