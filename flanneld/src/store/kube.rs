//! Leases in the Kubernetes API: subnets are assigned to Node objects by the controller manager, and
//! annotations of theirs say how to reach each node, as with flannel.
//!
//! ```text
//!              ┌─ watch ──▶ roster ──▶ LeaseUpdate        of all other nodes
//! API server ──┤      └───▶ own node ─┐
//!              └─ get, patch ◀── keep ┴▶ own lease        of this one
//!                                 └──▶ memory             for a start without API server
//! ```
//!
//! Nothing is negotiated here: a node has the subnet that it was assigned, and all that it writes
//! is its own annotations and a node condition.

mod access;
mod annotations;
mod api;
mod condition;
mod connection;
mod follow;
mod items;
mod kubeconfig;
mod memory;
mod node;
mod own;
mod proxy;
mod roster;

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};

use tokio::sync::{Notify, mpsc, watch};

pub(crate) use self::annotations::Annotations;
pub(crate) use self::api::ApiError;
pub(crate) use self::connection::ConnectError;
pub(crate) use self::memory::memory_file;

use self::access::Access;
use self::api::Api;
use self::memory::{Known, Memory};
use self::node::Node;
use self::roster::Roster;
use super::{LeaseStore, NodeFacts, StoreError, Subnets, config_file};
use crate::cli::KubeOptions;
use crate::family::PerFamily;
use crate::lease::acquire::{Listed, Request};
use crate::lease::table::LeaseUpdate;
use crate::renewal::Channels;

/// The store in the Kubernetes API.
pub(crate) struct KubeStore {
    api: Api,
    annotations: Annotations,
    identity: Identity,
    net_config: PathBuf,
    /// Whether to say that the network is there.
    sets_condition: bool,
    memory: Memory,
    known: RefCell<Known>,
    roster: RefCell<Roster>,
    /// Told when the memory is behind.
    dirty: Notify,
    /// This node as it was seen last.
    own: watch::Sender<Option<Node>>,
}

/// How a node finds out which one it is.
enum Identity {
    Node(String),
    Pod { namespace: String, name: String },
}

impl KubeStore {
    /// Prepares the way to the API server; it is asked later.
    pub(crate) fn open(
        options: KubeOptions,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, StoreError> {
        let (url, kubeconfig) = (options.api_url.as_deref(), options.kubeconfig.as_deref());
        let access = Access::find(url, kubeconfig, &environment).map_err(ConnectError::from)?;
        let known = Known { node: String::new(), own: None, addresses: PerFamily::default() };
        Ok(Self {
            api: Api::new(access)?,
            annotations: options.annotations,
            identity: Identity::find(environment)?,
            net_config: options.net_config,
            sets_condition: options.sets_condition,
            memory: Memory::beside(&options.subnet_file),
            known: RefCell::new(known),
            roster: RefCell::default(),
            dirty: Notify::new(),
            own: watch::Sender::new(None),
        })
    }

    /// The name of this node; empty as long as it is not known.
    fn name(&self) -> String {
        self.known.borrow().node.clone()
    }
}

impl Identity {
    fn find(environment: impl Fn(&str) -> Option<String>) -> Result<Self, StoreError> {
        let given = |name| environment(name).filter(|value| !value.is_empty());
        match (given("NODE_NAME"), given("POD_NAME"), given("POD_NAMESPACE")) {
            (Some(node), ..) => Ok(Self::Node(node)),
            (None, Some(name), Some(namespace)) => Ok(Self::Pod { namespace, name }),
            _ => Err(StoreError::WhoAmI),
        }
    }
}

/// Returns the leases of all nodes with their names, for those who administer them.
pub(crate) async fn leases(
    options: KubeOptions,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Vec<(String, Listed)>, StoreError> {
    let (url, kubeconfig) = (options.api_url.as_deref(), options.kubeconfig.as_deref());
    let access = Access::find(url, kubeconfig, &environment).map_err(ConnectError::from)?;
    let mut leases = Vec::new();
    let take = |node: Node| {
        let lease = options.annotations.lease(&node.metadata.annotations, node.subnets());
        leases.extend(lease.map(|lease| (node.metadata.name, lease)));
    };
    let path = "/api/v1/nodes?resourceVersion=0";
    Api::new(access)?.list("list the nodes", path, take).await?;
    Ok(leases)
}

impl LeaseStore for KubeStore {
    const SUBNETS: Subnets = Subnets::Assigned;

    async fn network_config(&self) -> Result<Vec<u8>, StoreError> {
        match std::fs::read(&self.net_config) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(StoreError::NoConfig { place: self.net_config.display().to_string() })
            }
            read => read.map_err(|source| StoreError::File {
                attempt: "read",
                path: self.net_config.clone(),
                source,
            }),
        }
    }

    async fn node(&self) -> NodeFacts {
        self.find_out().await
    }

    async fn watch(&self, updates: mpsc::Sender<LeaseUpdate>, relist: &Notify) {
        tokio::select! {
            () = self.follow(updates, relist) => {}
            () = self.remember() => {}
        }
    }

    async fn watch_config(&self, changed: &Notify) {
        let directory = self.net_config.parent().unwrap_or(Path::new("/"));
        config_file::watch(&[directory], changed).await;
    }

    async fn keep(&self, request: Request, channels: Channels<'_>) {
        self.tend(request, channels).await;
    }
}

/// Encodes what stands in the path or the query of a request (RFC 3986, section 2.1).
fn encoded(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let encode = |byte: u8| match byte {
        byte if is_plain(byte) => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(variables: &[(&str, &str)]) -> Option<String> {
        let lookup = |name: &str| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        };
        Identity::find(lookup).ok().map(|identity| match identity {
            Identity::Node(name) => format!("node {name}"),
            Identity::Pod { namespace, name } => format!("pod {namespace}/{name}"),
        })
    }

    #[test]
    fn a_node_is_found_by_its_name_or_by_its_pod() {
        let pod = [("POD_NAME", "kube-flannel-ds-x"), ("POD_NAMESPACE", "kube-flannel")];
        assert_eq!(identity(&pod).as_deref(), Some("pod kube-flannel/kube-flannel-ds-x"));
        let both = [pod[0], pod[1], ("NODE_NAME", "n1")];
        assert_eq!(identity(&both).as_deref(), Some("node n1"));
        assert_eq!(identity(&[("NODE_NAME", ""), pod[0]]), None);
    }

    #[test]
    fn foreign_text_cannot_leave_its_place_in_a_path() {
        assert_eq!(encoded("n1.example-2"), "n1.example-2");
        assert_eq!(encoded("../x?a=b&ü"), "..%2Fx%3Fa%3Db%26%C3%BC");
    }
}
