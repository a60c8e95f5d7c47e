//! Leases in a directory of this machine: nodes that share a file system need no server.
//!
//! `config` and `subnets/KEY` hold what etcd holds under the same names. Whoever changes something
//! holds a lock on `lock`. A lease ends a day after its file was last touched; a file that is not
//! writable by its owner is a reservation and has no end.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use inotify::{Inotify, WatchMask};
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::{Decoder, LEASE_TTL, LeaseStore, SharedStore, StoreError, config_file};
use crate::clock;
use crate::errors::chain;
use crate::lease::acquire::{Entry, Request};
use crate::lease::keeper::{Answer, Guard, Listing, Put, Renewable, Step};
use crate::lease::table::LeaseUpdate;
use crate::lease::{LeaseKey, wire};
use crate::renewal::{self, Channels};

/// Leases that ended are noticed at least this often.
const EXPIRY_CHECK: Duration = Duration::from_secs(60);
/// A directory that cannot be watched is tried again after this long.
const RETRY: Duration = Duration::from_secs(1);

/// The store in a directory.
pub(crate) struct DirectoryStore {
    path: PathBuf,
    /// The network configuration to use if the directory holds none.
    net_config: PathBuf,
    decoder: RefCell<Decoder>,
}

impl DirectoryStore {
    /// Makes the directory if it is missing.
    pub(crate) fn open(path: PathBuf, net_config: PathBuf) -> Result<Self, StoreError> {
        let store = Self { path, net_config, decoder: RefCell::default() };
        let subnets = store.subnets();
        fs::create_dir_all(&subnets).map_err(failed("make the directory", &subnets))?;
        Ok(store)
    }

    fn subnets(&self) -> PathBuf {
        self.path.join("subnets")
    }

    fn file(&self, key: &LeaseKey) -> PathBuf {
        self.subnets().join(key.to_string())
    }

    /// Keeps everybody else from changing anything until the file is closed.
    fn lock(&self) -> Result<File, StoreError> {
        let path = self.path.join(config_file::LOCK);
        let open = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = open.map_err(failed("open", &path))?;
        file.lock().map_err(failed("lock", &path))?;
        Ok(file)
    }

    fn list(&self) -> Result<Vec<Entry>, StoreError> {
        let subnets = self.subnets();
        let mut entries = Vec::new();
        for file in fs::read_dir(&subnets).map_err(failed("list", &subnets))? {
            let path = file.map_err(failed("list", &subnets))?.path();
            entries.extend(self.read(&path).map_err(failed("read", &path))?);
        }
        // A directory has no order, and its files do not tell when they were made.
        entries.sort_by_key(|entry| entry.listed.key);
        Ok(entries)
    }

    /// Whether somebody has an address of `key` in another way than by `but`.
    fn is_taken(&self, key: &LeaseKey, but: Option<LeaseKey>) -> Result<bool, StoreError> {
        let subnets = self.subnets();
        for file in fs::read_dir(&subnets).map_err(failed("list", &subnets))? {
            let file = file.map_err(failed("list", &subnets))?;
            let other = file.file_name().to_str().and_then(LeaseKey::parse);
            let is_in_the_way = |other: LeaseKey| other.overlaps(key) && Some(other) != but;
            let path = file.path();
            if other.is_some_and(is_in_the_way)
                && self.read(&path).map_err(failed("read", &path))?.is_some()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns `None` for what is no lease, or no longer one.
    fn read(&self, path: &Path) -> io::Result<Option<Entry>> {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Ok(None) };
        // Unfinished writes start with a dot.
        if name.starts_with('.') {
            return Ok(None);
        }
        let read = || -> io::Result<_> {
            let mut file = File::open(path)?;
            let mut value = Vec::new();
            file.read_to_end(&mut value)?;
            Ok((file.metadata()?, value))
        };
        let (metadata, value) = match read() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read?,
        };
        let reserved = metadata.permissions().mode() & 0o200 == 0;
        if age(&metadata)? > LEASE_TTL && !reserved {
            return Ok(None);
        }
        let revision = revision(&value, reserved);
        let listed = self.decoder.borrow_mut().decode(name, &value);
        Ok(listed.map(|listed| Entry { listed, revision, created: 0, lease: i64::from(!reserved) }))
    }

