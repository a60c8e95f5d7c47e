//! ADD: attaches a container, or leaves nothing behind.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use fabric::link_name::LinkName;
use fabric::netlink::{LinkMonitor, Socket, observe};
use fabric::netns::Netns;
use fabric::netstate::{Link, NetState};
use fabric::packet_filter;
use fabric::packet_filter::nft::Nft;
use fabric::subnet_file::SubnetFile;

use crate::attachment::{self, Desired, host_veth};
use crate::bridge::Bridge;
use crate::command::del;
use crate::delegate;
use crate::error::Error;
use crate::invocation::{Attachment, Call};
use crate::ipam;
use crate::kernel::{self, KernelError, links};
use crate::result::{AddResult, Interface, Ip};
use crate::sandbox;
use crate::sharing::{check_host, check_sandbox};
use crate::state::StateFile;

/// How long the kernel may take to open the attachment's port of the bridge. A few milliseconds are
/// usual.
const PORT_PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait for the bridge itself. Where somebody turned on its spanning tree protocol, that
/// takes half a minute, so it is no error.
const BRIDGE_PATIENCE: Duration = Duration::from_secs(1);

/// Attaches the container.
///
/// # Errors
/// If anything fails. Then everything is as it was before, but for what attachments share.
pub fn run(call: &Call, netns: &Path) -> Result<AddResult, Error> {
    let Call { attachment, conf, .. } = call;
    let sandbox = sandbox::open(netns, call.own_netns_allowed)?;
    let subnet_file = SubnetFile::read(&conf.subnet_file).map_err(Error::SubnetFile)?;
    let delegate = delegate::configuration(conf, &subnet_file)?;
    let bridge = Bridge::new(&delegate, &call.args)?;
    let mut inside = sandbox::inside(&sandbox, Socket::open)?.map_err(KernelError::from)?;
    check_sandbox(attachment.if_name, &observe(&mut inside, &links([attachment.if_name]))?)?;

    let saved = StateFile::of(&conf.data_dir, &attachment.container).save(&delegate)?;
    let addresses = ipam::allocate(&bridge.ipam, attachment, saved.is_first())?;
    let routes = attachment::routes(&bridge, &addresses.ips);
    let desired = attachment::desired(attachment, netns, &bridge, &addresses.ips, &routes);
    let before = attach(attachment, &bridge, &desired, &sandbox, inside)?;
    let ips = addresses.commit();
    saved.commit();
    Ok(AddResult {
        interfaces: interfaces(attachment, &bridge, netns, &before, &desired),
        ips: ips.into_iter().map(|ip| Ip { interface: Some(SANDBOX_INTERFACE), ..ip }).collect(),
        routes,
        dns: bridge.dns.unwrap_or_default(),
    })
}

/// Brings the kernel to the desired state or back to where it was. Returns what was on the host
/// before.
fn attach(
    attachment: &Attachment,
    bridge: &Bridge,
    desired: &Desired,
    sandbox: &Netns,
    inside: Socket,
) -> Result<NetState, Error> {
    let mut host = Socket::open().map_err(KernelError::from)?;
    let attached = connect(attachment, bridge, desired, sandbox, inside, &mut host);
    let in_the_way = matches!(attached, Err(Error::Kernel(KernelError::Conflict(_))));
    if attached.is_err() && !in_the_way {
        // What stopped the ADD is what must be told.
        let _also_failed = del::detach(&mut host, attachment, bridge.masquerade);
    }
    attached
}

fn connect(
    attachment: &Attachment,
    bridge: &Bridge,
    desired: &Desired,
    sandbox: &Netns,
    mut inside: Socket,
    host: &mut Socket,
) -> Result<NetState, Error> {
    let veth = host_veth(attachment);
    let monitor = LinkMonitor::open().map_err(KernelError::from)?;
    let check = |observed: &NetState| check_host(&desired.host, observed, bridge.force_address);
    let before = kernel::ensure(host, &desired.host, check)?;
    sandbox::inside(sandbox, || kernel::ensure(&mut inside, &desired.sandbox, |_| Ok(())))??;
    if let Some(rules) = &desired.filter {
        packet_filter::ensure(&mut Nft::open()?, rules)?;
    }
    // Whatever is sent before would be lost, and ARP tries again only after a second.
    if !monitor.wait_until_up(host, veth, PORT_PATIENCE)? {
        return Err(KernelError::PortDown(veth).into());
    }
    // A bridge that had no other port only starts now.
    let _is_up = monitor.wait_until_up(host, bridge.name, BRIDGE_PATIENCE)?;
    Ok(before)
}

/// Where the interface of the sandbox stands among those of the result.
const SANDBOX_INTERFACE: usize = 2;

fn interfaces(
    attachment: &Attachment,
    bridge: &Bridge,
    netns: &Path,
    before: &NetState,
    desired: &Desired,
) -> Vec<Interface> {
    let interface = |name, links: &[&BTreeMap<LinkName, Link>]| {
        let mac = links.iter().find_map(|links| links.get(&name)?.mac);
        Interface {
            name: name.to_string(),
            mac: mac.map(|mac| mac.to_string()).unwrap_or_default(),
            ..Interface::default()
        }
    };
    // A bridge that was there has kept its Ethernet address.
    let host = [&before.links, &desired.host.links];
    let sandbox = Interface {
        sandbox: netns.to_string_lossy().into_owned(),
        ..interface(attachment.if_name, &[&desired.sandbox.links])
    };
    vec![interface(bridge.name, &host), interface(host_veth(attachment), &host), sandbox]
}
