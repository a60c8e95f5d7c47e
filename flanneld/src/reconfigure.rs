//! Follows the network configuration in the store.
//!
//! A new one is checked before anything comes of it. What cannot be used, or not without a restart,
//! is told once and changes nothing: the old configuration stays in force.

use std::collections::BTreeSet;

use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use crate::config::NetworkConfig;
use crate::errors::chain;
use crate::external_interface::ExternalInterface;
use crate::lease::{Lease, LeaseKey};
use crate::setup::{Choices, Setup};
use crate::store::LeaseStore;

/// What a new configuration is checked against.
pub(crate) struct Circumstances<'a> {
    pub(crate) interface: watch::Receiver<ExternalInterface>,
    /// The lease of this node, once there is one.
    pub(crate) held: watch::Receiver<Option<Lease>>,
    pub(crate) choices: &'a Choices,
}

/// Hands on every configuration that can be used, as long as the program runs. `changed` is told
/// when the store may hold another one.
pub(crate) async fn follow<S: LeaseStore>(
    store: &S,
    changed: &Notify,
    circumstances: Circumstances<'_>,
    configs: watch::Sender<NetworkConfig>,
) {
    let mut refused = None;
    loop {
        changed.notified().await;
        // A store that does not answer tells so elsewhere, and that there is something new again.
        let Ok(json) = store.network_config().await else { continue };
        let new = S::SUBNETS.parse(&json).map_err(|error| chain(&error));
        let checked = new.and_then(|new| check(new, &configs.borrow(), &circumstances));
        match checked {
            Ok(None) => refused = None,
            Ok(Some(_)) if configs.is_closed() => return,
            Ok(Some(config)) => {
                info!(backend = %config.backend.kind, "the network configuration changed");
                configs.send_replace(config);
                refused = None;
            }
            Err(reason) if refused.as_ref() == Some(&reason) => {}
            Err(reason) => {
                warn!("the new network configuration is not used, the old one stays: {reason}");
                refused = Some(reason);
            }
        }
    }
}

/// Returns the configuration if it is another one, or why it cannot be used.
fn check(
    new: NetworkConfig,
    now: &NetworkConfig,
    circumstances: &Circumstances<'_>,
) -> Result<Option<NetworkConfig>, String> {
    if new == *now {
        return Ok(None);
    }
    let held = circumstances.held.borrow().as_ref().map(|lease| lease.subnet);
    if let Some(obstacle) = obstacle(now, &new, held) {
        return Err(obstacle);
    }
    let interface = circumstances.interface.borrow();
    Setup::new(&new, &interface, circumstances.choices).map_err(|error| chain(&error))?;
    Ok(Some(new))
}

/// Says what cannot be changed while pods are running.
fn obstacle(now: &NetworkConfig, new: &NetworkConfig, held: Option<LeaseKey>) -> Option<String> {
    let families = |config: &NetworkConfig| config.pools.families().collect::<BTreeSet<_>>();
    if families(now) != families(new) {
        return Some("to switch an address family on or off takes a restart".to_owned());
    }
    let (from, to) = (&now.backend.kind, &new.backend.kind);
    let follow = |kind: &str| matches!(kind, "vxlan" | "host-gw");
    if from != to && !(follow(from) && follow(to)) {
        return Some(format!("to change Backend.Type from {from} to {to} takes a restart"));
    }
    let outside = new.pools.iter().find_map(|(family, pool)| {
        let subnet = held?.subnet(family)?;
        let inside =
            pool.network.contains(subnet.network()) && pool.network.prefix() <= subnet.prefix();
        (!inside).then_some((subnet, pool.network))
    });
    outside.map(|(subnet, network)| {
        format!("this node has {subnet}, which is not in {network}; another subnet takes a restart")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> NetworkConfig {
        NetworkConfig::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn what_takes_a_restart_is_said() {
        let now = config(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#);
        let held = LeaseKey::parse("10.244.1.0-24");
        for (new, obstacle) in [
            (r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#, None),
            (r#"{"Network":"10.240.0.0/12","Backend":{"Type":"vxlan","MTU":1400}}"#, None),
            (
                r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}"#,
                Some("to change Backend.Type from vxlan to udp takes a restart"),
            ),
            (
                r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#,
                Some(
                    "this node has 10.244.1.0/24, which is not in 10.1.0.0/16; another subnet takes \
                     a restart",
                ),
            ),
            (
                r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10::/48",
                    "Backend":{"Type":"vxlan"}}"#,
                Some("to switch an address family on or off takes a restart"),
            ),
        ] {
            assert_eq!(super::obstacle(&now, &config(new), held).as_deref(), obstacle, "{new}");
        }
    }
}
