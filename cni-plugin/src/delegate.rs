//! The configuration of the delegate: what the template of the network and the node's subnet file
//! make of each other.
//!
//! It is JSON, because other tools read it: it is kept from ADD to DEL in a file that flannel's own
//! plugin understands too, and must find its keys in.

use fabric::json;
use fabric::subnet_file::SubnetFile;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::netconf::NetConf;
use crate::plugin::Plugin;
use crate::result::Route;

/// Why there is no configuration for a delegate.
#[derive(Debug, thiserror::Error)]
pub enum DelegateError {
    /// The type of the template is not a text.
    #[error("'delegate' dictionary, if present, must have (string) 'type' field")]
    Type,
    /// The template has a key that is not for it to say.
    #[error("'delegate' dictionary must not have '{0}' field, it'll be set by flannel")]
    Reserved(&'static str),
    /// The delegate would be the delegator.
    #[error("'delegate' dictionary must not have the type flannel")]
    Itself,
    /// The routes of the template are not routes.
    #[error(
        "failed to assemble Delegate IPAM: failed to read IPAM routes: failed to parse ipam.routes"
    )]
    Routes(#[source] json::Error),
}

/// Returns the configuration that the delegate gets.
///
/// # Errors
/// If the templates are of no use.
pub fn configuration(
    conf: &NetConf,
    subnet_file: &SubnetFile,
) -> Result<Map<String, Value>, DelegateError> {
    check_template(&conf.delegate)?;
    let mut delegate = conf.delegate.clone();
    if let Some(runtime_config) = &conf.runtime_config {
        delegate.insert("runtimeConfig".to_owned(), runtime_config.clone().into());
    }
    let mut default = |key: &str, value: Value| {
        delegate.entry(key).or_insert(value);
    };
    default("type", "bridge".into());
    default("ipMasq", (!subnet_file.ip_masq).into());
    default("mtu", subnet_file.mtu.into());
    if delegate.get("type") == Some(&"bridge".into()) {
        delegate.entry("isGateway").or_insert(true.into());
    }
    delegate.insert("name".to_owned(), conf.name.clone().into());
    if !conf.cni_version.is_empty() {
        delegate.insert("cniVersion".to_owned(), conf.cni_version.clone().into());
    }
    delegate.insert("ipam".to_owned(), ipam(conf, subnet_file)?.into());
    Ok(delegate)
}

/// Who serves a delegate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delegate {
    /// A plugin in this file.
    Contained(Plugin),
    /// Somebody else's plugin of that name.
    External(String),
}

impl Delegate {
    /// Finds out who serves a configuration.
    ///
    /// # Errors
    /// If it does not say, or if it is `flannel` itself, which would ask the same again.
    pub fn of(configuration: &Map<String, Value>) -> Result<Self, DelegateError> {
        let kind = configuration.get("type").and_then(Value::as_str).ok_or(DelegateError::Type)?;
        match Plugin::named(kind) {
            Some(Plugin::Flannel) => Err(DelegateError::Itself),
            Some(plugin) => Ok(Self::Contained(plugin)),
            None => Ok(Self::External(kind.to_owned())),
        }
    }
}

fn check_template(delegate: &Map<String, Value>) -> Result<(), DelegateError> {
    if delegate.get("type").is_some_and(|kind| !kind.is_string()) {
        return Err(DelegateError::Type);
    }
    let reserved = ["name", "ipam"].into_iter().find(|key| delegate.contains_key(*key));
    reserved.map_or(Ok(()), |key| Err(DelegateError::Reserved(key)))
}

