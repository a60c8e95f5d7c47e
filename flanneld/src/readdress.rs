//! Follows the interface between nodes: its address, its MTU, and what is on its network.
//!
//! An interface may get another address while the node runs, from DHCP or by hand. Only when the
//! one in use is gone is another one looked for: one that is merely added changes nothing.

use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::cli::InterfaceOptions;
use crate::external_interface::{self, ExternalInterface};
use crate::kernel;
use crate::store::LeaseStore;

/// How often it is looked without a notification. A large cluster has thousands of routes to look at.
const CHECK: Duration = Duration::from_secs(60);

/// Tells about every change, as long as the program runs.
pub(crate) async fn follow(
    store: &impl LeaseStore,
    options: &InterfaceOptions,
    changed: &Notify,
    interfaces: watch::Sender<ExternalInterface>,
) {
    let mut current = interfaces.borrow().clone();
    let families: Vec<_> = current.addresses.families().collect();
    let mut missed = false;
    loop {
        // Whether it was told or the time has come makes no difference.
        let _told = timeout(CHECK, changed.notified()).await;
        let Some((inventory, reach)) = kernel::inventory(options.can_reach).ok() else { continue };
        let found = match current.as_in(&inventory) {
            Some(same) => Some(same),
            None => external_interface::choose(options, &families, &inventory, reach).ok(),
        };
        match found {
            Some(found) if found == current => missed = false,
            Some(found) => {
                if found.addresses != current.addresses {
                    store.reconnect();
                }
                info!(
                    interface = %found, mtu = found.mtu.get(), before = %current,
                    "the interface for the traffic between nodes, or what is on its network, changed"
                );
                interfaces.send_replace(found.clone());
                (current, missed) = (found, false);
            }
            None if missed => {}
            None => {
                warn!(before = %current, "an address of this node is gone; waiting for one");
                missed = true;
            }
        }
    }
}
