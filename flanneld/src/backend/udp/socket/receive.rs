//! Receiving many messages in one go (recvmmsg(2)), of which each may be datagrams that the kernel
//! has put together.

#![expect(unsafe_code, reason = "recvmmsg with control messages")]

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::AsRawFd;

use super::control::{Control, empty_header, set_len};
use super::name::Name;

/// A message that the kernel has put together is no longer.
const RECEIVE_MAX: usize = 65_536;
/// So many messages are received in one go.
const RECEIVED_MAX: usize = 16;

/// One message as it came: datagrams of the same length, only the last one maybe shorter.
#[derive(Clone, Debug)]
pub(in super::super) struct Received {
    pub(in super::super) from: SocketAddr,
    pub(in super::super) bytes: Range<usize>,
    pub(in super::super) segment: usize,
}

/// The buffers of one receiving thread.
pub(in super::super) struct Receiver {
    bytes: Box<[u8]>,
    headers: Vec<libc::mmsghdr>,
    names: Vec<Name>,
    controls: Vec<Control>,
    vectors: Vec<libc::iovec>,
}

impl Receiver {
    pub(in super::super) fn new() -> Self {
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self {
            bytes: vec![0; RECEIVED_MAX * RECEIVE_MAX].into_boxed_slice(),
            headers: vec![empty_header(); RECEIVED_MAX],
            names: vec![Name::nobody(); RECEIVED_MAX],
            controls: vec![Control::empty(); RECEIVED_MAX],
            vectors: vec![nothing; RECEIVED_MAX],
        }
    }

    /// Takes the messages that are there, and returns how many; fails with `WouldBlock` if there is
    /// none.
    pub(in super::super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        for (index, chunk) in self.bytes.chunks_exact_mut(RECEIVE_MAX).enumerate() {
            self.vectors[index] =
                libc::iovec { iov_base: chunk.as_mut_ptr().cast(), iov_len: chunk.len() };
            let header = &mut self.headers[index].msg_hdr;
            header.msg_name = (&raw mut self.names[index]).cast();
            header.msg_namelen = Name::len(None);
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
    pub(in super::super) fn message(&self, index: usize) -> Received {
        let header = &self.headers[index];
        let start = index * RECEIVE_MAX;
        let len = usize::try_from(header.msg_len).map_or(0, |len| len.min(RECEIVE_MAX));
        let segment = self.controls[index].merged_segment(&header.msg_hdr);
        Received {
            from: self.names[index].address(),
            bytes: start..start + len,
            segment: segment.filter(|segment| *segment > 0).unwrap_or(len),
        }
    }

    pub(in super::super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(in super::super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}
