//! UDP sockets: many datagrams per call, and messages that the kernel cuts or has put together
//! (udp(7), `UDP_SEGMENT` and `UDP_GRO`).

mod control;
mod name;
mod receive;
mod send;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, getsockopt, setsockopt, socket,
    sockopt,
};
use nix::{getsockopt_impl, sockopt_impl};

pub(super) use self::receive::Receiver;
pub(super) use self::send::Sender;
use super::descriptor::replace;

/// As much as a fast sender puts on the way while a thread waits for a processor.
const BUFFER: usize = 8 << 20;

sockopt_impl!(
    /// What fits the way to the address that a socket is connected to (ipv6(7), `IPV6_MTU`).
    Ipv6Mtu,
    GetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_MTU,
    libc::c_int
);

/// What the kernel does for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Features {
    /// Cuts messages into datagrams (since Linux 4.18).
    pub(super) cuts: bool,
    /// Puts datagrams together to messages (since Linux 5.0).
    pub(super) merges: bool,
}

/// Opens a socket that shares its address with others of this program, and of its successor.
pub(super) fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    enlarge(&socket)?;
    Ok(socket.into())
}

/// Takes over a socket from our predecessor, if it has this address.
pub(super) fn adopt(fd: OwnedFd, address: SocketAddr) -> Option<UdpSocket> {
    let socket = UdpSocket::from(fd);
    (socket.local_addr().ok()? == address).then_some(socket)
}

/// Becomes a socket with this address, for every thread that uses this one and does not wait.
pub(super) fn rebind(socket: &UdpSocket, address: SocketAddr) -> io::Result<()> {
    let new = open(address)?;
    let merges = getsockopt(socket, sockopt::UdpGroSegment)?;
    setsockopt(&new, sockopt::UdpGroSegment, &merges)?;
    replace(socket, &new)
}

fn enlarge(socket: &OwnedFd) -> io::Result<()> {
    // Above the limit of the system if we may, up to it otherwise.
    if setsockopt(socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        setsockopt(socket, sockopt::RcvBuf, &BUFFER)?;
    }
    if setsockopt(socket, sockopt::SndBufForce, &BUFFER).is_err() {
        setsockopt(socket, sockopt::SndBuf, &BUFFER)?;
    }
    Ok(())
}

impl Features {
    pub(super) const ALL: Self = Self { cuts: true, merges: true };

    /// Switches on those of these that the kernel has, and returns them.
    pub(super) fn enable(self, socket: &UdpSocket) -> Self {
        // Zero cuts nothing unless a message asks for it.
        let cuts = self.cuts && setsockopt(socket, sockopt::UdpGsoSegment, &0).is_ok();
        let merges = setsockopt(socket, sockopt::UdpGroSegment, &self.merges).is_ok();
        Self { cuts, merges: self.merges && merges }
    }
}

/// Returns what fits the way to an address, as far as the kernel has learned.
pub(super) fn path_mtu(to: SocketAddr) -> Option<u16> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let probe = UdpSocket::bind((any, 0)).ok()?;
    probe.connect(to).ok()?;
    let mtu = match to {
        SocketAddr::V4(_) => getsockopt(&probe, sockopt::IpMtu),
        SocketAddr::V6(_) => getsockopt(&probe, Ipv6Mtu),
    };
    mtu.ok().and_then(|mtu| mtu.try_into().ok())
}
