//! Waiting for a condition, with a deadline and a word on what was missing.

use std::thread::park_timeout;
use std::time::{Duration, Instant};

/// How long anything may take that should take far less: the machine may be busy with other work.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(10);

/// Waits until `look` finds what is wanted, and returns it.
///
/// `look` says what is there instead as long as it is not, for the failure.
///
/// # Panics
/// After [`PATIENCE`].
#[track_caller]
pub fn until<T>(wanted: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(instead) if start.elapsed() > PATIENCE => {
                panic!("waited {PATIENCE:?} for: {wanted}; there is instead: {instead}")
            }
            Err(_) => park_timeout(INTERVAL),
        }
    }
}

/// Waits until `look` says yes.
///
/// # Panics
/// After [`PATIENCE`].
#[track_caller]
pub fn until_true(wanted: &str, mut look: impl FnMut() -> bool) {
    until(wanted, || if look() { Ok(()) } else { Err("no such thing".to_owned()) });
}

/// Checks that `holds` stays true for a while: for things that must *not* happen.
///
/// # Panics
/// As soon as it is not true.
#[track_caller]
pub fn while_true(duration: Duration, wanted: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while start.elapsed() < duration {
        assert!(holds(), "no longer true after {:?}: {wanted}", start.elapsed());
        park_timeout(INTERVAL);
    }
}
