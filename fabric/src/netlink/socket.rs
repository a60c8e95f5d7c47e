//! A blocking rtnetlink socket: dumps, single questions, and batches of changes.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::link_name::LinkName;

/// The kernel sends at most 32 KiB of a dump at once (`netlink_dump`).
const RECEIVE_BYTES: usize = 1 << 16;
/// If all are refused, so many answers wait in the receive buffer of the socket, which must hold them:
/// each takes less than a kibibyte of the 208 that there are by default.
pub(super) const BATCH: usize = 128;
/// The header of a message (`struct nlmsghdr`).
pub(super) const HEADER_BYTES: usize = 16;
/// Types of messages below are those of netlink itself (`NLMSG_MIN_TYPE`).
const ROWS: u16 = 16;
/// Room for the answers that have not been read yet.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;
/// A table that changes while it is dumped has to be dumped again.
const DUMP_ATTEMPTS: usize = 20;

/// A connection to the kernel's network configuration, in the namespace where it was opened.
pub struct Socket {
    inner: netlink_sys::Socket,
    /// Numbers of the requests that were sent last; answers to older ones are stale.
    pending: RangeInclusive<u32>,
    received: Vec<u8>,
    /// Numbers of links from the last observation, for the plan that is made of it and no other.
    /// Where one is out of date already, the kernel knows no such link, which counts as a race.
    pub(super) indices: BTreeMap<LinkName, u32>,
}

/// The kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// Sending or receiving failed.
    #[error("cannot talk to the kernel over netlink")]
    Io(#[from] io::Error),
    /// The kernel answered a question with an error.
    #[error("the kernel refused to tell about {about}: {refusal}")]
    Refused {
        /// What was asked for.
        about: &'static str,
        /// The answer.
        refusal: Refusal,
    },
    /// Somebody else changed the table each time that it was read.
    #[error("{about} kept changing while they were read")]
    Unstable {
        /// What was asked for.
        about: &'static str,
    },
}

/// Why the kernel did not do what it was asked to do.
#[derive(Debug, thiserror::Error)]
pub struct Refusal {
    /// The extended acknowledgement, for example "Cannot change VNI"; often there is none.
    pub reason: Option<String>,
    /// The error number.
    #[source]
    pub errno: io::Error,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.reason {
            Some(reason) => write!(f, "{reason} ({})", self.errno),
            None => write!(f, "{}", self.errno),
        }
    }
}

/// A change, and how it treats what is there already (`NLM_F_CREATE`, `NLM_F_REPLACE`, …).
pub(super) struct Request {
    pub(super) message: RouteNetlinkMessage,
    pub(super) flags: u16,
}

/// One message of the kernel's answer.
enum Reply {
    Message(Box<RouteNetlinkMessage>),
    Done,
    Ack,
    Refused(Refusal),
    /// A row that does not decode. We only make plain objects, so it is not one of ours.
    Unknown,
}

