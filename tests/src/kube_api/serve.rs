//! Answers requests: routing, identity, permissions, watches, and the faults that were ordered.

use std::io::{self, BufReader, Write};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::http::{self, Request, Stream};
use super::objects::Patch;
use super::real::AGENT;
use super::{Fault, Server};

/// Watches look for changes at least this often; a change wakes them at once.
const LOOK: Duration = Duration::from_millis(200);

/// Whether the connection goes on.
enum Then {
    Next,
    Close,
}

/// Serves a connection until it ends.
pub(super) fn connection(server: &Server, stream: Box<dyn Stream>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = http::read(&mut stream)? {
        if let Then::Close = answer(server, &request, stream.get_mut())? {
            break;
        }
    }
    Ok(())
}

fn answer(server: &Server, request: &Request, stream: &mut dyn Write) -> io::Result<Then> {
    let verb = if is_watch(request) { "WATCH" } else { &request.method };
    server.lock().requests.push(format!("{verb} {}", request.path));
    let fault = server.lock().fault();
    let mut limit = usize::MAX;
    match fault {
        Some(Fault::Latency(time)) => std::thread::park_timeout(time),
        Some(Fault::Reset) => return Ok(Then::Close),
        Some(Fault::CutOff(after)) => limit = after,
        Some(Fault::Refuse { status, retry_after_secs }) => {
            let after = retry_after_secs.map(|secs| format!("Retry-After: {secs}\r\n"));
            let body = status_object(status, "it was ordered to");
            http::answer(stream, status, &after.unwrap_or_default(), &body)?;
            return Ok(Then::Next);
        }
        None => {}
    }
    if let Err((status, message)) = admit(server, request) {
        http::answer(stream, status, "", &status_object(status, &message))?;
        return Ok(Then::Next);
    }
    if let Some(real) = &server.real {
        real.forward(request, stream, limit)?;
        return Ok(Then::Close);
    }
    let stream = &mut Limited { stream, left: limit };
    if is_watch(request) {
        watch(server, request, stream)?;
        return Ok(Then::Next);
    }
    let (status, body) = match object(server, request) {
        Ok(object) => (200, serde_json::to_vec(&object)?),
        Err((status, message)) => (status, status_object(status, &message)),
    };
    http::answer(stream, status, "", &body)?;
    Ok(Then::Next)
}

fn is_watch(request: &Request) -> bool {
    request.query.get("watch").is_some_and(|watch| watch == "1" || watch == "true")
}

/// Who asks, and whether they may.
fn admit(server: &Server, request: &Request) -> Result<(), (u16, String)> {
    let state = server.lock();
    let bearer = request.headers.get("authorization").and_then(|text| text.strip_prefix("Bearer "));
    if let Some(token) = &state.token
        && bearer != Some(token)
    {
        return Err((401, "Unauthorized".to_owned()));
    }
    if server.real.is_some() {
        // It has its own opinion.
        return Ok(());
    }
    let rules = &state.rules;
    let (verb, resource) = attempted(request);
    if rules.iter().any(|(r, verbs)| *r == resource && verbs.iter().any(|v| v == verb)) {
        return Ok(());
    }
    let what = resource.split('/').next().unwrap_or_default();
    let message = format!(
        "{what} is forbidden: User \"{AGENT}\" cannot {verb} resource \"{resource}\" in API group \"\""
    );
    Err((403, message))
}

/// The verb and the resource of a request, as rules name them.
fn attempted(request: &Request) -> (&'static str, String) {
    let parts: Vec<_> = request.path.trim_start_matches("/api/v1/").split('/').collect();
    let (resource, is_one) = match parts[..] {
        ["namespaces", _, kind, _] => (kind.to_owned(), true),
        [kind, _, sub] => (format!("{kind}/{sub}"), true),
        [kind, _] => (kind.to_owned(), true),
        _ => (parts[0].to_owned(), false),
    };
    let verb = match (request.method.as_str(), is_one) {
        ("GET", true) => "get",
        ("GET", false) if request.query.contains_key("watch") => "watch",
        ("GET", false) => "list",
        ("PATCH", _) => "patch",
        ("PUT", _) => "update",
        ("POST", _) => "create",
        _ => "delete",
    };
    (verb, resource)
}

