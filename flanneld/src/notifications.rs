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
use std::net::IpAddr;
use std::task::{Context, Poll, ready};

use fabric::link_name::LinkName;
use fabric::netstate::route_protocol;
use ipnetwork::IpNetwork;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
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
    filter: Filter,
    /// Told when something changed about the interface between nodes.
    underlay_changed: &'a Notify,
}

/// What is listened for, besides routes with our mark, and rules.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Interest {
    /// The links that the backend makes.
    pub(crate) devices: BTreeSet<LinkName>,
    /// The interface between nodes.
    pub(crate) underlay: Option<LinkName>,
    /// The networks of all pods.
    pub(crate) networks: Vec<IpNetwork>,
}

/// The interest, with the numbers that the links have at the moment.
#[derive(Debug, Default)]
struct Filter {
    interest: Interest,
    devices: BTreeSet<u32>,
    underlay: Option<u32>,
}

/// What a notification is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    /// A device of ours and what is on it, a route to pods, and whatever cannot be told.
    Ours,
    /// The interface between nodes: itself, and its addresses.
    Underlay,
    /// A route that leaves by the interface between nodes, to somewhere else.
    UnderlayRoute,
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
            filter: Filter::default(),
            underlay_changed,
        })
    }

    /// Forgets what was told so far: call this before looking at the kernel.
    pub(crate) fn restart(&mut self, interest: Interest) {
        for _ in 0..PENDING_MAX {
            if !take(&self.links, &mut self.message) {
                break;
            }
            self.classify();
        }
        for _ in 0..PENDING_MAX {
            if !take(&self.rules, &mut self.message) {
                break;
            }
        }
        self.filter = Filter::new(interest);
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
            match self.classify() {
                Subject::Ours | Subject::Underlay => return Poll::Ready(Ok(())),
                Subject::UnderlayRoute | Subject::Other => {}
            }
        }
    }

    /// Says what the message is about, and passes it on to who follows the underlay.
    fn classify(&self) -> Subject {
        // What was lost may have been about anything.
        let lost = self.message.is_empty();
        let subject = if lost { Subject::Ours } else { self.filter.subject(&self.message) };
        if lost || matches!(subject, Subject::Underlay | Subject::UnderlayRoute) {
            self.underlay_changed.notify_one();
        }
        subject
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

impl Filter {
    fn new(interest: Interest) -> Self {
        Self {
            devices: interest.devices.iter().filter_map(index_of).collect(),
            underlay: interest.underlay.as_ref().and_then(index_of),
            interest,
        }
    }

    fn subject(&self, message: &[u8]) -> Subject {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) else {
            return Subject::Ours;
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
                    _ => Subject::Other,
                }
            }
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                self.route(route)
            }
            _ => Subject::Other,
        }
    }

    fn route(&self, message: &RouteMessage) -> Subject {
        let leaves_by = message.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        let marked = route_protocol::is_ours(message.header.protocol.into());
        if marked || self.leads_to_pods(message) {
            return Subject::Ours;
        }
        match leaves_by.map_or(Subject::Other, |index| self.index(index)) {
            Subject::Underlay => Subject::UnderlayRoute,
            subject => subject,
        }
    }

    fn leads_to_pods(&self, message: &RouteMessage) -> bool {
        let destination = message.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
            _ => None,
        });
        let contain = |ip| self.interest.networks.iter().any(|network| network.contains(ip));
        // Addresses of this host have routes of their own, in a table of their own.
        let local = message.header.kind == RouteType::Local;
        !local && destination.is_some_and(contain)
    }

    /// A link is known by its name as it is now, or by its number, in case it was renamed.
    fn link(&self, message: &LinkMessage) -> Subject {
        let name = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => name.parse().ok(),
            _ => None,
        });
        match name {
            Some(name) if self.interest.devices.contains(&name) => Subject::Ours,
            Some(name) if self.interest.underlay == Some(name) => Subject::Underlay,
            _ => self.index(message.header.index),
        }
    }

    fn index(&self, index: u32) -> Subject {
        if self.devices.contains(&index) {
            Subject::Ours
        } else if self.underlay == Some(index) {
            Subject::Underlay
        } else {
            Subject::Other
        }
    }
}

fn index_of(link: &LinkName) -> Option<u32> {
    nix::net::if_::if_nametoindex(link.as_str()).ok()
}
