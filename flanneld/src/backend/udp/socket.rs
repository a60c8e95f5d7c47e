//! UDP sockets: many datagrams per call, and messages that the kernel cuts or has put together
//! (udp(7), `UDP_SEGMENT` and `UDP_GRO`).

#![expect(unsafe_code, reason = "sendmmsg and recvmmsg with control messages")]

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
};

use super::batch::{Batch, MESSAGES_MAX, Message, SEGMENTS_MAX};

/// As much as a fast sender puts on the way while a thread waits for a processor.
const BUFFER: usize = 8 << 20;
/// A message that the kernel has put together is no longer.
const RECEIVE_MAX: usize = 65_536;
/// So many messages are received in one go.
const RECEIVED_MAX: usize = 16;

/// What the kernel does for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Features {
    /// Cuts messages into datagrams (since Linux 4.18).
    pub(super) cuts: bool,
    /// Puts datagrams together to messages (since Linux 5.0).
    pub(super) merges: bool,
}

/// Opens a socket that shares its address with others of this program, and of its successor.
pub(super) fn open(address: SocketAddrV4) -> io::Result<(UdpSocket, Features)> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(address))?;
    prepare(socket.into())
}

/// Takes over a socket from our predecessor, if it has this address.
pub(super) fn adopt(fd: OwnedFd, address: SocketAddrV4) -> io::Result<(UdpSocket, Features)> {
    let socket = UdpSocket::from(fd);
    if socket.local_addr()? == SocketAddr::V4(address) {
        prepare(socket)
    } else {
        Err(io::Error::from_raw_os_error(libc::EADDRNOTAVAIL))
    }
}

fn prepare(socket: UdpSocket) -> io::Result<(UdpSocket, Features)> {
    // Above the limit of the system if we may, up to it otherwise.
    if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &BUFFER)?;
    }
    if setsockopt(&socket, sockopt::SndBufForce, &BUFFER).is_err() {
        setsockopt(&socket, sockopt::SndBuf, &BUFFER)?;
    }
    let cuts = setsockopt(&socket, sockopt::UdpGsoSegment, &0).is_ok();
    let merges = setsockopt(&socket, sockopt::UdpGroSegment, &true).is_ok();
    Ok((socket, Features { cuts, merges }))
}

/// Returns what fits the way to an address, as far as the kernel has learned.
pub(super) fn path_mtu(to: SocketAddrV4) -> Option<u16> {
    let probe = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    probe.connect(to).ok()?;
    nix::sys::socket::getsockopt(&probe, sockopt::IpMtu).ok().and_then(|mtu| mtu.try_into().ok())
}

/// A control message with one number: `UDP_SEGMENT` with 16 bits, `UDP_GRO` with 32.
#[repr(C)]
#[derive(Clone, Copy)]
struct Control {
    header: libc::cmsghdr,
    value: [u8; 8],
}

/// Sends batches.
pub(super) struct Sender {
    port: u16,
    cuts: bool,
    headers: Vec<libc::mmsghdr>,
    names: Vec<libc::sockaddr_in>,
    controls: Vec<Control>,
    vectors: Vec<libc::iovec>,
}

impl Sender {
    pub(super) fn new(port: u16, features: Features) -> Self {
        Self {
            port,
            cuts: features.cuts,
            headers: Vec::with_capacity(MESSAGES_MAX),
            names: Vec::with_capacity(MESSAGES_MAX),
            controls: Vec::with_capacity(MESSAGES_MAX),
            vectors: Vec::new(),
        }
    }

    /// Returns into how many datagrams a message can be cut.
    pub(super) const fn segments_max(&self) -> usize {
        if self.cuts { SEGMENTS_MAX } else { 1 }
    }

