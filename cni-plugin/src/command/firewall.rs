//! The plugin `firewall`: lets the node forward for a pod that other plugins of the list attached.
//!
//! A rule does not say which pod it is for, so that the Go plugin can remove it too; which addresses
//! a pod had is therefore kept from ADD to DEL.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use fabric::link_name::LinkName;
use serde_json::{Map, Value, json};

use crate::attachment;
use crate::command::check::{Difference, previous};
use crate::command::gc::Valid;
use crate::error::Error;
use crate::firewall::{self, Firewall};
use crate::invocation::{Attachment, Call};
use crate::iptables;
use crate::result::AddResult;
use crate::state::{State, StateFile};

/// Where the addresses of pods are kept.
const DATA_DIR: &str = "/var/lib/cni/firewall";
/// The key that they are under.
const ADDRESSES: &str = "addresses";

/// Makes the rules, and passes on what the plugins before it made.
///
/// # Errors
/// If there is none before it, or if iptables refuses. No rules for the pod stay then.
pub fn add(call: &Call) -> Result<AddResult, Error> {
    let previous = previous(call)?.ok_or(Error::NoResult)?;
    let firewall = Firewall::new(&call.config)?;
    let pod = addresses(&previous);
    let tables = firewall::tables(&firewall, &pod, bridge(&previous))?;
    let saved = file(&call.attachment).save(&kept(&call.attachment, &pod))?;
    if let Err(error) = iptables::ensure(&tables) {
        let _what_stopped_it_must_be_told = iptables::remove_among(&firewall::without(&pod));
        return Err(error.into());
    }
    saved.commit();
    Ok(previous)
}

/// Removes the rules for the pod.
///
/// # Errors
/// If iptables refuses; the addresses are kept then.
pub fn del(call: &Call) -> Result<(), Error> {
    let file = file(&call.attachment);
    let mut pod = previous(call).ok().flatten().map(|result| addresses(&result));
    let pod = pod.get_or_insert_default();
    pod.extend(kept_in(&file.read()));
    iptables::remove_among(&firewall::without(pod))?;
    Ok(file.remove()?)
}

/// Finds out whether the rules are there.
///
/// # Errors
/// If not all of them are.
pub fn check(call: &Call) -> Result<(), Error> {
    let previous = previous(call)?.ok_or(Difference::NoPrevResult)?;
    let firewall = Firewall::new(&call.config)?;
    let tables = firewall::tables(&firewall, &addresses(&previous), bridge(&previous))?;
    let missing = iptables::missing(&tables)?;
    if missing.is_empty() { Ok(()) } else { Err(Difference::State(missing).into()) }
}

/// Removes the rules for pods that are not valid.
pub(super) fn gc(valid: &Valid, errors: &mut Vec<Error>) {
    for kept in StateFile::all(Path::new(DATA_DIR), valid.network()) {
        if valid.has_kept(&kept) {
            continue;
        }
        let removed = iptables::remove_among(&firewall::without(&kept_in(&kept.state)));
        let removed = removed.map_err(Error::from).and_then(|()| Ok(kept.remove()?));
        errors.extend(removed.err());
    }
    StateFile::remove_orphans(Path::new(DATA_DIR));
}

fn addresses(result: &AddResult) -> BTreeSet<IpAddr> {
    attachment::addresses(&result.ips).into_iter().collect()
}

/// What the plugins before this one made first is the bridge, if anything is.
fn bridge(result: &AddResult) -> Option<LinkName> {
    result.interfaces.first()?.name.parse().ok()
}

fn file(attachment: &Attachment) -> StateFile {
    StateFile::of(Path::new(DATA_DIR), attachment)
}

fn kept(attachment: &Attachment, pod: &BTreeSet<IpAddr>) -> Map<String, Value> {
    let name = json!(attachment.network.as_str());
    [("name".to_owned(), name), (ADDRESSES.to_owned(), json!(pod))].into_iter().collect()
}

fn kept_in(state: &State) -> BTreeSet<IpAddr> {
    let State::Delegate(kept) = state else { return BTreeSet::new() };
    let addresses = kept.get(ADDRESSES).and_then(Value::as_array);
    let address = |value: &Value| value.as_str()?.parse().ok();
    addresses.into_iter().flatten().filter_map(address).collect()
}
