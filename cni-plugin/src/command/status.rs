//! STATUS: whether an ADD could be served now. Runtimes ask every few seconds, so it takes no lock and
//! changes nothing.

use fabric::netlink::{Socket, observe};
use fabric::netstate::LinkKind;

use crate::args::Args;
use crate::bridge::Bridge;
use crate::command::{flannel, macvlan, ptp};
use crate::error::Error;
use crate::invocation::NetworkCall;
use crate::ipam::source::Source;
use crate::kernel::{KernelError, links};
use crate::plugin::Plugin;
use crate::sharing::Conflict;

/// Finds out whether there is a subnet, an address in it, and a bridge or room for one.
///
/// # Errors
/// If an ADD would fail.
pub fn run(plugin: Plugin, call: &NetworkCall) -> Result<(), Error> {
    let config = &call.config;
    match plugin {
        Plugin::Flannel => flannel::status(call),
        Plugin::Bridge => bridge(call, &Bridge::new(config, "")?),
        Plugin::Ptp => ptp::status(call),
        Plugin::Macvlan => macvlan::status(call),
        Plugin::HostLocal | Plugin::Static => {
            let source = Source::of_plugin(plugin, config, &Args::default())?;
            source.map_or(Ok(()), |source| source.status(call))
        }
        Plugin::Loopback
        | Plugin::Portmap
        | Plugin::Bandwidth
        | Plugin::Firewall
        | Plugin::Tuning => Ok(()),
    }
}

fn bridge(call: &NetworkCall, bridge: &Bridge) -> Result<(), Error> {
    let mut socket = Socket::open().map_err(KernelError::from)?;
    let observed = observe(&mut socket, &links([bridge.name]))?;
    let taken = observed.links.get(&bridge.name).is_some_and(|link| link.kind != LinkKind::Bridge);
    if taken {
        return Err(Error::NoBridge(Conflict::NotABridge(bridge.name)));
    }
    bridge.ipam.as_ref().map_or(Ok(()), |ipam| ipam.status(call))
}