    /// Sends everything, and tells what was not sent and why. Messages that the kernel cannot cut
    /// for this way are sent one datagram at a time.
    pub(super) fn send(
        &mut self,
        socket: &UdpSocket,
        batch: &Batch,
        mut failed: impl FnMut(&Message, io::Error),
    ) {
        let messages = batch.messages();
        let mut start = 0;
        while start < messages.len() {
            match self.send_some(socket, batch, &messages[start..]) {
                Ok(sent) => start += sent,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let message = &messages[start];
                    if message.datagrams > 1 && self.is_refusal_to_cut(&error) {
                        self.send_singly(socket, batch, message, &mut failed);
                    } else {
                        failed(message, error);
                    }
                    start += 1;
                }
            }
        }
    }

    fn is_refusal_to_cut(&mut self, error: &io::Error) -> bool {
        match error.raw_os_error() {
            // The device below computes no checksums; this will not change.
            Some(libc::EIO) => {
                if std::mem::replace(&mut self.cuts, false) {
                    tracing::warn!("the underlay does not cut messages; datagrams are sent singly");
                }
                true
            }
            // The way is narrower than the datagrams.
            Some(libc::EINVAL | libc::EMSGSIZE) => true,
            _ => false,
        }
    }

    fn send_singly(
        &mut self,
        socket: &UdpSocket,
        batch: &Batch,
        message: &Message,
        failed: &mut impl FnMut(&Message, io::Error),
    ) {
        failed(message, io::Error::from_raw_os_error(libc::EMSGSIZE));
        for datagram in batch.datagrams(message) {
            while let Err(error) = self.send_some(socket, batch, std::slice::from_ref(&datagram)) {
                if error.kind() != io::ErrorKind::Interrupted {
                    failed(&datagram, error);
                    break;
                }
            }
        }
    }

    /// Sends as many messages as the kernel takes, and fails if it does not take the first.
    fn send_some(
        &mut self,
        socket: &UdpSocket,
        batch: &Batch,
        messages: &[Message],
    ) -> io::Result<usize> {
        self.fill(batch, messages);
        let count = libc::c_uint::try_from(self.headers.len()).unwrap_or(0);
        // SAFETY: the first `count` headers point into vectors of this sender and into the bytes of
        // the batch, none of which changes until the call returns.
        let sent =
            unsafe { libc::sendmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), count, 0) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    fn fill(&mut self, batch: &Batch, messages: &[Message]) {
        let port = self.port;
        let vector = |piece: &[u8]| libc::iovec {
            iov_base: piece.as_ptr().cast_mut().cast(),
            iov_len: piece.len(),
        };
        self.vectors.clear();
        self.vectors.extend(messages.iter().flat_map(|message| batch.pieces(message)).map(vector));
        self.names.clear();
        self.names.extend(messages.iter().map(|message| name(SocketAddrV4::new(message.to, port))));
        self.controls.clear();
        self.controls.extend(messages.iter().map(segment_control));
        self.headers.clear();
        let mut used = 0;
        for (index, message) in messages.iter().enumerate() {
            let mut header = empty_header();
            header.msg_name = (&raw mut self.names[index]).cast();
            header.msg_namelen = NAME_LEN;
            header.msg_iov = &raw mut self.vectors[used];
            set_len(&mut header.msg_iovlen, message.pieces.len());
            used += message.pieces.len();
            if message.datagrams > 1 {
                header.msg_control = (&raw mut self.controls[index]).cast();
                set_len(&mut header.msg_controllen, size_of::<Control>());
            }
            self.headers.push(libc::mmsghdr { msg_hdr: header, msg_len: 0 });
        }
    }
}

/// One message as it came: datagrams of the same length, only the last one maybe shorter.
#[derive(Clone, Debug)]
pub(super) struct Received {
    pub(super) from: SocketAddrV4,
    pub(super) bytes: Range<usize>,
    pub(super) segment: usize,
}

/// Receives messages, up to [`RECEIVED_MAX`] in one go.
pub(super) struct Receiver {
    bytes: Box<[u8]>,
    headers: Vec<libc::mmsghdr>,
    names: Vec<libc::sockaddr_in>,
    controls: Vec<Control>,
    vectors: Vec<libc::iovec>,
}

