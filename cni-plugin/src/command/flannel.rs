//! The plugin `flannel`: lets a delegate attach the sandbox to the subnet that the agent leased.
//!
//! A delegate that is in this file too serves the call in this process.

use std::path::Path;

use fabric::subnet_file::SubnetFile;
use serde_json::{Map, Value};

use crate::bridge::{Bridge, lookup};
use crate::command::add::Site;
use crate::command::del::{self, Remains};
use crate::command::{add, check, gc, status};
use crate::delegate::{self, Delegate};
use crate::error::Error;
use crate::external::External;
use crate::invocation::{Call, NetworkCall};
use crate::netconf::NetConf;
use crate::plugin::Plugin;
use crate::result::AddResult;
use crate::sandbox;
use crate::state::{State, StateFile};

/// Attaches the sandbox.
///
/// # Errors
/// If anything fails. Nothing is left then that a DEL would need to know of.
pub fn add(call: &Call, netns: &Path) -> Result<AddResult, Error> {
    let conf = NetConf::new(&call.config)?;
    let sandbox = sandbox::open(netns, call.own_netns_allowed)?;
    let file = StateFile::of(&conf.data_dir, &call.attachment);
    let configuration = delegate::configuration(&conf, &read(&conf)?)?;
    let call = call.with_config(configuration);
    match Delegate::of(&call.config)? {
        Delegate::Contained(Plugin::Bridge) => {
            let bridge = Bridge::new(&call.config, &call.args)?;
            let site = Site::of(&call, netns, sandbox)?.check(&bridge)?;
            let saved = file.save(&call.config)?;
            let result = site.attach(bridge, saved.is_first())?;
            saved.commit();
            Ok(result)
        }
        Delegate::Contained(plugin) => {
            let saved = file.save(&call.config)?;
            let result = add::run(plugin, &call, netns)?;
            saved.commit();
            Ok(result)
        }
        Delegate::External(name) => {
            let plugin = External::find(&name, &call.path)?;
            let saved = file.save(&call.config)?;
            let added = plugin.add(&call, netns);
            // What it may have made can only be removed by somebody who knows its configuration.
            if added.is_ok() || plugin.del(&call, Some(netns)).is_err() {
                saved.commit();
            }
            added
        }
    }
}

/// Detaches the sandbox. What is known of it stays until all is done.
///
/// # Errors
/// If something that is there cannot be removed.
pub fn del(call: &Call, netns: Option<&Path>) -> Result<(), Error> {
    let conf = NetConf::new(&call.config).unwrap_or_default();
    let sandbox = sandbox::open_if_there(netns, call.own_netns_allowed)?;
    let file = StateFile::of(&conf.data_dir, &call.attachment);
    let state = file.read();
    let configuration = match &state {
        State::Delegate(delegate) => Some(delegate.clone()),
        State::Missing | State::Damaged => now(&conf),
    };
    let delegate = configuration.map(|configuration| call.with_config(configuration));
    match delegate.as_ref().map(|call| (call, Delegate::of(&call.config))) {
        Some((call, Ok(Delegate::External(name)))) => {
            External::find(&name, &call.path)?.del(call, netns)?;
        }
        Some((call, Ok(Delegate::Contained(plugin)))) if plugin != Plugin::Bridge => {
            del::run(plugin, call, netns)?;
        }
        _ => {
            // Whoever knows nothing of the attachment cannot know that the interface is of it.
            let sandbox = sandbox.filter(|_| state != State::Missing);
            let call = delegate.as_ref().unwrap_or(call);
            del::remove(call, netns, sandbox.as_ref(), &Remains::of(&conf, &state))?;
        }
    }
    Ok(file.remove()?)
}

