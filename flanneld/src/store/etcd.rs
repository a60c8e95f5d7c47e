//! Leases in etcd (v3 API), under the keys and with the values that flannel uses.
//!
//! Every write is a transaction that only succeeds if the key is still as it was listed. A lease is
//! renewed by keeping the etcd lease alive, so that the other nodes see no change.

mod connection;

use std::cell::RefCell;
use std::time::Duration;

use etcd_client::{
    Compare, CompareOp, Error, EventType, GetOptions, KeyValue, PutOptions, Txn, TxnOp,
    WatchOptions, WatchResponse, WatchStream,
};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use self::connection::{Connection, DEADLINE, reason};
use super::{Decoder, LEASE_TTL, LeaseStore, SharedStore, StoreError};
use crate::cli::EtcdOptions;
use crate::clock;
use crate::errors::chain;
use crate::lease::acquire::{Entry, Listed, Request};
use crate::lease::follow::{Follow, Source};
use crate::lease::keeper::{Answer, Guard, Listing, Put, Step};
use crate::lease::table::LeaseUpdate;
use crate::lease::{Lease, LeaseKey, wire};
use crate::renewal::{self, Channels};

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// All leases are listed anew this often, for a store that was restored behind our back.
const RELIST: Duration = Duration::from_secs(60 * 60);
/// So many etcd leases are asked about at a time.
const QUESTIONS: usize = 16;
/// `NOT_FOUND` of `google/rpc/code.proto`.
const NOT_FOUND: i32 = 5;

/// The store in etcd.
pub(crate) struct EtcdStore {
    connection: Connection,
    prefix: String,
    decoder: RefCell<Decoder>,
}

impl EtcdStore {
    /// Prepares a connection; etcd is asked later.
    pub(crate) fn open(options: EtcdOptions) -> Result<Self, StoreError> {
        let prefix = clean_path(&options.prefix);
        let connection = Connection::prepare(options)?;
        Ok(Self { connection, prefix, decoder: RefCell::default() })
    }

    fn config_key(&self) -> String {
        format!("{}/config", self.prefix)
    }

    /// Keys of leases start with this.
    fn subnets(&self) -> String {
        format!("{}/subnets/", self.prefix)
    }

    fn key(&self, key: &LeaseKey) -> String {
        format!("{}{key}", self.subnets())
    }

    async fn list(&self) -> Result<Listing, StoreError> {
        let prefix = self.subnets();
        let response = self
            .connection
            .call("list the leases", |mut client| {
                let prefix = prefix.clone();
                async move { client.get(prefix, Some(GetOptions::new().with_prefix())).await }
            })
            .await?;
        let revision = response.header().map_or(0, |header| header.revision());
        let entries = response.kvs().iter().filter_map(|kv| self.entry(&prefix, kv)).collect();
        Ok(Listing { entries, revision })
    }

    fn entry(&self, prefix: &str, kv: &KeyValue) -> Option<Entry> {
        let key = String::from_utf8_lossy(kv.key());
        let listed = self.decoder.borrow_mut().decode(key.strip_prefix(prefix)?, kv.value())?;
        let (revision, created) = (kv.mod_revision(), kv.create_revision());
        Some(Entry { listed, revision, created, lease: kv.lease() })
    }

    async fn read(&self, key: &LeaseKey) -> Result<Option<Entry>, StoreError> {
        let key = self.key(key);
        let response = self
            .connection
            .call(&format!("read {key}"), |mut client| {
                let key = key.clone();
                async move { client.get(key, None).await }
            })
            .await?;
        let prefix = self.subnets();
        Ok(response.kvs().first().and_then(|kv| self.entry(&prefix, kv)))
    }

    async fn grant(&self) -> Result<i64, StoreError> {
        let ttl = i64::try_from(LEASE_TTL.as_secs()).expect("a day is no long time");
        let granted = self.connection.call("be granted a lease", |mut client| async move {
            client.lease_grant(ttl, None).await
        });
        Ok(granted.await?.id())
    }

