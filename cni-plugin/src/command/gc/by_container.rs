//! What the Go plugins mark by the container alone, or by a hash of it: it cannot be told whose it is,
//! but it can be looked for where a container is known.
//!
//! A container is known by its addresses and by what is kept of its ADD, so these go last. The Go
//! plugin's pairs have names by chance and no remark. They go with the sandbox, and are left alone
//! while that lives.

use std::collections::BTreeSet;
use std::path::Path;

use fabric::netlink::{Socket, observe};
use fabric::netstate::LinkKind;

use super::Valid;
use crate::bandwidth::ifb_of_go;
use crate::error::Error;
use crate::invocation::Id;
use crate::ipam::store::{Holder, Store};
use crate::kernel::{self, links};

/// Returns the containers that have addresses and no valid attachment.
pub(super) fn with_addresses(valid: &Valid, data_dir: &Path) -> BTreeSet<Id> {
    let store = Store::existing(data_dir, valid.network());
    // Whoever gives the addresses back tells why they cannot be read.
    let holders = store.and_then(|store| store.holders_unlocked().ok()).unwrap_or_default();
    let containers = holders.into_iter().filter_map(|holder| match holder {
        Holder::Attachment(container, _) | Holder::Container(container) => Some(container),
        Holder::Nobody => None,
    });
    containers.filter(|container| !valid.has_container(container)).collect()
}

/// Removes the links by which the Go plugin limited what came from these containers.
pub(super) fn remove_ifbs(
    host: &mut Socket,
    valid: &Valid,
    containers: &BTreeSet<Id>,
) -> Result<(), Error> {
    let names = containers.iter().map(|container| ifb_of_go(valid.network(), container));
    let mut observed = observe(host, &links(names))?;
    observed.links.retain(|_, link| link.kind == LinkKind::Ifb && link.alias.is_none());
    Ok(kernel::remove(host, &observed)?)
}