impl Socket {
    /// Opens a socket in the network namespace of this thread.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn open() -> io::Result<Self> {
        let mut inner = netlink_sys::Socket::new(NETLINK_ROUTE)?;
        inner.bind_auto()?;
        inner.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        inner.set_ext_ack(true)?;
        inner.set_cap_ack(true)?;
        inner.set_netlink_get_strict_chk(true)?;
        // Only root of the machine may exceed the limit; the default is enough for one batch.
        let _default_is_enough = inner.set_rx_buf_sz(RECEIVE_BUFFER_BYTES);
        Ok(Self {
            inner,
            pending: 0..=0,
            received: Vec::with_capacity(RECEIVE_BYTES),
            indices: BTreeMap::new(),
        })
    }

    /// Reads a whole table, again if it changed meanwhile.
    pub(super) fn dump(
        &mut self,
        about: &'static str,
        request: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.dump_with(about, request, row)
    }

    /// Reads a whole table as [`Self::dump`] does, and keeps of each row what `decode` makes of its
    /// message: nothing else of a large table has to be in memory.
    pub(super) fn dump_with<T>(
        &mut self,
        about: &'static str,
        request: &RouteNetlinkMessage,
        decode: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            self.send(&mut [message(request.clone(), NLM_F_DUMP)])?;
            if let Some(rows) = self.read_dump(about, &decode)? {
                return Ok(rows);
            }
        }
        Err(NetlinkError::Unstable { about })
    }

    /// Returns `None` if the table changed while it was read.
    fn read_dump<T>(
        &mut self,
        about: &'static str,
        decode: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<Vec<T>>, NetlinkError> {
        let mut rows = Vec::new();
        let mut interrupted = false;
        loop {
            for message in self.receive()? {
                let header = NetlinkBuffer::new(message);
                interrupted |= header.flags() & NLM_F_DUMP_INTR != 0;
                if header.message_type() >= ROWS {
                    rows.extend(decode(message));
                    continue;
                }
                match parse(message) {
                    Reply::Done | Reply::Ack => return Ok((!interrupted).then_some(rows)),
                    Reply::Refused(refusal) => {
                        return Err(NetlinkError::Refused { about, refusal });
                    }
                    Reply::Message(_) | Reply::Unknown => {}
                }
            }
        }
    }

    /// Asks for one object. Returns the kernel's refusal if there is none.
    pub(super) fn get(
        &mut self,
        request: RouteNetlinkMessage,
    ) -> io::Result<Result<RouteNetlinkMessage, Refusal>> {
        self.send(&mut [message(request, 0)])?;
        loop {
            match self.receive()?.last().map(|message| parse(message)) {
                Some(Reply::Message(object)) => return Ok(Ok(*object)),
                Some(Reply::Refused(refusal)) => return Ok(Err(refusal)),
                Some(Reply::Done | Reply::Ack | Reply::Unknown) => {
                    return Err(io::Error::other("the kernel's answer does not decode"));
                }
                None => {}
            }
        }
    }

    /// Has at most [`BATCH`] changes done, in order, and returns what became of each.
    ///
    /// The kernel always tells which one it refused. Only the last is acknowledged in any case, since
    /// all before it are done by then: each acknowledgement is a message of its own.
    pub(super) fn execute(
        &mut self,
        requests: Vec<Request>,
    ) -> io::Result<Vec<Result<(), Refusal>>> {
        let mut results: Vec<_> = requests.iter().map(|_| Ok(())).collect();
        let mut batch: Vec<_> =
            requests.into_iter().map(|request| message(request.message, request.flags)).collect();
        let Some(last) = batch.last_mut() else { return Ok(results) };
        last.header.flags |= NLM_F_ACK;
        self.send(&mut batch)?;
        let first = *self.pending.start();
        loop {
            for message in self.receive()? {
                let place = NetlinkBuffer::new(message).sequence_number() - first;
                let result = match parse(message) {
                    Reply::Ack => Ok(()),
                    Reply::Refused(refusal) => Err(refusal),
                    Reply::Message(_) | Reply::Done | Reply::Unknown => continue,
                };
                // Numbers of requests are those that were just sent, in their order.
                results[place as usize] = result;
                if place as usize + 1 == results.len() {
                    return Ok(results);
                }
            }
        }
    }

    fn send(&mut self, messages: &mut [NetlinkMessage<RouteNetlinkMessage>]) -> io::Result<()> {
        let mut bytes = Vec::new();
        let first = self.pending.end() + 1;
        let mut sequence = *self.pending.end();
        for message in messages {
            sequence += 1;
            message.header.sequence_number = sequence;
            message.finalize();
            let start = bytes.len();
            bytes.resize(start + message.buffer_len(), 0);
            message.serialize(&mut bytes[start..]);
            debug_assert_eq!(bytes.len() % 4, 0, "netlink messages are aligned to 4 bytes");
        }
        self.pending = first..=sequence;
        self.inner.send(&bytes, 0).map(|_| ())
    }

    /// Waits for one datagram, and returns the messages in it that answer to what was sent last. The
    /// kernel answers one request after the other.
    fn receive(&mut self) -> io::Result<Vec<&[u8]>> {
        self.received.clear();
        loop {
            match self.inner.recv(&mut self.received, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(_) => break,
            }
        }
        let mut messages = split(&self.received)?;
        let is_answer =
            |message: &[u8]| self.pending.contains(&NetlinkBuffer::new(message).sequence_number());
        messages.retain(|message| is_answer(message));
        Ok(messages)
    }
}