    async fn put(&self, put: &Put) -> Result<Answer, StoreError> {
        let key = self.key(&put.key);
        let mut guards = self.guards(put);
        let options = PutOptions::new().with_lease(put.lease);
        let mut ops = vec![TxnOp::put(key.clone(), wire::encode(&put.attributes), Some(options))];
        if let Some((replaced, revision)) = &put.replaces {
            let replaced = self.key(replaced);
            guards.push(Compare::mod_revision(replaced.clone(), CompareOp::Equal, *revision));
            // First, so that who follows the changes one by one ends with what was written.
            ops.insert(0, TxnOp::delete(replaced, None));
        }
        let txn = Txn::new().when(guards).and_then(ops);
        let attempt = format!("write {key}");
        let written = self
            .connection
            .call_once(&attempt, |mut client| {
                let txn = txn.clone();
                async move {
                    match client.txn(txn).await {
                        Err(Error::GRpcStatus(status)) if i32::from(status.code()) == NOT_FOUND => {
                            Ok(None)
                        }
                        answer => answer.map(Some),
                    }
                }
            })
            .await?;
        let Some(written) = written else { return Ok(Answer::NoSuchLease) };
        let revision = written.header().map(|header| header.revision());
        Ok(Answer::Written(revision.filter(|_| written.succeeded())))
    }

    /// What etcd shall see to when it writes.
    fn guards(&self, put: &Put) -> Vec<Compare> {
        let since = match put.guard {
            Guard::At(revision) => {
                return vec![Compare::mod_revision(self.key(&put.key), CompareOp::Equal, revision)];
            }
            Guard::Free { since } => since,
        };
        let mut guards = vec![Compare::version(self.key(&put.key), CompareOp::Equal, 0)];
        if put.key.ipv6().is_some() {
            // A key begins with its IPv4 subnet; whether the IPv6 one is free etcd cannot see.
            let before = Compare::mod_revision(self.subnets(), CompareOp::Less, since + 1);
            guards.push(before.with_prefix());
        } else if let Some(ipv4) = put.key.ipv4().filter(|_| put.replaces.is_none()) {
            // No key of the same IPv4 subnet either, whatever its IPv6 subnet.
            let same = Compare::version(self.key(&LeaseKey::v4(ipv4)), CompareOp::Equal, 0);
            guards.push(same.with_prefix());
        }
        guards
    }

    async fn delete(&self, key: &LeaseKey, revision: i64) -> Result<bool, StoreError> {
        let key = self.key(key);
        let guard = Compare::mod_revision(key.clone(), CompareOp::Equal, revision);
        let txn = Txn::new().when([guard]).and_then([TxnOp::delete(key.clone(), None)]);
        let attempt = format!("delete {key}");
        let deleted = self.connection.call_once(&attempt, |mut client| {
            let txn = txn.clone();
            async move { client.txn(txn).await }
        });
        Ok(deleted.await?.succeeded())
    }

    async fn revoke(&self, lease: i64) -> Result<(), StoreError> {
        let revoked = self.connection.call("give back a lease", |mut client| async move {
            match client.lease_revoke(lease).await {
                Err(Error::GRpcStatus(status)) if i32::from(status.code()) == NOT_FOUND => Ok(()),
                answer => answer.map(drop),
            }
        });
        revoked.await
    }

    /// Returns what is left, or `None` if there is no such lease.
    async fn keep_alive(&self, lease: i64) -> Result<Option<Duration>, StoreError> {
        let kept = self.connection.call("renew the lease", |mut client| async move {
            let (mut keeper, mut answers) = match client.lease_keep_alive(lease).await {
                Ok(pair) => pair,
                // The library's word for "there is no such lease".
                Err(Error::LeaseKeepAliveError(_)) => return Ok(0),
                Err(error) => return Err(error),
            };
            keeper.keep_alive().await?;
            Ok(answers.message().await?.map_or(0, |answer| answer.ttl()))
        });
        let left = u64::try_from(kept.await?).ok().filter(|secs| *secs > 0);
        Ok(left.map(Duration::from_secs))
    }

