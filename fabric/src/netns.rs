//! Network namespaces of others: open one, and work inside it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, fstatfs};

/// `NSFS_MAGIC` and `PROC_SUPER_MAGIC` of the kernel's `linux/magic.h`: where namespaces are files.
const NAMESPACE_FILESYSTEMS: [FsType; 2] = [FsType(0x6e73_6673), FsType(0x9fa0)];

/// An open network namespace. It stays alive as long as this value.
#[derive(Debug)]
pub struct Netns {
    path: PathBuf,
    file: File,
}

/// Why a path is of no use as a network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Nothing is there.
    #[error("network namespace {0} does not exist")]
    Missing(PathBuf),
    /// Something else is there, for example the file that a namespace was mounted on.
    #[error("{0} is not a network namespace")]
    NotANamespace(PathBuf),
    /// It cannot be opened.
    #[error("cannot open network namespace {path}")]
    Io {
        /// Where it was looked for.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl Netns {
    /// Opens a namespace by path, such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// If there is none at that path.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let failed = |source| NetnsError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => NetnsError::Missing(path.to_owned()),
            _ => failed(error),
        })?;
        let filesystem = fstatfs(&file).map_err(|errno| failed(errno.into()))?.filesystem_type();
        if !NAMESPACE_FILESYSTEMS.contains(&filesystem) {
            return Err(NetnsError::NotANamespace(path.to_owned()));
        }
        Ok(Self { path: path.to_owned(), file })
    }

    /// Returns the path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this is the namespace that the calling thread is in.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn is_current(&self) -> io::Result<bool> {
        let current = std::fs::metadata(CURRENT)?;
        let this = self.file.metadata()?;
        Ok((current.dev(), current.ino()) == (this.dev(), this.ino()))
    }

    /// Runs `work` inside the namespace: the calling thread enters it and comes back. A thread of its
    /// own for `work` would take longer than most of what is done here.
    ///
    /// # Errors
    /// If the kernel does not let the thread in (it takes `CAP_SYS_ADMIN`).
    ///
    /// # Panics
    /// If the thread cannot come back. It must not go on as if it were where it was before.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        let _guard = Inside { outside: File::open(CURRENT)? };
        setns(&self.file, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    }
}

/// The namespace of the calling thread.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// A thread that comes back when this is dropped, also when `work` panics.
struct Inside {
    outside: File,
}

impl Drop for Inside {
    fn drop(&mut self) {
        setns(&self.outside, CloneFlags::CLONE_NEWNET).expect("who came from there may go back");
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
