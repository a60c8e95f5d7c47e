//! Addresses in the hands of somebody else's plugin: who must be told that they are needed no more.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::config;
use crate::bridge::lookup;
use crate::error::Error;
use crate::external::External;
use crate::invocation::Call;
use crate::ipam;
use crate::plugin::Plugin;

/// What somebody else's plugin may have given to an attachment, given back when dropped.
#[derive(Debug)]
pub struct Held<'a> {
    plugin: External,
    call: &'a Call,
    netns: &'a Path,
    committed: bool,
}

impl<'a> Held<'a> {
    /// What `plugin` is going to give.
    pub const fn new(plugin: External, call: &'a Call, netns: &'a Path) -> Self {
        Self { plugin, call, netns, committed: false }
    }

    /// Who gives it.
    pub const fn plugin(&self) -> &External {
        &self.plugin
    }

    /// Keeps it.
    pub fn commit(mut self) {
        self.committed = true;
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if !self.committed {
            // Whoever drops it is failing for another reason, which is the one to be told.
            let _del_of_the_runtime_tries_again = self.plugin.del(self.call, Some(self.netns));
        }
    }
}

/// Who gave the addresses of an attachment: as much of a configuration as it takes to give them back,
/// so that the rest of it may be broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Giver {
    /// `host-local`, which notes them in this directory.
    HostLocal(PathBuf),
    /// Somebody else's plugin of that name.
    External(String),
}

impl Giver {
    /// Finds out who gave the addresses of attachments with this configuration.
    pub fn of(config: &Map<String, Value>) -> Self {
        let kind = lookup(config, &["ipam", "type"]).and_then(Value::as_str);
        match kind.filter(|kind| !kind.is_empty()) {
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
            Self::HostLocal(data_dir) => Ok(ipam::release(data_dir, &call.attachment)?),
            Self::External(name) => {
                External::find(name, &call.path)?.del(call, netns)?;
                Ok(BTreeSet::new())
            }
        }
    }
}
