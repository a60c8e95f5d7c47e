//! What is sent to the underlay in one go: datagrams in pieces, those that follow each other to one
//! place with one length gathered to messages that the kernel cuts.

use std::net::SocketAddr;
use std::ops::Range;

use super::offload::{HEADERS_MAX, VNET_HEADER};

/// The longest packet that the device gives us, with its header.
const READ_MAX: usize = VNET_HEADER + 65_536;
/// Where packets are read to: some segments, or many small packets behind each other. The datagrams
/// of several segments fill more messages to the brim than those of one.
const READ_AREA: usize = 8 * READ_MAX;
/// Where the headers of cut packets are written.
const HEADER_AREA: usize = DATAGRAMS_MAX * HEADERS_MAX;
/// So many datagrams are sent in one go.
const DATAGRAMS_MAX: usize = 512;
/// So many messages.
pub(super) const MESSAGES_MAX: usize = 64;
/// So many datagrams are in one message at most (`UDP_MAX_SEGMENTS`, before it became 128).
pub(super) const SEGMENTS_MAX: usize = 64;
/// The longest payload of UDP over IPv4, whether the kernel cuts it or not; over IPv6 it is longer.
const MESSAGE_MAX: usize = 65_507;

/// Datagrams to one place, all of the same length, only the last one maybe shorter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) to: SocketAddr,
    /// Which pieces.
    pub(super) pieces: Range<usize>,
    /// The length of each datagram.
    pub(super) segment: usize,
    pub(super) datagrams: usize,
    len: usize,
    /// Whether its last datagram is shorter, so that none can follow.
    closed: bool,
}

/// The buffers of one sending thread.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Box<[u8]>,
    /// How much of the area for packets is in use.
    read: usize,
    /// How much of the area for headers is in use.
    headers: usize,
    pieces: Vec<Range<usize>>,
    messages: Vec<Message>,
    datagrams: usize,
    /// How many datagrams the kernel can cut a message into.
    segments_max: usize,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; READ_AREA + HEADER_AREA].into_boxed_slice(),
            read: 0,
            headers: READ_AREA,
            pieces: Vec::with_capacity(2 * DATAGRAMS_MAX),
            messages: Vec::with_capacity(MESSAGES_MAX),
            datagrams: 0,
            segments_max: 1,
        }
    }

    /// Begins anew.
    pub(super) fn clear(&mut self, segments_max: usize) {
        self.segments_max = segments_max;
        self.read = 0;
        self.sent();
    }

    /// Forgets the datagrams, but not the packets that they were made of.
    pub(super) fn sent(&mut self) {
        self.headers = READ_AREA;
        self.datagrams = 0;
        self.pieces.clear();
        self.messages.clear();
    }

    /// Whether another packet can be read.
    pub(super) fn has_room(&self) -> bool {
        self.read + READ_MAX <= READ_AREA && !self.is_full()
    }

    /// Whether what there is must be sent first.
    pub(super) fn is_full(&self) -> bool {
        self.messages.len() == MESSAGES_MAX || self.datagrams == DATAGRAMS_MAX
    }

    /// Returns where to read the next packet to.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.read..READ_AREA]
    }

    /// Takes in what was read, and returns where it is.
    pub(super) fn keep(&mut self, len: usize) -> Range<usize> {
        let start = self.read;
        // On a cache line of its own.
        self.read = (start + len).next_multiple_of(64).min(READ_AREA);
        start..start + len
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Returns what was read, and room for the headers of one datagram, which will begin at the
    /// place returned.
    pub(super) fn split(&mut self) -> (&[u8], &mut [u8; HEADERS_MAX], usize) {
        let start = self.headers;
        self.headers += HEADERS_MAX;
        let (packets, headers) = self.bytes.split_at_mut(READ_AREA);
        let room = headers[start - READ_AREA..].first_chunk_mut();
        (packets, room.expect("there is room for the headers of all datagrams"), start)
    }

    /// Adds a datagram. There must be room.
    pub(super) fn push<const N: usize>(&mut self, to: SocketAddr, pieces: [Range<usize>; N]) {
        let len = pieces.iter().map(ExactSizeIterator::len).sum();
        let start = self.pieces.len();
        self.pieces.extend(pieces);
        self.datagrams += 1;
        let end = self.pieces.len();
        let segments_max = self.segments_max;
        match self.messages.last_mut().filter(|last| last.continues(to, len, segments_max)) {
            Some(last) => {
                last.pieces.end = end;
                last.datagrams += 1;
                last.len += len;
                last.closed = len < last.segment;
            }
            None => self.messages.push(Message {
                to,
                pieces: start..end,
                segment: len,
                datagrams: 1,
                len,
                closed: false,
            }),
        }
    }

    pub(super) fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Returns the pieces of a message.
    pub(super) fn pieces(&self, message: &Message) -> impl Iterator<Item = &[u8]> {
        self.pieces[message.pieces.clone()].iter().map(|piece| &self.bytes[piece.clone()])
    }

    /// Returns the datagrams of a message as messages of their own.
    pub(super) fn datagrams(&self, message: &Message) -> impl Iterator<Item = Message> {
        let mut start = message.pieces.start;
        std::iter::from_fn(move || {
            let (mut end, mut len) = (start, 0);
            while end < message.pieces.end && len < message.segment {
                len += self.pieces[end].len();
                end += 1;
            }
            let pieces = std::mem::replace(&mut start, end)..end;
            (len > 0).then_some(Message {
                pieces,
                segment: len,
                datagrams: 1,
                len,
                ..message.clone()
            })
        })
    }
}

impl Message {
    fn continues(&self, to: SocketAddr, len: usize, segments_max: usize) -> bool {
        self.to == to
            && !self.closed
            && len <= self.segment
            && self.datagrams < segments_max
            && self.len + len <= MESSAGE_MAX
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    const HERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 8285);
    const THERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)), 8285);

    fn shape(
        segments_max: usize,
        datagrams: &[(SocketAddr, usize)],
    ) -> Vec<(SocketAddr, usize, usize)> {
        let mut batch = Batch::new();
        batch.clear(segments_max);
        for (to, len) in datagrams {
            batch.push(*to, [0..10, 10..*len]);
        }
        for message in batch.messages() {
            let single: Vec<_> = batch.datagrams(message).collect();
            assert_eq!(single.len(), message.datagrams);
            assert_eq!(single.iter().map(|one| one.len).sum::<usize>(), message.len);
            assert!(single.iter().all(|one| one.pieces.len() == 2));
        }
        batch.messages().iter().map(|m| (m.to, m.segment, m.datagrams)).collect()
    }

    #[test]
    fn equal_datagrams_to_one_place_become_one_message() {
        let lens = [(HERE, 100), (HERE, 100), (HERE, 60), (HERE, 60), (THERE, 60), (THERE, 61)];
        assert_eq!(
            shape(64, &lens),
            [(HERE, 100, 3), (HERE, 60, 1), (THERE, 60, 1), (THERE, 61, 1)]
        );
        assert_eq!(shape(1, &lens).len(), 6);
        assert_eq!(shape(64, &[(HERE, 1472); 46]), [(HERE, 1472, 44), (HERE, 1472, 2)]);
        assert_eq!(shape(64, &[(HERE, 60); 65]), [(HERE, 60, 64), (HERE, 60, 1)]);
    }
}
