//! A pod: a network namespace that is attached to its node's network through the plugin.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use serde_json::Value;

use crate::namespace::Namespace;
use crate::node::Node;
use crate::runtime::{self, Attachment, Failure, Verb};

/// The version that pods are attached with when a test does not care.
pub const VERSION: &str = "1.0.0";

/// A pod on a node; it stays attached until it is detached or the sandbox ends.
#[derive(Clone, Debug)]
pub struct Pod {
    node: Node,
    namespace: Namespace,
    attachment: Attachment,
    configuration: Value,
    result: Value,
}

impl Pod {
    /// Makes a namespace and attaches it with the stock list.
    ///
    /// # Panics
    /// If the plugin fails.
    #[track_caller]
    pub fn attach(node: &Node, name: &str) -> Self {
        let configuration = runtime::stock_configuration(VERSION);
        match Self::try_attach(node, name, &configuration) {
            Ok(pod) => pod,
            Err(failure) => panic!("ADD of {name} on {} failed: {failure}", node.name()),
        }
    }

    /// Makes a namespace and attaches it; if that fails, detaches it as a runtime does, and
    /// removes the namespace.
    ///
    /// # Errors
    /// What the plugin reports for ADD.
    ///
    /// # Panics
    /// If the plugin fails to detach after a failure.
    pub fn try_attach(node: &Node, name: &str, configuration: &Value) -> Result<Self, Failure> {
        let namespace = Namespace::create(name);
        let attachment = attachment(name, namespace.path());
        let result = match runtime::call(node, Verb::Add, &attachment, configuration) {
            Ok(result) => result.expect("ADD has a result"),
            Err(failure) => {
                runtime::call(node, Verb::Del, &attachment, configuration)
                    .expect("DEL after a failed ADD succeeds");
                namespace.delete();
                return Err(failure);
            }
        };
        let (node, configuration) = (node.clone(), configuration.clone());
        Ok(Self { node, namespace, attachment, configuration, result })
    }

    /// Detaches it and then removes its namespace.
    ///
    /// # Panics
    /// If the plugin fails.
    #[track_caller]
    pub fn detach(self) {
        if let Err(failure) = self.call(Verb::Del) {
            panic!("DEL of {} failed: {failure}", self.name());
        }
        self.namespace.delete();
    }

    /// Removes its namespace first and detaches it when there is none any more.
    ///
    /// # Panics
    /// If the plugin fails.
    #[track_caller]
    pub fn vanish_and_detach(mut self) {
        self.namespace.delete();
        self.attachment.netns = PathBuf::new();
        if let Err(failure) = self.call(Verb::Del) {
            panic!("DEL of {} without a namespace failed: {failure}", self.name());
        }
    }

    /// Calls the plugin for this attachment, with the result of ADD where the protocol wants it.
    ///
    /// # Errors
    /// What the plugin reports.
    pub fn call(&self, verb: Verb) -> Result<Option<Value>, Failure> {
        let mut configuration = self.configuration.clone();
        if matches!(verb, Verb::Check | Verb::Del) && self.keeps_results() {
            configuration["prevResult"] = self.result.clone();
        }
        runtime::call(&self.node, verb, &self.attachment, &configuration)
    }

    /// Its name, which is also that of its network namespace.
    pub fn name(&self) -> &str {
        self.namespace.name()
    }

    /// The node it is on.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// What the runtime knows it by.
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// The result of ADD.
    pub fn result(&self) -> &Value {
        &self.result
    }

    /// Its IPv4 address.
    ///
    /// # Panics
    /// If the plugin reported none.
    pub fn address(&self) -> Ipv4Addr {
        let first =
            self.addresses().find_map(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None });
        first.expect("the pod has an IPv4 address")
    }

    /// Its addresses of all families, in the order of the result.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let old = ["ip4", "ip6"].map(|family| self.result[family]["ip"].as_str());
        let new = self.result["ips"].as_array().into_iter().flatten();
        let new = new.map(|ip| ip["address"].as_str());
        let addresses = old.into_iter().chain(new).flatten();
        addresses.filter_map(|address| address.split('/').next()?.parse().ok())
    }

    /// Runtimes pass the result back from version 0.4.0 on.
    fn keeps_results(&self) -> bool {
        let version = self.configuration["cniVersion"].as_str().unwrap_or_default();
        !version.is_empty()
            && !version.starts_with("0.1")
            && !version.starts_with("0.2")
            && !version.starts_with("0.3")
    }
}

/// Attaches `count` pods to each node, named after it: `n1-p1`, `n1-p2`, `n2-p1`, …
pub fn attach_to_each(nodes: &[Node], count: u8) -> Vec<Pod> {
    let names = nodes.iter().flat_map(|node| (1..=count).map(move |number| (node, number)));
    names.map(|(node, number)| Pod::attach(node, &format!("{}-p{number}", node.name()))).collect()
}

/// Every pod with every other, in both directions.
pub fn pairs(pods: &[Pod]) -> impl Iterator<Item = (&Pod, &Pod)> {
    let all = pods.iter().flat_map(move |from| pods.iter().map(move |to| (from, to)));
    all.filter(|(from, to)| from.name() != to.name())
}

/// An attachment with an identifier of 64 hexadecimal digits, as runtimes make them.
pub fn attachment(name: &str, netns: PathBuf) -> Attachment {
    let hex: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
    Attachment { container_id: format!("{hex:0<64}"), netns, ifname: "eth0".to_owned() }
}
