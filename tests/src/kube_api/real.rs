//! A real kube-apiserver with its etcd, where one is installed: what the small one here must agree
//! with. It stands behind the small one, which orders faults and hands on everything else.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{env, fs};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::{Value, json};

use super::http::{Request, Stream};
use super::rules::Rules;
use super::{HOST, tls};
use crate::daemon::Daemon;
use crate::etcd::Etcd;
use crate::namespace::Namespace;
use crate::program::{installed, run};
use crate::underlay::Underlay;
use crate::wait;

/// Where the programs of Kubernetes are; tests use the real API server if it is set.
const PROGRAMS: &str = "KUBERNETES";
/// Where the real server listens.
pub(super) const PORT: u16 = 6444;
/// The token of somebody who may do anything.
pub(super) const TOKEN: &str = "administrator";
/// What tokens of service accounts are signed with.
pub const SIGNING_KEY: &str = "/run/service-accounts.key";
/// Who the agents of nodes are: they may do what the deployed role says.
pub(super) const AGENT: &str = "flanneld";

/// A program of Kubernetes, such as `kubelet`; `None` if tests shall do without.
pub fn program(name: &str) -> Option<PathBuf> {
    env::var_os(PROGRAMS).map(|directory| Path::new(&directory).join(name))
}

/// The server.
#[derive(Debug)]
pub(super) struct Real {
    host: Namespace,
    tls: Arc<ClientConfig>,
    server: Mutex<Option<Daemon>>,
    _etcd: Etcd,
}

impl Real {
    /// Starts it on this host, if tests shall use it.
    pub(super) fn start(underlay: &Underlay, host: &Namespace) -> Option<Self> {
        let program = program("kube-apiserver")?;
        if !Path::new("/run/kube.pem").exists() {
            tls::make_server_certificate();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider knows them")
            .with_root_certificates(tls::roots(tls::CA))
            .with_no_client_auth();
        let mut openssl = installed("openssl");
        run(openssl.args(["genrsa", "-out", SIGNING_KEY, "2048"]));
        fs::write("/run/tokens.csv", format!("{TOKEN},administrator,1,\"system:masters\"\n"))
            .expect("the sandbox is writable");
        let real = Self {
            host: host.clone(),
            tls: Arc::new(client),
            server: Mutex::new(None),
            _etcd: Etcd::running(underlay),
        };
        real.restart_with(&program);
        Some(real)
    }

    /// Starts it anew: it remembers nothing but what etcd stores.
    pub(super) fn restart(&self) {
        self.restart_with(&program("kube-apiserver").expect("it was there before"));
    }

    fn restart_with(&self, program: &Path) {
        let mut server = self.server();
        if let Some(mut server) = server.take() {
            server.kill();
        }
        let mut command = self.host.command(&program.to_string_lossy());
        command
            .arg(format!("--etcd-servers={}", Etcd::endpoint()))
            .arg(format!("--secure-port={PORT}"))
            .arg(format!("--advertise-address={}", Underlay::address(HOST)))
            .args(["--tls-cert-file=/run/kube.pem", "--tls-private-key-file=/run/kube.key"])
            .args(["--cert-dir=/run/kube", "--token-auth-file=/run/tokens.csv"])
            .args(["--service-account-issuer=https://kubernetes.default.svc"])
            .arg(format!("--service-account-key-file={SIGNING_KEY}"))
            .arg(format!("--service-account-signing-key-file={SIGNING_KEY}"))
            .args(["--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=Node,RBAC"])
            .args(["--feature-gates=IPv6DualStack=true", "--allow-privileged=true"])
            .args(["--disable-admission-plugins=ServiceAccount"]);
        *server = Some(Daemon::start("kube-apiserver", &mut command));
        drop(server);
        wait::until("the API server is ready", || match self.try_ask("GET", "/readyz", None) {
            Ok((200, _)) => Ok(()),
            Ok((status, body)) => Err(format!("{status} {body}")),
            Err(error) => Err(error.to_string()),
        });
    }

    fn server(&self) -> MutexGuard<'_, Option<Daemon>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a request on, as one of an agent, and the answer back; no more of it than `limit`.
    pub(super) fn forward(
        &self,
        request: &Request,
        to: &mut dyn Write,
        limit: usize,
    ) -> io::Result<()> {
        let mut server = self.connect()?;
        let kind = request.headers.get("content-type").map(String::as_str).unwrap_or_default();
        write!(
            server,
            "{} {} HTTP/1.1\r\nHost: kube\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\n\
             Impersonate-User: {AGENT}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            request.method,
            request.target,
            request.body.len()
        )?;
        server.write_all(&request.body)?;
        server.flush()?;
        let (mut buffer, mut left) = (vec![0; 64 << 10], limit);
        loop {
            let length = read_some(&mut *server, &mut buffer)?.min(left);
            if length == 0 {
                return Ok(());
            }
            to.write_all(&buffer[..length])?;
            to.flush()?;
            left -= length;
        }
    }

    fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        let stream = self.host.inside(move || TcpStream::connect(address))?;
        let name = ServerName::from(Ipv4Addr::LOCALHOST);
        let connection = ClientConnection::new(Arc::clone(&self.tls), name);
        Ok(Box::new(StreamOwned::new(connection.map_err(io::Error::other)?, stream)))
    }

