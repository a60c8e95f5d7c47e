//! What an API server stores: objects, revisions, and the history that watches are fed from.

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Map, Value, json};

/// Changes that are kept; whoever is further behind has to list again.
const HISTORY: usize = 20_000;

/// Nodes and pods with their history.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) nodes: BTreeMap<String, Value>,
    /// By `namespace/name`.
    pub(super) pods: BTreeMap<String, Value>,
    revision: u64,
    history: VecDeque<(u64, Value)>,
    /// Lists that are being read page by page, by their revision.
    snapshots: BTreeMap<u64, Vec<Value>>,
    /// Changes up to this one are forgotten.
    compacted: u64,
}

/// How a patch is merged (Kubernetes API Concepts, "Patch and Apply").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patch {
    /// RFC 7386.
    Merge,
    /// The same, but conditions are merged by their type.
    Strategic,
}

/// A page of a list.
pub(super) struct Page {
    pub(super) items: Vec<Value>,
    pub(super) revision: u64,
    pub(super) next: String,
}

impl Objects {
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Stores a node as the API server does, with a new revision.
    pub(super) fn store(&mut self, name: &str, mut node: Value) {
        self.revision += 1;
        node["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let before = self.nodes.insert(name.to_owned(), node.clone());
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.record(kind, node);
    }

    pub(super) fn delete(&mut self, name: &str) {
        let Some(mut node) = self.nodes.remove(name) else { return };
        self.revision += 1;
        node["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        self.record("DELETED", node);
    }

    fn record(&mut self, kind: &str, object: Value) {
        self.history.push_back((self.revision, json!({ "type": kind, "object": object })));
        while self.history.len() > HISTORY {
            self.compacted = self.history.pop_front().map_or(0, |(revision, _)| revision);
        }
    }

    /// Counts a change of something else.
    pub(super) fn pass_by(&mut self) {
        self.revision += 1;
    }

    /// Forgets everything up to a revision.
    pub(super) fn forget(&mut self, revision: u64) {
        self.compacted = revision;
        self.history.retain(|(at, _)| *at > revision);
    }

    /// Forgets everything that was; the revision goes on.
    pub(super) fn compact(&mut self) {
        self.revision += 1;
        self.compacted = self.revision;
        self.history.clear();
        self.snapshots.clear();
    }

    /// Returns the changes after a revision, or `None` if they are forgotten.
    pub(super) fn since(&self, revision: u64) -> Option<Vec<(u64, Value)>> {
        if revision < self.compacted {
            return None;
        }
        let newer = self.history.partition_point(|(at, _)| *at <= revision);
        Some(self.history.range(newer..).cloned().collect())
    }

    /// Returns a page of the nodes as they were when the list was begun; `None` if that is
    /// forgotten.
    pub(super) fn page(&mut self, limit: usize, token: &str) -> Option<Page> {
        let (revision, start) = match token.split_once(':') {
            None => {
                self.snapshots.insert(self.revision, self.nodes.values().cloned().collect());
                (self.revision, 0)
            }
            Some((revision, start)) => (revision.parse().ok()?, start.parse().ok()?),
        };
        let all = self.snapshots.get(&revision)?;
        let end = if limit == 0 { all.len() } else { all.len().min(start + limit) };
        let items = all.get(start..end)?.to_vec();
        let next = if end < all.len() { format!("{revision}:{end}") } else { String::new() };
        if next.is_empty() {
            self.snapshots.remove(&revision);
        }
        Some(Page { items, revision, next })
    }

    /// Patches a node, or its status only. The other half of the object stays as it is; metadata
    /// can be changed through both.
    ///
    /// # Errors
    /// With the HTTP status and the message of the API server.
    pub(super) fn patch(
        &mut self,
        name: &str,
        is_status: bool,
        kind: Patch,
        patch: &Value,
    ) -> Result<Value, (u16, String)> {
        let before = self.nodes.get(name).cloned();
        let before = before.ok_or_else(|| (404, format!("nodes \"{name}\" not found")))?;
        let version = &patch["metadata"]["resourceVersion"];
        if !version.is_null() && *version != before["metadata"]["resourceVersion"] {
            return Err((409, "the object has been modified".to_owned()));
        }
        let mut after = before.clone();
        merge(&mut after, patch, kind);
        let untouched = if is_status { "spec" } else { "status" };
        after[untouched] = before[untouched].clone();
        for (key, value) in after["metadata"]["annotations"].as_object().into_iter().flatten() {
            if !value.is_string() {
                return Err((422, format!("metadata.annotations.{key} must be a string")));
            }
        }
        if after != before {
            self.store(name, after);
        }
        Ok(self.nodes[name].clone())
    }
}

/// A node as its kubelet registers it: of the size that they have, and with the subnets that the
/// controller manager assigns.
pub(super) fn node(name: &str, uid: u64, subnets: &[String], images: usize) -> Value {
    let digest = format!("sha256:{:064x}", uid);
    let image = |number: usize| {
        json!({
            "names": [
                format!("registry.example/team/image-{number}@{digest}"),
                format!("registry.example/team/image-{number}:v1"),
            ],
            "sizeBytes": 100_000 + number,
        })
    };
    let mut node = json!({
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {
            "name": name,
            "uid": format!("00000000-0000-4000-8000-{uid:012}"),
            "labels": { "kubernetes.io/hostname": name, "kubernetes.io/os": "linux" },
            "annotations": { "node.alpha.kubernetes.io/ttl": "0" },
        },
        "spec": {},
        "status": {
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "KubeletReady",
                "message": "kubelet is posting ready status",
            }],
            "images": (0..images).map(image).collect::<Vec<_>>(),
        },
    });
    assign(&mut node, subnets);
    node
}

