//! Brings the kernel to a desired state, beside what belongs to others.

use std::io;
use std::net::IpAddr;

use fabric::link_name::LinkName;
use fabric::netlink::{ApplyError, NetlinkError, Scope, Socket, apply, observe};
use fabric::netstate::NetState;
use fabric::plan::{Op, diff};

use crate::attachment;
use crate::sharing::{Conflict, among_others};

/// Why the kernel is not in the desired state.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It cannot be asked.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Something is in the way.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// It refused an operation.
    #[error(transparent)]
    Refused(#[from] ApplyError),
    /// Somebody else on the link has an address already.
    #[error("link {0} has address {1} in DADFAILED state")]
    Duplicate(LinkName, IpAddr),
    /// Nobody knows whether somebody else has an address.
    #[error("link {0} still has tentative address {1}")]
    Tentative(LinkName, IpAddr),
    /// It refused a parameter.
    #[error("cannot set {key}")]
    Sysctl {
        /// Which one.
        key: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The interface that is to be changed is not there.
    #[error("failed to lookup {:?}: Link not found", .0.as_str())]
    NoLink(LinkName),
    /// The attachment stays without connection.
    #[error("bridge port in error state: {0} is not up")]
    PortDown(LinkName),
}

impl From<io::Error> for KernelError {
    fn from(error: io::Error) -> Self {
        Self::Netlink(error.into())
    }
}

/// Makes `desired` true in the namespace of the socket and this thread, if `check` finds nothing in
/// the way.
///
/// Two pods may both want to make the bridge at the same moment; then the one that comes late looks
/// once more. Returns what was found there.
///
/// # Errors
/// If something is in the way, or if the kernel refuses. Part of the state may then be there.
pub fn ensure(
    socket: &mut Socket,
    desired: &NetState,
    check: impl FnOnce(&NetState) -> Result<(), Conflict>,
) -> Result<NetState, KernelError> {
    let mut observed = observe(socket, &Scope::of(desired))?;
    check(&observed)?;
    let mut failures = pass(socket, desired, &observed);
    if failures.iter().any(ApplyError::is_race) {
        observed = observe(socket, &Scope::of(desired))?;
        failures = pass(socket, desired, &observed);
    }
    failures.into_iter().next().map_or(Ok(observed), |first| Err(first.into()))
}

/// Removes everything in `observed`.
///
/// # Errors
/// If the kernel refuses; the rest is removed all the same.
pub fn remove(socket: &mut Socket, observed: &NetState) -> Result<(), KernelError> {
    let failures = apply(socket, &diff(&NetState::default(), observed));
    failures.into_iter().next().map_or(Ok(()), |first| Err(first.into()))
}

/// The scope of some links without what hangs on them.
pub fn links(names: impl IntoIterator<Item = LinkName>) -> Scope {
    Scope { links: names.into_iter().collect(), ..Scope::default() }
}

fn pass(socket: &mut Socket, desired: &NetState, observed: &NetState) -> Vec<ApplyError> {
    let plan = diff(&among_others(desired, observed), observed);
    let mut failures = apply(socket, &plan);
    failures.retain(is_essential);
    failures
}

fn is_essential(failure: &ApplyError) -> bool {
    match &*failure.op {
        // Some parameters do not exist everywhere, or may not be set. Their defaults do.
        Op::SetSysctl(key, _) => attachment::is_essential(key),
        // Another interface of the sandbox leads there already.
        Op::AddRoute(..) => !already_exists(failure),
        _ => true,
    }
}

fn already_exists(failure: &ApplyError) -> bool {
    let kind = failure.errno.map(|errno| io::Error::from_raw_os_error(errno).kind());
    kind == Some(io::ErrorKind::AlreadyExists)
}