    /// Returns the time since the last renewal, which etcd knows as the time that is left.
    async fn age(&self, lease: i64) -> Result<Option<Duration>, StoreError> {
        if lease == 0 {
            return Ok(None);
        }
        let asked = self.connection.call("read the time of a lease", |mut client| async move {
            client.lease_time_to_live(lease, None).await
        });
        let answer = asked.await?;
        let age = (answer.ttl() > 0).then(|| answer.granted_ttl() - answer.ttl());
        Ok(age.and_then(|secs| u64::try_from(secs).ok()).map(Duration::from_secs))
    }

    /// Follows changes until they end for whatever reason.
    async fn follow(&self, follow: &mut Follow, from: i64, updates: &mpsc::Sender<LeaseUpdate>) {
        let prefix = self.subnets();
        let opened = self.connection.call("watch the leases", |mut client| {
            let prefix = prefix.clone();
            let options = WatchOptions::new().with_prefix().with_start_revision(from);
            async move { client.watch(prefix, Some(options)).await }
        });
        let mut stream = match opened.await {
            Ok(stream) => stream,
            Err(error) => {
                warn!(error = %chain(&error), "leases are not watched at the moment");
                return;
            }
        };
        let mut first = timeout(DEADLINE, stream.message()).await;
        loop {
            let response = match first {
                Ok(Ok(Some(response))) => response,
                Ok(Ok(None)) => return,
                Ok(Err(error)) => {
                    debug!(reason = %reason(&error), "the watch was interrupted");
                    return self.connection.next_endpoint();
                }
                Err(_elapsed) => return self.connection.next_endpoint(),
            };
            if !self.take(&prefix, follow, &response, updates).await {
                return;
            }
            first = Ok(next(&mut stream).await);
        }
    }

    /// Hands on what a response tells. Returns whether the watch goes on.
    async fn take(
        &self,
        prefix: &str,
        follow: &mut Follow,
        response: &WatchResponse,
        updates: &mpsc::Sender<LeaseUpdate>,
    ) -> bool {
        let reason = response.cancel_reason();
        if response.compact_revision() > 0 || reason.contains("compacted") {
            follow.restart();
            return false;
        }
        if response.canceled() {
            warn!(%reason, "etcd ended the watch");
            return false;
        }
        if response.created() {
            return follow.opened(response.header().map_or(0, |header| header.revision()));
        }
        for update in self.updates(prefix, response) {
            if updates.send(update).await.is_err() {
                return false;
            }
        }
        let told = response.events().iter().filter_map(|event| event.kv());
        told.for_each(|kv| follow.changed(kv.mod_revision()));
        true
    }

    fn updates(&self, prefix: &str, response: &WatchResponse) -> Vec<LeaseUpdate> {
        let update = |event: &etcd_client::Event| {
            let kv = event.kv()?;
            let key = String::from_utf8_lossy(kv.key());
            match event.event_type() {
                EventType::Delete => {
                    LeaseKey::parse(key.strip_prefix(prefix)?).map(LeaseUpdate::Removed)
                }
                EventType::Put => {
                    let Listed { key, attributes } = self.entry(prefix, kv)?.listed;
                    Some(LeaseUpdate::Put(Lease { subnet: key, attributes: attributes? }))
                }
            }
        };
        response.events().iter().filter_map(update).collect()
    }
}

async fn next(stream: &mut WatchStream) -> Result<Option<WatchResponse>, Error> {
    stream.message().await
}

impl LeaseStore for EtcdStore {
    async fn network_config(&self) -> Result<Vec<u8>, StoreError> {
        let key = self.config_key();
        let response = self
            .connection
            .call("read the network configuration", |mut client| {
                let key = key.clone();
                async move { client.get(key, None).await }
            })
            .await?;
        let value = response.kvs().first().map(|kv| kv.value().to_vec());
        value.ok_or_else(|| StoreError::NoConfig { place: format!("{key} in etcd") })
    }

    async fn keep(&self, request: Request, channels: Channels<'_>) {
        renewal::keep(self, request, clock::since_boot, channels).await;
    }

