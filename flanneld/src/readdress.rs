//! Follows the address of the interface between nodes.
//!
//! An interface may get another address while the node runs, from DHCP or by hand. Only when the
//! one in use is gone is another one looked for: one that is merely added changes nothing.

use std::net::IpAddr;
use std::time::Duration;

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::cli::InterfaceOptions;
use crate::external_interface::{self, ExternalInterface};
use crate::family::Family;
use crate::kernel;

/// How often it is looked whether the address is still there; it takes a few microseconds.
const CHECK: Duration = Duration::from_secs(2);

/// Tells `moved` about every change, as long as the program runs.
pub(crate) async fn follow(
    options: &InterfaceOptions,
    mut current: ExternalInterface,
    moved: impl AsyncFn(&ExternalInterface),
) {
    let families: Vec<_> = current.addresses.families().collect();
    let mut missed = false;
    loop {
        sleep(CHECK).await;
        if owns(&current).unwrap_or(true) {
            missed = false;
            continue;
        }
        match choose(options, &families) {
            Some(found) => {
                info!(
                    now = %found, before = %current, "the address of this node changed"
                );
                moved(&found).await;
                current = found;
            }
            None if missed => {}
            None => {
                warn!(before = %current, "an address of this node is gone; waiting for one");
                missed = true;
            }
        }
    }
}

fn choose(options: &InterfaceOptions, families: &[Family]) -> Option<ExternalInterface> {
    let (inventory, reach) = kernel::inventory(options.can_reach).ok()?;
    external_interface::choose(options, families, &inventory, reach).ok()
}

/// Whether the interface still has the addresses. `None` if the kernel does not say.
fn owns(interface: &ExternalInterface) -> Option<bool> {
    let on_interface =
        |address: &InterfaceAddress| address.interface_name == interface.name.as_str();
    let present: Vec<_> =
        getifaddrs().ok()?.filter(on_interface).filter_map(|address| ip(&address)).collect();
    Some(interface.addresses.values().all(|address| present.contains(&address.ip)))
}

fn ip(address: &InterfaceAddress) -> Option<IpAddr> {
    let address = address.address?;
    let ipv4 = address.as_sockaddr_in().map(|ipv4| IpAddr::V4(ipv4.ip()));
    ipv4.or_else(|| Some(IpAddr::V6(address.as_sockaddr_in6()?.ip())))
}
