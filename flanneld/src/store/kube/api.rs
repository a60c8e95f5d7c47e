//! Requests to the Kubernetes API (Kubernetes API Concepts; API Conventions).

use std::cell::{Cell, RefCell};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::access::{Access, AccessError, Credentials};
use super::connection::{self, ConnectError, Sender, authority};
use super::items::{Items, OBJECT_MAX, TooLarge};
use super::node::{List, ListMetadata};

/// A request that is not answered after this long will not be.
const DEADLINE: Duration = Duration::from_secs(10);
/// A list takes longer where there are many nodes and many who ask; the API server itself gives up
/// after a minute (`--request-timeout` of kube-apiserver).
const LIST_DEADLINE: Duration = Duration::from_secs(60);

/// The way to the API server.
pub(super) struct Api {
    access: Access,
    /// A connection that nobody uses at the moment.
    idle: RefCell<Option<Sender>>,
    /// What the server said last about when to come back.
    retry_after: Cell<Option<Duration>>,
}

/// Why the API server did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("cannot {attempt}: no answer from {server}")]
    Unreachable {
        attempt: &'static str,
        server: String,
        #[source]
        source: ConnectError,
    },
    #[error("cannot {attempt}: {server} did not answer in time")]
    Silent { attempt: &'static str, server: String },
    #[error("cannot {attempt}: the API server answered {status}: {message}{hint}")]
    Refused { attempt: &'static str, status: StatusCode, message: String, hint: &'static str },
    #[error("cannot {attempt}: the answer does not decode")]
    Undecodable {
        attempt: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("cannot {attempt}: the answer was cut off: {reason}")]
    CutOff { attempt: &'static str, reason: String },
}

impl ApiError {
    /// Whether the server says so: `410 Gone` and `404 Not Found` mean something to the caller.
    pub(super) fn is(&self, wanted: StatusCode) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == wanted)
    }
}

/// `meta/v1 Status`.
#[derive(Deserialize)]
pub(super) struct Status {
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    pub(super) code: u16,
}

impl Api {
    /// Prepares the way; the server is asked later.
    pub(super) fn new(access: Access) -> Result<Self, ConnectError> {
        connection::check(&access)?;
        Ok(Self { access, idle: RefCell::new(None), retry_after: Cell::new(None) })
    }

