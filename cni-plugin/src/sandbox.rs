//! The network namespace of the container, which may not be there any more, or be the wrong one.

use std::io;
use std::path::{Path, PathBuf};

use fabric::netns::{Netns, NetnsError};

/// Why a sandbox is of no use.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// It cannot be opened.
    #[error("failed to open netns {path:?}")]
    Open {
        /// Where it should be.
        path: PathBuf,
        /// Why it cannot be opened.
        #[source]
        source: NetnsError,
    },
    /// It is the namespace of the host, where removing `eth0` would be a disaster. A path such as
    /// `/proc/PID/ns/net` leads there when the process identifier belongs to somebody else by now.
    #[error("plugin's netns and netns from CNI_NETNS should not be the same")]
    Own,
    /// It cannot be told which namespace this process is in.
    #[error("cannot read /proc/thread-self/ns/net")]
    Unknown(#[source] io::Error),
    /// The kernel does not let this process in.
    #[error("cannot enter netns {path:?}")]
    Enter {
        /// Where it is.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Opens the sandbox at `path`, which is not the namespace of this process, unless that is allowed.
///
/// # Errors
/// If it is no namespace, or this one.
pub fn open(path: &Path, own_allowed: bool) -> Result<Netns, SandboxError> {
    let netns =
        Netns::open(path).map_err(|source| SandboxError::Open { path: path.to_owned(), source })?;
    if !own_allowed && netns.is_current().map_err(SandboxError::Unknown)? {
        return Err(SandboxError::Own);
    }
    Ok(netns)
}

/// Opens the sandbox unless it is gone: without a path, with nothing there, or with the empty file
/// there that the namespace was mounted on.
///
/// # Errors
/// If it is there and of no use.
pub fn open_if_there(
    path: Option<&Path>,
    own_allowed: bool,
) -> Result<Option<Netns>, SandboxError> {
    let Some(path) = path else { return Ok(None) };
    match open(path, own_allowed) {
        Err(SandboxError::Open {
            source: NetnsError::Missing(_) | NetnsError::NotANamespace(_),
            ..
        }) => Ok(None),
        result => result.map(Some),
    }
}

/// Does something inside the sandbox.
///
/// # Errors
/// If the kernel does not let this process in.
pub fn inside<T>(netns: &Netns, work: impl FnOnce() -> T) -> Result<T, SandboxError> {
    let entered = netns.run(work);
    entered.map_err(|source| SandboxError::Enter { path: netns.path().to_owned(), source })
}
