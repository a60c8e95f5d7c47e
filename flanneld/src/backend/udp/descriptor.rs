//! A descriptor that several threads use becomes another file, without them noticing.

#![expect(unsafe_code, reason = "dup3 on descriptors that are shared")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Makes `place` refer to the file of `new`, in one step with closing what it was before (dup(2)).
pub(super) fn replace(place: &impl AsFd, new: &impl AsFd) -> io::Result<()> {
    let (place, new) = (place.as_fd(), new.as_fd());
    // SAFETY: both descriptors are open, and who owns them goes on to own them.
    match unsafe { libc::dup3(new.as_raw_fd(), place.as_raw_fd(), libc::O_CLOEXEC) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
