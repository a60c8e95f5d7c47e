//! Nodes as leases: what tests of every store have in common.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{KubeApi, PREFIX};

/// Fields of a lease, and the annotations that hold the same.
const TEXTS: [(&str, &str); 3] =
    [("PublicIP", "public-ip"), ("PublicIPv6", "public-ipv6"), ("BackendType", "backend-type")];
const DATA: [(&str, &str); 2] =
    [("BackendData", "backend-data"), ("BackendV6Data", "backend-v6-data")];

impl KubeApi {
    /// The leases that nodes publish: JSON by key, as they would be in etcd.
    pub fn leases(&self) -> BTreeMap<String, String> {
        let lease = |name: &String| {
            let annotations = self.annotations(name, PREFIX);
            if annotations.get("kube-subnet-manager").is_none_or(|managed| managed != "true") {
                return None;
            }
            let node = self.node(name)?;
            let subnets = node["spec"]["podCIDRs"].as_array()?.iter();
            let key: Vec<_> = subnets.filter_map(|s| Some(s.as_str()?.replace('/', "-"))).collect();
            Some((key.join("&"), lease(&annotations)))
        };
        self.node_names().iter().filter_map(lease).collect()
    }

    /// Makes a node that publishes a lease, given as `subnets/KEY` and its JSON.
    ///
    /// # Panics
    /// If the lease is not JSON.
    pub fn put_lease(&self, key: &str, json: &str) {
        let key = key.trim_start_matches("subnets/");
        let lease: Value = serde_json::from_str(json).expect("tests write JSON");
        let subnets: Vec<_> = key.split('&').map(|subnet| subnet.replacen('-', "/", 1)).collect();
        let subnets: Vec<_> = subnets.iter().map(String::as_str).collect();
        let name = node_name(key);
        if self.node(&name).is_none() {
            self.add_node(&name, &subnets);
        }
        self.edit(&name, |node| {
            let annotations = &mut node["metadata"]["annotations"];
            let mut set = |annotation: &str, value: String| {
                annotations[format!("{PREFIX}{annotation}")] = value.into();
            };
            set("kube-subnet-manager", "true".to_owned());
            for (field, annotation) in TEXTS {
                if let Some(text) = lease[field].as_str() {
                    set(annotation, text.to_owned());
                }
            }
            for (field, annotation) in DATA {
                set(annotation, lease[field].to_string());
            }
        });
    }

    /// Deletes the node of such a lease; true if it was there.
    pub fn delete_lease(&self, key: &str) -> bool {
        let name = node_name(key.trim_start_matches("subnets/"));
        let is_there = self.node(&name).is_some();
        self.delete_node(&name);
        is_there
    }
}

/// A name for the node that has a lease.
fn node_name(key: &str) -> String {
    format!("peer-{}", key.replace(['.', ':', '&'], "-"))
}

fn lease(annotations: &BTreeMap<String, String>) -> String {
    let text = |annotation: &str| annotations.get(annotation).filter(|text| !text.is_empty());
    let quoted = |annotation| text(annotation).map_or("null".to_owned(), |t| format!("\"{t}\""));
    let mut lease = format!("{{\"PublicIP\":{}", quoted("public-ip"));
    lease.push_str(&format!(",\"PublicIPv6\":{}", quoted("public-ipv6")));
    if text("backend-type").is_some() {
        lease.push_str(&format!(",\"BackendType\":{}", quoted("backend-type")));
    }
    for (field, annotation) in DATA {
        if let Some(data) = text(annotation).filter(|data| *data != "null") {
            lease.push_str(&format!(",\"{field}\":{data}"));
        }
    }
    lease.push('}');
    lease
}
