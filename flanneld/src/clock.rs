//! The clock for leases: it neither jumps when somebody sets the time, nor stops in suspend.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Returns the time since the machine booted.
pub(crate) fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .expect("Linux has had this clock since 2.6.39")
}
