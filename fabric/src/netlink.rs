//! The only code that speaks rtnetlink (rtnetlink(7)).
//!
//! Everything is synchronous: requests to the kernel take microseconds, and one socket belongs to
//! one thread. A socket stays in the network namespace in which it was opened.

mod addresses;
mod apply;
mod bridge;
mod interfaces;
mod joined;
mod link_up;
mod links;
mod monitor;
mod neighbours;
mod observe;
mod parameters;
mod peers;
mod routes;
mod rows;
mod scope;
mod settled;
mod shaping;
mod socket;

pub use apply::{ApplyError, apply};
pub use bridge::ports;
pub use interfaces::{
    DefaultRoute, Interface, InterfaceAddress, Inventory, Way, aliases, route_to,
};
pub use link_up::wait_until_up;
pub use observe::observe;
pub use peers::{link_of_index, peer_of};
pub use scope::{Adopted, Routes, Scope};
pub use settled::{AddressMonitor, Settled};
pub use socket::{NetlinkError, Refusal, Socket};

use crate::netstate::NetState;
use crate::plan::{Plan, diff};

/// What [`converge`] did.
#[derive(Debug)]
pub struct Report {
    /// The operations that were tried.
    pub plan: Plan,
    /// Those that failed. The others were done all the same.
    pub failures: Vec<ApplyError>,
}

/// Makes `desired` true of everything in `scope`: observe, compare, apply.
///
/// Somebody else may change the same links at the same moment, for example two pods that both make
/// the bridge. When an operation fails for such a reason, everything is compared once more.
///
/// # Errors
/// If the state cannot be observed. Operations that the kernel refuses are in the report.
pub fn converge(
    socket: &mut Socket,
    scope: &Scope,
    desired: &NetState,
) -> Result<Report, NetlinkError> {
    let plan = diff(desired, &observe(socket, scope)?);
    let failures = apply(socket, &plan);
    if !failures.iter().any(ApplyError::is_race) {
        return Ok(Report { plan, failures });
    }
    let rest = diff(desired, &observe(socket, scope)?);
    let failures = apply(socket, &rest);
    let ops = plan.ops.into_iter().chain(rest.ops).collect();
    Ok(Report { plan: Plan { ops }, failures })
}
