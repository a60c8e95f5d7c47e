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
