//! This node: what it was assigned, and what it says of itself.

use std::time::{Duration, SystemTime};

use ipnetwork::IpNetwork;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use super::api::ApiError;
use super::node::{Node, Pod};
use super::{Identity, KubeStore, condition, encoded};
use crate::config::Pool;
use crate::errors::chain;
use crate::family::{Family, PerFamily};
use crate::health::Readiness;
use crate::lease::acquire::Request;
use crate::lease::{Attributes, Lease, LeaseKey};
use crate::renewal::{Channels, tell_acquired};
use crate::store::NodeFacts;
use crate::trouble::Trouble;

const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Why this node has no lease, or does not say so.
#[derive(Debug, thiserror::Error)]
enum NoLease {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("pod {0} is on no node yet")]
    NoNode(String),
    #[error(
        "node {0} was assigned no subnet (spec.podCIDR) yet; kube-controller-manager does so with \
         --allocate-node-cidrs=true and --cluster-cidr"
    )]
    Unassigned(String),
    #[error(
        "node {node} was assigned {subnet}, which is not inside {network} of the network \
         configuration; --cluster-cidr of kube-controller-manager and net-conf.json must agree"
    )]
    Outside { node: String, subnet: IpNetwork, network: IpNetwork },
}

impl KubeStore {
    /// Finds out which node this is and what is known of it. While the API server does not answer,
    /// what was known before counts.
    pub(super) async fn find_out(&self) -> NodeFacts {
        let mut trouble = Trouble::default();
        let mut pause = PAUSE_MIN;
        loop {
            match self.ask().await {
                Ok(facts) => return facts,
                Err(error) => trouble.tell(&chain(&error)),
            }
            if let Some(facts) = self.recollect() {
                return facts;
            }
            sleep(self.api.retry_after().unwrap_or_default().max(pause)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn ask(&self) -> Result<NodeFacts, NoLease> {
        let name = match &self.identity {
            Identity::Node(name) => name.clone(),
            Identity::Pod { namespace, name } => {
                let (namespace, name) = (encoded(namespace), encoded(name));
                let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
                let pod: Pod = self.api.get("read the pod of this program", &path).await?;
                Some(pod.spec.node_name)
                    .filter(|node| !node.is_empty())
                    .ok_or(NoLease::NoNode(format!("{namespace}/{name}")))?
            }
        };
        let node = self.read(&name).await?;
        let texts = &node.metadata.annotations;
        let facts = NodeFacts {
            addresses: self.annotations.own_addresses(texts),
            published: self.annotations.attributes(texts),
        };
        info!(node = %name, "this node was found in the Kubernetes API");
        let mut known = self.known.borrow_mut();
        (known.node, known.addresses) = (name, facts.addresses);
        Ok(facts)
    }

    /// Takes the memory for true, if it is that of this node.
    fn recollect(&self) -> Option<NodeFacts> {
        let (known, _) = self.memory.read()?;
        let is_other = |name: &String| *name != known.node;
        if matches!(&self.identity, Identity::Node(name) if is_other(name)) || known.own.is_none() {
            return None;
        }
        warn!(node = %known.node, "the API server does not answer; this node is what it was");
        let published = known.own.as_ref().map(|own| own.attributes.clone());
        let facts = NodeFacts { addresses: known.addresses, published };
        self.known.replace(known);
        Some(facts)
    }

    async fn read(&self, name: &str) -> Result<Node, ApiError> {
        self.api.get("read this node", &path(name)).await.map(|node| self.trimmed(node))
    }

    /// Serves the subnet that was assigned and says so, as long as somebody listens.
    pub(super) async fn tend(&self, request: Request, mut channels: Channels<'_>) {
        let mut own = self.own.subscribe();
        let mut trouble = Trouble::default();
        let mut pause = PAUSE_MIN;
        loop {
            own.borrow_and_update();
            let wanted = Wanted {
                pools: request.pools,
                attributes: channels.attributes.borrow_and_update().clone(),
                readiness: *channels.ready.borrow_and_update(),
            };
            let again = match self.settle(&wanted, &channels.published).await {
                Ok(()) => {
                    trouble.end("this node is as it shall be in the Kubernetes API");
                    pause = PAUSE_MIN;
                    None
                }
                Err(error) => {
                    trouble.tell(&chain(&error));
                    self.go_on(&wanted, &channels.published);
                    let again = self.api.retry_after().unwrap_or_default().max(pause);
                    pause = (pause * 2).min(PAUSE_MAX);
                    Some(again)
                }
            };
            if !reason_to_look(&mut own, &mut channels, again).await {
                return;
            }
        }
    }

    /// Compares this node with what it shall be, and corrects it.
    async fn settle(
        &self,
        wanted: &Wanted,
        published: &watch::Sender<Option<Lease>>,
    ) -> Result<(), NoLease> {
        let seen = self.own.borrow().clone();
        if let Some(node) = &seen
            && let Ok(key) = wanted.assigned(node)
            && published.borrow().as_ref() == Some(&wanted.lease(key))
            && self.corrections(wanted, node).is_empty()
        {
            return Ok(());
        }
        // What was seen may be older than what was written.
        let node = self.read(&self.name()).await?;
        let key = wanted.assigned(&node)?;
        self.serve(wanted.lease(key), published);
        for (attempt, patch) in self.corrections(wanted, &node) {
            let path = format!("{}/status", path(&self.name()));
            let _answer: Node = self.api.patch(attempt, &path, &patch).await?;
        }
        Ok(())
    }

    /// Patches of what differs. Nothing is said before it is true: other nodes send packets as soon
    /// as they read it.
    fn corrections(&self, wanted: &Wanted, node: &Node) -> Vec<(&'static str, Value)> {
        let mut patches = Vec::new();
        if wanted.readiness.node {
            let texts = &node.metadata.annotations;
            let desired = self.annotations.desired(&wanted.attributes, texts);
            let differs =
                |(name, text): &(String, Option<String>)| texts.get(name) != text.as_ref();
            let changes: Map<_, _> = desired
                .into_iter()
                .filter(differs)
                .map(|(name, text)| (name, text.map_or(Value::Null, Value::String)))
                .collect();
            if !changes.is_empty() {
                let patch = json!({ "metadata": { "annotations": changes } });
                patches.push(("annotate this node", patch));
            }
        }
        if wanted.readiness.is_complete() && self.sets_condition {
            let patch = condition::patch(node, SystemTime::now());
            patches.extend(patch.map(|patch| ("set the condition of this node", patch)));
        }
        patches
    }

    fn serve(&self, lease: Lease, published: &watch::Sender<Option<Lease>>) {
        let before = published.borrow().as_ref().map(|before| before.subnet);
        if before != Some(lease.subnet) {
            tell_acquired(lease.subnet, before);
        }
        self.known.borrow_mut().own = Some(lease.clone());
        self.dirty.notify_one();
        published.send_if_modified(|published| {
            let changed = published.as_ref() != Some(&lease);
            *published = Some(lease);
            changed
        });
    }

    /// Serves the subnet that this node had before, while nobody says which one it has.
    fn go_on(&self, wanted: &Wanted, published: &watch::Sender<Option<Lease>>) {
        if published.borrow().is_some() {
            return;
        }
        let Some((known, _)) = self.memory.read() else { return };
        let subnet = known.own.filter(|_| known.node == self.name()).map(|own| own.subnet);
        if let Some(key) = subnet.filter(|key| wanted.admits(key)) {
            self.serve(wanted.lease(key), published);
        }
    }
}

/// What this node shall be.
struct Wanted {
    pools: PerFamily<Pool>,
    attributes: Attributes,
    readiness: Readiness,
}

impl Wanted {
    fn lease(&self, subnet: LeaseKey) -> Lease {
        Lease { subnet, attributes: self.attributes.clone() }
    }

    /// Whether a subnet could have been assigned to a node of this network.
    fn admits(&self, key: &LeaseKey) -> bool {
        key.subnets().all(|subnet| {
            let pool = self.pools.get(Family::of_network(subnet));
            pool.is_some_and(|pool| contains(pool.network, subnet))
        })
    }

    /// Returns what the node was assigned, of the families that are in use: one that has no subnet
    /// yet does not keep the other from working.
    fn assigned(&self, node: &Node) -> Result<LeaseKey, NoLease> {
        let subnets = node.subnets();
        let subnets = PerFamily::try_from_fn(|family| {
            let (pool, subnet) = (self.pools.get(family), subnets.get(family));
            let Some((pool, subnet)) = pool.zip(subnet) else { return Ok(None) };
            if contains(pool.network, *subnet) {
                return Ok(Some(*subnet));
            }
            let (node, network) = (node.metadata.name.clone(), pool.network);
            Err(NoLease::Outside { node, subnet: *subnet, network })
        })?;
        LeaseKey::new(subnets).ok_or_else(|| NoLease::Unassigned(node.metadata.name.clone()))
    }
}

/// Waits until something is different or it is time. Returns false when nobody listens any more.
async fn reason_to_look(
    own: &mut watch::Receiver<Option<Node>>,
    channels: &mut Channels<'_>,
    again: Option<Duration>,
) -> bool {
    let timer = sleep(again.unwrap_or(Duration::MAX));
    tokio::pin!(timer);
    loop {
        tokio::select! {
            changed = own.changed() => return changed.is_ok(),
            changed = channels.attributes.changed() => return changed.is_ok(),
            changed = channels.ready.changed() => return changed.is_ok(),
            () = &mut timer => return true,
            // Whoever has a subnet is not decided here, so that there is nothing to doubt.
            doubt = channels.doubts.recv() => if doubt.is_none() {
                return false;
            },
        }
    }
}

fn path(node: &str) -> String {
    format!("/api/v1/nodes/{}", encoded(node))
}

fn contains(network: IpNetwork, subnet: IpNetwork) -> bool {
    network.contains(subnet.ip()) && network.prefix() <= subnet.prefix()
}
