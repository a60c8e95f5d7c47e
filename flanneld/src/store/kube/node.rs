//! What we read of `core/v1 Node` and `Pod`: a node object takes 10 to 50 kB, and of that the lease
//! is a line.

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::annotations::Texts;
use crate::family::PerFamily;

/// A list without its items.
#[derive(Deserialize)]
pub(super) struct List {
    pub(super) metadata: ListMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListMetadata {
    #[serde(default)]
    pub(super) resource_version: String,
    #[serde(default, rename = "continue")]
    pub(super) next: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Node {
    pub(super) metadata: Metadata,
    #[serde(default)]
    pub(super) spec: Spec,
    #[serde(default)]
    pub(super) status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) resource_version: String,
    pub(super) annotations: Texts,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: String,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) conditions: Vec<Condition>,
}

/// `NodeCondition`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(super) struct Condition {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) status: String,
    pub(super) reason: String,
}

/// `Pod`, of which only the node counts.
#[derive(Deserialize)]
pub(super) struct Pod {
    pub(super) spec: PodSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodSpec {
    #[serde(default)]
    pub(super) node_name: String,
}

/// `WatchEvent`: what its object is depends on its type.
#[derive(Deserialize)]
pub(super) struct WatchEvent<'a> {
    #[serde(rename = "type")]
    pub(super) kind: &'a str,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

impl Node {
    /// Returns the subnets that were assigned to the node's pods: the last of each family, as
    /// flannel does.
    pub(super) fn subnets(&self) -> PerFamily<IpNetwork> {
        let Spec { pod_cidr, pod_cidrs } = &self.spec;
        let one = std::slice::from_ref(pod_cidr);
        let all = if pod_cidrs.is_empty() { one } else { pod_cidrs };
        let networks = all.iter().filter_map(|text| text.parse::<IpNetwork>().ok());
        let networks = networks.filter(|network| network.ip() == network.network());
        let mut subnets = PerFamily { ipv4: None, ipv6: None };
        for network in networks {
            let of_family = if network.is_ipv4() { &mut subnets.ipv4 } else { &mut subnets.ipv6 };
            *of_family = Some(network);
        }
        subnets
    }

    /// Returns the state of a condition.
    pub(super) fn condition(&self, kind: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|condition| condition.kind == kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnets(spec: &str) -> String {
        let node = format!(r#"{{"metadata":{{"name":"n1"}},"spec":{spec},"status":{{"x":[]}}}}"#);
        let subnets = serde_json::from_str::<Node>(&node).unwrap().subnets();
        let text = |network: Option<IpNetwork>| network.map_or("-".to_owned(), |n| n.to_string());
        format!("{} {}", text(subnets.ipv4), text(subnets.ipv6))
    }

    #[test]
    fn subnets_are_those_of_the_node_by_family() {
        for (spec, expected) in [
            ("{}", "- -"),
            (r#"{"podCIDR":"10.244.1.0/24"}"#, "10.244.1.0/24 -"),
            (r#"{"podCIDR":"10.244.1.0/24","podCIDRs":["10.244.1.0/24"]}"#, "10.244.1.0/24 -"),
            (
                r#"{"podCIDR":"fd00:1::/64","podCIDRs":["fd00:1::/64","10.244.1.0/24"]}"#,
                "10.244.1.0/24 fd00:1::/64",
            ),
            (r#"{"podCIDRs":["10.244.1.0/24","10.244.2.0/24"]}"#, "10.244.2.0/24 -"),
            (r#"{"podCIDR":"10.244.1.7/24"}"#, "- -"),
            (r#"{"podCIDR":"everything"}"#, "- -"),
        ] {
            assert_eq!(subnets(spec), expected, "{spec}");
        }
    }
}
