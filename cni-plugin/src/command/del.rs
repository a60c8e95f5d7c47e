//! DEL: removes an attachment, whatever is left of it and of what is known about it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::thread::{self, ScopedJoinHandle};

use fabric::link_name::LinkName;
use fabric::netlink::{Socket, apply, observe};
use fabric::netns::Netns;
use fabric::netstate::{LinkKind, NetState};
use fabric::plan::{Op, Plan};
use fabric::subnet_file::SubnetFile;
use serde_json::{Map, Value};

use crate::attachment::{self, is_host_link_of};
use crate::bridge::{default_name, lookup};
use crate::command::{bandwidth, firewall, flannel, loopback, macvlan, ports, tuning};
use crate::error::Error;
use crate::filter;
use crate::invocation::{Attachment, Call};
use crate::ipam::{self, config, held::Giver};
use crate::kernel::{self, KernelError, links};
use crate::netconf::NetConf;
use crate::plugin::Plugin;
use crate::portmap::PortMap;
use crate::sandbox;
use crate::state::State;

/// Removes the attachment. There is nothing wrong with one that is not there.
///
/// # Errors
/// If something that is there cannot be removed; another DEL may then succeed.
pub fn run(plugin: Plugin, call: &Call, netns: Option<&Path>) -> Result<(), Error> {
    match plugin {
        Plugin::Flannel => flannel::del(call, netns),
        Plugin::Bridge | Plugin::Ptp => {
            let sandbox = sandbox::open_if_there(netns, call.own_netns_allowed)?;
            remove(call, netns, sandbox.as_ref(), &Remains::of_bridge(&call.config))
        }
        Plugin::HostLocal => {
            let data_dir = config::data_dir(&call.config);
            Ok(ipam::release(&data_dir, &call.attachment).map(drop)?)
        }
        // The configuration names them: nobody has to give them back.
        Plugin::Static => Ok(()),
        Plugin::Loopback => loopback::del(call, netns),
        Plugin::Portmap => ports::del(call),
        Plugin::Bandwidth => bandwidth::del(call),
        Plugin::Firewall => firewall::del(call),
        Plugin::Tuning => tuning::del(call, netns),
        Plugin::Macvlan => macvlan::del(call, netns),
    }
}

/// Removes what is left of an attachment; its sandbox is given if the interface there is known to be
/// of it.
pub(super) fn remove(
    call: &Call,
    netns: Option<&Path>,
    sandbox: Option<&Netns>,
    remains: &Remains,
) -> Result<(), Error> {
    let attachment = &call.attachment;
    let mut host = Socket::open().map_err(KernelError::from)?;
    let has_rules = remains.masquerade || remains.ports;
    // To remove a link and to remove rules both take a grace period of the kernel: one, together.
    let (links, had_rules) = thread::scope(|scope| {
        let rules = has_rules.then(|| scope.spawn(|| filter::remove(attachment)));
        let links = remove_links(&mut host, attachment, sandbox);
        (links, rules.map_or(Ok(false), join))
    });
    // Not before the interface is gone: the next pod would have the address of a living one.
    links?;
    let addresses = remains.giver.release(call, netns)?;
    if had_rules? && remains.udp_ports {
        filter::forget_flows_to(&addresses);
    }
    forget_neighbours(&mut host, remains.bridge, addresses);
    Ok(())
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn remove_links(
    host: &mut Socket,
    attachment: &Attachment,
    sandbox: Option<&Netns>,
) -> Result<(), Error> {
    remove_host_links(host, attachment)?;
    let is_veth: fn(&LinkKind) -> bool = |kind| matches!(kind, LinkKind::Veth(_));
    sandbox.map_or(Ok(()), |sandbox| remove_interface(sandbox, attachment.if_name, is_veth))
}

/// Removes what an ADD made in the kernel, however far it came.
///
/// # Errors
/// The first of those that came up; all of it is tried.
pub fn detach(host: &mut Socket, attachment: &Attachment, has_rules: bool) -> Result<(), Error> {
    let removed = remove_host_links(host, attachment);
    let rules = if has_rules { filter::remove(attachment).map(drop) } else { Ok(()) };
    removed?;
    Ok(rules?)
}

fn remove_host_links(host: &mut Socket, attachment: &Attachment) -> Result<(), KernelError> {
    let mut observed = observe(host, &links(attachment::host_links(attachment)))?;
    observed.links.retain(|name, link| is_host_link_of(attachment, *name, link));
    let mut links = observed
        .links
        .into_iter()
        .map(|link| NetState { links: [link].into(), ..NetState::default() });
    let Some(first) = links.next() else { return Ok(()) };
    // Each takes a grace period of the kernel: one, together.
    thread::scope(|scope| {
        let others: Vec<_> = links
            .map(|one| scope.spawn(move || kernel::remove(&mut Socket::open()?, &one)))
            .collect();
        let removed = kernel::remove(host, &first);
        others.into_iter().map(join).fold(removed, Result::and)
    })
}

/// Removes an interface that nothing on the host leads to, as the Go plugin makes them too: the name
/// of its other end says nothing.
pub(super) fn remove_interface(
    sandbox: &Netns,
    if_name: LinkName,
    is_of_kind: fn(&LinkKind) -> bool,
) -> Result<(), Error> {
    let remove = || {
        let mut socket = Socket::open()?;
        let mut observed = observe(&mut socket, &links([if_name]))?;
        observed.links.retain(|_, link| is_of_kind(&link.kind));
        kernel::remove(&mut socket, &observed)
    };
    Ok(sandbox::inside(sandbox, remove)??)
}

/// The next pod with the address may have another Ethernet address, if the Go plugin makes it or made
/// this one. The kernel would find that out too, but only after seconds.
pub(super) fn forget_neighbours(host: &mut Socket, bridge: LinkName, addresses: BTreeSet<IpAddr>) {
    let ops = addresses.into_iter().map(|ip| Op::DelNeighbour(bridge, ip)).collect();
    let _not_worth_a_failure = apply(host, &Plan { ops });
}

/// What must be known to remove what is not in the sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remains {
    /// Who gave the addresses.
    pub(crate) giver: Giver,
    /// The bridge that the host's end was a port of.
    pub(crate) bridge: LinkName,
    /// Whether there may be rules that hide the pod, or that check what it sends.
    pub(super) masquerade: bool,
    /// Whether there may be rules that lead ports to it.
    pub(super) ports: bool,
    /// Whether UDP may be among them.
    pub(super) udp_ports: bool,
}

