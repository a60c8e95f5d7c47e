//! Sending batches (sendmmsg(2)), with messages that the kernel cuts where it can.

#![expect(unsafe_code, reason = "sendmmsg with control messages")]

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use super::super::batch::{Batch, MESSAGES_MAX, Message, SEGMENTS_MAX};
use super::control::{Control, empty_header, set_len};
use super::name::Name;

/// The buffers of one sending thread.
pub(in super::super) struct Sender {
    cuts: bool,
    headers: Vec<libc::mmsghdr>,
    names: Vec<Name>,
    controls: Vec<Control>,
    vectors: Vec<libc::iovec>,
}

impl Sender {
    pub(in super::super) fn new(cuts: bool) -> Self {
        Self {
            cuts,
            headers: Vec::with_capacity(MESSAGES_MAX),
            names: Vec::with_capacity(MESSAGES_MAX),
            controls: Vec::with_capacity(MESSAGES_MAX),
            vectors: Vec::new(),
        }
    }

    /// Returns into how many datagrams a message can be cut.
    pub(in super::super) const fn segments_max(&self) -> usize {
        if self.cuts { SEGMENTS_MAX } else { 1 }
    }

    /// Sends everything, and tells what was not sent and why. Messages that the kernel cannot cut
    /// for this way are sent one datagram at a time.
    pub(in super::super) fn send(
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
        let vector = |piece: &[u8]| libc::iovec {
            iov_base: piece.as_ptr().cast_mut().cast(),
            iov_len: piece.len(),
        };
        self.vectors.clear();
        self.vectors.extend(messages.iter().flat_map(|message| batch.pieces(message)).map(vector));
        self.names.clear();
        self.names.extend(messages.iter().map(|message| Name::from(message.to)));
        self.controls.clear();
        self.controls.extend(messages.iter().map(|message| Control::segment(message.segment)));
        self.headers.clear();
        let mut used = 0;
        for (index, message) in messages.iter().enumerate() {
            let mut header = empty_header();
            let fields = &mut header.msg_hdr;
            fields.msg_name = (&raw mut self.names[index]).cast();
            fields.msg_namelen = Name::len(Some(message.to));
            fields.msg_iov = &raw mut self.vectors[used];
            set_len(&mut fields.msg_iovlen, message.pieces.len());
            used += message.pieces.len();
            if message.datagrams > 1 {
                fields.msg_control = (&raw mut self.controls[index]).cast();
                set_len(&mut fields.msg_controllen, size_of::<Control>());
            }
            self.headers.push(header);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
    use std::os::fd::{FromRawFd, OwnedFd};
    use std::sync::Arc;
    use std::time::Duration;

    use flannel_tests::sandbox::sandboxed;
    use nix::sys::socket::{SockaddrIn, bind};

    use super::*;

    /// Takes the same calls as UDP, and is never cut for: the kernel answers `EIO`, as it does about
    /// UDP where the device below computes no checksums (before Linux 6.11).
    const UDP_LITE: libc::c_int = 136;

    fn open() -> UdpSocket {
        // SAFETY: the call takes numbers only.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, UDP_LITE) };
        assert!(fd >= 0, "there is no UDP-Lite: {}", io::Error::last_os_error());
        // SAFETY: it was just made.
        let socket = UdpSocket::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let any_port = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
        bind(socket.as_raw_fd(), &any_port).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    }

    fn fill(batch: &mut Batch, to: SocketAddr, segments_max: usize) {
        batch.clear(segments_max);
        for value in 1..=3 {
            batch.room()[..50].fill(value);
            let datagram = batch.keep(50);
            batch.push(to, [datagram]);
        }
    }

    #[test]
    fn datagrams_leave_one_by_one_when_the_kernel_refuses_to_cut() {
        sandboxed(|| {
            let (mut log, writer) = io::pipe().unwrap();
            let logging = tracing_subscriber::fmt().with_writer(Arc::new(writer)).finish();
            tracing::subscriber::with_default(logging, send_without_cuts);
            let log = io::read_to_string(&mut log).unwrap();
            assert_eq!(log.matches("the underlay does not cut messages").count(), 1, "{log}");
        });
    }

    fn send_without_cuts() {
        let (from, to) = (open(), open());
        let (mut sender, mut batch) = (Sender::new(true), Batch::new());
        // The first time it is found out, and afterwards not tried again.
        for messages in [1, 3] {
            fill(&mut batch, to.local_addr().unwrap(), sender.segments_max());
            assert_eq!(batch.messages().len(), messages);
            let mut lost = 0;
            sender.send(&from, &batch, |message, _| lost += usize::from(message.datagrams == 1));
            for value in 1..=3 {
                let mut datagram = [0; 100];
                assert_eq!(to.recv(&mut datagram).unwrap(), 50);
                assert_eq!(datagram[..50], [value; 50]);
            }
            assert_eq!(lost, 0);
        }
    }
}