fn object(server: &Server, request: &Request) -> Result<Value, (u16, String)> {
    let path = request.path.strip_prefix("/api/v1/").unwrap_or_default();
    let parts: Vec<_> = path.split('/').collect();
    let mut state = server.lock();
    match (request.method.as_str(), &parts[..]) {
        ("GET", ["nodes"]) => {
            let value = |name: &str| request.query.get(name).cloned().unwrap_or_default();
            // What it remembers, it tells in one answer.
            let remembered = value("resourceVersion") == "0";
            let limit = value("limit").parse().ok().filter(|_| !remembered).unwrap_or(0);
            let gone = || (410, "The provided continue parameter is too old".to_owned());
            let page = state.objects.page(limit, &value("continue")).ok_or_else(gone)?;
            Ok(json!({
                "kind": "NodeList",
                "apiVersion": "v1",
                "metadata": { "resourceVersion": page.revision.to_string(), "continue": page.next },
                "items": page.items,
            }))
        }
        ("GET", ["nodes", name]) => {
            let found = state.objects.nodes.get(*name).cloned();
            found.ok_or_else(|| (404, format!("nodes \"{name}\" not found")))
        }
        ("GET", ["namespaces", namespace, "pods", name]) => {
            let found = state.objects.pods.get(&format!("{namespace}/{name}")).cloned();
            found.ok_or_else(|| (404, format!("pods \"{name}\" not found")))
        }
        ("PATCH", ["nodes", name, sub @ ..]) if sub.is_empty() || *sub == ["status"] => {
            let kind = match request.headers.get("content-type").map(String::as_str) {
                Some("application/strategic-merge-patch+json") => Patch::Strategic,
                Some("application/merge-patch+json") => Patch::Merge,
                _ => return Err((415, "the body of the request was in an unknown format".into())),
            };
            let patch: Value = serde_json::from_slice(&request.body)
                .map_err(|error| (400, format!("error decoding patch: {error}")))?;
            let patched = state.objects.patch(name, !sub.is_empty(), kind, &patch)?;
            server.changed.notify_all();
            Ok(patched)
        }
        _ => Err((404, "the server could not find the requested resource".to_owned())),
    }
}

/// Tells changes after a revision as JSON lines.
fn watch(server: &Server, request: &Request, stream: &mut dyn Write) -> io::Result<()> {
    let value = |name: &str| request.query.get(name).and_then(|text| text.parse::<u64>().ok());
    let ends = value("timeoutSeconds").map(|secs| Instant::now() + Duration::from_secs(secs));
    let bookmarks = request
        .query
        .get("allowWatchBookmarks")
        .is_some_and(|allow| allow == "1" || allow == "true");
    let mut seen = value("resourceVersion").unwrap_or(0);
    http::begin_chunks(stream)?;
    let mut state = server.lock();
    let (epoch, mut marked) = (state.epoch, Instant::now());
    loop {
        let Some(changes) = state.objects.since(seen) else {
            let message = format!("too old resource version: {seen}");
            let status: Value = serde_json::from_slice(&status_object(410, &message))?;
            tell(stream, &json!({ "type": "ERROR", "object": status }))?;
            break;
        };
        let now = state.objects.revision();
        let mark = bookmarks && marked.elapsed() >= state.bookmark_every;
        if ends.is_some_and(|ends| Instant::now() >= ends) || state.epoch != epoch {
            break;
        }
        drop(state);
        for (revision, event) in &changes {
            tell(stream, event)?;
            seen = *revision;
        }
        if mark {
            let metadata = json!({ "resourceVersion": now.to_string() });
            let object = json!({ "kind": "Node", "apiVersion": "v1", "metadata": metadata });
            tell(stream, &json!({ "type": "BOOKMARK", "object": object }))?;
            (seen, marked) = (now, Instant::now());
        }
        state = server.lock();
        state.bookmarked = state.bookmarked.max(if mark { now } else { 0 });
        if state.objects.revision() == now && state.epoch == epoch {
            let woken = server.changed.wait_timeout(state, LOOK);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
    http::chunk(stream, b"")
}

fn tell(stream: &mut dyn Write, event: &Value) -> io::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    http::chunk(stream, &line)
}

/// A stream that breaks after so many bytes.
struct Limited<'a> {
    stream: &'a mut dyn Write,
    left: usize,
}

impl Write for Limited<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let written = self.stream.write(&bytes[..bytes.len().min(self.left)])?;
        self.left -= written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// `meta/v1 Status`.
fn status_object(code: u16, message: &str) -> Vec<u8> {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        429 => "TooManyRequests",
        _ => "InternalError",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    serde_json::to_vec(&status).expect("texts and numbers encode")
}
