//! Where the leases of all nodes are kept.
//!
//! A store owns its connection: it reconnects, resumes and re-reads by itself, and hands on only
//! what decodes. A foreign key or a broken value is logged and skipped; it can never look like the
//! end of somebody's lease.

mod config_file;
pub(crate) mod directory;
pub(crate) mod etcd;
pub(crate) mod kube;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tracing::warn;

use crate::config::{ConfigError, NetworkConfig};
use crate::family::PerFamily;
use crate::lease::acquire::{Listed, Request};
use crate::lease::keeper::{Answer, Step};
use crate::lease::table::LeaseUpdate;
use crate::lease::{Attributes, LeaseKey, wire};
use crate::renewal::Channels;

pub(crate) use directory::DirectoryStore;
pub(crate) use etcd::EtcdStore;
pub(crate) use kube::KubeStore;

/// How long a lease lasts without being renewed.
pub(crate) const LEASE_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Keeps leases.
pub(crate) trait LeaseStore {
    /// Who decides which subnet a node has.
    const SUBNETS: Subnets = Subnets::Chosen;

    /// Reads the network configuration, a JSON text.
    async fn network_config(&self) -> Result<Vec<u8>, StoreError>;

    /// Returns what the store knows of this node before it has a lease; waits until that is known.
    async fn node(&self) -> NodeFacts {
        NodeFacts::default()
    }

    /// Gets a lease for this node and keeps it, as long as somebody listens.
    async fn keep(&self, request: Request, channels: Channels<'_>);

    /// Tells whenever the network configuration may be another one, and at the beginning, as long
    /// as the program runs.
    async fn watch_config(&self, changed: &Notify);

    /// The address of this node changed: connections from the old one are dead and do not know it.
    fn reconnect(&self) {}

    /// Tells about all leases, from a snapshot on, until nobody listens any more; after each
    /// notification of `relist` with a snapshot again.
    async fn watch(&self, updates: mpsc::Sender<LeaseUpdate>, relist: &Notify);
}

/// A store in which the nodes settle among themselves who has which subnet.
pub(crate) trait SharedStore {
    /// Does one thing. An error means that it may have been done, or may be done later.
    async fn perform(&self, step: &Step) -> Result<Answer, StoreError>;
}

/// Who decides which subnet a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subnets {
    /// The node, by the network configuration.
    Chosen,
    /// Somebody else.
    Assigned,
}

impl Subnets {
    /// Decodes and checks a network configuration for such nodes.
    pub(crate) fn parse(self, json: &[u8]) -> Result<NetworkConfig, ConfigError> {
        match self {
            Self::Chosen => NetworkConfig::parse(json),
            Self::Assigned => NetworkConfig::parse_assigned(json),
        }
    }
}

/// What a store knows of a node that it knows by its name.
#[derive(Debug, Default)]
pub(crate) struct NodeFacts {
    /// Addresses that the node shall use instead of those of its options.
    pub(crate) addresses: PerFamily<IpAddr>,
    /// What the node published when it ran last.
    pub(crate) published: Option<Attributes>,
}

/// Why the store did not do it. Texts say what was attempted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("cannot {attempt}: no answer from etcd at {endpoints}: {reason}")]
    Unavailable { attempt: String, endpoints: String, reason: String },
    #[error("cannot {attempt}: etcd refused: {reason}")]
    Refused { attempt: String, reason: String },
    #[error("there is no network configuration at {place}; write one, such as {EXAMPLE}")]
    NoConfig { place: String },
    #[error("cannot {attempt} {path}", path = .path.display())]
    File {
        attempt: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot speak to the Kubernetes API")]
    Kube(#[from] kube::ConnectError),
    #[error(transparent)]
    KubeApi(#[from] kube::ApiError),
    #[error(
        "it is not known which node this is: set NODE_NAME, or POD_NAME and POD_NAMESPACE as in \
         config/kube-flannel.yml"
    )]
    WhoAmI,
}

const EXAMPLE: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// Decodes keys and values as they stand in a store, and complains about each bad one once.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    complaints: BTreeMap<String, String>,
}

impl Decoder {
    /// Returns what a key and its value say: nothing for a foreign key, and no attributes for a
    /// lease that is unreadable.
    pub(crate) fn decode(&mut self, key: &str, value: &[u8]) -> Option<Listed> {
        let Some(subnet) = LeaseKey::parse(key) else {
            self.complain(key, "not the key of a lease".to_owned());
            return None;
        };
        match wire::decode(value) {
            Ok(attributes) => {
                self.complaints.remove(key);
                Some(Listed { key: subnet, attributes: Some(attributes) })
            }
            Err(error) => {
                self.complain(key, error.to_string());
                Some(Listed { key: subnet, attributes: None })
            }
        }
    }

    fn complain(&mut self, key: &str, complaint: String) {
        /// Whoever can write keys must not be able to fill the memory of every node.
        const COMPLAINTS_MAX: usize = 1000;
        if self.complaints.get(key) == Some(&complaint) {
            return;
        }
        let reason = complaint.clone();
        if self.complaints.len() < COMPLAINTS_MAX {
            self.complaints.insert(key.to_owned(), complaint);
        }
        let so_far = self.complaints.len();
        warn!(key = ?key, %reason, so_far, "something that is no lease was left out");
    }
}