fn ipam(conf: &NetConf, subnet_file: &SubnetFile) -> Result<Map<String, Value>, DelegateError> {
    let template: IpamTemplate =
        json::from_value(conf.ipam.clone().into()).map_err(DelegateError::Routes)?;
    let cluster = subnet_file.networks().map(Route::to);
    let routes: Vec<Route> = template.routes.into_iter().chain(cluster).collect();
    let ranges: Vec<Value> =
        subnet_file.subnets().map(|subnet| json!([{ "subnet": subnet }])).collect();
    let mut ipam = conf.ipam.clone();
    ipam.entry("type").or_insert("host-local".into());
    ipam.insert("ranges".to_owned(), ranges.into());
    ipam.insert("routes".to_owned(), json!(routes));
    Ok(ipam)
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct IpamTemplate {
    routes: Vec<Route>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBNET_FILE: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n\
                               FLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";

    fn delegate_for(conf: Value, subnet_file: &str) -> Result<Value, DelegateError> {
        let conf: NetConf = json::from_value(conf).unwrap();
        configuration(&conf, &SubnetFile::parse(subnet_file).unwrap()).map(Value::Object)
    }

    #[test]
    fn a_bare_network_gets_the_defaults() {
        let expected = json!({
            "name": "cni-flannel",
            "type": "bridge",
            "mtu": 1472,
            "isGateway": true,
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.1.17.0/24"}]],
                "routes": [{"dst": "10.1.0.0/16"}],
            },
        });
        let bare = json!({"name": "cni-flannel", "type": "flannel"});
        let delegate = delegate_for(bare, SUBNET_FILE).unwrap();
        assert_eq!(delegate, expected);
        let text = "{\"ipMasq\":false,\"ipam\":{\"ranges\":[[{\"subnet\":\"10.1.17.0/24\"}]],\
                    \"routes\":[{\"dst\":\"10.1.0.0/16\"}],\"type\":\"host-local\"},\
                    \"isGateway\":true,\"mtu\":1472,\"name\":\"cni-flannel\",\"type\":\"bridge\"}";
        assert_eq!(delegate.to_string(), text, "keys are sorted, as Go does");
    }

    #[test]
    fn the_templates_are_kept_where_they_may_say_something() {
        let conf = json!({
            "name": "cbr0",
            "cniVersion": "0.3.1",
            "type": "flannel",
            "args": {"cni": {"ips": ["10.1.17.9"]}},
            "runtimeConfig": {"portMappings": []},
            "delegate": {
                "type": "bridge", "hairpinMode": true, "isDefaultGateway": true, "isGateway": false,
                "ipMasq": true, "mtu": 1400, "cniVersion": "0.2.0", "runtimeConfig": 1, "vlan": 5,
            },
            "ipam": {
                "dataDir": "/run/pods", "ranges": "whatever",
                "routes": [{"dst": "10.9.0.0/16", "gw": "10.1.17.2"}],
            },
        });
        let expected = json!({
            "name": "cbr0",
            "cniVersion": "0.3.1",
            "type": "bridge",
            "runtimeConfig": {"portMappings": []},
            "hairpinMode": true,
            "isDefaultGateway": true,
            "isGateway": false,
            "ipMasq": true,
            "mtu": 1400,
            "vlan": 5,
            "ipam": {
                "type": "host-local",
                "dataDir": "/run/pods",
                "ranges": [[{"subnet": "10.1.17.0/24"}]],
                "routes": [{"dst": "10.9.0.0/16", "gw": "10.1.17.2"}, {"dst": "10.1.0.0/16"}],
            },
        });
        assert_eq!(delegate_for(conf, SUBNET_FILE).unwrap(), expected);
    }

    #[test]
    fn each_family_has_a_range_and_each_network_a_route() {
        let dual_stack = SUBNET_FILE.replace("10.1.0.0/16", "10.1.0.0/16,10.2.0.0/16")
            + "FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\n";
        let delegate = delegate_for(json!({"name": "a"}), &dual_stack).unwrap();
        let ranges = json!([[{"subnet": "10.1.17.0/24"}], [{"subnet": "fd00:0:0:1::/64"}]]);
        let routes = json!([{"dst": "10.1.0.0/16"}, {"dst": "10.2.0.0/16"}, {"dst": "fd00::/48"}]);
        assert_eq!(delegate["ipam"]["ranges"], ranges);
        assert_eq!(delegate["ipam"]["routes"], routes);
    }

    #[test]
    fn only_a_bridge_is_a_gateway_by_default() {
        let conf = json!({"name": "a", "delegate": {"type": "ptp"}});
        assert_eq!(delegate_for(conf, SUBNET_FILE).unwrap().get("isGateway"), None);
        let masquerading = SUBNET_FILE.replace("true", "false");
        assert_eq!(delegate_for(json!({"name": "a"}), &masquerading).unwrap()["ipMasq"], true);
    }

    #[test]
    fn templates_of_no_use_are_named() {
        let table = [
            (
                json!({"delegate": {"type": 1}}),
                "'delegate' dictionary, if present, must have (string) 'type' field",
            ),
            (
                json!({"delegate": {"name": "a"}}),
                "'delegate' dictionary must not have 'name' field, it'll be set by flannel",
            ),
            (
                json!({"delegate": {"ipam": {}}}),
                "'delegate' dictionary must not have 'ipam' field, it'll be set by flannel",
            ),
            (
                json!({"ipam": {"routes": [{"dst": "10.0.0.0"}]}}),
                "failed to assemble Delegate IPAM: failed to read IPAM routes: \
                 failed to parse ipam.routes: routes[0].dst: invalid CIDR address: 10.0.0.0",
            ),
        ];
        for (conf, expected) in table {
            let error = delegate_for(conf, SUBNET_FILE).unwrap_err();
            assert_eq!(crate::error::chain(&error), expected);
        }
    }

    #[test]
    fn who_serves_a_delegate_is_told_by_its_type() {
        let table = [
            ("bridge", Ok(Delegate::Contained(Plugin::Bridge))),
            ("ovs", Ok(Delegate::External("ovs".to_owned()))),
            ("flannel", Err("'delegate' dictionary must not have the type flannel")),
        ];
        for (kind, expected) in table {
            let delegate = Delegate::of(json!({"type": kind}).as_object().unwrap());
            let expected = expected.map_err(str::to_owned);
            assert_eq!(delegate.map_err(|error| error.to_string()), expected);
        }
    }
}