    async fn watch_config(&self, changed: &Notify) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let opened = self.connection.call("watch the network configuration", |mut client| {
                let key = self.config_key();
                async move { client.watch(key, None).await }
            });
            // Whatever is wrong with the connection is told by those who need it more.
            let mut stream = match opened.await {
                Ok(stream) => stream,
                Err(error) => {
                    debug!(error = %chain(&error), "the configuration is not watched at the moment");
                    sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                    continue;
                }
            };
            // The first message says that the watch has begun.
            while let Ok(Some(response)) = next(&mut stream).await {
                if response.canceled() {
                    break;
                }
                changed.notify_one();
                backoff = BACKOFF_MIN;
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    fn reconnect(&self) {
        self.connection.abandon();
    }

    async fn watch(&self, updates: mpsc::Sender<LeaseUpdate>, relist: &Notify) {
        let mut backoff = BACKOFF_MIN;
        let mut follow = Follow::default();
        while !updates.is_closed() {
            let before = follow;
            match follow.source() {
                Source::List => match self.list().await {
                    Ok(Listing { mut entries, revision }) => {
                        entries.sort_by_key(|entry| (entry.created, entry.listed.key));
                        let all = entries.into_iter().map(|entry| entry.listed).collect();
                        if updates.send(LeaseUpdate::Snapshot(all)).await.is_err() {
                            return;
                        }
                        follow.listed(revision);
                        continue;
                    }
                    Err(error) => {
                        warn!(error = %chain(&error), "leases cannot be listed at the moment");
                    }
                },
                Source::Changes { from } => tokio::select! {
                    () = self.follow(&mut follow, from, &updates) => {}
                    () = self.connection.abandoned() => continue,
                    () = relist.notified() => {
                        follow.restart();
                        continue;
                    }
                    () = sleep(RELIST) => {
                        follow.restart();
                        continue;
                    }
                },
            }
            let progress = follow != before;
            backoff = if progress { BACKOFF_MIN } else { (backoff * 2).min(BACKOFF_MAX) };
            sleep(backoff).await;
        }
    }
}

impl SharedStore for EtcdStore {
    async fn perform(&self, step: &Step) -> Result<Answer, StoreError> {
        Ok(match step {
            Step::Wait(_) => Answer::Waited,
            Step::List => Answer::Listed(self.list().await?),
            Step::Grant => Answer::Granted(self.grant().await?),
            Step::Put(put) => self.put(put).await?,
            Step::Delete { key, revision } => {
                self.delete(key, *revision).await?;
                Answer::Deleted
            }
            Step::Revoke(lease) => {
                self.revoke(*lease).await?;
                Answer::Revoked
            }
            Step::KeepAlive { lease, .. } => Answer::KeptAlive(self.keep_alive(*lease).await?),
            Step::Read(key) => Answer::Read(self.read(key).await?),
            Step::Ages(of) => {
                let ages = stream::iter(of).map(|key| self.age(key.lease));
                Answer::Ages(ages.buffered(QUESTIONS).try_collect().await?)
            }
        })
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

    /// Everything that can be written is a lease under such a key: the store writes nothing else,
    /// and what leases say is golden in `lease::wire`.
    #[test]
    fn keys_are_those_of_flannel() {
        let options = EtcdOptions {
            endpoints: vec!["http://127.0.0.1:2379".to_owned()],
            prefix: "//coreos.com/network/".to_owned(),
            key_file: None,
            cert_file: None,
            ca_file: None,
            user: None,
        };
        let store = EtcdStore::open(options).unwrap();
        for (key, written) in [
            ("10.5.52.0-24", "/coreos.com/network/subnets/10.5.52.0-24"),
            (
                "10.5.52.0-24&2001:cafe:42:8::-64",
                "/coreos.com/network/subnets/10.5.52.0-24&2001:cafe:42:8::-64",
            ),
        ] {
            assert_eq!(store.key(&LeaseKey::parse(key).unwrap()), written);
        }
    }

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
