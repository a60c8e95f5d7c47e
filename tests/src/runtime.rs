//! A container runtime, as far as a CNI plugin sees one: environment and stdin in, JSON and exit
//! status out.

use std::fmt;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::node::Node;
use crate::program;

/// The list that is deployed when nobody wants anything else.
pub const STOCK_LIST: &str = include_str!("../../config/10-flannel.conflist");

/// Every version of the specification, oldest first.
pub const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What a runtime asks a plugin to do; written as `CNI_COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// Compare the attachment with the result of ADD.
    Check,
    /// List the versions that the plugin supports.
    Version,
}

/// Container, interface and sandbox: what the `CNI_*` variables say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`; empty when the sandbox is gone.
    pub netns: PathBuf,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

/// The error that a plugin reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// One of the specification's codes, or one of the plugin's own from 100.
    pub code: u64,
    /// What happened.
    pub msg: String,
    /// More about it; may be empty.
    pub details: String,
}

impl Verb {
    /// The value of `CNI_COMMAND`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Version => "VERSION",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "code {}: {}", self.code, self.msg)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, "; {}", self.details) }
    }
}

/// The flannel part of the stock list as a runtime passes it on: with the list's name and with
/// the newest version that both sides know, here `version`.
///
/// # Panics
/// If the stock list is not one.
pub fn stock_configuration(version: &str) -> Value {
    let list: Value = serde_json::from_str(STOCK_LIST).expect("the stock list is JSON");
    let plugins = list["plugins"].as_array().expect("a list has plugins");
    let mut plugin =
        plugins.iter().find(|p| p["type"] == "flannel").expect("one of them is flannel").clone();
    plugin["name"] = list["name"].clone();
    plugin["cniVersion"] = json!(version);
    plugin
}

/// Calls the plugin on a node; returns its result, which only ADD and VERSION have.
///
/// # Errors
/// What the plugin reports.
///
/// # Panics
/// If the plugin breaks the protocol: more or less than one JSON document on stdout, an exit
/// status that contradicts it.
pub fn call(
    node: &Node,
    verb: Verb,
    attachment: &Attachment,
    configuration: &Value,
) -> Result<Option<Value>, Failure> {
    let mut command = plugin_command(node, verb, attachment);
    let output = feed(&mut command, &configuration.to_string());
    outcome(verb, &command, &output)
}

/// The command for the plugin on a node, with its environment.
pub fn plugin_command(node: &Node, verb: Verb, attachment: &Attachment) -> Command {
    let mut command = node.command(program::flannel());
    command
        .env("CNI_COMMAND", verb.name())
        .env("CNI_CONTAINERID", &attachment.container_id)
        .env("CNI_NETNS", &attachment.netns)
        .env("CNI_IFNAME", &attachment.ifname)
        .env("CNI_PATH", "/opt/cni/bin")
        .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod");
    command
}

/// Runs a command with this text on its stdin.
///
/// # Panics
/// If it cannot be started.
pub fn feed(command: &mut Command, stdin: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the plugin can be started");
    let mut pipe = child.stdin.take().expect("stdin is a pipe");
    // A plugin that fails early may never read it.
    let _ = pipe.write_all(stdin.as_bytes());
    drop(pipe);
    child.wait_with_output().expect("the plugin is our child")
}

fn outcome(verb: Verb, command: &Command, output: &Output) -> Result<Option<Value>, Failure> {
    let broken = |what: &str| -> ! { panic!("{what}: {}", program::describe(command, output)) };
    let parsed = serde_json::from_slice::<Value>(&output.stdout).ok();
    if output.status.success() {
        let has_result = matches!(verb, Verb::Add | Verb::Version);
        return match parsed {
            Some(result) if has_result => Ok(Some(result)),
            None if !has_result && output.stdout.is_empty() => Ok(None),
            _ if has_result => broken("no single JSON document on stdout"),
            _ => broken("output where there must be none"),
        };
    }
    let error = parsed.unwrap_or_else(|| broken("failed without an error document on stdout"));
    let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    let code = error["code"].as_u64().unwrap_or_else(|| broken("an error without a code"));
    if text("msg").is_empty() {
        broken("an error without a message");
    }
    Err(Failure { code, msg: text("msg"), details: text("details") })
}
