//! Leases in etcd (v3 API), under the keys and with the values that flannel uses.
//!
//! Every write is a transaction that only succeeds if the key is still as it was listed. A lease is
//! renewed by keeping the etcd lease alive, so that the other nodes see no change. There is one
//! connection at a time; when it fails, the next endpoint is tried.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::time::{Duration, Instant};

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, EventType, GetOptions,
    Identity, PutOptions, TlsOptions, Txn, TxnOp, WatchOptions, WatchResponse,
};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::{Decoder, Held, LEASE_TTL, LeaseStore, Renewal, StoreError, full_term};
use crate::cli::EtcdOptions;
use crate::lease::acquire::{Decision, Listed, Request, decide};
use crate::lease::table::LeaseUpdate;
use crate::lease::{Lease, LeaseKey, wire};

/// No answer after this long counts as no answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// A connection that is dead without knowing it is noticed after two of these.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// gRPC status codes (`google/rpc/code.proto`) of what passes by itself: cancelled, unknown,
/// deadline exceeded, resource exhausted, aborted, unavailable.
const TRANSIENT: [i32; 6] = [1, 2, 4, 8, 10, 14];

/// The store in etcd.
pub(crate) struct EtcdStore {
    options: EtcdOptions,
    tls: Option<TlsOptions>,
    prefix: String,
    /// The endpoint in use.
    endpoint: Cell<usize>,
    client: RefCell<Option<Client>>,
    decoder: RefCell<Decoder>,
}

/// A key as it was listed, and what a guarded write needs.
struct Entry {
    listed: Listed,
    value: Vec<u8>,
    revision: i64,
    lease: i64,
}

struct Listing {
    entries: Vec<Entry>,
    revision: i64,
}

impl EtcdStore {
    /// Prepares a connection; files are read now, etcd is asked later.
    pub(crate) fn open(options: EtcdOptions) -> Result<Self, StoreError> {
        let https = options.endpoints.iter().any(|endpoint| endpoint.starts_with("https://"));
        let tls = https.then(|| tls(&options)).transpose()?;
        let prefix = clean_path(&options.prefix);
        let (endpoint, client) = (Cell::new(0), RefCell::new(None));
        Ok(Self { options, tls, prefix, endpoint, client, decoder: RefCell::default() })
    }

    /// Keys of leases start with this.
    fn subnets(&self) -> String {
        format!("{}/subnets/", self.prefix)
    }

    fn key(&self, key: &LeaseKey) -> String {
        format!("{}{key}", self.subnets())
    }

