//! What the kernel tells of itself: that something changed, to wake the loop.
//!
//! ```text
//! kernel ──multicast──▶ links(), rules() ──()──▶ reconciler
//! ```
//!
//! Notifications come on sockets of their own and carry no work: whatever changed is found by
//! comparing. That some were lost is therefore no more than another notification.

use std::future::poll_fn;
use std::io;

use fabric::link_name::LinkName;
use fabric::netstate::ROUTE_PROTOCOL;
use futures_util::StreamExt;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket};
use tokio::sync::mpsc;
use tracing::warn;

/// `NFNLGRP_NFTABLES` of the kernel's `linux/netfilter/nfnetlink.h`, as a bit of the address.
const NFTABLES_GROUP: u32 = 1 << (7 - 1);

/// Sends a message whenever something changes on the backend's devices, if it has any, or on the
/// interface between nodes, or a route of ours does. Returns only if notifications cannot be had.
pub(crate) async fn links(
    devices: Vec<LinkName>,
    underlay: LinkName,
    wake: mpsc::Sender<()>,
) -> io::Error {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Neigh,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv6Route,
    ];
    let (connection, _handle, mut messages) = match rtnetlink::new_multicast_connection(&groups) {
        Ok(connection) => connection,
        Err(error) => return error,
    };
    tokio::spawn(connection);
    while let Some((message, _)) = messages.next().await {
        let relevant = match &message.payload {
            NetlinkPayload::InnerMessage(message) => concerns(message, &devices, underlay),
            NetlinkPayload::Overrun(_) => {
                warn!("the kernel's notifications came faster than they were read");
                true
            }
            _ => false,
        };
        if relevant {
            rouse(&wake);
        }
    }
    io::Error::other("the kernel's notifications ended")
}

/// Sends a message whenever packet filter rules change, whoever changes them. Returns only if
/// notifications cannot be had.
pub(crate) async fn rules(wake: mpsc::Sender<()>) -> io::Error {
    let open = || -> io::Result<TokioSocket> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, NFTABLES_GROUP))?;
        Ok(socket)
    };
    let socket = match open() {
        Ok(socket) => socket,
        Err(error) => return error,
    };
    let mut buffer = Vec::with_capacity(4096);
    loop {
        buffer.clear();
        match poll_fn(|context| socket.poll_recv(context, &mut buffer)).await {
            Ok(()) => rouse(&wake),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => rouse(&wake),
            Err(error) => return error,
        }
    }
}

fn rouse(wake: &mpsc::Sender<()>) {
    // A full channel means that the loop will wake up anyway, a closed one that it has ended.
    let _awake_or_gone = wake.try_send(());
}

fn concerns(message: &RouteNetlinkMessage, devices: &[LinkName], underlay: LinkName) -> bool {
    let on_device = |index| devices.iter().any(|device| is(index, *device));
    match message {
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
            is_named(link, underlay) || devices.iter().any(|device| is_named(link, *device))
        }
        RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
            is(address.header.index, underlay) || on_device(address.header.index)
        }
        // Neighbours on the underlay come and go all the time.
        RouteNetlinkMessage::NewNeighbour(entry) | RouteNetlinkMessage::DelNeighbour(entry) => {
            on_device(entry.header.ifindex)
        }
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
                || leaves_by(route).is_some_and(on_device)
        }
        _ => false,
    }
}

fn is_named(message: &LinkMessage, name: LinkName) -> bool {
    message
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkAttribute::IfName(text) if text == name.as_str()))
}

fn leaves_by(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

/// Whether this is the number of the link now: one that is made anew gets another.
fn is(index: u32, link: LinkName) -> bool {
    nix::net::if_::if_nametoindex(link.as_str()) == Ok(index)
}
