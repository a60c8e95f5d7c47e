//! What a `ClusterRole` allows.

use serde_json::Value;

use crate::yaml;

/// Verbs by resource, as in the rules of a `ClusterRole`.
pub type Rules = Vec<(String, Vec<String>)>;

/// The rules of the first `ClusterRole` among these objects.
///
/// # Panics
/// If there is none.
pub fn rules_of(manifest: &[Value]) -> Rules {
    let role = manifest.iter().find(|object| object["kind"] == "ClusterRole");
    let rules = role.and_then(|role| role["rules"].as_array()).expect("a ClusterRole with rules");
    let of = |rule: &Value| {
        let verbs = texts(&rule["verbs"]);
        texts(&rule["resources"]).into_iter().map(move |r| (r, verbs.clone())).collect::<Vec<_>>()
    };
    rules.iter().flat_map(of).collect()
}

/// What the manifest that is deployed allows; nothing that was not in flannel's.
pub fn deployed_rules() -> Rules {
    rules_of(&yaml::parse(include_str!("../../../config/kube-flannel.yml")))
}

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
}
