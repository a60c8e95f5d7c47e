//! The configuration of a flannel network, as a network list has it.

use std::path::PathBuf;

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
    /// The result of the whole list's ADD.
    pub prev_result: Option<Value>,
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
            prev_result: None,
        }
    }
}
