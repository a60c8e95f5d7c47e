//! Where the addresses of an interface come from, whichever plugin hands them out.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use serde_json::{Map, Value};

use super::Allocation;
use super::config::{HostLocal, HostLocalError};
use super::fixed::{Fixed, FixedError};
use super::held::Held;
use super::store::{Owner, Store};
use crate::args::Args;
use crate::bridge::lookup;
use crate::command::check::Difference;
use crate::error::Error;
use crate::external::External;
use crate::invocation::{Call, Id, NetworkCall};
use crate::ipam;
use crate::plugin::Plugin;
use crate::result::{AddResult, Dns, Route};

/// A checked `ipam` part of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// One free address of each range set.
    HostLocal(HostLocal),
    /// Those that the configuration names.
    Static(Fixed),
    /// Whatever somebody else's plugin of that name gives.
    External(String),
}

/// Why there is no source of addresses.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The plugin does something else.
    #[error("unsupported field: ipam.type is {0:?}")]
    Unsupported(String),
    /// Routes get the scope that follows from their gateway.
    #[error("unsupported field: ipam.routes[{index}].scope is {scope}")]
    Scope {
        /// Which route.
        index: usize,
        /// The scope that it should get.
        scope: u32,
    },
    /// `host-local` cannot work like this.
    #[error(transparent)]
    HostLocal(#[from] HostLocalError),
    /// `static` cannot work like this.
    #[error(transparent)]
    Static(#[from] FixedError),
}

/// What a CHECK of addresses finds.
#[derive(Debug, thiserror::Error)]
pub enum SourceDifference {
    /// An address is not noted as that of the attachment.
    #[error("host-local: Failed to find address added by container {0}")]
    NotReserved(Id),
    /// The configuration names an address that the interface does not have.
    #[error("static: Failed to find address added by container {0}")]
    NotGiven(Id),
}

/// Addresses together with what else the source says.
#[derive(Debug, Default)]
pub struct Given<'a> {
    /// The addresses, given back unless they are kept.
    pub addresses: Allocation<'a>,
    /// What to reach through the gateway.
    pub routes: Vec<Route>,
    /// Name servers.
    pub dns: Dns,
}

impl Source {
    /// Reads the `ipam` part of the configuration of an interface plugin, which may have none.
    ///
    /// # Errors
    /// If it is of no use.
    pub fn of(config: &Map<String, Value>, args: &Args) -> Result<Option<Self>, SourceError> {
        let kind = lookup(config, &["ipam", "type"]).and_then(Value::as_str).unwrap_or_default();
        if kind.is_empty() {
            return Ok(None);
        }
        let Some(plugin) = Plugin::named(kind) else {
            return Ok(Some(Self::External(kind.to_owned())));
        };
        let unsupported = || SourceError::Unsupported(kind.to_owned());
        let source = Self::of_plugin(plugin, config, args)?.ok_or_else(unsupported)?;
        check_scopes(source.routes())?;
        Ok(Some(source))
    }

    /// Reads it as `plugin` does, whatever type it names. Returns `None` if that plugin does not
    /// hand out addresses.
    ///
    /// # Errors
    /// If it is of no use.
    pub fn of_plugin(
        plugin: Plugin,
        config: &Map<String, Value>,
        args: &Args,
    ) -> Result<Option<Self>, SourceError> {
        Ok(match plugin {
            Plugin::HostLocal => Some(Self::HostLocal(HostLocal::new(config, args)?)),
            Plugin::Static => Some(Self::Static(Fixed::new(config, args)?)),
            _ => None,
        })
    }

    /// What the configuration says that the sandbox shall reach through the gateway.
    pub fn routes(&self) -> &[Route] {
        match self {
            Self::HostLocal(conf) => &conf.routes,
            Self::Static(conf) => &conf.routes,
            Self::External(_) => &[],
        }
    }

    /// Takes addresses for an attachment, whose sandbox is at `netns`, and which has none yet if it
    /// is `fresh`.
    ///
    /// # Errors
    /// If they cannot be had. Nothing is taken then.
    pub fn take<'a>(
        &self,
        call: &'a Call,
        netns: &'a Path,
        fresh: bool,
    ) -> Result<Given<'a>, Error> {
        match self {
            Self::HostLocal(conf) => {
                let dns = ipam::dns(conf)?;
                let addresses = ipam::allocate(conf, &call.attachment, fresh)?;
                Ok(Given { addresses, routes: conf.routes.clone(), dns })
            }
            Self::Static(conf) => Ok(Given {
                addresses: Allocation::of(conf.ips()),
                routes: conf.routes.clone(),
                dns: conf.dns.clone(),
            }),
            Self::External(name) => {
                let plugin = External::find(name, &call.path)?;
                // A DEL follows even an ADD that failed.
                let held = Held::new(plugin, call, netns);
                let AddResult { ips, routes, dns, .. } = held.plugin().add(call, netns)?;
                if ips.is_empty() {
                    return Err(Error::NothingGiven);
                }
                check_scopes(&routes)?;
                Ok(Given { addresses: Allocation::held(ips, held), routes, dns })
            }
        }
    }

    /// Finds out whether the addresses of an attachment are its own. Whoever asks for the plugin
    /// alone may not know which ones they are.
    ///
    /// # Errors
    /// If they are not.
    pub fn check(&self, call: &Call, netns: &Path, given: Option<&[IpAddr]>) -> Result<(), Error> {
        let attachment = &call.attachment;
        let container = || attachment.container.clone();
        let (is_right, difference) = match self {
            Self::HostLocal(conf) => {
                let noted = match Store::existing(&conf.data_dir, &attachment.network) {
                    Some(store) => store.lock()?.addresses_of(&Owner::of(attachment))?,
                    None => BTreeSet::new(),
                };
                let all_noted = given
                    .map_or(!noted.is_empty(), |given| given.iter().all(|ip| noted.contains(ip)));
                (all_noted, SourceDifference::NotReserved(container()))
            }
            Self::Static(conf) => {
                let named = conf.ips().iter().map(|ip| ip.address.ip()).collect::<Vec<_>>();
                let all_given = given.is_none_or(|given| named.iter().all(|ip| given.contains(ip)));
                (all_given, SourceDifference::NotGiven(container()))
            }
            Self::External(name) => {
                return Ok(External::find(name, &call.path)?.check(call, netns)?);
            }
        };
        if is_right { Ok(()) } else { Err(Difference::Addresses(difference).into()) }
    }

    /// Finds out whether there is an address for another attachment. Takes no lock.
    ///
    /// # Errors
    /// If there is none.
    pub fn status(&self, call: &NetworkCall) -> Result<(), Error> {
        let conf = match self {
            Self::HostLocal(conf) => conf,
            Self::Static(_) => return Ok(()),
            Self::External(name) => return Ok(External::find(name, &call.path)?.status(call)?),
        };
        let Some(store) = Store::existing(&conf.data_dir, &call.network) else { return Ok(()) };
        let taken = store.taken_unlocked()?;
        let exhausted = conf.sets.iter().find(|set| set.choose(&taken, None).is_none());
        exhausted.map_or(Ok(()), |set| Err(Error::NoAddresses(set.clone())))
    }
}

fn check_scopes(routes: &[Route]) -> Result<(), SourceError> {
    let mut scopes = routes.iter().map(|route| route.scope.unwrap_or(0)).enumerate();
    let unsupported = scopes.find(|(_, scope)| *scope != 0);
    unsupported.map_or(Ok(()), |(index, scope)| Err(SourceError::Scope { index, scope }))
}
