//! A private etcd: one member on a host of its own on the underlay.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Instant;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::namespace::Namespace;
use crate::underlay::Underlay;
use crate::{program, wait};

/// The host's number on the underlay.
const HOST: u8 = 253;
const DATA_DIRECTORY: &str = "/run/etcd";

/// An etcd server with its host.
#[derive(Debug)]
pub struct Etcd {
    host: Namespace,
    server: Option<Daemon>,
}

/// A key as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The value, as text.
    pub value: String,
    /// The etcd lease that the key is attached to; 0 for none.
    pub lease: i64,
}

impl Etcd {
    /// Makes the host, with no server running on it yet.
    pub fn stopped(underlay: &Underlay) -> Self {
        Self { host: underlay.host("etcd", HOST), server: None }
    }

    /// Makes the host and starts the server on it.
    pub fn running(underlay: &Underlay) -> Self {
        let mut etcd = Self::stopped(underlay);
        etcd.start();
        etcd
    }

    /// Where nodes reach it.
    pub fn endpoint() -> String {
        format!("http://{}:2379", Underlay::address(HOST))
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Panics
    /// If it does not become healthy.
    pub fn start(&mut self) {
        let clients = Self::endpoint();
        let mut command = self.host.command("etcd");
        command
            .args(["--name", "etcd", "--data-dir", DATA_DIRECTORY, "--max-txn-ops", "100000"])
            .args(["--listen-client-urls", &format!("{clients},http://127.0.0.1:2379")])
            .args(["--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", "http://127.0.0.1:2380"])
            .args(["--initial-advertise-peer-urls", "http://127.0.0.1:2380"])
            .args(["--initial-cluster", "etcd=http://127.0.0.1:2380"])
            .args(["--max-request-bytes", "33554432", "--logger", "zap", "--log-level", "warn"]);
        self.server = Some(Daemon::start("etcd", &mut command));
        wait::until("etcd is healthy", || {
            let output = program::outcome(self.etcdctl().args(["endpoint", "health"]));
            if output.status.success() {
                return Ok(());
            }
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        });
    }

    /// Stops the server; what it stored stays.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.terminate();
        }
    }

    /// The host that the server runs on.
    pub fn host(&self) -> &Namespace {
        &self.host
    }

    /// Stores a value.
    pub fn put(&self, key: &str, value: &str) {
        program::run(self.etcdctl().args(["put", "--", key, value]));
    }

    /// Stores a value without starting a program for it (the JSON gateway of etcd). Returns when etcd
    /// was asked and when it had answered, between which the value was committed.
    ///
    /// # Panics
    /// If etcd refuses.
    pub fn put_at_once(&self, key: &str, value: &str) -> (Instant, Instant) {
        let body = json!({ "key": BASE64.encode(key), "value": BASE64.encode(value) }).to_string();
        let connect = || TcpStream::connect((Ipv4Addr::LOCALHOST, 2379));
        let mut stream = self.host.inside(connect).expect("etcd listens");
        let request = format!(
            "POST /v3/kv/put HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let asked = Instant::now();
        stream.write_all(request.as_bytes()).expect("etcd reads");
        let mut answer = [0; 1024];
        let length = stream.read(&mut answer).expect("etcd answers");
        let answered = Instant::now();
        assert!(answer[..length].starts_with(b"HTTP/1.1 200 "), "etcd did not store {key}");
        (asked, answered)
    }

    /// Stores many values in one transaction, attached to one new etcd lease of `ttl_secs`.
    ///
    /// # Panics
    /// If etcd refuses.
    pub fn put_all(&self, entries: &BTreeMap<String, String>, ttl_secs: u32) {
        let granted = program::run(self.etcdctl().args(["lease", "grant", &ttl_secs.to_string()]));
        let lease = granted.split_whitespace().nth(1).expect("lease ID granted with TTL(n)");
        let mut script = String::from("\n");
        for (key, value) in entries {
            // Go syntax for strings; JSON quotes the same way.
            let value = Value::from(value.as_str());
            script.push_str(&format!("put --lease={lease} {key} {value}\n"));
        }
        script.push_str("\n\n");
        let mut child = self
            .etcdctl()
            .arg("txn")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("etcdctl can be started");
        let mut stdin = child.stdin.take().expect("stdin is a pipe");
        stdin.write_all(script.as_bytes()).expect("etcdctl reads its input");
        drop(stdin);
        assert!(child.wait().expect("etcdctl is our child").success(), "etcdctl txn failed");
    }

    /// Deletes a key; true if there was one.
    pub fn delete(&self, key: &str) -> bool {
        program::run(self.etcdctl().args(["del", "--", key])).trim() != "0"
    }

    /// All keys under a prefix.
    ///
    /// # Panics
    /// If etcd does not answer.
    pub fn list(&self, prefix: &str) -> BTreeMap<String, Entry> {
        let answer = program::run(self.etcdctl().args(["get", "--prefix", "-w", "fields", prefix]));
        // One field a line, as `"Key" : "/a"`; a key's fields follow each other.
        let mut entries = BTreeMap::new();
        let (mut key, mut value) = (String::new(), String::new());
        for (field, text) in answer.lines().filter_map(|line| line.split_once(" : ")) {
            match field.trim_matches('"') {
                "Key" => key = unquote(text),
                "Value" => value = unquote(text),
                "Lease" => {
                    let lease = text.parse().expect("a lease is a number");
                    let entry = Entry { value: std::mem::take(&mut value), lease };
                    entries.insert(std::mem::take(&mut key), entry);
                }
                _ => {}
            }
        }
        entries
    }

    /// The time to live that an etcd lease was granted with, and what is left of it, in seconds.
    ///
    /// # Panics
    /// If etcd does not answer.
    pub fn lease_ttl_secs(&self, lease: i64) -> (i64, i64) {
        let lease = format!("{lease:x}");
        let answer =
            program::run(self.etcdctl().args(["lease", "timetolive", &lease, "-w", "json"]));
        let answer: Value = serde_json::from_str(&answer).expect("etcdctl writes JSON");
        let field = |name: &str| answer[name].as_i64().expect("both are numbers");
        (field("granted-ttl"), field("ttl"))
    }

    /// A command for `etcdctl` on the server's host.
    pub fn etcdctl(&self) -> Command {
        let mut command = self.host.command("etcdctl");
        command.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", "http://127.0.0.1:2379");
        command
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        drop(self.server.take());
        let _ = fs::remove_dir_all(DATA_DIRECTORY);
    }
}

/// Reads a string as Go's `%q` writes it, for the characters that occur here.
fn unquote(text: &str) -> String {
    serde_json::from_str(text).unwrap_or_else(|_| text.trim_matches('"').to_owned())
}
