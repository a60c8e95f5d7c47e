//! Requests to nfnetlink and their answers, whatever they say.

use std::{io, iter};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_REQUEST, NLMSG_ALIGNTO, NLMSG_DONE, NLMSG_ERROR,
    NetlinkBuffer, NetlinkHeader, NetlinkMessage, NlasIterator, parse_i32, parse_string,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use super::message::Request;

/// Bytes that hold whatever the kernel puts into one datagram; it uses at most 32 KiB.
const DATAGRAM: usize = 1 << 16;
/// Bytes of `struct nlmsghdr` (linux/netlink.h).
const NLMSGHDR: usize = 16;
/// Bytes of `struct nfgenmsg` (linux/netfilter/nfnetlink.h), which precedes all attributes.
const NFGENMSG: usize = 4;
/// The text of an extended ACK (linux/netlink.h).
const NLMSGERR_ATTR_MSG: u16 = 1;

/// A blocking socket with one request at a time.
#[derive(Debug)]
pub(super) struct Connection {
    socket: Socket,
    /// The number of the next request, by which its answers are known.
    sequence: u32,
    /// The datagram received last.
    datagram: Vec<u8>,
}

/// Why a request was not fulfilled.
#[derive(Debug)]
pub(super) enum Failure {
    /// The socket failed.
    Socket(io::Error),
    /// The kernel refused, with its extended ACK.
    Refused { errno: io::Error, reason: Option<String> },
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Socket(error)
    }
}

impl Connection {
    /// Opens a socket in the current network namespace.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        Ok(Self { socket, sequence: 1, datagram: Vec::with_capacity(DATAGRAM) })
    }

    /// Returns the attributes of all messages that answer `request`, which must be a dump or ask for
    /// an acknowledgement.
    pub(super) fn ask(&mut self, request: Request) -> Result<Vec<Vec<u8>>, Failure> {
        let sequence = self.send(vec![request])?;
        let mut answers = Vec::new();
        loop {
            self.receive(0)?;
            for message in messages(&self.datagram) {
                match message.message_type() {
                    _ if message.sequence_number() != sequence => {}
                    NLMSG_ERROR | NLMSG_DONE => return refusal(&message).map_or(Ok(answers), Err),
                    _ => answers.extend(message.payload().get(NFGENMSG..).map(<[u8]>::to_vec)),
                }
            }
        }
    }

    /// Has `requests` carried out as one transaction, from its begin to its end. If that fails,
    /// returns the place of the request that failed first; place zero stands for the transaction.
    pub(super) fn transact(&mut self, mut requests: Vec<Request>) -> Result<(), (usize, Failure)> {
        // One acknowledgement suffices. As many as there are operations might not fit the socket's
        // buffer, and errors are told in any case.
        let last = requests.len().saturating_sub(2);
        requests[last].flags |= NLM_F_ACK;
        let whole = |error| (0, Failure::Socket(error));
        let begin = self.send(requests).map_err(whole)?;
        let mut failure = None;
        let mut acknowledged = false;
        loop {
            // The kernel has given all answers when it returns from taking the requests.
            match self.receive(libc::MSG_DONTWAIT) {
                Ok(true) => {}
                Ok(false) => break,
                // More errors than the socket's buffer holds; it still has the first ones.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => continue,
                Err(error) => return Err(whole(error)),
            }
            for message in messages(&self.datagram) {
                let place = message.sequence_number().wrapping_sub(begin) as usize;
                match refusal(&message) {
                    _ if place > last || message.message_type() != NLMSG_ERROR => {}
                    None => acknowledged |= place == last,
                    Some(refusal) => failure = failure.or(Some((place, refusal))),
                }
            }
        }
        match failure {
            Some(failure) => Err(failure),
            None if acknowledged => Ok(()),
            None => Err(whole(io::Error::new(io::ErrorKind::UnexpectedEof, "no answer"))),
        }
    }

    /// Sends requests in one datagram, and returns the sequence number of the first.
    fn send(&mut self, requests: Vec<Request>) -> io::Result<u32> {
        let first = self.sequence;
        let mut bytes = Vec::new();
        for request in requests {
            let mut header = NetlinkHeader::default();
            header.flags = NLM_F_REQUEST | request.flags;
            header.sequence_number = self.sequence;
            self.sequence = self.sequence.wrapping_add(1);
            let mut message = NetlinkMessage::new(header, request.message.into());
            message.finalize();
            let start = bytes.len();
            bytes.resize(start + message.buffer_len(), 0);
            message.serialize(&mut bytes[start..]);
        }
        self.socket.send(&bytes, 0)?;
        Ok(first)
    }

    /// Receives one datagram; returns whether there was one.
    fn receive(&mut self, flags: libc::c_int) -> io::Result<bool> {
        loop {
            self.datagram.clear();
            match self.socket.recv(&mut self.datagram, flags) {
                Ok(_) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn messages(mut datagram: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(datagram).ok()?;
        let length = (message.length() as usize).next_multiple_of(NLMSG_ALIGNTO.into());
        datagram = datagram.get(length..).unwrap_or_default();
        Some(message)
    })
}

/// Reads a `struct nlmsgerr` or the result of a dump; `None` is success.
fn refusal(message: &NetlinkBuffer<&[u8]>) -> Option<Failure> {
    let payload = message.payload();
    let code = parse_i32(payload.get(..4)?).ok()?;
    if code == 0 {
        return None;
    }
    // The header of the request, without its body, stands between the number and the text.
    let attributes = payload.get(4 + NLMSGHDR..).filter(|_| message.flags() & NLM_F_ACK_TLVS != 0);
    let reason = NlasIterator::new(attributes.unwrap_or_default())
        .flatten()
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)
        .and_then(|attribute| parse_string(attribute.value()).ok());
    Some(Failure::Refused { errno: io::Error::from_raw_os_error(-code), reason })
}