    /// Asks one endpoint after the other until one answers.
    async fn call<T, F>(
        &self,
        attempt: &str,
        request: impl Fn(Client) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut reasons = Vec::new();
        for _ in 0..self.options.endpoints.len() {
            let asked = async { request(self.client().await?).await };
            let reason = match timeout(DEADLINE, asked).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) if is_transient(&error) => reason(&error),
                Ok(Err(error)) => {
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

    async fn client(&self) -> Result<Client, Error> {
        if let Some(client) = self.client.borrow().as_ref() {
            return Ok(client.clone());
        }
        let endpoint = self.current_endpoint();
        let client = Client::connect([endpoint], Some(self.connect_options(endpoint))).await?;
        Ok(self.client.borrow_mut().insert(client).clone())
    }

    fn connect_options(&self, endpoint: &str) -> ConnectOptions {
        let mut connect = ConnectOptions::new()
            .with_connect_timeout(DEADLINE)
            .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some((name, password)) = &self.options.user {
            connect = connect.with_user(name, &password.0);
        }
        match &self.tls {
            Some(tls) if endpoint.starts_with("https://") => connect.with_tls(tls.clone()),
            _ => connect,
        }
    }

    fn current_endpoint(&self) -> &str {
        let endpoints = &self.options.endpoints;
        &endpoints[self.endpoint.get() % endpoints.len()]
    }

    fn next_endpoint(&self) {
        self.endpoint.set(self.endpoint.get().wrapping_add(1));
        *self.client.borrow_mut() = None;
    }

    async fn list(&self) -> Result<Listing, StoreError> {
        let prefix = self.subnets();
        let response = self
            .call("list the leases", |mut client| {
                let prefix = prefix.clone();
                async move { client.get(prefix, Some(GetOptions::new().with_prefix())).await }
            })
            .await?;
        let revision = response.header().map_or(0, |header| header.revision());
        let mut decoder = self.decoder.borrow_mut();
        let entries = response.kvs().iter().filter_map(|kv| {
            let key = String::from_utf8_lossy(kv.key());
            let listed = decoder.decode(key.strip_prefix(&prefix)?, kv.value())?;
            let (value, revision) = (kv.value().to_vec(), kv.mod_revision());
            Some(Entry { listed, value, revision, lease: kv.lease() })
        });
        Ok(Listing { entries: entries.collect(), revision })
    }

    /// Brings a key of ours up to date. Returns `None` if somebody else was faster.
    async fn keep(&self, entry: &Entry, request: &Request) -> Result<Option<Held>, StoreError> {
        let lease = Lease { subnet: entry.listed.key, attributes: request.attributes.clone() };
        let value = wire::encode(&request.attributes);
        if entry.lease == 0 {
            // A reservation stays one: it is written without an end.
            let written = entry.value == value
                || self.put_if(&lease.subnet, entry.revision, value, 0).await?;
            return Ok(written.then_some(Held { lease, id: 0, expires: None }));
        }
        let held = Held { lease, id: entry.lease, expires: full_term() };
        if entry.value == value
            && let Renewal::Until(expires) = self.renew(&held).await?
        {
            return Ok(Some(Held { expires, ..held }));
        }
        self.put_with_new_lease(held.lease, entry.revision, value).await
    }

    async fn put_with_new_lease(
        &self,
        lease: Lease,
        revision: i64,
        value: Vec<u8>,
    ) -> Result<Option<Held>, StoreError> {
        let ttl = i64::try_from(LEASE_TTL.as_secs()).expect("a day is no long time");
        let expires = full_term();
        let granted =
            self.call("be granted a lease", |mut client| async move {
                client.lease_grant(ttl, None).await
            })
            .await?;
        let id = granted.id();
        match self.put_if(&lease.subnet, revision, value, id).await {
            Ok(true) => Ok(Some(Held { lease, id, expires })),
            lost => {
                self.revoke(id).await;
                lost.map(|_| None)
            }
        }
    }

    /// Gives a lease back that nothing hangs on. If that fails too, it ends by itself.
    async fn revoke(&self, id: i64) {
        let revoked = self
            .call("give back a lease", |mut client| async move { client.lease_revoke(id).await })
            .await;
        if let Err(error) = revoked {
            debug!(%error, "an unused etcd lease stays until it ends");
        }
    }

    /// Writes if the key is still as it was at `revision`; 0 means that there was none.
    async fn put_if(
        &self,
        key: &LeaseKey,
        revision: i64,
        value: Vec<u8>,
        lease: i64,
    ) -> Result<bool, StoreError> {
        let key = self.key(key);
        let put = TxnOp::put(key.clone(), value, Some(PutOptions::new().with_lease(lease)));
        self.transact(&format!("write {key}"), guard(&key, revision), put).await
    }

    async fn delete_if(&self, key: &LeaseKey, revision: i64) -> Result<bool, StoreError> {
        let key = self.key(key);
        let delete = TxnOp::delete(key.clone(), None);
        self.transact(&format!("delete {key}"), guard(&key, revision), delete).await
    }

    async fn transact(&self, attempt: &str, guard: Compare, op: TxnOp) -> Result<bool, StoreError> {
        let txn = Txn::new().when([guard]).and_then([op]);
        let response = self
            .call(attempt, |mut client| {
                let txn = txn.clone();
                async move { client.txn(txn).await }
            })
            .await?;
        Ok(response.succeeded())
    }

    /// Follows changes from a revision on. Returns the revision to resume from, and whether history
    /// before it is gone, so that everything has to be listed again.
    async fn follow(&self, mut from: i64, updates: &mpsc::Sender<LeaseUpdate>) -> (i64, bool) {
        let prefix = self.subnets();
        let opened = self
            .call("watch the leases", |mut client| {
                let prefix = prefix.clone();
                let options = WatchOptions::new().with_prefix().with_start_revision(from);
                async move { client.watch(prefix, Some(options)).await }
            })
            .await;
        let mut stream = match opened {
            Ok(stream) => stream,
            Err(error) => {
                warn!(%error, "leases are not watched at the moment");
                return (from, false);
            }
        };
        loop {
            match stream.message().await {
                Ok(Some(response)) if response.compact_revision() > 0 => return (from, true),
                Ok(Some(response)) if response.canceled() => {
                    warn!(reason = response.cancel_reason(), "etcd ended the watch");
                    return (from, response.cancel_reason().contains("compacted"));
                }
                Ok(Some(response)) => {
                    for update in self.updates(&prefix, &response) {
                        if updates.send(update).await.is_err() {
                            return (from, false);
                        }
                    }
                    // Not the revision of the response: that of the first one, which only says that
                    // the watch exists, may be ahead of changes that have not been told yet.
                    let told = response.events().iter().filter_map(|event| event.kv());
                    from = told.map(|kv| kv.mod_revision() + 1).fold(from, i64::max);
                }
                Ok(None) => return (from, false),
                Err(error) => {
                    debug!(reason = %reason(&error), "the watch was interrupted");
                    self.next_endpoint();
                    return (from, false);
                }
            }
        }
    }

    fn updates(&self, prefix: &str, response: &WatchResponse) -> Vec<LeaseUpdate> {
        let mut decoder = self.decoder.borrow_mut();
        let update = |event: &etcd_client::Event| {
            let kv = event.kv()?;
            let key = String::from_utf8_lossy(kv.key());
            let key = key.strip_prefix(prefix)?;
            match event.event_type() {
                EventType::Delete => LeaseKey::parse(key).map(LeaseUpdate::Removed),
                EventType::Put => {
                    let listed = decoder.decode(key, kv.value())?;
                    let attributes = listed.attributes?;
                    Some(LeaseUpdate::Put(Lease { subnet: listed.key, attributes }))
                }
            }
        };
        response.events().iter().filter_map(update).collect()
    }
}

impl LeaseStore for EtcdStore {
    async fn network_config(&self) -> Result<Vec<u8>, StoreError> {
        let key = format!("{}/config", self.prefix);
        let response = self
            .call("read the network configuration", |mut client| {
                let key = key.clone();
                async move { client.get(key, None).await }
            })
            .await?;
        let value = response.kvs().first().map(|kv| kv.value().to_vec());
        value.ok_or_else(|| StoreError::NoConfig { place: format!("{key} in etcd") })
    }

    async fn acquire(&self, request: &Request) -> Result<Held, StoreError> {
        loop {
            let Listing { entries, .. } = self.list().await?;
            let listed: Vec<_> = entries.iter().map(|entry| entry.listed.clone()).collect();
            let entry = |key| entries.iter().find(|entry| entry.listed.key == key);
            let held = match decide(request, &listed, |count| rand::random_range(0..count)) {
                Decision::Keep(key) => match entry(key) {
                    Some(entry) => self.keep(entry, request).await?,
                    None => None,
                },
                Decision::Drop(key) => {
                    if let Some(entry) = entry(key) {
                        self.delete_if(&key, entry.revision).await?;
                    }
                    None
                }
                Decision::Create(subnet) => {
                    let lease = Lease { subnet, attributes: request.attributes.clone() };
                    self.put_with_new_lease(lease, 0, wire::encode(&request.attributes)).await?
                }
                Decision::Exhausted { held } => {
                    return Err(StoreError::Exhausted { network: request.pool.network, held });
                }
            };
            if let Some(held) = held {
                return Ok(held);
            }
            debug!("somebody else was faster; deciding again");
        }
    }

    async fn renew(&self, held: &Held) -> Result<Renewal, StoreError> {
        if held.id == 0 {
            return Ok(Renewal::Until(None));
        }
        let asked = Instant::now();
        let id = held.id;
        let kept = self
            .call("renew the lease", |mut client| async move {
                let (mut keeper, mut answers) = match client.lease_keep_alive(id).await {
                    Ok(pair) => pair,
                    // The library's word for "there is no such lease".
                    Err(Error::LeaseKeepAliveError(_)) => return Ok(0),
                    Err(error) => return Err(error),
                };
                keeper.keep_alive().await?;
                Ok(answers.message().await?.map_or(0, |answer| answer.ttl()))
            })
            .await?;
        Ok(match u64::try_from(kept) {
            Ok(0) | Err(_) => Renewal::Lost,
            Ok(secs) => Renewal::Until(Some(asked + Duration::from_secs(secs))),
        })
    }

    async fn watch(&self, updates: mpsc::Sender<LeaseUpdate>) {
        let mut backoff = BACKOFF_MIN;
        let mut resume = None;
        while !updates.is_closed() {
            let from = match resume {
                Some(revision) => revision,
                None => match self.list().await {
                    Ok(listing) => {
                        let all = listing.entries.into_iter().map(|entry| entry.listed).collect();
                        if updates.send(LeaseUpdate::Snapshot(all)).await.is_err() {
                            return;
                        }
                        listing.revision + 1
                    }
                    Err(error) => {
                        warn!(%error, "leases cannot be listed at the moment");
                        sleep(backoff).await;
                        backoff = (backoff * 2).min(BACKOFF_MAX);
                        continue;
                    }
                },
            };
            let (next, compacted) = self.follow(from, &updates).await;
            backoff = if next > from { BACKOFF_MIN } else { (backoff * 2).min(BACKOFF_MAX) };
            resume = (!compacted).then_some(next);
            sleep(backoff).await;
        }
    }
}

fn guard(key: &str, revision: i64) -> Compare {
    Compare::mod_revision(key, CompareOp::Equal, revision)
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
fn reason(error: &Error) -> String {
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

/// Joins a path as Go's `path.Clean` does: no double or trailing slashes. A prefix without a
/// leading slash stays without.
fn clean_path(prefix: &str) -> String {
    let parts: Vec<_> = prefix.split('/').filter(|part| !part.is_empty()).collect();
    let root = if prefix.starts_with('/') { "/" } else { "" };
    format!("{root}{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_cleaned() {
        for (prefix, clean) in [
            ("/coreos.com/network", "/coreos.com/network"),
            ("//coreos.com//network/", "/coreos.com/network"),
            ("coreos.com/network/", "coreos.com/network"),
        ] {
            assert_eq!(clean_path(prefix), clean);
        }
    }
}
