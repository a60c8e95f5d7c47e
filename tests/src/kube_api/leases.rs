//! Nodes as leases: what tests of every store have in common.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use serde_json::{Value, json};

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
            let subnets = self.node(name)?["spec"]["podCIDRs"].clone();
            Some((key(&annotations, &subnets)?, lease(&annotations)))
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

    /// Assigns subnets to the nodes `n<NUMBER>`, as the controller manager does that is told about
    /// the same network; whoever has one of the same families keeps it.
    ///
    /// # Panics
    /// If the network is not JSON.
    pub fn assign_by(&self, network: &str) {
        let network: Value = serde_json::from_str(network).unwrap_or_default();
        let base = network["IPv6Network"].as_str().and_then(|text| text.split('/').next());
        let base: Option<Ipv6Addr> = base.and_then(|text| text.parse().ok());
        let base = base.filter(|_| network["EnableIPv6"] == true);
        for name in self.node_names() {
            let number = name.strip_prefix('n').and_then(|number| number.parse().ok());
            let Some((number, base)) = number.zip(base) else { continue };
            let ipv4 = (network["EnableIPv4"] != false).then(|| format!("10.244.{number}.0/24"));
            let mut segments: [u16; 8] = base.segments();
            segments[3] = number;
            let ipv6 = format!("{}/64", Ipv6Addr::from(segments));
            let subnets: Vec<_> = ipv4.into_iter().chain([ipv6]).collect();
            if self.node(&name).is_some_and(|node| node["spec"]["podCIDRs"] != json!(subnets)) {
                let subnets: Vec<_> = subnets.iter().map(String::as_str).collect();
                self.recreate_node(&name, &subnets);
            }
        }
    }

    /// Deletes the node of such a lease; true if it was there.
    pub fn delete_lease(&self, key: &str) -> bool {
        let key = key.trim_start_matches("subnets/");
        let has_it = |name: &String| {
            let subnets = self.node(name).unwrap_or_default()["spec"]["podCIDRs"].clone();
            self::key(&self.annotations(name, PREFIX), &subnets).is_some_and(|its| its == key)
        };
        let names = self.node_names();
        let found = names.iter().find(|name| has_it(name));
        found.into_iter().for_each(|name| self.delete_node(name));
        found.is_some()
    }
}

/// The key that the lease of a node with these annotations and subnets would have in etcd.
fn key(annotations: &BTreeMap<String, String>, subnets: &Value) -> Option<String> {
    let subnet = |sign: &str, annotation: &str| {
        annotations.get(annotation).filter(|address| *address != "0.0.0.0")?;
        let mut subnets = subnets.as_array()?.iter().filter_map(Value::as_str);
        subnets.find(|subnet| subnet.contains(sign)).map(|subnet| subnet.replace('/', "-"))
    };
    match (subnet(".", "public-ip"), subnet(":", "public-ipv6")) {
        (Some(ipv4), Some(ipv6)) => Some(format!("{ipv4}&{ipv6}")),
        (None, Some(ipv6)) => Some(format!("0.0.0.0-0&{ipv6}")),
        (ipv4, None) => ipv4,
    }
}

/// A name for the node that has a lease.
fn node_name(key: &str) -> String {
    format!("peer-{}", key.replace(['.', ':', '&'], "-"))
}

fn lease(annotations: &BTreeMap<String, String>) -> String {
    let text = |annotation: &str| annotations.get(annotation).filter(|text| !text.is_empty());
    let quoted = |annotation| text(annotation).map_or("null".to_owned(), |t| format!("\"{t}\""));
    let public_ip = text("public-ip").map_or("0.0.0.0", String::as_str);
    let mut lease = format!("{{\"PublicIP\":\"{public_ip}\"");
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