/// Decodes a message with a row of a table, if it is one that the library knows.
pub(super) fn row(message: &[u8]) -> Option<RouteNetlinkMessage> {
    match parse(message) {
        Reply::Message(row) => Some(*row),
        _ => None,
    }
}

fn message(payload: RouteNetlinkMessage, flags: u16) -> NetlinkMessage<RouteNetlinkMessage> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    NetlinkMessage::new(header, NetlinkPayload::InnerMessage(payload))
}

/// Returns the request for an object, whether there is one already or not.
pub(super) const fn replace(message: RouteNetlinkMessage) -> Request {
    Request { message, flags: NLM_F_CREATE | NLM_F_REPLACE }
}

/// Returns the family of an address.
pub(super) const fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn split(mut bytes: &[u8]) -> io::Result<Vec<&[u8]>> {
    let mut messages = Vec::new();
    while bytes.len() >= HEADER_BYTES {
        let length = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        if length < HEADER_BYTES || length > bytes.len() {
            return Err(io::Error::other("the kernel's answer was cut off"));
        }
        let (message, rest) = bytes.split_at(length);
        messages.push(message);
        bytes = rest.get(length.next_multiple_of(4) - length..).unwrap_or_default();
    }
    Ok(messages)
}

fn parse(bytes: &[u8]) -> Reply {
    let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) else {
        return Reply::Unknown;
    };
    match message.payload {
        NetlinkPayload::InnerMessage(inner) => Reply::Message(Box::new(inner)),
        NetlinkPayload::Done(done) => match done.code {
            0 => Reply::Done,
            code => Reply::Refused(refusal(code, &done.extended_ack)),
        },
        NetlinkPayload::Error(error) => match error.code {
            None => Reply::Ack,
            Some(code) => {
                // What follows the header of the request is the extended acknowledgement, because
                // the socket asked for capped ones (`NETLINK_CAP_ACK`).
                let attributes = error.header.get(HEADER_BYTES..).unwrap_or_default();
                Reply::Refused(refusal(code.get(), attributes))
            }
        },
        _ => Reply::Unknown,
    }
}

fn refusal(code: i32, attributes: &[u8]) -> Refusal {
    let errno = io::Error::from_raw_os_error(code.saturating_abs());
    Refusal { reason: extended_ack(attributes), errno }
}

/// Finds the text (`NLMSGERR_ATTR_MSG`) among the attributes of an error message.
fn extended_ack(mut attributes: &[u8]) -> Option<String> {
    const MESSAGE: u16 = 1;
    while let [low, high, kind_low, kind_high, rest @ ..] = attributes {
        let length = usize::from(u16::from_ne_bytes([*low, *high]));
        let value = rest.get(..length.checked_sub(4)?)?;
        if u16::from_ne_bytes([*kind_low, *kind_high]) == MESSAGE {
            let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_text_behind_other_attributes() {
        let mut attributes = vec![8, 0, 2, 0, 1, 2, 3, 4];
        attributes.extend([9, 0, 1, 0, b'o', b'n', b'l', b'y', 0, 0, 0, 0]);
        assert_eq!(extended_ack(&attributes).as_deref(), Some("only"));
    }

    #[test]
    fn broken_attributes_have_no_text() {
        for attributes in [&[][..], &[3, 0, 1, 0], &[200, 0, 1, 0, 65], &[0, 0, 0, 0]] {
            assert_eq!(extended_ack(attributes), None);
        }
    }
}
