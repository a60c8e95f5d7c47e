//! Where the addresses of attachments come from: plugins for IP address management (IPAM), those in
//! this file and those of others.

pub mod config;
pub mod host_local;
pub mod range;
pub mod resolv_conf;
pub mod store;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::args::Args;
use crate::bridge::lookup;
use crate::error::Error;
use crate::external::External;
use crate::invocation::{Call, NetworkCall};
use crate::plugin::Plugin;
use crate::result::{AddResult, Dns, Ip, Route};
use config::{HostLocal, HostLocalError};
use store::Reservation;

/// The plugin that a configuration names in `ipam.type`, with what it shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ipam {
    /// One address from each of some ranges.
    HostLocal(HostLocal),
    /// Whatever somebody else's plugin of that name gives.
    External(String),
}

/// Why addresses cannot be had as configured.
#[derive(Debug, thiserror::Error)]
pub enum IpamConfigError {
    /// The ranges make no sense.
    #[error(transparent)]
    HostLocal(#[from] HostLocalError),
}

impl Ipam {
    /// Reads the configuration of a network together with the `CNI_ARGS` of an attachment. Without a
    /// type, there are no addresses.
    ///
    /// # Errors
    /// If it cannot be understood.
    pub fn new(config: &Map<String, Value>, args: &Args) -> Result<Option<Self>, IpamConfigError> {
        let Some(kind) = kind(config) else { return Ok(None) };
        Ok(Some(match Plugin::named(kind) {
            Some(Plugin::HostLocal) => Self::HostLocal(HostLocal::new(config, args)?),
            _ => Self::External(kind.to_owned()),
        }))
    }

    /// Takes addresses for an attachment that cannot have any yet if it is `fresh`.
    ///
    /// # Errors
    /// If there are none to be had. Nothing is taken then.
    pub fn allocate<'a>(
        &self,
        call: &'a Call,
        netns: &'a Path,
        fresh: bool,
    ) -> Result<Allocation<'a>, Error> {
        match self {
            Self::HostLocal(conf) => {
                let dns = host_local::dns(conf)?;
                let taken = host_local::allocate(conf, &call.attachment, fresh)?;
                let (ips, hold) = (taken.ips, Hold::Reservations(taken.reservations));
                Ok(Allocation { ips, routes: conf.routes.clone(), dns, hold })
            }
            Self::External(name) => {
                let plugin = External::find(name, &call.path)?;
                // A DEL follows even an ADD that failed.
                let held = Held { plugin, call, netns, committed: false };
                let AddResult { ips, routes, dns, .. } = held.plugin.add(call, netns)?;
                if ips.is_empty() {
                    return Err(Error::NothingGiven);
                }
                Ok(Allocation { ips, routes, dns, hold: Hold::External(held) })
            }
        }
    }

    /// Finds out whether these addresses are noted as those of the attachment.
    ///
    /// # Errors
    /// If they are not.
    pub fn check(&self, call: &Call, netns: &Path, ips: &[IpAddr]) -> Result<(), Error> {
        match self {
            Self::HostLocal(conf) => host_local::check(conf, &call.attachment, ips),
            Self::External(name) => Ok(External::find(name, &call.path)?.check(call, netns)?),
        }
    }

    /// Finds out whether there is an address for another attachment.
    ///
    /// # Errors
    /// If there is none.
    pub fn status(&self, call: &NetworkCall) -> Result<(), Error> {
        match self {
            Self::HostLocal(conf) => host_local::status(conf, &call.network),
            Self::External(name) => Ok(External::find(name, &call.path)?.status(call)?),
        }
    }
}

fn kind(config: &Map<String, Value>) -> Option<&str> {
    lookup(config, &["ipam", "type"]).and_then(Value::as_str).filter(|kind| !kind.is_empty())
}

/// What an attachment gets, given back when dropped.
#[derive(Debug, Default)]
pub struct Allocation<'a> {
    /// Addresses, with their gateways.
    pub ips: Vec<Ip>,
    /// What the sandbox shall reach through them.
    pub routes: Vec<Route>,
    /// What the sandbox is told about name servers.
    pub dns: Dns,
    hold: Hold<'a>,
}

#[derive(Debug, Default)]
enum Hold<'a> {
    #[default]
    Nothing,
    Reservations(Vec<Reservation>),
    External(Held<'a>),
}

impl Allocation<'_> {
    /// Keeps the addresses.
    pub fn commit(self) -> (Vec<Ip>, Vec<Route>, Dns) {
        match self.hold {
            Hold::Nothing => {}
            Hold::Reservations(taken) => taken.into_iter().for_each(Reservation::commit),
            Hold::External(mut held) => held.committed = true,
        }
        (self.ips, self.routes, self.dns)
    }
}

/// What somebody else's plugin may have given.
#[derive(Debug)]
struct Held<'a> {
    plugin: External,
    call: &'a Call,
    netns: &'a Path,
    committed: bool,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if !self.committed {
            // Whoever drops it is failing for another reason, which is the one to be told.
            let _del_of_the_runtime_tries_again = self.plugin.del(self.call, Some(self.netns));
        }
    }
}

/// Who has to be told that an attachment needs its addresses no more: as much of a configuration as
/// that takes, so that the rest of it may be broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Giver {
    /// The files in this directory.
    HostLocal(PathBuf),
    /// Somebody else's plugin of that name.
    External(String),
}

impl Giver {
    /// Finds out who gave the addresses of attachments with this configuration.
    pub fn of(config: &Map<String, Value>) -> Self {
        match kind(config) {
            Some(kind) if Plugin::named(kind).is_none() => Self::External(kind.to_owned()),
            _ => Self::HostLocal(config::data_dir(config)),
        }
    }

    /// Gives back whatever the attachment has, and returns it as far as that is known.
    ///
    /// # Errors
    /// If some of it cannot be given back.
    pub fn release(&self, call: &Call, netns: Option<&Path>) -> Result<BTreeSet<IpAddr>, Error> {
        match self {
            Self::HostLocal(data_dir) => Ok(host_local::release(data_dir, &call.attachment)?),
            Self::External(name) => {
                External::find(name, &call.path)?.del(call, netns)?;
                Ok(BTreeSet::new())
            }
        }
    }
}
