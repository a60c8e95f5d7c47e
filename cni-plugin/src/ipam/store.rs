//! Which addresses are handed out, and to whom: one file each, in the format of `host-local`.
//!
//! ```text
//! DIRECTORY/lock                  held (flock(2)) by whoever reads or changes the rest
//! DIRECTORY/10.1.2.5              CONTAINER CR LF INTERFACE
//! DIRECTORY/last_reserved_ip.0    the address that was handed out last from range set 0
//! DIRECTORY/.boot_id              the boot that the reservations are of; only we write it
//! ```
//!
//! The Go plugin may work in the same directory at the same time. Unlike there, a reservation comes
//! into being with its content: a file that lost it in a crash would belong to nobody for ever.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::invocation::{Attachment, Id};

/// The addresses of one network.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {}", path.display())]
pub struct StoreError {
    verb: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn cannot(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError { verb, path, source }
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    container: Id,
    content: String,
}

impl Owner {
    /// The owner of the addresses of an attachment.
    pub fn of(attachment: &Attachment) -> Self {
        let Attachment { container, if_name, .. } = attachment;
        Self { container: container.clone(), content: format!("{container}\r\n{if_name}") }
    }

    /// Returns the container of the attachment.
    pub fn container(&self) -> &Id {
        &self.container
    }

    /// Whether a file says that its address is of this owner.
    fn owns(&self, content: &str) -> bool {
        content.trim() == self.content
    }

    /// Whether a file says so in the way of old versions, which did not know interfaces.
    fn owned_before(&self, content: &str) -> bool {
        content.trim() == self.container.as_str()
    }
}

impl Store {
    /// Opens the store of a network below `data_dir`. The directory is made if it is missing.
    ///
    /// # Errors
    /// If the directory cannot be made.
    pub fn open(data_dir: &Path, network: &Id) -> Result<Self, StoreError> {
        let directory = data_dir.join(network.as_str());
        let made = DirBuilder::new().recursive(true).mode(0o755).create(&directory);
        made.map_err(cannot("create", &directory))?;
        Ok(Self { directory })
    }

    /// Returns the store of a network below `data_dir` if there is one.
    pub fn existing(data_dir: &Path, network: &Id) -> Option<Self> {
        let directory = data_dir.join(network.as_str());
        directory.is_dir().then_some(Self { directory })
    }

    /// Returns where it is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Waits until nobody else works in the store.
    ///
    /// # Errors
    /// If the lock cannot be had.
    pub fn lock(&self) -> Result<LockedStore<'_>, StoreError> {
        let path = self.directory.join("lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o750);
        let lock = options.open(&path).map_err(cannot("open", &path))?;
        lock.lock().map_err(cannot("lock", &path))?;
        Ok(LockedStore { store: self, _lock: lock })
    }

    /// Returns the addresses that somebody has at the moment, for somebody who only wants to know
    /// how many.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn taken_unlocked(&self) -> Result<BTreeSet<IpAddr>, StoreError> {
        Ok(self.entries()?.iter().filter_map(|entry| address_of(&entry.path())).collect())
    }

    /// Returns who has addresses at the moment, for somebody who does not give any back.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn holders_unlocked(&self) -> Result<Vec<Holder>, StoreError> {
        Ok(self.held()?.into_iter().map(|(.., holder)| holder).collect())
    }

    /// The files of addresses, with what they say.
    fn held(&self) -> Result<Vec<(PathBuf, IpAddr, Holder)>, StoreError> {
        let held = |entry: fs::DirEntry| {
            let path = entry.path();
            let ip = address_of(&path)?;
            // A file without text is damaged; a file that cannot be read may be somebody's.
            let content = fs::read(&path).ok()?;
            Some((path, ip, Holder::read(&String::from_utf8_lossy(&content))))
        };
        Ok(self.entries()?.into_iter().filter_map(held).collect())
    }

    fn entries(&self) -> Result<Vec<fs::DirEntry>, StoreError> {
        let entries = fs::read_dir(&self.directory).and_then(Iterator::collect);
        entries.map_err(cannot("read", &self.directory))
    }
}

