//! The configuration of a flannel network, as a network list has it.

use std::path::PathBuf;

use fabric::json;
use serde::Deserialize;
use serde_json::{Map, Value};

/// What the plugin `flannel` understands of its entry in a network list. Other keys are ignored and
/// not passed on.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", expecting = "an object")]
pub struct NetConf {
    /// The name of the network.
    pub name: String,
    /// The version of the specification; empty if the configuration has none.
    pub cni_version: String,
    /// Where the agent tells about this node.
    pub subnet_file: PathBuf,
    /// Where the configurations of delegates are kept from ADD to DEL.
    pub data_dir: PathBuf,
    /// A template for the configuration of the delegate.
    pub delegate: Map<String, Value>,
    /// A template for the `ipam` part of that.
    pub ipam: Map<String, Value>,
    /// What the runtime says about this attachment.
    pub runtime_config: Option<Map<String, Value>>,
}

/// The configuration is JSON, but not of a network of ours.
#[derive(Debug, thiserror::Error)]
#[error("failed to load flannel netconf file: failed to load netconf")]
pub struct NetConfError(#[source] json::Error);

impl NetConf {
    /// Reads the configuration.
    ///
    /// # Errors
    /// If a value is of the wrong type.
    pub fn new(config: &Map<String, Value>) -> Result<Self, NetConfError> {
        json::from_value(config.clone().into()).map_err(NetConfError)
    }
}

impl Default for NetConf {
    fn default() -> Self {
        Self {
            name: String::new(),
            cni_version: String::new(),
            subnet_file: PathBuf::from("/run/flannel/subnet.env"),
            data_dir: PathBuf::from("/var/lib/cni/flannel"),
            delegate: Map::new(),
            ipam: Map::new(),
            runtime_config: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_of_the_wrong_type_is_named() {
        let config = json!({"name": "a", "delegate": 1});
        let error = NetConf::new(config.as_object().unwrap()).unwrap_err();
        let expected = "failed to load flannel netconf file: failed to load netconf: \
                        delegate: expected a map, found integer `1`";
        assert_eq!(crate::error::chain(&error), expected);
    }
}
