//! The connection to etcd: one endpoint after the other, with deadlines on everything.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use tokio::sync::Notify;
use tokio::time::timeout;
use tracing::debug;

use crate::cli::{EtcdOptions, Password};
use crate::store::StoreError;

/// No answer after this long counts as no answer.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
/// A connection on which nothing came for so long is asked whether it lives, and is dead without an
/// answer in time. Each question wakes an agent that has nothing else to do.
const KEEP_ALIVE: Duration = Duration::from_secs(4);
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(3);
/// gRPC status codes (`google/rpc/code.proto`) of what passes by itself: cancelled, unknown,
/// deadline exceeded, resource exhausted, aborted, unavailable.
const TRANSIENT: [i32; 6] = [1, 2, 4, 8, 10, 14];

/// The way to etcd.
pub(super) struct Connection {
    options: EtcdOptions,
    /// The endpoint in use.
    endpoint: Cell<usize>,
    client: RefCell<Option<Client>>,
    /// Told to whoever has a stream on the connection, also if it asks later.
    abandoned: Notify,
    /// Told to whoever waits for an answer.
    hopeless: Notify,
}

impl Connection {
    /// Prepares a connection. Files are read to see that they can be; what counts is what they
    /// hold whenever a connection is made.
    pub(super) fn prepare(options: EtcdOptions) -> Result<Self, StoreError> {
        let connection = Self {
            options,
            endpoint: Cell::new(0),
            client: RefCell::new(None),
            abandoned: Notify::new(),
            hopeless: Notify::new(),
        };
        let is_tls = |endpoint: &String| endpoint.starts_with("https://");
        if connection.options.endpoints.iter().any(is_tls) {
            tls(&connection.options)?;
        }
        if let Some((_, password)) = &connection.options.user {
            read_password(password)?;
        }
        Ok(connection)
    }

    /// Asks one endpoint after the other until one answers.
    pub(super) async fn call<T, F>(
        &self,
        attempt: &str,
        request: impl Fn(Client) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.call_up_to(self.options.endpoints.len(), attempt, request).await
    }

    /// Asks one endpoint only. For writes: one that got no answer may still happen, and whoever
    /// asked for it has to know.
    pub(super) async fn call_once<T, F>(
        &self,
        attempt: &str,
        request: impl Fn(Client) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.call_up_to(1, attempt, request).await
    }

    async fn call_up_to<T, F>(
        &self,
        attempts: usize,
        attempt: &str,
        request: impl Fn(Client) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut reasons = Vec::new();
        for _ in 0..attempts {
            let asked = async {
                let client = self.client().await?;
                request(client).await.map_err(Failure::Etcd)
            };
            let hopeless = self.hopeless.notified();
            let answer = tokio::select! {
                answer = timeout(DEADLINE, asked) => answer,
                () = hopeless => Ok(Err(Failure::Abandoned)),
            };
            let reason = match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Failure::Abandoned)) => "it was asked from a former address".to_owned(),
                Ok(Err(Failure::Files(error))) => return Err(error),
                Ok(Err(Failure::Etcd(error))) if is_transient(&error) => reason(&error),
                Ok(Err(Failure::Etcd(error))) => {
                    self.next_endpoint();
                    let (attempt, reason) = (attempt.to_owned(), reason(&error));
                    return Err(StoreError::Refused { attempt, reason });
                }
                Err(_elapsed) => format!("it is silent for {} s", DEADLINE.as_secs()),
            };
            debug!(endpoint = self.current_endpoint(), %reason, "etcd did not answer");
            self.next_endpoint();
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
        Err(StoreError::Unavailable {
            attempt: attempt.to_owned(),
            endpoints: self.options.endpoints.join(", "),
            reason: reasons.join("; "),
        })
    }

    async fn client(&self) -> Result<Client, Failure> {
        if let Some(client) = self.client.borrow().as_ref() {
            return Ok(client.clone());
        }
        let endpoint = self.current_endpoint();
        let options = self.connect_options(endpoint).map_err(Failure::Files)?;
        let connected = Client::connect([endpoint], Some(options)).await;
        Ok(self.client.borrow_mut().insert(connected.map_err(Failure::Etcd)?).clone())
    }

    fn connect_options(&self, endpoint: &str) -> Result<ConnectOptions, StoreError> {
        let mut connect = ConnectOptions::new()
            .with_connect_timeout(DEADLINE)
            .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE_ANSWER)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some((name, password)) = &self.options.user {
            // Tokens end after minutes; the library fetches another one.
            connect = connect.with_user(name, read_password(password)?);
            connect = connect.with_auto_token_refresh(true);
        }
        if endpoint.starts_with("https://") {
            connect = connect.with_tls(tls(&self.options)?);
        }
        Ok(connect)
    }

    fn current_endpoint(&self) -> &str {
        let endpoints = &self.options.endpoints;
        &endpoints[self.endpoint.get() % endpoints.len()]
    }

    /// Gives the connection up, for one who knows that it is dead.
    pub(super) fn abandon(&self) {
        *self.client.borrow_mut() = None;
        self.abandoned.notify_one();
        self.hopeless.notify_waiters();
    }

    /// Waits until the connection is given up: a stream on it will bring nothing more.
    pub(super) async fn abandoned(&self) {
        self.abandoned.notified().await;
    }

    /// Gives the connection up; the next one goes elsewhere, if there is an elsewhere.
    pub(super) fn next_endpoint(&self) {
        self.endpoint.set(self.endpoint.get().wrapping_add(1));
        *self.client.borrow_mut() = None;
    }
}

/// Why there was no answer.
enum Failure {
    Files(StoreError),
    Etcd(Error),
    /// The connection was given up meanwhile.
    Abandoned,
}

fn read_password(password: &Password) -> Result<String, StoreError> {
    match password {
        Password::Given(secret) => Ok(secret.0.clone()),
        Password::File(path) => {
            let text = std::fs::read_to_string(path).map_err(|source| StoreError::File {
                attempt: "read the password in",
                path: path.clone(),
                source,
            })?;
            Ok(text.trim_end_matches(['\r', '\n']).to_owned())
        }
    }
}

fn tls(options: &EtcdOptions) -> Result<TlsOptions, StoreError> {
    let read = |path: &std::path::PathBuf| {
        std::fs::read(path).map_err(|source| StoreError::File {
            attempt: "read",
            path: path.clone(),
            source,
        })
    };
    let mut tls = TlsOptions::new();
    tls = match &options.ca_file {
        Some(path) => tls.ca_certificate(Certificate::from_pem(read(path)?)),
        None => tls.with_native_roots(),
    };
    if let (Some(cert), Some(key)) = (&options.cert_file, &options.key_file) {
        tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
    }
    Ok(tls)
}

fn is_transient(error: &Error) -> bool {
    match error {
        Error::GRpcStatus(status) => TRANSIENT.contains(&i32::from(status.code())),
        Error::TransportError(_) | Error::IoError(_) | Error::Internal(_) => true,
        _ => false,
    }
}

/// The innermost cause; what is around it says "transport error" in several ways.
pub(super) fn reason(error: &Error) -> String {
    let outermost: &(dyn std::error::Error + 'static) = match error {
        Error::GRpcStatus(status) => status,
        Error::TransportError(error) => error,
        other => return other.to_string(),
    };
    let causes = std::iter::successors(Some(outermost), |error| error.source());
    match (causes.last(), error) {
        (Some(cause), Error::GRpcStatus(status)) if std::ptr::addr_eq(cause, status) => {
            status.message().to_owned()
        }
        (Some(cause), _) => cause.to_string(),
        (None, _) => error.to_string(),
    }
}
