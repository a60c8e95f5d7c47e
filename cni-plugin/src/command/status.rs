//! STATUS: whether an ADD could be served now. Runtimes ask every few seconds, so it takes no lock and
//! changes nothing.

use fabric::netlink::{Socket, observe};
use fabric::netstate::LinkKind;
use fabric::subnet_file::SubnetFile;

use crate::args::Args;
use crate::bridge::Bridge;
use crate::delegate;
use crate::error::Error;
use crate::invocation::{Id, NetworkCall};
use crate::ipam::source::Source;
use crate::kernel::{KernelError, links};
use crate::netconf::NetConf;
use crate::plugin::Plugin;
use crate::sharing::Conflict;

/// Finds out whether there is a subnet, an address in it, and a bridge or room for one.
///
/// # Errors
/// If an ADD would fail.
pub fn run(plugin: Plugin, call: &NetworkCall) -> Result<(), Error> {
    let NetworkCall { network, config } = call;
    match plugin {
        Plugin::Flannel => {
            let conf = NetConf::new(config)?;
            let subnet_file = SubnetFile::read(&conf.subnet_file).map_err(Error::NotAvailable)?;
            let delegate = delegate::configuration(&conf, &subnet_file)?;
            bridge(network, &delegate::bridge(&delegate, "")?)
        }
        Plugin::Bridge => bridge(network, &Bridge::new(config, "")?),
        Plugin::HostLocal | Plugin::Static => {
            let source = Source::of_plugin(plugin, config, &Args::default())?;
            source.map_or(Ok(()), |source| addresses(network, &source))
        }
        Plugin::Loopback | Plugin::Portmap => Ok(()),
    }
}

fn bridge(network: &Id, bridge: &Bridge) -> Result<(), Error> {
    let mut socket = Socket::open().map_err(KernelError::from)?;
    let observed = observe(&mut socket, &links([bridge.name]))?;
    let taken = observed.links.get(&bridge.name).is_some_and(|link| link.kind != LinkKind::Bridge);
    if taken {
        return Err(Error::NoBridge(Conflict::NotABridge(bridge.name)));
    }
    bridge.ipam.as_ref().map_or(Ok(()), |ipam| addresses(network, ipam))
}

fn addresses(network: &Id, source: &Source) -> Result<(), Error> {
    let exhausted = source.exhausted(network)?;
    exhausted.map_or(Ok(()), |set| Err(Error::NoAddresses(set.clone())))
}
