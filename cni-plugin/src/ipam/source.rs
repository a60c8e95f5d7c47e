//! Where the addresses of an interface come from, whichever plugin hands them out.

use std::net::IpAddr;

use serde_json::{Map, Value};

use super::config::{HostLocal, HostLocalError};
use super::fixed::{Fixed, FixedError};
use super::store::{Owner, Store, StoreError};
use super::{Allocation, IpamError};
use crate::args::Args;
use crate::bridge::lookup;
use crate::invocation::{Attachment, Id};
use crate::ipam;
use crate::ipam::range::RangeSet;
use crate::plugin::Plugin;
use crate::result::{Dns, Route};

/// A checked `ipam` part of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// One free address of each range set.
    HostLocal(HostLocal),
    /// Those that the configuration names.
    Static(Fixed),
}

/// Why there is no source of addresses.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The plugin is not one of ours.
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
    /// It cannot be found out.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Addresses together with what else the source says.
#[derive(Debug, Default)]
pub struct Given {
    /// The addresses, given back unless they are kept.
    pub addresses: Allocation,
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
        let unsupported = || SourceError::Unsupported(kind.to_owned());
        let plugin = Plugin::named(kind).ok_or_else(unsupported)?;
        let source = Self::of_plugin(plugin, config, args)?.ok_or_else(unsupported)?;
        source.check_scopes()?;
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

    /// What the sandbox is told to reach through the gateway.
    pub fn routes(&self) -> &[Route] {
        match self {
            Self::HostLocal(conf) => &conf.routes,
            Self::Static(conf) => &conf.routes,
        }
    }

    fn check_scopes(&self) -> Result<(), SourceError> {
        let mut scopes = self.routes().iter().map(|route| route.scope.unwrap_or(0)).enumerate();
        let unsupported = scopes.find(|(_, scope)| *scope != 0);
        unsupported.map_or(Ok(()), |(index, scope)| Err(SourceError::Scope { index, scope }))
    }

    /// Takes addresses for an attachment, which has none yet if it is `fresh`.
    ///
    /// # Errors
    /// If they cannot be had. Nothing is taken then.
    pub fn take(&self, attachment: &Attachment, fresh: bool) -> Result<Given, IpamError> {
        match self {
            Self::HostLocal(conf) => {
                let dns = ipam::dns(conf)?;
                let addresses = ipam::allocate(conf, attachment, fresh)?;
                Ok(Given { addresses, routes: conf.routes.clone(), dns })
            }
            Self::Static(conf) => Ok(Given {
                addresses: Allocation::of(conf.ips()),
                routes: conf.routes.clone(),
                dns: conf.dns.clone(),
            }),
        }
    }

    /// Finds out whether the addresses of an attachment are its own. Whoever asks for the plugin
    /// alone may not know which ones they are.
    ///
    /// # Errors
    /// If they are not.
    pub fn check(
        &self,
        attachment: &Attachment,
        given: Option<&[IpAddr]>,
    ) -> Result<(), SourceDifference> {
        let container = || attachment.container.clone();
        match self {
            Self::HostLocal(conf) => {
                let noted = match Store::existing(&conf.data_dir, &attachment.network) {
                    Some(store) => store.lock()?.addresses_of(&Owner::of(attachment))?,
                    None => Default::default(),
                };
                let all_noted = given
                    .map_or(!noted.is_empty(), |given| given.iter().all(|ip| noted.contains(ip)));
                if all_noted { Ok(()) } else { Err(SourceDifference::NotReserved(container())) }
            }
            Self::Static(conf) => {
                let named = conf.ips().iter().map(|ip| ip.address.ip()).collect::<Vec<_>>();
                let all_given = given.is_none_or(|given| named.iter().all(|ip| given.contains(ip)));
                if all_given { Ok(()) } else { Err(SourceDifference::NotGiven(container())) }
            }
        }
    }

    /// Returns a range set that has no address left, if there is one. Takes no lock.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn exhausted(&self, network: &Id) -> Result<Option<&RangeSet>, StoreError> {
        let Self::HostLocal(conf) = self else { return Ok(None) };
        let Some(store) = Store::existing(&conf.data_dir, network) else { return Ok(None) };
        let taken = store.taken_unlocked()?;
        Ok(conf.sets.iter().find(|set| set.choose(&taken, None).is_none()))
    }
}
