//! A Kubernetes API server for one kind of client: nodes, and the pod that asks who it is.
//!
//! It speaks the documented protocol (Kubernetes API Concepts): lists in pages, watches with
//! bookmarks and `410 Gone`, patches of nodes and their status, tokens and permissions. Faults are
//! ordered. What is beyond that protocol it refuses like a real one. Where a real one is installed,
//! it stands behind this one, so that the same tests show whether both agree.

mod http;
mod leases;
mod objects;
pub mod real;
pub mod rules;
mod serve;
pub mod tls;
pub mod tokens;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use self::http::Stream;
use self::objects::{Objects, assign, node};
use self::real::Real;
use self::rules::Rules;
use crate::namespace::Namespace;
use crate::underlay::Underlay;
use crate::wait;

/// The host's number on the underlay.
const HOST: u8 = 250;
const PORT: u16 = 6443;
/// The prefix of annotations unless somebody wants another one.
pub const PREFIX: &str = "flannel.alpha.coreos.com/";

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// It takes longer.
    Latency(Duration),
    /// The connection is closed without an answer.
    Reset,
    /// The connection is closed after so many bytes of the answer.
    CutOff(usize),
    /// It is refused, maybe with a `Retry-After`.
    Refuse {
        /// The HTTP status.
        status: u16,
        /// Seconds after which the client may come back.
        retry_after_secs: Option<u32>,
    },
}

/// The API server and its host.
pub struct KubeApi {
    host: Namespace,
    server: Arc<Server>,
}

/// What connections share.
struct Server {
    state: Mutex<State>,
    /// Told after every change.
    changed: Condvar,
    /// Who answers in truth, where there is one.
    real: Option<Real>,
}

#[derive(Default)]
struct State {
    objects: Objects,
    faults: VecDeque<Fault>,
    token: Option<String>,
    rules: Rules,
    tls: Option<Arc<rustls::ServerConfig>>,
    bookmark_every: Duration,
    /// The newest revision that a bookmark told.
    bookmarked: u64,
    /// Counts outages, so that watches notice them.
    epoch: u64,
    up: bool,
    connections: Vec<TcpStream>,
    requests: Vec<String>,
    registered: u64,
}

impl State {
    fn fault(&mut self) -> Option<Fault> {
        self.faults.pop_front()
    }
}

impl Server {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KubeApi {
    /// Makes the host and starts the server on it, for plain HTTP.
    pub fn running(underlay: &Underlay) -> Self {
        Self::start(underlay, None)
    }

    /// The same with TLS.
    pub fn with_tls(underlay: &Underlay, tls: rustls::ServerConfig) -> Self {
        Self::start(underlay, Some(Arc::new(tls)))
    }