impl Remains {
    pub(super) fn of_bridge(conf: &Map<String, Value>) -> Self {
        Self {
            giver: Giver::of(conf),
            bridge: bridge(conf),
            masquerade: masquerades(conf).unwrap_or(false) || checks_spoofing(conf),
            // What cannot be understood may be anything.
            ports: PortMap::new(conf).map_or(true, |ports| !ports.is_empty()),
            udp_ports: PortMap::new(conf).map_or(true, |ports| ports.udp_ports().count() > 0),
        }
    }

    /// What ADD was done with counts; without it, what an ADD would be done with now.
    pub(crate) fn of(conf: &NetConf, state: &State) -> Self {
        match state {
            State::Delegate(delegate) => Self::of_bridge(delegate),
            State::Missing | State::Damaged => {
                let by_agent =
                    || SubnetFile::read(&conf.subnet_file).is_ok_and(|file| file.ip_masq);
                let ipam = [("ipam".to_owned(), conf.ipam.clone().into())];
                Self {
                    giver: Giver::of(&ipam.into_iter().collect()),
                    bridge: bridge(&conf.delegate),
                    masquerade: masquerades(&conf.delegate).unwrap_or_else(|| !by_agent())
                        || checks_spoofing(&conf.delegate),
                    ports: true,
                    udp_ports: true,
                }
            }
        }
    }

    /// Whether both are found in the same place.
    pub(super) fn is_same_place(&self, other: &Self) -> bool {
        (&self.giver, self.bridge) == (&other.giver, other.bridge)
    }
}

fn bridge(delegate: &Map<String, Value>) -> LinkName {
    let configured = lookup(delegate, &["bridge"]).and_then(Value::as_str);
    configured.and_then(|name| name.parse().ok()).unwrap_or_else(default_name)
}

fn checks_spoofing(delegate: &Map<String, Value>) -> bool {
    lookup(delegate, &["macspoofchk"]).and_then(Value::as_bool).unwrap_or(false)
}

fn masquerades(delegate: &Map<String, Value>) -> Option<bool> {
    lookup(delegate, &["ipMasq"]).and_then(Value::as_bool)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use std::path::PathBuf;

    use super::*;

    #[test]
    fn what_add_was_done_with_counts() {
        let mut conf = NetConf { subnet_file: PathBuf::from("/nonexistent"), ..NetConf::default() };
        let delegate = json!({"bridge": "br0", "IPMasq": false, "ipam": {"dataDir": "/run/pods"}});
        let delegate = State::Delegate(delegate.as_object().unwrap().clone());
        let remains = |data_dir: &str, bridge: &str, masquerade, ports| Remains {
            giver: Giver::HostLocal(data_dir.into()),
            bridge: bridge.parse().unwrap(),
            masquerade,
            ports,
            udp_ports: ports,
        };
        assert_eq!(Remains::of(&conf, &delegate), remains("/run/pods", "br0", false, false));

        let expected = remains("/var/lib/cni/networks", "cni0", true, true);
        assert_eq!(Remains::of(&conf, &State::Missing), expected);
        assert_eq!(Remains::of(&conf, &State::Damaged), expected);

        conf.delegate.insert("ipMasq".to_owned(), false.into());
        conf.ipam.insert("dataDir".to_owned(), "/run/pods".into());
        assert_eq!(Remains::of(&conf, &State::Missing), remains("/run/pods", "cni0", false, true));
    }
}
