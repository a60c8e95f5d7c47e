//! Follows the address of the interface between nodes.
//!
//! An interface may get another address while the node runs, from DHCP or by hand. Only when the
//! one in use is gone is another one looked for: one that is merely added changes nothing.

use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::cli::InterfaceOptions;
use crate::external_interface::{self, ExternalInterface};
use crate::kernel;

/// How often it is looked whether the address is still there; it takes a few microseconds.
const CHECK: Duration = Duration::from_secs(2);

/// Tells `moved` about every change, as long as the program runs.
pub(crate) async fn follow(
    options: &InterfaceOptions,
    mut current: ExternalInterface,
    moved: impl AsyncFn(&ExternalInterface),
) {
    let mut missed = false;
    loop {
        sleep(CHECK).await;
        if owns(&current).unwrap_or(true) {
            missed = false;
            continue;
        }
        match choose(options) {
            Some(found) => {
                info!(
                    interface = %found.name, address = %found.ip, before = %current.ip,
                    public_address = %found.public_ip, "the address of this node changed"
                );
                moved(&found).await;
                current = found;
            }
            None if missed => {}
            None => {
                warn!(address = %current.ip, "the address of this node is gone; waiting for one");
                missed = true;
            }
        }
    }
}

fn choose(options: &InterfaceOptions) -> Option<ExternalInterface> {
    let (inventory, reach) = kernel::inventory(options.can_reach).ok()?;
    external_interface::choose(options, &inventory, reach).ok()
}

/// Whether the interface still has the address. `None` if the kernel does not say.
fn owns(interface: &ExternalInterface) -> Option<bool> {
    let mut addresses = getifaddrs().ok()?;
    Some(addresses.any(|address| {
        let ip = address.address.and_then(|ip| Some(ip.as_sockaddr_in()?.ip()));
        address.interface_name == interface.name.as_str() && ip == Some(interface.ip)
    }))
}