    fn start(underlay: &Underlay, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let host = underlay.host("kube", HOST);
        let bookmark_every = Duration::from_secs(1);
        let state = State { bookmark_every, up: true, tls, ..State::default() };
        let real = Real::start(underlay, &host);
        let server = Arc::new(Server { state: Mutex::new(state), changed: Condvar::new(), real });
        let listener = host.inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)));
        let listener = listener.expect("the host is new");
        let accepting = Arc::clone(&server);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                accept(&accepting, stream);
            }
        });
        let api = Self { host, server };
        api.allow_only(rules::deployed_rules());
        api
    }

    /// The host that the server runs on.
    pub fn host(&self) -> &Namespace {
        &self.host
    }

    /// Where nodes reach it.
    pub fn url(&self) -> String {
        let scheme = if self.server.lock().tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", SocketAddr::from((Underlay::address(HOST), PORT)))
    }

    /// Encrypts in this way from now on.
    pub fn use_tls(&self, tls: rustls::ServerConfig) {
        self.server.lock().tls = Some(Arc::new(tls));
    }

    /// Where the real server is reached without this one, with TLS.
    pub fn real_url(&self) -> String {
        format!("https://{}", SocketAddr::from((Underlay::address(HOST), real::PORT)))
    }

    /// Registers a node, as its kubelet does, with the subnets that a controller assigned.
    pub fn add_node(&self, name: &str, subnets: &[&str]) {
        self.add_large_node(name, subnets, 0);
    }

    /// Registers a node that has so many container images, each 250 bytes long.
    pub fn add_large_node(&self, name: &str, subnets: &[&str], images: usize) {
        let subnets: Vec<_> = subnets.iter().map(|&subnet| subnet.to_owned()).collect();
        self.change(|state| {
            state.registered += 1;
            let node = node(name, state.registered, &subnets, images);
            match &self.server.real {
                Some(real) => real.create(node),
                None => state.objects.store(name, node),
            }
        });
    }

    /// Deletes a node and registers it again, with nothing left of what it said of itself: only so
    /// can it get other subnets.
    pub fn recreate_node(&self, name: &str, subnets: &[&str]) {
        self.delete_node(name);
        self.add_node(name, subnets);
    }

    /// Assigns subnets to a node that has none.
    pub fn assign(&self, name: &str, subnets: &[&str]) {
        let subnets: Vec<_> = subnets.iter().map(|&subnet| subnet.to_owned()).collect();
        self.edit(name, |node| assign(node, &subnets));
    }

    /// Changes a node behind everybody's back.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn edit(&self, name: &str, edit: impl Fn(&mut Value)) {
        if let Some(real) = &self.server.real {
            return real.edit(name, &edit);
        }
        self.change(|state| {
            let mut node = state.objects.nodes.get(name).expect("the node is there").clone();
            edit(&mut node);
            state.objects.store(name, node);
        });
    }

    /// Sets an annotation, or removes it.
    pub fn annotate(&self, name: &str, annotation: &str, value: Option<&str>) {
        self.edit(name, |node| {
            let annotations = node["metadata"]["annotations"].as_object_mut();
            let annotations = annotations.expect("nodes have annotations");
            match value {
                Some(value) => annotations.insert(annotation.to_owned(), json!(value)),
                None => annotations.remove(annotation),
            };
        });
    }

    /// Deletes a node.
    pub fn delete_node(&self, name: &str) {
        match &self.server.real {
            Some(real) => real.delete(name),
            None => self.change(|state| state.objects.delete(name)),
        }
    }

    /// A node as it is stored.
    pub fn node(&self, name: &str) -> Option<Value> {
        match &self.server.real {
            Some(real) => real.node(name),
            None => self.server.lock().objects.nodes.get(name).cloned(),
        }
    }

    /// The names of all nodes.
    pub fn node_names(&self) -> Vec<String> {
        match &self.server.real {
            Some(real) => real.node_names(),
            None => self.server.lock().objects.nodes.keys().cloned().collect(),
        }
    }

    /// The annotations of a node that begin with the prefix, without it.
    pub fn annotations(&self, name: &str, prefix: &str) -> BTreeMap<String, String> {
        let node = self.node(name).unwrap_or_default();
        let all = node["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
        let ours = all.iter().filter_map(|(name, value)| {
            Some((name.strip_prefix(prefix)?.to_owned(), value.as_str()?.to_owned()))
        });
        ours.collect()
    }

    /// Places a pod on a node.
    pub fn add_pod(&self, namespace: &str, name: &str, node: &str) {
        if let Some(real) = &self.server.real {
            return real.add_pod(namespace, name, node);
        }
        let pod = json!({ "kind": "Pod", "apiVersion": "v1", "spec": { "nodeName": node } });
        self.change(|state| {
            state.objects.pods.insert(format!("{namespace}/{name}"), pod);
        });
    }

    /// Demands this token from now on.
    pub fn demand_token(&self, token: &str) {
        self.server.lock().token = Some(token.to_owned());
    }

    /// Allows nothing but this from now on; at first it is what the deployed manifest allows.
    pub fn allow_only(&self, rules: Rules) {
        if let Some(real) = &self.server.real {
            real.allow_only(&rules);
        }
        self.server.lock().rules = rules;
    }

    /// Orders faults for the next requests, one each.
    pub fn order(&self, faults: impl IntoIterator<Item = Fault>) {
        self.server.lock().faults.extend(faults);
    }

    /// Forgets the history: watches end, and lists that are being read too.
    pub fn compact(&self) {
        if let Some(real) = &self.server.real {
            real.restart();
            return self.drop_connections();
        }
        self.change(|state| state.objects.compact());
    }

    /// Lets so much else happen that of the past nothing is known but what a bookmark told; for one
    /// watch. A real server takes hours for that, and stays as it is.
    pub fn outlive_history(&self) {
        if self.server.real.is_some() {
            return;
        }
        self.change(|state| state.objects.pass_by());
        let revision = self.server.lock().objects.revision();
        let bookmarked = || self.server.lock().bookmarked;
        wait::until_true("a bookmark tells of it", || bookmarked() >= revision);
        self.change(|state| state.objects.forget(state.bookmarked));
    }

    /// Ends all connections; they can be made again.
    pub fn drop_connections(&self) {
        self.change(|state| {
            state.epoch += 1;
            for connection in state.connections.drain(..) {
                // It may have ended by itself.
                let _ended = connection.shutdown(Shutdown::Both);
            }
        });
    }

    /// Ends all connections and refuses new ones.
    pub fn go_down(&self) {
        self.server.lock().up = false;
        self.drop_connections();
    }

    /// Is there again.
    pub fn come_up(&self) {
        self.server.lock().up = true;
    }

    /// Asks the real server as an administrator, for what is beyond nodes; returns its answer.
    ///
    /// # Panics
    /// If there is no real server, or it refuses.
    pub fn administer(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let real = self.server.real.as_ref().expect("KUBERNETES says where kube-apiserver is");
        real.ask(method, path, body, &[]).1
    }

    /// Returns all requests since the last time, as `GET /api/v1/nodes` or `WATCH /api/v1/nodes`.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.server.lock().requests)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.server.lock());
        self.server.changed.notify_all();
    }
}

impl std::fmt::Debug for KubeApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "API server at {}", self.url())
    }
}

fn accept(server: &Arc<Server>, stream: TcpStream) {
    let mut state = server.lock();
    if !state.up {
        return;
    }
    let Ok(socket) = stream.try_clone() else { return };
    state.connections.extend(stream.try_clone());
    drop(state);
    let server = Arc::clone(server);
    std::thread::spawn(move || {
        // Clients come and go; what they are told is in the tests.
        let _served = stream
            .set_nodelay(true)
            .and_then(|()| encrypt(&server, stream))
            .and_then(|stream| serve::connection(&server, stream));
        // Others hold the socket too.
        let _ended = socket.shutdown(Shutdown::Both);
    });
}

fn encrypt(server: &Server, stream: TcpStream) -> io::Result<Box<dyn Stream>> {
    let tls = server.lock().tls.clone();
    let Some(tls) = tls else { return Ok(Box::new(stream)) };
    let connection = rustls::ServerConnection::new(tls).map_err(io::Error::other)?;
    Ok(Box::new(rustls::StreamOwned::new(connection, stream)))
}
