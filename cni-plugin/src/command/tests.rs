//! Whole calls against the kernel, each test on a machine of its own.

mod attach;
mod bridge;
mod chained;
mod check;
mod collect;
mod delegation;
mod detach;
mod interfaces;
mod limits;
mod plugins;
mod ports;

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::plugin::Plugin;
use crate::process::{self, Outcome};

const SUBNET_FILE: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.2.1/24\n\
                           FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// The directories where plugins are looked for.
const PLUGINS: &str = "/run/empty:/run/bin";

/// Makes this machine a node: an agent has told about it.
fn node() {
    write_subnet_file(SUBNET_FILE);
}

fn write_subnet_file(text: &str) {
    fs::create_dir_all("/run/flannel").unwrap();
    fs::write("/run/flannel/subnet.env", text).unwrap();
}

/// What the stock list asks for, in the newest version.
fn stock() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": "cbr0",
        "type": "flannel",
        "delegate": {"hairpinMode": true, "isDefaultGateway": true},
    })
}

fn stock_with(delegate: &[(&str, Value)]) -> Value {
    let mut conf = stock();
    for (key, value) in delegate {
        conf["delegate"][*key] = value.clone();
    }
    conf
}

/// Runs a program of the system and returns what it says.
fn sh(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    assert!(output.status.success(), "{command}: {}", text(output.stderr));
    text(output.stdout)
}

fn call(command: &str, container: &str, netns: &str, conf: &Value) -> Result<Value, Value> {
    call_for("eth0", command, container, netns, conf)
}

fn call_for(
    if_name: &str,
    command: &str,
    container: &str,
    netns: &str,
    conf: &Value,
) -> Result<Value, Value> {
    call_plugin(Plugin::Flannel, if_name, command, container, netns, conf)
}

fn call_plugin(
    plugin: Plugin,
    if_name: &str,
    command: &str,
    container: &str,
    netns: &str,
    conf: &Value,
) -> Result<Value, Value> {
    let variable = |name: &str| {
        let value = match name {
            "CNI_COMMAND" => command,
            "CNI_CONTAINERID" => container,
            "CNI_NETNS" => netns,
            "CNI_IFNAME" => if_name,
            "CNI_ARGS" => "IgnoreUnknown=1;K8S_POD_NAME=p",
            "CNI_PATH" => PLUGINS,
            _ => return None,
        };
        Some(value.to_owned())
    };
    let parse = |text: &str| serde_json::from_str(text).unwrap_or(Value::Null);
    match process::run(plugin, variable, conf.to_string().as_bytes()) {
        Outcome::Success(document) => Ok(parse(&document)),
        Outcome::Failure(document) => Err(parse(&document)),
        Outcome::About(text) => panic!("{text}"),
    }
}

/// A container with its sandbox.
struct Container {
    id: String,
    netns: String,
}

impl Container {
    fn new(id: &str) -> Self {
        sh(&format!("ip netns add {id}"));
        Self { id: id.to_owned(), netns: format!("/run/netns/{id}") }
    }

    fn add(&self, conf: &Value) -> Result<Value, Value> {
        call("ADD", &self.id, &self.netns, conf)
    }

    fn del(&self, conf: &Value) -> Result<Value, Value> {
        call("DEL", &self.id, &self.netns, conf)
    }

    fn check(&self, conf: &Value, result: &Value) -> Result<Value, Value> {
        let mut conf = conf.clone();
        conf["prevResult"] = result.clone();
        call("CHECK", &self.id, &self.netns, &conf)
    }

    fn sh(&self, command: &str) -> String {
        sh(&format!("ip netns exec {} {command}", self.id))
    }

    fn ping(&self, address: &str) {
        self.sh(&format!("ping -c 1 -W 10 {address}"));
    }

    /// For an address that shall not be reached.
    fn reaches(&self, address: &str) -> bool {
        let mut ping = Command::new("ip");
        ping.args(["netns", "exec", &self.id, "ping", "-c", "1", "-W", "1", address]);
        ping.output().unwrap().status.success()
    }
}

/// Everything that an attachment could have left behind.
fn remains() -> String {
    let mut text = String::new();
    for line in sh("ip -o link").lines().filter(|line| line.contains("veth")) {
        let _ = writeln!(text, "{line}");
    }
    for directory in ["/var/lib/cni/flannel", "/var/lib/cni/networks/cbr0"] {
        let Ok(entries) = fs::read_dir(directory) else { continue };
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names.retain(|name| name != "lock" && name != "last_reserved_ip.0" && name != ".boot_id");
        for name in names {
            let _ = writeln!(text, "{directory}/{}", name.display());
        }
    }
    text + &rules()
}

fn rules() -> String {
    let rules = sh("nft list ruleset");
    rules
        .lines()
        .filter(|line| line.contains("comment \"") && line.contains("id: "))
        .map(|line| format!("{line}\n"))
        .collect()
}

fn address(result: &Value) -> &str {
    let address = result["ips"][0]["address"].as_str().unwrap();
    address.split('/').next().unwrap()
}

fn code_and_text(failure: &Value) -> (u64, &str) {
    (failure["code"].as_u64().unwrap(), failure["msg"].as_str().unwrap())
}
