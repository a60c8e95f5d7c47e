//! Parameters of links that rtnetlink knows as well as `/proc/sys` does: they come with what is read
//! of a link, and are set in one batch with all else.
//!
//! The kernel looks for `net/ipv4` and `net/ipv6` below `/proc/sys` among those of all network
//! namespaces where anybody has looked for them before (`proc_sys_compare`), so that a node with a
//! thousand pods would spend a millisecond on each look into another pod.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, Inet6DevConf, InetDevConf,
    LinkAttribute, LinkMessage,
};

use super::socket::Request;
use crate::netstate::Sysctl;

/// How rtnetlink speaks of a parameter.
enum Parameter {
    /// Among those of IPv4, which can be read and set.
    V4(fn(&mut InetDevConf) -> &mut i32),
    /// Among those of IPv6, which can only be read.
    V6(fn(&Inet6DevConf) -> i32),
    /// How a link gets its link-local address.
    AddrGenMode,
}

fn parameter(key: &Sysctl) -> Option<Parameter> {
    let (family, _, name) = key.of_link()?;
    Some(match (family, name) {
        ("ipv4", "arp_notify") => Parameter::V4(|conf| &mut conf.arp_notify),
        ("ipv4", "route_localnet") => Parameter::V4(|conf| &mut conf.route_localnet),
        ("ipv6", "accept_dad") => Parameter::V6(|conf| conf.accept_dad),
        ("ipv6", "accept_ra") => Parameter::V6(|conf| conf.accept_ra),
        ("ipv6", "disable_ipv6") => Parameter::V6(|conf| conf.disable_ipv6),
        ("ipv6", "keep_addr_on_down") => Parameter::V6(|conf| conf.keep_addr_on_down),
        ("ipv6", "addr_gen_mode") => Parameter::AddrGenMode,
        _ => return None,
    })
}

/// Returns the value of a parameter, if the message about its link says so.
pub(super) fn observed(key: &Sysctl, link: &LinkMessage) -> Option<String> {
    let parameter = parameter(key)?;
    let families = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::AfSpecUnspec(families) => Some(families),
        _ => None,
    })?;
    let value = families.iter().find_map(|family| match family {
        AfSpecUnspec::Inet(specs) => specs.iter().find_map(|spec| of_ipv4(&parameter, spec)),
        AfSpecUnspec::Inet6(specs) => specs.iter().find_map(|spec| of_ipv6(&parameter, spec)),
        _ => None,
    });
    value.map(|value| value.to_string())
}

fn of_ipv4(parameter: &Parameter, spec: &AfSpecInet) -> Option<i32> {
    match (parameter, spec) {
        (Parameter::V4(field), AfSpecInet::DevConf(conf)) => Some(*field(&mut conf.clone())),
        _ => None,
    }
}

fn of_ipv6(parameter: &Parameter, spec: &AfSpecInet6) -> Option<i32> {
    match (parameter, spec) {
        (Parameter::V6(field), AfSpecInet6::DevConf(conf)) => Some(field(conf)),
        (Parameter::AddrGenMode, AfSpecInet6::AddrGenMode(mode)) => Some(u8::from(mode).into()),
        _ => None,
    }
}

/// Returns the request that sets a parameter of a link; `None` if only `/proc/sys` can.
pub(super) fn setting(key: &Sysctl, value: &str) -> Option<Request> {
    let (_, link, _) = key.of_link()?;
    let spec = match parameter(key)? {
        Parameter::V4(field) => {
            let mut conf = InetDevConf::default();
            // Zero is how a request leaves a parameter alone.
            *field(&mut conf) = value.parse().ok().filter(|value| *value != 0)?;
            AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(conf)])
        }
        Parameter::V6(_) => return None,
        Parameter::AddrGenMode => {
            let mode = In6AddrGenMode::from(value.parse::<u8>().ok()?);
            AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)])
        }
    };
    let mut message = LinkMessage::default();
    let name = LinkAttribute::IfName(link.as_str().to_owned());
    message.attributes = vec![name, LinkAttribute::AfSpecUnspec(vec![spec])];
    Some(Request { message: RouteNetlinkMessage::NewLink(message), flags: 0 })
}