    /// Replaces the file in one step, so that nobody ever reads half of it. Whoever writes holds
    /// the lock, so an unfinished file is that of a process that died, or of a full disk.
    fn write(&self, key: &LeaseKey, value: &[u8], reserved: bool) -> Result<(), StoreError> {
        let path = self.file(key);
        let unfinished = self.subnets().join(format!(".{key}"));
        let write = || -> io::Result<()> {
            match fs::remove_file(&unfinished) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = File::create_new(&unfinished)?;
            file.write_all(value)?;
            let mode = if reserved { 0o444 } else { 0o644 };
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            file.sync_all()?;
            fs::rename(&unfinished, &path)?;
            File::open(self.subnets())?.sync_all()
        };
        write().map_err(failed("write", &path))
    }

    /// The file of a key, if it holds a lease.
    fn entry(&self, key: &LeaseKey) -> Result<Option<Entry>, StoreError> {
        let path = self.file(key);
        self.read(&path).map_err(failed("read", &path))
    }

    fn put(&self, put: &Put) -> Result<Answer, StoreError> {
        let _lock = self.lock()?;
        if !self.is_as_guarded(put)? {
            return Ok(Answer::Written(None));
        }
        let (value, reserved) = (wire::encode(&put.attributes), put.lease == 0);
        self.write(&put.key, &value, reserved)?;
        if let Some((replaced, _)) = put.replaces {
            let path = self.file(&replaced);
            fs::remove_file(&path).map_err(failed("remove", &path))?;
        }
        Ok(Answer::Written(Some(revision(&value, reserved))))
    }

    fn is_as_guarded(&self, put: &Put) -> Result<bool, StoreError> {
        let is_at = |key, revision| -> Result<bool, StoreError> {
            Ok(self.entry(key)?.is_some_and(|entry| entry.revision == revision))
        };
        if let Some((replaced, revision)) = &put.replaces
            && !is_at(replaced, *revision)?
        {
            return Ok(false);
        }
        match put.guard {
            Guard::At(revision) => is_at(&put.key, revision),
            Guard::Free { .. } => Ok(!self.is_taken(&put.key, put.replaces.map(|(key, _)| key))?),
        }
    }

    fn delete(&self, key: &LeaseKey, revision: i64) -> Result<Answer, StoreError> {
        let _lock = self.lock()?;
        let path = self.file(key);
        if self.entry(key)?.is_some_and(|entry| entry.revision == revision) {
            fs::remove_file(&path).map_err(failed("remove", &path))?;
        }
        Ok(Answer::Deleted)
    }

    /// Touches the file. Its age is all there is to renew.
    fn keep_alive(&self, key: &LeaseKey) -> Result<Answer, StoreError> {
        let _lock = self.lock()?;
        if self.entry(key)?.is_none_or(|entry| entry.lease == 0) {
            return Ok(Answer::KeptAlive(None));
        }
        let path = self.file(key);
        let touch = || File::options().write(true).open(&path)?.set_modified(SystemTime::now());
        touch().map_err(failed("renew", &path))?;
        Ok(Answer::KeptAlive(Some(LEASE_TTL)))
    }