impl Receiver {
    pub(super) fn new() -> Self {
        let empty = libc::mmsghdr { msg_hdr: empty_header(), msg_len: 0 };
        let nobody = name(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self {
            bytes: vec![0; RECEIVED_MAX * RECEIVE_MAX].into_boxed_slice(),
            headers: vec![empty; RECEIVED_MAX],
            names: vec![nobody; RECEIVED_MAX],
            controls: vec![control(0, 0, [0; 8]); RECEIVED_MAX],
            vectors: vec![nothing; RECEIVED_MAX],
        }
    }

    /// Takes the messages that are there, and returns how many; fails with `WouldBlock` if there is
    /// none.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        for (index, chunk) in self.bytes.chunks_exact_mut(RECEIVE_MAX).enumerate() {
            self.vectors[index] =
                libc::iovec { iov_base: chunk.as_mut_ptr().cast(), iov_len: chunk.len() };
            let header = &mut self.headers[index].msg_hdr;
            header.msg_name = (&raw mut self.names[index]).cast();
            header.msg_namelen = NAME_LEN;
            header.msg_iov = &raw mut self.vectors[index];
            set_len(&mut header.msg_iovlen, 1);
            header.msg_control = (&raw mut self.controls[index]).cast();
            set_len(&mut header.msg_controllen, size_of::<Control>());
        }
        let count = libc::c_uint::try_from(RECEIVED_MAX).expect("sixteen is a small number");
        // SAFETY: the headers point into vectors of this receiver, each of which has `count`
        // entries, and to chunks of its bytes that do not overlap; all is ours alone until then.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count,
                // MSG_DONTWAIT; a literal, because the C libraries differ in the type of the flags.
                0x40,
                std::ptr::null_mut(),
            )
        };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// Returns one of the messages received last.
    pub(super) fn message(&self, index: usize) -> Received {
        let header = &self.headers[index];
        let start = index * RECEIVE_MAX;
        let len = usize::try_from(header.msg_len).map_or(0, |len| len.min(RECEIVE_MAX));
        let name = &self.names[index];
        let address = Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr));
        let from = SocketAddrV4::new(address, u16::from_be(name.sin_port));
        let segment = self.segment(index).filter(|segment| *segment > 0).unwrap_or(len);
        Received { from, bytes: start..start + len, segment }
    }

    fn segment(&self, index: usize) -> Option<usize> {
        let control = &self.controls[index];
        // The length has another type with musl, and none of the values is negative.
        let mut shortest = self.headers[index].msg_hdr.msg_controllen;
        set_len(&mut shortest, size_of::<libc::cmsghdr>() + size_of::<libc::c_int>());
        let has_one = self.headers[index].msg_hdr.msg_controllen >= shortest;
        let is_segment =
            control.header.cmsg_level == libc::SOL_UDP && control.header.cmsg_type == libc::UDP_GRO;
        let [a, b, c, d, ..] = control.value;
        let value = libc::c_int::from_ne_bytes([a, b, c, d]);
        usize::try_from(value).ok().filter(|_| has_one && is_segment)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the length of a structure of sixteen bytes")]
const NAME_LEN: libc::socklen_t = size_of::<libc::sockaddr_in>() as libc::socklen_t;

fn name(address: SocketAddrV4) -> libc::sockaddr_in {
    *SockaddrIn::from(address).as_ref()
}

fn segment_control(message: &Message) -> Control {
    let [low, high] = u16::try_from(message.segment).unwrap_or(0).to_ne_bytes();
    let value = [low, high, 0, 0, 0, 0, 0, 0];
    control(libc::UDP_SEGMENT, size_of::<u16>(), value)
}

fn control(kind: libc::c_int, len: usize, value: [u8; 8]) -> Control {
    // SAFETY: the structure is of integers only, for which zero is valid.
    let mut header: libc::cmsghdr = unsafe { std::mem::zeroed() };
    header.cmsg_level = libc::SOL_UDP;
    header.cmsg_type = kind;
    set_len(&mut header.cmsg_len, size_of::<libc::cmsghdr>() + len);
    Control { header, value }
}

fn empty_header() -> libc::msghdr {
    // SAFETY: the structure is of integers and pointers, for which zero is valid.
    unsafe { std::mem::zeroed() }
}

/// Lengths have different types with different C libraries.
fn set_len<T: TryFrom<usize>>(field: &mut T, len: usize) {
    if let Ok(len) = T::try_from(len) {
        *field = len;
    }
}
