//! The plugin `ptp`: a veth pair between the node itself and a sandbox.

use std::path::Path;

use fabric::link_name::LinkName;
use fabric::netlink::{Socket, wait_until_up};
use fabric::netns::Netns;
use fabric::netstate::NetState;

use crate::attachment::{self, Desired, host_veth};
use crate::command::check::{self, Difference, previous};
use crate::command::{add, del, interface};
use crate::error::Error;
use crate::filter::{self, Rules};
use crate::invocation::{Call, NetworkCall};
use crate::ipam::source::Given;
use crate::kernel::{self, KernelError};
use crate::ptp::{self, Ptp};
use crate::result::{AddResult, Interface, Ip};
use crate::sandbox;
use crate::sharing::check_host;

/// Attaches the sandbox.
///
/// # Errors
/// If anything fails. Then everything is as it was before.
pub fn add(call: &Call, netns: &Path) -> Result<AddResult, Error> {
    let sandbox = sandbox::open(netns, call.own_netns_allowed)?;
    let ptp = Ptp::new(&call.config, &call.args)?;
    interface::check_free(call, &sandbox)?;
    let Given { addresses, routes, dns } = ptp.ipam.take(call, netns, false)?;
    let desired = ptp::desired(&call.attachment, netns, &ptp, &addresses.ips, &routes)?;
    let mut host = Socket::open().map_err(KernelError::from)?;
    let connected = connect(call, &desired, &sandbox, &mut host);
    let in_the_way = matches!(connected, Err(Error::Kernel(KernelError::Conflict(_))));
    if connected.is_err() && !in_the_way {
        // What stopped the ADD is what must be told.
        let _also_failed = del::detach(&mut host, &call.attachment, !desired.filter.is_empty());
    }
    connected?;
    let ips = addresses.commit().into_iter().map(|ip| Ip { interface: Some(1), ..ip });
    Ok(AddResult {
        interfaces: vec![
            described(host_veth(&call.attachment), &desired.host, ""),
            described(call.attachment.if_name, &desired.sandbox, &netns.to_string_lossy()),
        ],
        ips: ips.collect(),
        routes,
        dns: ptp.dns.unwrap_or(dns),
    })
}

/// Compares the attachment with what ADD made.
///
/// # Errors
/// If there is a difference.
pub fn check(call: &Call, netns: &Path) -> Result<(), Error> {
    let sandbox = sandbox::open(netns, call.own_netns_allowed)?;
    let ptp = Ptp::new(&call.config, &call.args)?;
    let previous = previous(call)?.ok_or(Difference::NoPrevResult)?;
    let (mac, ips) = interface::made(call, netns, &previous)?;
    ptp.ipam.check(call, netns, Some(&attachment::addresses(&ips)))?;
    let mut desired = ptp::desired(&call.attachment, netns, &ptp, &ips, &previous.routes)?;
    interface::relax(call, &mut desired, mac);
    let veth = host_veth(&call.attachment);
    if !previous.interfaces.iter().any(|one| one.name == veth.as_str()) {
        // The Go plugin made it, under another name, and may have chosen other rules.
        (desired.host, desired.filter) = (NetState::default(), Rules::default());
    }
    check::compare(netns, &sandbox, &desired)
}

/// Finds out whether there would be an address.
///
/// # Errors
/// If there is none.
pub fn status(call: &NetworkCall) -> Result<(), Error> {
    Ptp::new(&call.config, "")?.ipam.status(call)
}

fn connect(
    call: &Call,
    desired: &Desired,
    sandbox: &Netns,
    host: &mut Socket,
) -> Result<(), Error> {
    let veth = host_veth(&call.attachment);
    kernel::ensure(host, &desired.host, |observed| {
        check_host(veth, &desired.host, observed, false)
    })?;
    sandbox::inside(sandbox, || {
        kernel::ensure(&mut Socket::open()?, &desired.sandbox, |_| Ok(()))
    })??;
    filter::ensure(&desired.filter)?;
    if !wait_until_up(host, veth, add::PORT_PATIENCE)? {
        return Err(KernelError::PortDown(veth).into());
    }
    Ok(())
}

fn described(name: LinkName, state: &NetState, sandbox: &str) -> Interface {
    let mac = state.links.get(&name).and_then(|link| link.mac);
    Interface {
        name: name.to_string(),
        mac: mac.map(|mac| mac.to_string()).unwrap_or_default(),
        sandbox: sandbox.to_owned(),
        ..Interface::default()
    }
}