    fn age(&self, of: &Renewable) -> Result<Option<Duration>, StoreError> {
        let path = self.file(&of.key);
        let entry = self.entry(&of.key)?;
        if entry.is_none_or(|entry| entry.lease == 0 || entry.revision != of.revision) {
            return Ok(None);
        }
        match fs::metadata(&path).and_then(|metadata| age(&metadata)) {
            Ok(age) => Ok(Some(age)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }
}

impl LeaseStore for DirectoryStore {
    async fn network_config(&self) -> Result<Vec<u8>, StoreError> {
        let own = self.path.join("config");
        for path in [&own, &self.net_config] {
            match fs::read(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                read => return read.map_err(failed("read", path)),
            }
        }
        let place = format!("{} or {}", own.display(), self.net_config.display());
        Err(StoreError::NoConfig { place })
    }

    async fn keep(&self, request: Request, channels: Channels<'_>) {
        renewal::keep(self, request, clock::since_boot, channels).await;
    }

    async fn watch_config(&self, changed: &Notify) {
        let beside = self.net_config.parent().unwrap_or(Path::new("/"));
        config_file::watch(&[&self.path, beside], changed).await;
    }

    /// Every change is told as a snapshot, so there is nothing that could have to be listed again.
    async fn watch(&self, updates: mpsc::Sender<LeaseUpdate>, _relist: &Notify) {
        while !updates.is_closed() {
            if let Err(error) = self.follow(&updates).await {
                warn!(error = %chain(&error), "leases are not watched at the moment");
            }
            sleep(RETRY).await;
        }
    }
}

impl SharedStore for DirectoryStore {
    async fn perform(&self, step: &Step) -> Result<Answer, StoreError> {
        match step {
            Step::Wait(_) => Ok(Answer::Waited),
            Step::List => Ok(Answer::Listed(Listing { entries: self.list()?, revision: 0 })),
            // A file ends by its age, and needs nothing that could be granted or revoked.
            Step::Grant => Ok(Answer::Granted(1)),
            Step::Revoke(_) => Ok(Answer::Revoked),
            Step::Put(put) => self.put(put),
            Step::Delete { key, revision } => self.delete(key, *revision),
            Step::KeepAlive { key, .. } => self.keep_alive(key),
            Step::Read(key) => Ok(Answer::Read(self.entry(key)?)),
            Step::Ages(of) => {
                let ages = of.iter().map(|renewable| self.age(renewable));
                Ok(Answer::Ages(ages.collect::<Result<_, _>>()?))
            }
        }
    }
}

impl DirectoryStore {
    /// Tells everything after every change; a directory has no history to resume from.
    async fn follow(&self, updates: &mpsc::Sender<LeaseUpdate>) -> Result<(), StoreError> {
        let subnets = self.subnets();
        let watching = |error| failed("watch", &subnets)(error);
        let inotify = Inotify::init().map_err(watching)?;
        let mask = WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::CLOSE_WRITE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::ONLYDIR;
        inotify.watches().add(&subnets, mask).map_err(watching)?;
        let mut events = inotify.into_event_stream([0; 4096]).map_err(watching)?;
        let mut known = BTreeSet::new();
        loop {
            let all: Vec<_> = self.list()?.into_iter().map(|entry| entry.listed).collect();
            let keys: BTreeSet<_> = all.iter().map(|listed| listed.key).collect();
            // What went while we looked on was removed, and is not just missing.
            let removed = known.difference(&keys).map(|key| LeaseUpdate::Removed(*key));
            for update in removed.chain([LeaseUpdate::Snapshot(all)]) {
                if updates.send(update).await.is_err() {
                    return Ok(());
                }
            }
            known = keys;
            match timeout(EXPIRY_CHECK, events.next()).await {
                Ok(Some(event)) => {
                    let event = event.map_err(watching)?;
                    if event.mask.contains(inotify::EventMask::IGNORED) {
                        return Ok(());
                    }
                }
                Ok(None) => return Ok(()),
                Err(_elapsed) => {}
            }
        }
    }
}

/// The time since a file was touched. One from the future, after the clock was set back, is new.
fn age(metadata: &fs::Metadata) -> io::Result<Duration> {
    Ok(SystemTime::now().duration_since(metadata.modified()?).unwrap_or_default())
}

/// Differs whenever the value does; a value that comes again is as good as before.
fn revision(value: &[u8], reserved: bool) -> i64 {
    let mut hasher = DefaultHasher::new();
    (value, reserved).hash(&mut hasher);
    hasher.finish().cast_signed()
}

fn failed(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::File { attempt, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
