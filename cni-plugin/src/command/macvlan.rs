//! The plugin `macvlan`: an interface in the sandbox on a link of the node.

use std::path::Path;

use fabric::link_name::LinkName;
use fabric::netlink::{Inventory, Socket, apply, observe};
use fabric::netns::Netns;
use fabric::netstate::{Link, LinkKind, NetState};
use fabric::plan::{Op, Plan};

use crate::attachment::{self, Desired};
use crate::command::check::{self, Difference, previous};
use crate::command::{del, interface};
use crate::error::Error;
use crate::filter::Rules;
use crate::invocation::{Call, NetworkCall};
use crate::ipam::held::Giver;
use crate::ipam::source::Given;
use crate::kernel::{self, KernelError, links};
use crate::macvlan::{self, Macvlan, MacvlanError};
use crate::result::{AddResult, Interface, Ip, ResultError};
use crate::sandbox;
use crate::version::Version;

/// Attaches the sandbox.
///
/// # Errors
/// If anything fails. Then everything is as it was before.
pub fn add(call: &Call, netns: &Path) -> Result<AddResult, Error> {
    let sandbox = sandbox::open(netns, call.own_netns_allowed)?;
    let conf = Macvlan::new(&call.config, &call.args)?;
    if conf.ipam.is_none() && call.version < Version::V0_3_0 {
        return Err(ResultError::NoAddresses.into());
    }
    interface::check_free(call, &sandbox)?;
    let master = on_master(&conf, &sandbox, |socket| master(&conf, socket))?;
    let given = conf.ipam.as_ref().map(|source| source.take(call, netns, false));
    let Given { addresses, routes, .. } = given.transpose()?.unwrap_or_default();
    let link = conf.link(&call.attachment, &addresses.ips, Some(master));
    let connected = connect(call, netns, &conf, link, &addresses.ips, &routes, &sandbox);
    if connected.is_err() {
        // What stopped the ADD is what must be told.
        let _also_failed = remove(&sandbox, call.attachment.if_name);
    }
    let mac = connected?.mac.map(|mac| mac.to_string()).unwrap_or_default();
    let made = Interface {
        name: call.attachment.if_name.to_string(),
        mac,
        sandbox: netns.to_string_lossy().into_owned(),
        ..Interface::default()
    };
    let ips = addresses.commit().into_iter().map(|ip| Ip { interface: Some(0), ..ip });
    Ok(AddResult { interfaces: vec![made], ips: ips.collect(), routes, dns: conf.dns })
}

/// Removes the interface and gives the addresses back.
///
/// # Errors
/// If something that is there cannot be removed.
pub fn del(call: &Call, netns: Option<&Path>) -> Result<(), Error> {
    if let Some(sandbox) = sandbox::open_if_there(netns, call.own_netns_allowed)? {
        remove(&sandbox, call.attachment.if_name)?;
    }
    Giver::of(&call.config).release(call, netns).map(drop)
}

/// Compares the interface with what ADD made.
///
/// # Errors
/// If there is a difference.
pub fn check(call: &Call, netns: &Path) -> Result<(), Error> {
    let sandbox = sandbox::open(netns, call.own_netns_allowed)?;
    let conf = Macvlan::new(&call.config, &call.args)?;
    let previous = previous(call)?.ok_or(Difference::NoPrevResult)?;
    let (mac, ips) = interface::made(call, netns, &previous)?;
    if let Some(source) = &conf.ipam {
        source.check(call, netns, Some(&attachment::addresses(&ips)))?;
    }
    on_master(&conf, &sandbox, |socket| master(&conf, socket))?;
    let link = conf.link(&call.attachment, &ips, None);
    let mut desired = Desired {
        host: NetState::default(),
        sandbox: macvlan::desired(&call.attachment, link, &ips, &previous.routes),
        filter: Rules::default(),
    };
    interface::relax(call, &mut desired, mac);
    check::compare(netns, &sandbox, &desired)
}

/// Finds out whether there would be a link to be on and an address.
///
/// # Errors
/// If there would not.
pub fn status(call: &NetworkCall) -> Result<(), Error> {
    let conf = Macvlan::new(&call.config, "")?;
    if !conf.master_in_sandbox {
        master(&conf, &mut Socket::open().map_err(KernelError::from)?)?;
    }
    conf.ipam.map_or(Ok(()), |source| source.status(call))
}

/// Does something in the namespace of the link to be on.
fn on_master<T: Send>(
    conf: &Macvlan,
    sandbox: &Netns,
    work: impl FnOnce(&mut Socket) -> Result<T, Error> + Send,
) -> Result<T, Error> {
    let work = || work(&mut Socket::open().map_err(KernelError::from)?);
    if conf.master_in_sandbox { sandbox::inside(sandbox, work)? } else { work() }
}

/// Returns the link to be on.
fn master(conf: &Macvlan, socket: &mut Socket) -> Result<LinkName, Error> {
    let default = |socket: &mut Socket| -> Result<LinkName, Error> {
        let routes = Inventory::take(socket)?.default_routes;
        Ok(routes.first().ok_or(MacvlanError::NoDefaultRoute)?.interface)
    };
    let name = conf.master.map_or_else(|| default(socket), Ok)?;
    let observed = observe(socket, &links([name]))?;
    let master = observed.links.get(&name).ok_or(MacvlanError::NoMaster(name))?;
    conf.check_mtu(master.mtu)?;
    Ok(name)
}

/// Returns the interface as it is then.
fn connect(
    call: &Call,
    netns: &Path,
    conf: &Macvlan,
    link: Link,
    ips: &[Ip],
    routes: &[crate::result::Route],
    sandbox: &Netns,
) -> Result<Link, Error> {
    let if_name = call.attachment.if_name;
    let op = match conf.master_in_sandbox {
        true => Op::AddLink(if_name, Box::new(link.clone())),
        false => Op::AddLinkIn(netns.to_owned(), if_name, Box::new(link.clone())),
    };
    on_master(conf, sandbox, |socket| {
        let failure = apply(socket, &Plan { ops: vec![op] }).into_iter().next();
        failure.map_or(Ok(()), |failure| Err(KernelError::from(failure).into()))
    })?;
    let desired = macvlan::desired(&call.attachment, link, ips, routes);
    sandbox::inside(sandbox, || {
        let mut inside = Socket::open().map_err(KernelError::from)?;
        kernel::ensure(&mut inside, &desired, |_| Ok(()))?;
        let mut observed = observe(&mut inside, &links([if_name]))?;
        Ok(observed.links.remove(&if_name).ok_or(KernelError::NoLink(if_name))?)
    })?
}

fn remove(sandbox: &Netns, if_name: LinkName) -> Result<(), Error> {
    del::remove_interface(sandbox, if_name, |kind| matches!(kind, LinkKind::Macvlan(_)))
}