    /// How long the server wants not to be asked, once.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        self.retry_after.take()
    }

    /// Reads an object or a list.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        attempt: &'static str,
        path: &str,
    ) -> Result<T, ApiError> {
        self.object(attempt, (Method::GET, path, ""), Bytes::new()).await
    }

    /// Reads a list, and hands on one item after the other as they come.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        attempt: &'static str,
        path: &str,
        mut each: impl FnMut(T),
    ) -> Result<ListMetadata, ApiError> {
        let undecodable = |source| ApiError::Undecodable { attempt, source };
        let cut_off = |reason: &str| ApiError::CutOff { attempt, reason: reason.to_owned() };
        let question = (Method::GET, path, "");
        let (answer, sender) = self.send(attempt, question, Bytes::new(), LIST_DEADLINE).await?;
        let (mut body, mut items) = (answer.into_body(), Items::default());
        loop {
            let bytes = match timeout(DEADLINE, body.frame()).await {
                Ok(None) => break,
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
                Ok(Some(Err(error))) => return Err(cut_off(&error.to_string())),
                Err(_elapsed) => return Err(ApiError::Silent { attempt, server: self.server() }),
            };
            let mut rest = &bytes[..];
            let too_large = |TooLarge| cut_off("an object is too large");
            while let Some(item) = items.next(&mut rest).map_err(too_large)? {
                each(serde_json::from_slice(item).map_err(undecodable)?);
            }
        }
        let envelope = items.envelope().ok_or_else(|| cut_off("within the list"))?;
        let list: List = serde_json::from_slice(envelope).map_err(undecodable)?;
        self.idle.replace(Some(sender));
        Ok(list.metadata)
    }

    /// Changes the fields that the patch names, by the rules of a strategic merge patch.
    pub(super) async fn patch<T: DeserializeOwned>(
        &self,
        attempt: &'static str,
        path: &str,
        patch: &serde_json::Value,
    ) -> Result<T, ApiError> {
        let kind = "application/strategic-merge-patch+json";
        self.object(attempt, (Method::PATCH, path, kind), patch.to_string().into()).await
    }

    /// Begins to read a list of events that does not end soon.
    pub(super) async fn watch(&self, attempt: &'static str, path: &str) -> Result<Lines, ApiError> {
        let question = (Method::GET, path, "");
        let (answer, sender) = self.send(attempt, question, Bytes::new(), DEADLINE).await?;
        let (body, buffer) = (answer.into_body(), Vec::new());
        Ok(Lines { attempt, body, buffer, _sender: sender })
    }

    async fn object<T: DeserializeOwned>(
        &self,
        attempt: &'static str,
        what: (Method, &str, &str),
        body: Bytes,
    ) -> Result<T, ApiError> {
        let (answer, sender) = self.send(attempt, what, body, DEADLINE).await?;
        let bytes = self.whole(attempt, answer).await?;
        self.idle.replace(Some(sender));
        serde_json::from_slice(&bytes).map_err(|source| ApiError::Undecodable { attempt, source })
    }

    async fn whole(
        &self,
        attempt: &'static str,
        answer: Response<Incoming>,
    ) -> Result<Bytes, ApiError> {
        let body = Limited::new(answer.into_body(), OBJECT_MAX).collect();
        match timeout(DEADLINE, body).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) => Err(ApiError::CutOff { attempt, reason: error.to_string() }),
            Err(_elapsed) => Err(ApiError::Silent { attempt, server: self.server() }),
        }
    }

    /// Returns an answer that is no refusal, and what its body is read from.
    async fn send(
        &self,
        attempt: &'static str,
        (method, path, kind): (Method, &str, &str),
        body: Bytes,
        deadline: Duration,
    ) -> Result<(Response<Incoming>, Sender), ApiError> {
        let unreachable = |source| ApiError::Unreachable { attempt, server: self.server(), source };
        let request = || {
            let mut request = Request::builder()
                .method(method.clone())
                .uri(format!("{}{path}", self.access.server.path().trim_end_matches('/')))
                .header(HOST, authority(&self.access.server))
                .header(USER_AGENT, concat!("flanneld/", env!("CARGO_PKG_VERSION")))
                .header(ACCEPT, "application/json");
            if !kind.is_empty() {
                request = request.header(CONTENT_TYPE, kind);
            }
            if let Some(credentials) = self.credentials()? {
                request = request.header(AUTHORIZATION, credentials);
            }
            Ok(request.body(Full::new(body.clone())).map_err(std::io::Error::other)?)
        };
        let mut sender = self.sender().await.map_err(unreachable)?;
        let request = request().map_err(unreachable)?;
        let answer = match timeout(deadline, sender.send_request(request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(unreachable(error.into())),
            Err(_elapsed) => return Err(ApiError::Silent { attempt, server: self.server() }),
        };
        if answer.status().is_success() {
            return Ok((answer, sender));
        }
        Err(self.refusal(attempt, answer).await)
    }

    /// An idle connection that is still there, or a new one.
    async fn sender(&self) -> Result<Sender, ConnectError> {
        let idle = self.idle.take();
        if let Some(mut sender) = idle
            && !sender.is_closed()
            && sender.ready().await.is_ok()
        {
            return Ok(sender);
        }
        connection::open(&self.access).await
    }

    fn credentials(&self) -> Result<Option<String>, AccessError> {
        Ok(match &self.access.credentials {
            Credentials::Nothing => None,
            Credentials::Token(token) => Some(format!("Bearer {}", token.text()?)),
            Credentials::Password { user, password } => {
                let pair = STANDARD.encode(format!("{user}:{}", password.text()?));
                Some(format!("Basic {pair}"))
            }
        })
    }

    async fn refusal(&self, attempt: &'static str, answer: Response<Incoming>) -> ApiError {
        let status = answer.status();
        let after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        self.retry_after.set(after.and_then(|secs| secs.parse().ok()).map(Duration::from_secs));
        let message = match self.whole(attempt, answer).await {
            Ok(body) => match serde_json::from_slice::<Status>(&body) {
                Ok(status) => status.message,
                Err(_) => String::from_utf8_lossy(&body[..body.len().min(200)]).trim().to_owned(),
            },
            Err(error) => error.to_string(),
        };
        let hint = match status {
            StatusCode::UNAUTHORIZED => "; is the token still valid?",
            StatusCode::FORBIDDEN => "; see the ClusterRole in config/kube-flannel.yml",
            _ => "",
        };
        ApiError::Refused { attempt, status, message, hint }
    }

    fn server(&self) -> String {
        self.access.server.to_string().trim_end_matches('/').to_owned()
    }
}

/// An answer that is read line by line as it comes.
pub(super) struct Lines {
    attempt: &'static str,
    body: Incoming,
    buffer: Vec<u8>,
    /// The connection lives as long as this.
    _sender: Sender,
}

impl Lines {
    /// Returns the next line, or `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, ApiError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                return Ok(Some(line));
            }
            if self.buffer.len() > OBJECT_MAX {
                return Err(self.cut_off("a line has no end"));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        self.buffer.extend_from_slice(bytes);
                    }
                }
                Some(Err(error)) => return Err(self.cut_off(error)),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(self.cut_off("within a line")),
            }
        }
    }

    fn cut_off(&self, reason: impl ToString) -> ApiError {
        ApiError::CutOff { attempt: self.attempt, reason: reason.to_string() }
    }
}
