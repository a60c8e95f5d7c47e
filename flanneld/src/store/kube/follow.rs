//! Lists and watches all nodes, and tells what that means for leases.

use std::time::Duration;

use hyper::StatusCode;
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::api::{self, ApiError};
use super::node::{Node, WatchEvent};
use super::{KubeStore, encoded};
use crate::errors::chain;
use crate::lease::acquire::Listed;
use crate::lease::table::LeaseUpdate;
use crate::trouble::Trouble;

/// Nodes in one page of a list.
const PAGE: usize = 500;
/// The server ends a watch after this long, so that watches spread over all servers there are.
const WATCH_MIN: Duration = Duration::from_secs(300);
const WATCH_MAX: Duration = Duration::from_secs(600);
/// A server that does not even end the watch any more is gone.
const GRACE: Duration = Duration::from_secs(30);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// What is known of the cluster is written at most this often.
const REMEMBER: Duration = Duration::from_secs(1);

/// Where to go on.
enum From {
    /// With a list as the API server remembers it, in one answer: that asks nobody else, however
    /// many nodes start at once (Kubernetes API Concepts, "Semantics for get and list").
    Any,
    /// With a list of how it is now, in pages: what is remembered may be too old.
    Newest,
    /// With the changes since this version.
    Version(String),
}

impl From {
    /// The question for a list, which goes on at `next`.
    fn list(&self, next: &str) -> String {
        match self {
            Self::Any => "/api/v1/nodes?resourceVersion=0".to_owned(),
            _ => format!("/api/v1/nodes?limit={PAGE}&continue={}", encoded(next)),
        }
    }
}

impl KubeStore {
    /// Tells about the leases of all other nodes until nobody listens any more.
    pub(super) async fn follow(&self, updates: mpsc::Sender<LeaseUpdate>, relist: &Notify) {
        let (mut from, mut told) = (From::Any, false);
        let mut trouble = Trouble::default();
        let mut backoff = BACKOFF_MIN;
        while !updates.is_closed() {
            let outcome = match &mut from {
                From::Any | From::Newest => match self.list(&from, &updates).await {
                    Ok(version) => {
                        from = From::Version(version);
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
                From::Version(version) => tokio::select! {
                    ended = self.changes(version, &updates) => ended,
                    () = relist.notified() => {
                        from = From::Newest;
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
                Err(error) if error.is(StatusCode::GONE) => from = From::Newest,
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

    /// Reads all nodes; returns the version from which on to follow changes.
    async fn list(
        &self,
        from: &From,
        updates: &mpsc::Sender<LeaseUpdate>,
    ) -> Result<String, ApiError> {
        let (mut nodes, mut own, mut next) = (Vec::new(), None, String::new());
        let version = loop {
            let take = |node: Node| {
                if node.metadata.name == self.name() {
                    own = Some(self.trimmed(node));
                } else if let Some(listed) = self.lease_of(&node) {
                    nodes.push((node.metadata.name, Some(listed)));
                }
            };
            let page = self.api.list("list the nodes", &from.list(&next), take).await?;
            if page.next.is_empty() {
                break page.resource_version;
            }
            next = page.next;
        };
        let snapshot = self.roster.borrow_mut().replace(nodes);
        self.dirty.notify_one();
        // Nobody listens any more only when the program is ending.
        let _ending = updates.send(snapshot).await;
        self.own.send_replace(own);
        Ok(version)
    }

    /// Follows changes until the server ends them.
    async fn changes(
        &self,
        version: &mut String,
        updates: &mpsc::Sender<LeaseUpdate>,
    ) -> Result<(), ApiError> {
        let lasts =
            Duration::from_secs(rand::random_range(WATCH_MIN.as_secs()..WATCH_MAX.as_secs()));
        let path = format!(
            "/api/v1/nodes?watch=1&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={}",
            encoded(version),
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
            *version = changed.version;
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

    /// Writes what is known of the cluster, whenever that is another thing, but not before the kernel
    /// has it: in a large cluster it takes some milliseconds, in which nothing else is done.
    pub(super) async fn remember(&self) {
        loop {
            self.dirty.notified().await;
            sleep(REMEMBER).await;
            self.write_down();
        }
    }

    fn write_down(&self) {
        let (known, roster) = (self.known.borrow(), self.roster.borrow());
        // Before anything was heard, what the file says is better than nothing.
        if known.own.is_some() && roster.is_known() {
            self.memory.write(&known, roster.leases());
        }
    }
}

/// What an event says.
struct Changed {
    version: String,
    updates: Vec<LeaseUpdate>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::KubeOptions;
    use crate::store::kube::Annotations;

    fn store() -> KubeStore {
        let options = KubeOptions {
            api_url: Some("http://198.51.100.250:8080".to_owned()),
            kubeconfig: None,
            annotations: Annotations::with_prefix("flannel.alpha.coreos.com").unwrap(),
            net_config: "/nowhere".into(),
            sets_condition: true,
            subnet_file: "/nowhere/subnet.env".into(),
        };
        let environment = |name: &str| (name == "NODE_NAME").then(|| "n1".to_owned());
        KubeStore::open(options, environment).unwrap()
    }

    /// A node that takes part with its third byte as the last one of its address.
    fn node(version: u32, third: u8) -> String {
        let prefix = "flannel.alpha.coreos.com";
        format!(
            r#"{{"metadata":{{"name":"n{third}","resourceVersion":"{version}","annotations":{{
                "{prefix}/kube-subnet-manager":"true","{prefix}/backend-type":"host-gw",
                "{prefix}/backend-data":"null","{prefix}/public-ip":"198.51.100.{third}"}}}},
                "spec":{{"podCIDR":"10.244.{third}.0/24"}}}}"#
        )
    }

    #[test]
    fn every_event_says_where_to_go_on_and_bookmarks_say_nothing_else() {
        let store = store();
        let bookmark = r#"{"kind":"Node","metadata":{"resourceVersion":"70","name":""}}"#;
        for (kind, object, version, updates) in [
            ("ADDED", &*node(5, 7), "5", 1),
            ("MODIFIED", &node(6, 7), "6", 0),
            ("BOOKMARK", bookmark, "70", 0),
            ("DELETED", &node(71, 7), "71", 1),
            ("DELETED", &node(72, 7), "72", 0),
        ] {
            let line = format!(r#"{{"type":"{kind}","object":{object}}}"#);
            let changed = store.event(line.as_bytes()).unwrap().expect("it is known");
            assert_eq!((changed.version.as_str(), changed.updates.len()), (version, updates));
        }
        let unknown = store.event(br#"{"type":"SOMETHING","object":{"metadata":{}}}"#);
        assert!(unknown.unwrap().is_none());
    }

    #[test]
    fn a_version_that_is_too_old_is_told_from_other_errors() {
        let store = store();
        for (code, is_gone) in [(410, true), (500, false), (7, false)] {
            let status = format!(r#"{{"kind":"Status","message":"too old","code":{code}}}"#);
            let line = format!(r#"{{"type":"ERROR","object":{status}}}"#);
            let error = store.event(line.as_bytes()).err().expect("it is an error");
            assert_eq!(error.is(StatusCode::GONE), is_gone, "{error}");
        }
        for line in ["", "{}", r#"{"type":"ADDED","object":7}"#, r#"{"type":"ADDED","object":{}}"#]
        {
            assert!(store.event(line.as_bytes()).is_err(), "{line}");
        }
    }
}
