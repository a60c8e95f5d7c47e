//! The plugin `loopback`: the loopback interface of a sandbox, up and with nothing but its own
//! addresses.

use std::path::Path;

use fabric::link_name::LinkName;
use fabric::netlink::{Scope, Socket, apply, observe};
use fabric::netns::Netns;
use fabric::netstate::{Link, LinkKind, NetState, Sysctl};
use fabric::plan::{LinkChange, Op, Plan};
use fabric::sysctl;

use crate::command::check::{Difference, previous};
use crate::error::Error;
use crate::invocation::Call;
use crate::kernel::{self, KernelError};
use crate::result::{AddResult, Interface, Ip};
use crate::sandbox;

/// Brings it up. What plugins before it in the list made is passed on.
///
/// # Errors
/// If the kernel refuses, or if it has the address of something else.
pub fn add(call: &Call, netns: &Path) -> Result<AddResult, Error> {
    let sandbox = sandbox::open(netns, call.own_netns_allowed)?;
    let has_v6 = inside(&sandbox, bring_up)?;
    Ok(match previous(call)? {
        Some(previous) => previous,
        None => result(netns, has_v6),
    })
}

/// Takes it down, unless the sandbox is gone.
///
/// # Errors
/// If the kernel refuses.
pub fn del(call: &Call, netns: Option<&Path>) -> Result<(), Error> {
    match sandbox::open_if_there(netns, call.own_netns_allowed)? {
        Some(sandbox) => inside(&sandbox, take_down),
        None => Ok(()),
    }
}

/// Finds out whether it is up.
///
/// # Errors
/// If it is not.
pub fn check(call: &Call, netns: &Path) -> Result<(), Error> {
    let sandbox = sandbox::open(netns, call.own_netns_allowed)?;
    inside(&sandbox, |socket| {
        let observed = observe(socket, &Scope::of(&desired()))?;
        let is_up = observed.links.get(&name()).is_some_and(|link| link.up);
        if is_up { Ok(()) } else { Err(Difference::LoopbackDown.into()) }
    })
}

fn inside<T: Send>(
    sandbox: &Netns,
    work: impl FnOnce(&mut Socket) -> Result<T, Error> + Send,
) -> Result<T, Error> {
    sandbox::inside(sandbox, || work(&mut Socket::open().map_err(KernelError::from)?))?
}

/// Returns whether it has an IPv6 address then.
fn bring_up(socket: &mut Socket) -> Result<bool, Error> {
    let desired = desired();
    kernel::ensure(socket, &desired, |_| Ok(()))?;
    let scope = Scope { addresses: true, ..Scope::of(&desired) };
    let addresses = observe(socket, &scope)?.addresses;
    if let Some(foreign) = addresses.iter().find(|address| !address.ip.ip().is_loopback()) {
        return Err(Error::NotLoopback(foreign.ip));
    }
    let off = sysctl::read(&Sysctl::ipv6(name(), "disable_ipv6"));
    Ok(off.is_ok_and(|off| off == "0"))
}

fn take_down(socket: &mut Socket) -> Result<(), Error> {
    let ops = vec![Op::SetLink(name(), LinkChange::Down)];
    let failure = apply(socket, &Plan { ops }).into_iter().next();
    failure.map_or(Ok(()), |failure| Err(KernelError::from(failure).into()))
}

fn desired() -> NetState {
    let links = [(name(), Link::up(LinkKind::Loopback))].into();
    NetState { links, ..NetState::default() }
}

fn name() -> LinkName {
    "lo".parse().expect("two letters are a name")
}

fn result(netns: &Path, has_v6: bool) -> AddResult {
    let interface = Interface {
        name: name().to_string(),
        mac: "00:00:00:00:00:00".to_owned(),
        sandbox: netns.to_string_lossy().into_owned(),
        ..Interface::default()
    };
    let addresses = ["127.0.0.1/8", "::1/128"];
    let addresses = addresses.iter().take(if has_v6 { 2 } else { 1 });
    let ips = addresses.map(|address| Ip {
        interface: Some(0),
        address: address.parse().expect("an address with its length"),
        gateway: None,
    });
    AddResult { interfaces: vec![interface], ips: ips.collect(), ..AddResult::default() }
}