/// Compares the attachment with what its ADD made.
///
/// # Errors
/// If there is a difference, or if it cannot be found out.
pub fn check(call: &Call, netns: &Path) -> Result<(), Error> {
    let conf = NetConf::new(&call.config)?;
    // What ADD was done with; if that is lost, what it would be done with now.
    let mut configuration = match StateFile::of(&conf.data_dir, &call.attachment).read() {
        State::Delegate(delegate) => delegate,
        State::Missing | State::Damaged => delegate::configuration(&conf, &read(&conf)?)?,
    };
    pass_on(&["prevResult"], &call.config, &mut configuration);
    let call = call.with_config(configuration);
    match Delegate::of(&call.config)? {
        Delegate::Contained(plugin) => check::run(plugin, &call, netns),
        Delegate::External(name) => {
            sandbox::open(netns, call.own_netns_allowed)?;
            Ok(External::find(&name, &call.path)?.check(&call, netns)?)
        }
    }
}

/// Removes what attachments left behind that are not `valid` any more. What is kept of their ADDs
/// goes last, and stays if anything else does.
pub(super) fn gc(
    call: &NetworkCall,
    valid: &gc::Valid,
    errors: &mut Vec<Error>,
) -> Result<(), Error> {
    let conf = NetConf::new(&call.config)?;
    let mut stale = StateFile::all(&conf.data_dir, &call.network);
    stale.retain(|file| !valid.has_kept(file));
    let mut remains = vec![Remains::of(&conf, &State::Missing)];
    for file in &stale {
        let of_file = Remains::of(&conf, &file.state);
        if !remains.iter().any(|one| one.is_same_place(&of_file)) {
            remains.push(of_file);
        }
    }
    let delegate = now(&conf).map(|mut configuration| {
        pass_on(&gc::LISTS, &call.config, &mut configuration);
        call.with_config(configuration)
    });
    let containers = stale.iter().map(|file| file.container.clone());
    let containers = containers.filter(|container| !valid.has_container(container)).collect();
    gc::collect(delegate.as_ref().unwrap_or(call), valid, &remains, containers, errors);
    errors.extend(delegate.and_then(|call| gc_by_delegate(&call).err()));
    StateFile::remove_orphans(&conf.data_dir);
    if errors.is_empty() {
        errors.extend(stale.iter().filter_map(|file| Some(file.remove().err()?.into())));
    }
    Ok(())
}

/// Our own bridge needs no telling.
fn gc_by_delegate(call: &NetworkCall) -> Result<(), Error> {
    match Delegate::of(&call.config)? {
        Delegate::Contained(Plugin::Bridge) => Ok(()),
        Delegate::Contained(plugin) => gc::run(plugin, call),
        Delegate::External(name) => Ok(External::find(&name, &call.path)?.gc(call)?),
    }
}

/// Finds out whether there is a subnet, and whether the delegate could serve an ADD.
///
/// # Errors
/// If an ADD would fail.
pub fn status(call: &NetworkCall) -> Result<(), Error> {
    let conf = NetConf::new(&call.config)?;
    let subnet_file = SubnetFile::read(&conf.subnet_file).map_err(Error::NotAvailable)?;
    let call = call.with_config(delegate::configuration(&conf, &subnet_file)?);
    match Delegate::of(&call.config)? {
        Delegate::Contained(plugin) => status::run(plugin, &call),
        Delegate::External(name) => Ok(External::find(&name, &call.path)?.status(&call)?),
    }
}

fn read(conf: &NetConf) -> Result<SubnetFile, Error> {
    SubnetFile::read(&conf.subnet_file).map_err(Error::SubnetFile)
}

/// What an ADD would be done with now, if it could be done.
fn now(conf: &NetConf) -> Option<Map<String, Value>> {
    delegate::configuration(conf, &SubnetFile::read(&conf.subnet_file).ok()?).ok()
}

/// What the runtime says, which is not the network's to say.
fn pass_on(keys: &[&str], from: &Map<String, Value>, to: &mut Map<String, Value>) {
    for key in keys {
        if let Some(value) = lookup(from, &[key]) {
            to.insert((*key).to_owned(), value.clone());
        }
    }
}
