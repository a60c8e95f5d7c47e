//! The plugin `firewall`: lets the node forward for a pod that other plugins of the list attached.
//!
//! A rule does not say which pod it is for, so that the Go plugin can remove it too; which addresses
//! a pod had is therefore kept from ADD to DEL, and the zone of firewalld that they are in.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use fabric::link_name::LinkName;
use serde_json::{Map, Value, json};

use crate::attachment;
use crate::command::check::{Difference, previous};
use crate::command::gc::Valid;
use crate::error::Error;
use crate::firewall::{self, Backend, Firewall, FirewallError, Zone};
use crate::firewalld::{self, Firewalld, FirewalldError};
use crate::invocation::{Attachment, Call};
use crate::iptables::{self, Tables};
use crate::result::AddResult;
use crate::state::{State, StateFile};

/// Where the addresses of pods are kept.
const DATA_DIR: &str = "/var/lib/cni/firewall";
/// The key that they are under.
const ADDRESSES: &str = "addresses";

/// The key that the zone is under, if firewalld lets them through.
const ZONE: &str = "firewalldZone";

/// What is kept for a pod.
#[derive(Debug, Default)]
struct Pod {
    addresses: BTreeSet<IpAddr>,
    zone: Option<Zone>,
}

/// Lets the pod through, and passes on what the plugins before it made.
///
/// # Errors
/// If there is none before it, or if iptables or firewalld refuses. Nothing for the pod stays then.
pub fn add(call: &Call) -> Result<AddResult, Error> {
    let previous = previous(call)?.ok_or(Error::NoResult)?;
    let firewall = Firewall::new(&call.config)?;
    let firewalld = chosen(&firewall)?;
    let zone = firewalld.is_some().then(|| firewall.zone.clone());
    let tables = tables(&firewall, firewalld.is_some(), &previous)?;
    let pod = Pod { addresses: addresses(&previous), zone };
    let saved = file(&call.attachment).save(&pod.kept(&call.attachment))?;
    if let Err(error) = let_through(&pod, &tables, firewalld) {
        let _what_stopped_it_must_be_told = pod.remove();
        return Err(error);
    }
    saved.commit();
    Ok(previous)
}

/// Removes what lets the pod through.
///
/// # Errors
/// If iptables or firewalld refuses; the addresses are kept then.
pub fn del(call: &Call) -> Result<(), Error> {
    let file = file(&call.attachment);
    let state = file.read();
    let mut pod = Pod::kept_in(&state);
    if let Some(previous) = previous(call).ok().flatten() {
        pod.addresses.extend(addresses(&previous));
        if state == State::Missing {
            // The Go plugin may have made it, and keeps nothing.
            pod.zone = configured_zone(call);
        }
    }
    pod.remove()?;
    Ok(file.remove()?)
}

/// Finds out whether the pod is let through.
///
/// # Errors
/// If not in every way.
pub fn check(call: &Call) -> Result<(), Error> {
    let previous = previous(call)?.ok_or(Difference::NoPrevResult)?;
    let firewall = Firewall::new(&call.config)?;
    let mut firewalld = chosen(&firewall)?;
    let mut missing = iptables::missing(&tables(&firewall, firewalld.is_some(), &previous)?)?;
    if let Some(firewalld) = &mut firewalld {
        let zone = firewall.zone.as_str();
        for ip in addresses(&previous) {
            if !firewalld.has(zone, ip)? {
                let source = firewalld::source(ip);
                missing.push_str(&format!("firewall-cmd --zone={zone} --add-source={source}\n"));
            }
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(Difference::State(missing).into()) }
}

/// Removes what lets pods through that are not valid.
pub(super) fn gc(valid: &Valid, errors: &mut Vec<Error>) {
    for kept in StateFile::all(Path::new(DATA_DIR), valid.network()) {
        if valid.has_kept(&kept) {
            continue;
        }
        let removed = Pod::kept_in(&kept.state).remove();
        errors.extend(removed.and_then(|()| Ok(kept.remove()?)).err());
    }
    StateFile::remove_orphans(Path::new(DATA_DIR));
}

/// Returns firewalld if it is to let pods through.
fn chosen(firewall: &Firewall) -> Result<Option<Firewalld>, Error> {
    match firewall.backend {
        Backend::Firewalld => Ok(Some(Firewalld::running()?.ok_or(FirewalldError::NotRunning)?)),
        Backend::Iptables => Ok(None),
        // As for the Go plugin, a bus that is out of order is none.
        Backend::WhatRuns => Ok(Firewalld::running().ok().flatten()),
    }
}

/// The rules that are wanted, which firewalld does without where there is no policy.
fn tables(
    firewall: &Firewall,
    by_firewalld: bool,
    previous: &AddResult,
) -> Result<Tables, FirewallError> {
    let make = if by_firewalld { firewall::tables_of_policy } else { firewall::tables };
    make(firewall, &addresses(previous), bridge(previous))
}

fn let_through(pod: &Pod, tables: &Tables, firewalld: Option<Firewalld>) -> Result<(), Error> {
    iptables::ensure(tables)?;
    if let (Some(mut firewalld), Some(zone)) = (firewalld, &pod.zone) {
        for ip in &pod.addresses {
            firewalld.add(zone.as_str(), *ip)?;
        }
    }
    Ok(())
}

/// The zone that an ADD of the Go plugin may have used. None succeeds with a wrong configuration.
fn configured_zone(call: &Call) -> Option<Zone> {
    let firewall = Firewall::new(&call.config).ok()?;
    let is_in_use = match firewall.backend {
        Backend::Firewalld => true,
        Backend::Iptables | Backend::WhatRuns => chosen(&firewall).ok()?.is_some(),
    };
    is_in_use.then_some(firewall.zone)
}

impl Pod {
    /// Removes all that lets it through. What firewalld knew is gone if that does not run.
    fn remove(&self) -> Result<(), Error> {
        iptables::remove_among(&firewall::without(&self.addresses))?;
        let Some(zone) = self.zone.as_ref().filter(|_| !self.addresses.is_empty()) else {
            return Ok(());
        };
        let Some(mut firewalld) = Firewalld::running()? else { return Ok(()) };
        for ip in &self.addresses {
            firewalld.remove(zone.as_str(), *ip)?;
        }
        Ok(())
    }

    fn kept(&self, attachment: &Attachment) -> Map<String, Value> {
        let name = ("name".to_owned(), json!(attachment.network.as_str()));
        let addresses = (ADDRESSES.to_owned(), json!(self.addresses));
        let zone = self.zone.as_ref().map(|zone| (ZONE.to_owned(), json!(zone.as_str())));
        [name, addresses].into_iter().chain(zone).collect()
    }

    fn kept_in(state: &State) -> Self {
        let State::Delegate(kept) = state else { return Self::default() };
        let addresses = kept.get(ADDRESSES).and_then(Value::as_array);
        let address = |value: &Value| value.as_str()?.parse().ok();
        let addresses = addresses.into_iter().flatten().filter_map(address).collect();
        let zone = kept.get(ZONE).and_then(Value::as_str).and_then(Zone::new);
        Self { addresses, zone }
    }
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