    /// Asks as the administrator; returns the status and the answer.
    fn try_ask(&self, method: &str, path: &str, body: Option<&Value>) -> io::Result<(u16, Value)> {
        let mut server = self.connect()?;
        let body = body.map(ToString::to_string).unwrap_or_default();
        // Answers of HTTP/1.0 come in one piece.
        write!(
            server,
            "{method} {path} HTTP/1.0\r\nHost: kube\r\nAuthorization: Bearer {TOKEN}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        server.flush()?;
        let (mut answer, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            match read_some(&mut *server, &mut buffer)? {
                0 => break,
                length => answer.extend_from_slice(&buffer[..length]),
            }
        }
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
        let status = head.split(' ').nth(1).and_then(|text| text.parse().ok());
        let value = serde_json::from_str(body).unwrap_or_else(|_| body.into());
        Ok((status.ok_or(io::ErrorKind::InvalidData)?, value))
    }

    /// Asks as the administrator, and does not take no for an answer, but for the statuses given.
    pub(super) fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        accepted: &[u16],
    ) -> (u16, Value) {
        match self.try_ask(method, path, body) {
            Ok(answer) if answer.0 < 300 || accepted.contains(&answer.0) => answer,
            other => panic!("{method} {path} {body:?}: {other:?}"),
        }
    }

    pub(super) fn node(&self, name: &str) -> Option<Value> {
        let (status, node) = self.ask("GET", &path(name), None, &[404]);
        (status == 200).then_some(node)
    }

    pub(super) fn node_names(&self) -> Vec<String> {
        let (_, list) = self.ask("GET", "/api/v1/nodes", None, &[]);
        let items = list["items"].as_array().into_iter().flatten();
        items.filter_map(|node| Some(node["metadata"]["name"].as_str()?.to_owned())).collect()
    }

    pub(super) fn create(&self, mut node: Value) {
        node["metadata"].as_object_mut().expect("nodes have metadata").remove("uid");
        self.ask("POST", "/api/v1/nodes", Some(&node), &[]);
    }

    pub(super) fn edit(&self, name: &str, edit: &dyn Fn(&mut Value)) {
        for part in ["", "/status"] {
            let path = format!("{}{part}", path(name));
            loop {
                let mut node = self.node(name).expect("the node is there");
                edit(&mut node);
                if self.ask("PUT", &path, Some(&node), &[409]).0 != 409 {
                    break;
                }
            }
        }
    }

    pub(super) fn delete(&self, name: &str) {
        self.ask("DELETE", &path(name), None, &[404]);
    }

    pub(super) fn add_pod(&self, namespace: &str, name: &str, node: &str) {
        let metadata = json!({ "metadata": { "name": namespace } });
        self.ask("POST", "/api/v1/namespaces", Some(&metadata), &[409]);
        let containers = json!([{ "name": "c", "image": "localhost/none" }]);
        let spec = json!({ "nodeName": node, "containers": containers });
        let pod = json!({ "metadata": { "name": name }, "spec": spec });
        self.ask("POST", &format!("/api/v1/namespaces/{namespace}/pods"), Some(&pod), &[]);
    }

    /// Lets agents do this and nothing else.
    pub(super) fn allow_only(&self, rules: &Rules) {
        let rule = |(resource, verbs): &(String, Vec<String>)| json!({ "apiGroups": [""], "resources": [resource], "verbs": verbs });
        let metadata = json!({ "name": AGENT });
        let role =
            json!({ "metadata": metadata, "rules": rules.iter().map(rule).collect::<Value>() });
        let group = "rbac.authorization.k8s.io";
        let binding = json!({
            "metadata": metadata,
            "roleRef": { "apiGroup": group, "kind": "ClusterRole", "name": AGENT },
            "subjects": [{ "apiGroup": group, "kind": "User", "name": AGENT }],
        });
        for (kind, object) in [("clusterroles", role), ("clusterrolebindings", binding)] {
            let path = format!("/apis/{group}/v1/{kind}");
            if self.ask("POST", &path, Some(&object), &[409]).0 == 409 {
                self.ask("PUT", &format!("{path}/{AGENT}"), Some(&object), &[]);
            }
        }
    }
}

fn path(node: &str) -> String {
    format!("/api/v1/nodes/{node}")
}

/// Reads what is there; nothing at the end, also where TLS was not told of it.
fn read_some(stream: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    match stream.read(buffer) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
        read => read,
    }
}
