//! Lists and watches all nodes, and tells what that means for leases.

use std::time::Duration;

use hyper::StatusCode;
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::api::{self, ApiError};
use super::node::{Node, NodeList, WatchEvent};
use super::{KubeStore, encoded};
use crate::errors::chain;
use crate::lease::acquire::Listed;
use crate::lease::table::LeaseUpdate;
use crate::trouble::Trouble;

/// Nodes in one page of a list: a few megabytes.
const PAGE: usize = 100;
/// The server ends a watch after this long, so that watches spread over all servers there are.
const WATCH_MIN: Duration = Duration::from_secs(300);
const WATCH_MAX: Duration = Duration::from_secs(600);
/// A server that does not even end the watch any more is gone.
const GRACE: Duration = Duration::from_secs(30);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// What is known of the cluster is written at most this often.
const REMEMBER: Duration = Duration::from_secs(1);

/// Where the watch goes on; `None` if everything has to be listed.
type From = Option<String>;

impl KubeStore {
    /// Tells about the leases of all other nodes until nobody listens any more.
    pub(super) async fn follow(&self, updates: mpsc::Sender<LeaseUpdate>, relist: &Notify) {
        let (mut from, mut told) = (None, false);
        let mut trouble = Trouble::default();
        let mut backoff = BACKOFF_MIN;
        while !updates.is_closed() {
            let outcome = match from {
                None => self.list(&mut from, &updates).await,
                Some(_) => tokio::select! {
                    ended = self.changes(&mut from, &updates) => ended,
                    () = relist.notified() => {
                        from = None;
                        Ok(())
                    }
                },
            };
            match outcome {
                Ok(()) => {
                    trouble.end("the API server answers again");
                    (told, backoff) = (true, BACKOFF_MIN);
                    continue;
                }
                Err(error) if error.is(StatusCode::GONE) => from = None,
                Err(error) => trouble.tell(&chain(&error)),
            }
            if !std::mem::replace(&mut told, true) {
                self.recall(&updates).await;
            }
            let pause = backoff.mul_f64(rand::random_range(0.5..1.0));
            sleep(self.api.retry_after().unwrap_or_default().max(pause)).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Reads all nodes, page by page.
    async fn list(
        &self,
        from: &mut From,
        updates: &mpsc::Sender<LeaseUpdate>,
    ) -> Result<(), ApiError> {
        let (mut nodes, mut own, mut next) = (Vec::new(), None, String::new());
        let version = loop {
            let path = format!("/api/v1/nodes?limit={PAGE}&continue={}", encoded(&next));
            let page: NodeList = self.api.get("list the nodes", &path).await?;
            for node in page.items {
                if node.metadata.name == self.name() {
                    own = Some(self.trimmed(node));
                } else {
                    let listed = self.lease_of(&node);
                    nodes.push((node.metadata.name, listed));
                }
            }
            if page.metadata.next.is_empty() {
                break page.metadata.resource_version;
            }
            next = page.metadata.next;
        };
        let snapshot = self.roster.borrow_mut().replace(nodes);
        self.dirty.notify_one();
        // Nobody listens any more only when the program is ending.
        let _ending = updates.send(snapshot).await;
        self.own.send_replace(own);
        *from = Some(version);
        Ok(())
    }

    /// Follows changes until the server ends them.
    async fn changes(
        &self,
        from: &mut From,
        updates: &mpsc::Sender<LeaseUpdate>,
    ) -> Result<(), ApiError> {
        let lasts =
            Duration::from_secs(rand::random_range(WATCH_MIN.as_secs()..WATCH_MAX.as_secs()));
        let path = format!(
            "/api/v1/nodes?watch=1&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={}",
            encoded(from.as_deref().unwrap_or_default()),
            lasts.as_secs()
        );
        let mut lines = self.api.watch("watch the nodes", &path).await?;
        loop {
            let line = match timeout(lasts + GRACE, lines.next()).await {
                Ok(line) => line?,
                Err(_elapsed) => return Ok(()),
            };
            let Some(line) = line else { return Ok(()) };
            let Some(changed) = self.event(&line)? else { continue };
            *from = Some(changed.version);
            for update in changed.updates {
                if updates.send(update).await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    /// Takes in an event. Bookmarks and the like change nothing but the version.
    fn event(&self, line: &[u8]) -> Result<Option<Changed>, ApiError> {
        let attempt = "watch the nodes";
        let undecodable = |source| ApiError::Undecodable { attempt, source };
        let event: WatchEvent<'_> = serde_json::from_slice(line).map_err(undecodable)?;
        let object = event.object.get();
        if event.kind == "ERROR" {
            let api::Status { message, code } =
                serde_json::from_str(object).map_err(undecodable)?;
            let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return Err(ApiError::Refused { attempt, status, message, hint: "" });
        }
        let node: Node = serde_json::from_str(object).map_err(undecodable)?;
        let version = node.metadata.resource_version.clone();
        let updates = match event.kind {
            "ADDED" | "MODIFIED" => self.changed(node, false),
            "DELETED" => self.changed(node, true),
            "BOOKMARK" => Vec::new(),
            other => {
                debug!(kind = ?other, "an event of a kind that is not known");
                return Ok(None);
            }
        };
        Ok(Some(Changed { version, updates }))
    }

    fn changed(&self, node: Node, deleted: bool) -> Vec<LeaseUpdate> {
        if node.metadata.name == self.name() {
            self.own.send_replace((!deleted).then(|| self.trimmed(node)));
            return Vec::new();
        }
        let name = node.metadata.name.as_str();
        let mut roster = self.roster.borrow_mut();
        let updates = if deleted {
            roster.remove(name)
        } else {
            let listed = self.lease_of(&node);
            if let Some(Listed { key, attributes: None }) = &listed {
                warn!(node = name, subnet = %key, "what the node says of itself is unreadable");
            }
            roster.put(name, listed)
        };
        if !updates.is_empty() {
            self.dirty.notify_one();
        }
        updates
    }

    fn lease_of(&self, node: &Node) -> Option<Listed> {
        self.annotations.lease(&node.metadata.annotations, node.subnets())
    }

    /// Without what is of no use later.
    pub(super) fn trimmed(&self, mut node: Node) -> Node {
        node.metadata.annotations.retain(|name, _| self.annotations.is_ours(name));
        node
    }

    /// Tells what was known when this program ran last, until the API server answers.
    async fn recall(&self, updates: &mpsc::Sender<LeaseUpdate>) {
        let Some((known, nodes)) = self.memory.read() else { return };
        if known.node != self.name() {
            return;
        }
        warn!(nodes = nodes.len(), "the API server does not answer; going on with what was known");
        let snapshot = self.roster.borrow_mut().replace(nodes);
        let _ending = updates.send(snapshot).await;
    }

    /// Writes what is known of the cluster, whenever that is another thing.
    pub(super) async fn remember(&self) {
        loop {
            self.dirty.notified().await;
            if self.known.borrow().own.is_some() {
                self.memory.write(&self.known.borrow(), self.roster.borrow().leases());
            }
            sleep(REMEMBER).await;
        }
    }
}

/// What an event says.
struct Changed {
    version: String,
    updates: Vec<LeaseUpdate>,
}
