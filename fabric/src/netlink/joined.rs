//! Changes of one link that the kernel takes in one message, under one hold of its global network
//! lock, for which everybody waits who changes or asks for a link.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkInfo, LinkMessage};

use super::socket::Request;

/// Adds `next` to a message that is about to be sent, if the kernel then does the same as with two.
/// It does what is asked for in an order of its own (`do_setlink` of `net/core/rtnetlink.c`).
pub(super) fn join(request: &mut Request, next: &Request) -> bool {
    let (RouteNetlinkMessage::NewLink(link), RouteNetlinkMessage::NewLink(next_link)) =
        (&mut request.message, &next.message)
    else {
        return false;
    };
    // A link must be there to be changed.
    let are_changes = request.flags == 0 && next.flags == 0;
    if !are_changes || !may_join(link, next_link) {
        return false;
    }
    link.header.flags = next_link.header.flags;
    link.header.change_mask = next_link.header.change_mask;
    for attribute in next_link.attributes.iter().filter(|attribute| !is_name(attribute)) {
        add(&mut link.attributes, attribute.clone());
    }
    true
}

fn may_join(link: &LinkMessage, next: &LinkMessage) -> bool {
    let same_name = link.attributes.iter().find(|attribute| is_name(attribute))
        == next.attributes.iter().find(|attribute| is_name(attribute));
    let all = || link.attributes.iter().chain(&next.attributes);
    let starts = link.header.change_mask.is_empty();
    // Whether a link is up is decided before its parameters.
    let has_parameters = all().any(|a| matches!(a, LinkAttribute::AfSpecUnspec(_)));
    let ends = next.header.change_mask.is_empty() || !has_parameters;
    let twice = next.attributes.iter().any(|attribute| {
        !is_name(attribute) && link.attributes.iter().any(|present| collide(present, attribute))
    });
    same_name && starts && ends && all().all(is_independent) && !twice
}

fn is_name(attribute: &LinkAttribute) -> bool {
    matches!(attribute, LinkAttribute::IfName(_))
}

/// Whether a change neither needs another one nor stands in its way.
fn is_independent(attribute: &LinkAttribute) -> bool {
    match attribute {
        LinkAttribute::IfName(_) | LinkAttribute::IfAlias(_) | LinkAttribute::AfSpecUnspec(_) => {
            true
        }
        LinkAttribute::LinkInfo(infos) => {
            infos.iter().all(|info| matches!(info, LinkInfo::PortKind(_) | LinkInfo::PortData(_)))
        }
        _ => false,
    }
}

fn collide(present: &LinkAttribute, attribute: &LinkAttribute) -> bool {
    match (present, attribute) {
        (LinkAttribute::AfSpecUnspec(present), LinkAttribute::AfSpecUnspec(specs)) => {
            specs.iter().any(|spec| present.iter().any(|one| same_kind(one, spec)))
        }
        _ => same_kind(present, attribute),
    }
}

fn same_kind<T>(one: &T, other: &T) -> bool {
    std::mem::discriminant(one) == std::mem::discriminant(other)
}

fn add(attributes: &mut Vec<LinkAttribute>, attribute: LinkAttribute) {
    if let LinkAttribute::AfSpecUnspec(specs) = &attribute {
        for present in attributes.iter_mut() {
            if let LinkAttribute::AfSpecUnspec(present) = present {
                present.extend(specs.iter().cloned());
                return;
            }
        }
    }
    attributes.push(attribute);
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoPortKind, LinkFlags,
    };

    use super::*;

    fn change(name: &str, attribute: Option<LinkAttribute>) -> Request {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.extend(attribute);
        Request { message: RouteNetlinkMessage::NewLink(message), flags: 0 }
    }

    fn up(name: &str) -> Request {
        let mut request = change(name, None);
        if let RouteNetlinkMessage::NewLink(message) = &mut request.message {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
        request
    }

    fn attributes(request: &Request) -> usize {
        let RouteNetlinkMessage::NewLink(message) = &request.message else { panic!("a link") };
        message.attributes.len()
    }

    #[test]
    fn only_what_does_not_depend_on_each_other_goes_together() {
        let alias = || change("a", Some(LinkAttribute::IfAlias("x".to_owned())));
        let port = LinkInfo::PortKind(InfoPortKind::Bridge);
        let port = || change("a", Some(LinkAttribute::LinkInfo(vec![port.clone()])));
        let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let mode = || change("a", Some(LinkAttribute::AfSpecUnspec(vec![mode.clone()])));
        let master = || change("a", Some(LinkAttribute::Controller(7)));
        let table = [
            ("a remark and a port", alias(), port(), true),
            ("a remark and a parameter", alias(), mode(), true),
            ("a remark, and up at last", alias(), up("a"), true),
            ("a parameter that must be set before the link is up", mode(), up("a"), false),
            ("a parameter that must be set after the link is up", up("a"), mode(), false),
            ("the same twice", mode(), mode(), false),
            ("a port before its bridge", master(), port(), false),
            ("another link", alias(), up("b"), false),
        ];
        for (what, mut one, other, expected) in table {
            assert_eq!(join(&mut one, &other), expected, "{what}");
            let joined = expected && attributes(&other) > 1;
            assert_eq!(attributes(&one) == 3, joined, "{what}");
        }
        let mut made = alias();
        made.flags = 1;
        assert!(!join(&mut made, &port()), "a link that is only made");
    }
}