/// Sets the subnets of a node.
pub(super) fn assign(node: &mut Value, subnets: &[String]) {
    if let Some(first) = subnets.first() {
        node["spec"] = json!({ "podCIDR": first, "podCIDRs": subnets });
    }
}

fn merge(target: &mut Value, patch: &Value, kind: Patch) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    for (name, value) in fields {
        match (value, kind) {
            (Value::Null, _) => {
                target.as_object_mut().expect("it was made one").remove(name);
            }
            (Value::Array(items), Patch::Strategic) if name == "conditions" => {
                merge_by_type(&mut target[name], items);
            }
            _ => merge(&mut target[name], value, kind),
        }
    }
}

fn merge_by_type(target: &mut Value, items: &[Value]) {
    if !target.is_array() {
        *target = json!([]);
    }
    let list = target.as_array_mut().expect("it was made one");
    for item in items {
        match list.iter_mut().find(|known| known["type"] == item["type"]) {
            Some(known) => merge(known, item, Patch::Strategic),
            None => list.push(item.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_merge_as_the_api_does() {
        let mut objects = Objects::default();
        objects.store("n1", node("n1", 1, &["10.244.1.0/24".to_owned()], 0));
        let patch = json!({
            "metadata": { "annotations": { "a": "1", "node.alpha.kubernetes.io/ttl": null } },
            "spec": { "podCIDR": "10.9.9.0/24" },
            "status": { "conditions": [{ "type": "NetworkUnavailable", "status": "False" }] },
        });
        let patched = objects.patch("n1", true, Patch::Strategic, &patch).unwrap();
        assert_eq!(patched["metadata"]["annotations"], json!({ "a": "1" }));
        assert_eq!(patched["spec"]["podCIDR"], "10.244.1.0/24");
        assert_eq!(patched["status"]["conditions"].as_array().unwrap().len(), 2);
        let merged = objects.patch("n1", true, Patch::Merge, &patch).unwrap();
        assert_eq!(merged["status"]["conditions"].as_array().unwrap().len(), 1);
        let stale = json!({ "metadata": { "resourceVersion": "1" } });
        assert_eq!(objects.patch("n1", false, Patch::Merge, &stale).unwrap_err().0, 409);
        let number = json!({ "metadata": { "annotations": { "a": 1 } } });
        assert_eq!(objects.patch("n1", false, Patch::Merge, &number).unwrap_err().0, 422);
        assert_eq!(objects.patch("n2", false, Patch::Merge, &patch).unwrap_err().0, 404);
    }

    #[test]
    fn pages_are_those_of_one_moment_and_compaction_ends_them() {
        let mut objects = Objects::default();
        for name in ["a", "b", "c"] {
            objects.store(name, node(name, 1, &[], 0));
        }
        let first = objects.page(2, "").unwrap();
        objects.delete("c");
        let second = objects.page(2, &first.next).unwrap();
        assert_eq!((first.items.len(), second.items.len(), second.next.as_str()), (2, 1, ""));
        let changes = objects.since(first.revision).unwrap();
        assert_eq!(changes[0].1["type"], "DELETED");
        let page = objects.page(1, "").unwrap();
        objects.compact();
        assert!(objects.page(1, &page.next).is_none());
        assert!(objects.since(page.revision).is_none());
    }
}
