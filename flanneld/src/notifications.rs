//! What the kernel tells of itself: that something changed, to wake the loop.
//!
//! ```text
//! kernel ──multicast──▶ Notifications ──changed()──▶ reconciler
//! ```
//!
//! Notifications carry no work: whatever changed is found by comparing. That is why they may be
//! lost. Nobody reads them during a pass, so that thousands which a pass causes by itself fill the
//! small buffer of the socket and cost nothing more; the overrun counts as one notification. What
//! was told before a look at the kernel is covered by that look, and thrown away.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use fabric::link_name::LinkName;
use fabric::netstate::ROUTE_PROTOCOL;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket};
use tokio::sync::Notify;
use tracing::debug;

use crate::rules::notification::may_concern;

/// `NFNLGRP_NFTABLES` of the kernel's `linux/netfilter/nfnetlink.h`.
const NFTABLES_GROUP: u32 = 7;
/// Room for one message; the kernel's notifications are a few hundred bytes long.
const MESSAGE_BYTES: usize = 1 << 15;
/// More than fit into the buffer of a socket.
const PENDING_MAX: usize = 1 << 14;

/// The kernel's notifications in the network namespace where this was opened.
pub(crate) struct Notifications<'a> {
    links: TokioSocket,
    rules: TokioSocket,
    message: Vec<u8>,
    interest: Interest,
    /// Told when something changed about the interface between nodes.
    underlay_changed: &'a Notify,
}

/// What is listened for.
#[derive(Debug, Default)]
struct Interest {
    devices: BTreeSet<LinkName>,
    device_indices: BTreeSet<u32>,
    underlay: Option<LinkName>,
    underlay_index: Option<u32>,
}

/// What a notification is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    /// A device, an entry or a route of ours.
    Ours,
    /// The interface between nodes: itself, its addresses, the routes that leave by it.
    Underlay,
    Other,
}

impl<'a> Notifications<'a> {
    /// Starts to listen.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn open(underlay_changed: &'a Notify) -> io::Result<Self> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        Ok(Self {
            links: listen(NETLINK_ROUTE, groups.map(|group| group as u32))?,
            rules: listen(NETLINK_NETFILTER, [NFTABLES_GROUP])?,
            message: Vec::with_capacity(MESSAGE_BYTES),
            interest: Interest::default(),
            underlay_changed,
        })
    }

    /// Forgets what was told so far: call this before looking at the kernel. From now on only what
    /// concerns these links counts, routes with our mark, and rules.
    pub(crate) fn restart(&mut self, devices: BTreeSet<LinkName>, underlay: LinkName) {
        for _ in 0..PENDING_MAX {
            if !take(&self.links, &mut self.message) {
                break;
            }
            if self.interest.subject(&self.message) == Subject::Underlay {
                self.underlay_changed.notify_one();
            }
        }
        for _ in 0..PENDING_MAX {
            if !take(&self.rules, &mut self.message) {
                break;
            }
        }
        self.interest = Interest::in_links(devices, underlay);
    }

    /// Waits until something changed that may concern us, whoever changed it.
    ///
    /// # Errors
    /// If notifications cannot be had any more.
    pub(crate) async fn changed(&mut self) -> io::Result<()> {
        poll_fn(|context| {
            if let Poll::Ready(changed) = self.poll_links(context) {
                return Poll::Ready(changed);
            }
            self.poll_rules(context)
        })
        .await
    }

    fn poll_rules(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(receive(&self.rules, context, &mut self.message))?;
            if may_concern(&self.message) {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn poll_links(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(receive(&self.links, context, &mut self.message))?;
            match self.interest.subject(&self.message) {
                Subject::Ours => return Poll::Ready(Ok(())),
                Subject::Underlay => {
                    self.underlay_changed.notify_one();
                    return Poll::Ready(Ok(()));
                }
                Subject::Other => {}
            }
        }
    }
}

fn listen<const N: usize>(protocol: isize, groups: [u32; N]) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    groups.iter().try_for_each(|group| socket.socket_ref().add_membership(*group))?;
    Ok(socket)
}

/// Receives one message; an empty one stands for those that were lost.
fn receive(
    socket: &TokioSocket,
    context: &mut Context<'_>,
    message: &mut Vec<u8>,
) -> Poll<io::Result<()>> {
    message.clear();
    match ready!(socket.poll_recv(context, message)) {
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
            debug!("notifications were lost; everything is compared");
            message.clear();
            Poll::Ready(Ok(()))
        }
        received => Poll::Ready(received),
    }
}

/// Receives one message, as [`receive`] does, if there is one.
fn take(socket: &TokioSocket, message: &mut Vec<u8>) -> bool {
    message.clear();
    match socket.socket_ref().recv(message, libc::MSG_DONTWAIT) {
        Ok(_) => true,
        // Whatever else is wrong with the socket is found out by waiting on it.
        Err(error) => error.raw_os_error() == Some(libc::ENOBUFS),
    }
}

impl Interest {
    fn in_links(devices: BTreeSet<LinkName>, underlay: LinkName) -> Self {
        Self {
            device_indices: devices.iter().filter_map(index_of).collect(),
            devices,
            underlay_index: index_of(&underlay),
            underlay: Some(underlay),
        }
    }

    fn subject(&self, message: &[u8]) -> Subject {
        // What is lost, or does not decode, may have been about anything.
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) else {
            return Subject::Underlay;
        };
        match &message.payload {
            NetlinkPayload::InnerMessage(message) => self.subject_of(message),
            _ => Subject::Other,
        }
    }

    fn subject_of(&self, message: &RouteNetlinkMessage) -> Subject {
        match message {
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
                self.link(link)
            }
            RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
                self.index(address.header.index)
            }
            // Neighbours on the underlay come and go all the time.
            RouteNetlinkMessage::NewNeighbour(entry) | RouteNetlinkMessage::DelNeighbour(entry) => {
                match self.index(entry.header.ifindex) {
                    Subject::Ours => Subject::Ours,
                    Subject::Underlay | Subject::Other => Subject::Other,
                }
            }
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                match leaves_by(route).map_or(Subject::Other, |index| self.index(index)) {
                    _ if is_marked(route) => Subject::Ours,
                    subject => subject,
                }
            }
            _ => Subject::Other,
        }
    }

    /// A link is known by its name as it is now, or by its number, in case it was renamed.
    fn link(&self, message: &LinkMessage) -> Subject {
        let name = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => name.parse().ok(),
            _ => None,
        });
        match name {
            Some(name) if self.devices.contains(&name) => Subject::Ours,
            Some(name) if self.underlay == Some(name) => Subject::Underlay,
            _ => self.index(message.header.index),
        }
    }

    fn index(&self, index: u32) -> Subject {
        if self.device_indices.contains(&index) {
            Subject::Ours
        } else if self.underlay_index == Some(index) {
            Subject::Underlay
        } else {
            Subject::Other
        }
    }
}

fn is_marked(message: &RouteMessage) -> bool {
    message.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
}

fn leaves_by(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn index_of(link: &LinkName) -> Option<u32> {
    nix::net::if_::if_nametoindex(link.as_str()).ok()
}