/// Says to whom an address belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// An interface of a container.
    Attachment(Id, String),
    /// A container; old versions did not note the interface.
    Container(Id),
    /// Nobody: the file is empty or damaged.
    Nobody,
}

impl Holder {
    fn read(content: &str) -> Self {
        match content.trim().split_once("\r\n") {
            Some((container, if_name)) => match Id::new(container.trim()) {
                Some(container) if !if_name.is_empty() => {
                    Self::Attachment(container, if_name.to_owned())
                }
                _ => Self::Nobody,
            },
            None => Id::new(content.trim()).map_or(Self::Nobody, Self::Container),
        }
    }
}

/// A store that nobody else works in as long as this value lives.
#[derive(Debug)]
pub struct LockedStore<'a> {
    store: &'a Store,
    _lock: File,
}

impl LockedStore<'_> {
    /// Returns the addresses that somebody has.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn taken(&self) -> Result<BTreeSet<IpAddr>, StoreError> {
        self.store.taken_unlocked()
    }

    /// Whether somebody has an address.
    pub fn is_taken(&self, ip: IpAddr) -> bool {
        self.file_of(ip).exists()
    }

    /// Returns the addresses of an owner, also those reserved by old versions for its container.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn addresses_of(&self, owner: &Owner) -> Result<BTreeSet<IpAddr>, StoreError> {
        let files = self.files_of(owner)?;
        Ok(files.exact.iter().chain(&files.old).filter_map(|path| address_of(path)).collect())
    }

    /// Returns the address that was handed out last from a range set.
    pub fn last_reserved(&self, set: usize) -> Option<IpAddr> {
        fs::read_to_string(self.last_reserved_file(set)).ok()?.trim().parse().ok()
    }

    /// Hands out a free address.
    ///
    /// # Errors
    /// If the file cannot be written; there is no reservation then.
    pub fn reserve(
        &self,
        ip: IpAddr,
        owner: &Owner,
        set: usize,
    ) -> Result<Reservation, StoreError> {
        let path = self.file_of(ip);
        if self.is_taken(ip) {
            return Err(cannot("create", &path)(io::ErrorKind::AlreadyExists.into()));
        }
        // With the lock held, nobody else writes to this name or makes the other one.
        let temporary = self.temporary();
        write(&temporary, &owner.content, File::sync_all).map_err(cannot("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(cannot("create", &path))?;
        let store = self.store.clone();
        let reservation = Reservation { store, path, owner: owner.clone(), committed: false };
        // Only a hint: what a crash leaves of it does no harm.
        let hint = self.last_reserved_file(set);
        write(&hint, &ip.to_string(), |_| Ok(())).map_err(cannot("write", &hint))?;
        Ok(reservation)
    }

    /// Gives back all addresses of an owner and returns them.
    ///
    /// Old versions did not note the interface; what they reserved goes with the first interface of
    /// the container that has nothing else.
    ///
    /// # Errors
    /// If the directory cannot be read or an address cannot be given back.
    pub fn release(&self, owner: &Owner) -> Result<BTreeSet<IpAddr>, StoreError> {
        let Files { exact, old } = self.files_of(owner)?;
        let files = if exact.is_empty() { old } else { exact };
        for path in &files {
            remove(path).map_err(cannot("remove", path))?;
        }
        Ok(files.iter().filter_map(|path| address_of(path)).collect())
    }

    /// Gives back all addresses whose holder `is_stale`, and returns them.
    ///
    /// # Errors
    /// If the directory cannot be read or an address cannot be given back.
    pub fn release_stale(
        &self,
        is_stale: impl Fn(&Holder) -> bool,
    ) -> Result<BTreeSet<IpAddr>, StoreError> {
        let mut released = BTreeSet::new();
        for (path, ip, holder) in self.store.held()? {
            if is_stale(&holder) {
                remove(&path).map_err(cannot("remove", &path))?;
                released.insert(ip);
            }
        }
        Ok(released)
    }

    /// Gives back the addresses that nobody has.
    ///
    /// Reservations come into being under the lock, so a file without an owner is what a crash left:
    /// either nobody got the address, or the machine has lost all pods since.
    ///
    /// # Errors
    /// As [`Self::release_stale`].
    pub fn release_damaged(&self) -> Result<BTreeSet<IpAddr>, StoreError> {
        self.release_stale(|holder| *holder == Holder::Nobody)
    }

    /// Gives back what was reserved before the machine was started: no container survives that.
    ///
    /// The Go plugin does not note boots, so what it reserved since counts by the age of its file.
    ///
    /// # Errors
    /// If the directory cannot be read or changed.
    pub fn forget_earlier_boots(&self) -> Result<(), StoreError> {
        let current = fs::read_to_string(BOOT_ID).unwrap_or_default();
        let path = self.store.directory.join(".boot_id");
        let noted = fs::read_to_string(&path).unwrap_or_default();
        if current.is_empty() || current == noted {
            return Ok(());
        }
        if !noted.is_empty() {
            self.release_older_than(started())?;
        }
        write(&path, &current, |_| Ok(())).map_err(cannot("write", &path))
    }

    fn release_older_than(&self, time: SystemTime) -> Result<(), StoreError> {
        for entry in self.entries()? {
            let written = entry.metadata().and_then(|file| file.modified());
            if address_of(&entry.path()).is_some() && written.is_ok_and(|at| at < time) {
                remove(&entry.path()).map_err(cannot("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    /// Removes what a killed process had not finished.
    pub fn remove_leftover(&self) {
        let _there_is_mostly_none = remove(&self.temporary());
    }

    fn file_of(&self, ip: IpAddr) -> PathBuf {
        self.store.directory.join(ip.to_string())
    }

    fn temporary(&self) -> PathBuf {
        self.store.directory.join(".reservation")
    }

    fn files_of(&self, owner: &Owner) -> Result<Files, StoreError> {
        let mut files = Files::default();
        for entry in self.entries()? {
            let path = entry.path();
            // What is no file or no text is nobody's reservation.
            let Ok(content) = fs::read_to_string(&path) else { continue };
            if owner.owns(&content) {
                files.exact.push(path);
            } else if owner.owned_before(&content) {
                files.old.push(path);
            }
        }
        Ok(files)
    }

    fn entries(&self) -> Result<Vec<fs::DirEntry>, StoreError> {
        self.store.entries()
    }

    fn last_reserved_file(&self, set: usize) -> PathBuf {
        self.store.directory.join(format!("last_reserved_ip.{set}"))
    }
}

/// Identifies the time since the machine was started (proc_sys_kernel(5)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// When the machine was started; long ago if that is not known.
fn started() -> SystemTime {
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = uptime.split(['.', ' ']).next().and_then(|text| text.parse().ok());
    let up = seconds.map(Duration::from_secs);
    up.and_then(|up| SystemTime::now().checked_sub(up)).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn address_of(path: &Path) -> Option<IpAddr> {
    path.file_name()?.to_str()?.parse().ok()
}

/// The files of an owner.
#[derive(Default)]
struct Files {
    exact: Vec<PathBuf>,
    old: Vec<PathBuf>,
}

/// An address that was handed out, and is given back unless the attachment comes about.
#[derive(Debug)]
#[must_use]
pub struct Reservation {
    store: Store,
    path: PathBuf,
    owner: Owner,
    committed: bool,
}

impl Reservation {
    /// Keeps the address for the attachment.
    pub fn commit(mut self) {
        self.committed = true;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        // Whoever drops it is failing for another reason, which is the one to be told; and DEL
        // gives back what stays.
        let Ok(_locked) = self.store.lock() else { return };
        if fs::read_to_string(&self.path).is_ok_and(|content| self.owner.owns(&content)) {
            let _ = remove(&self.path);
        }
    }
}

fn write(path: &Path, content: &str, finish: fn(&File) -> io::Result<()>) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(content.as_bytes())?;
    finish(&file)
}

/// Removes a file that somebody else may have removed already.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests;
