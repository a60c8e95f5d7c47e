//! Packets that follow each other in one flow become one segment, to be handed to the kernel at
//! once. What [`Cut`](super::offload::Cut) makes of the segment are the packets again, apart from
//! identifications that mean nothing (RFC 6864, section 4.1).

use super::checksum::{fold, sum};
use super::offload::{Transport, VnetHeader, tcp, udp};
use super::packet::{
    Packet, Version, finish_header, ipv4, ipv6, pseudo_header_sum, put_u16, u16_at, u32_at,
};

/// The longest packet that has room for its length.
const SEGMENT_MAX: usize = 65_535;
/// So many packets are in a segment at most; a segment of full packets has about 46.
pub(super) const PACKETS_MAX: usize = 512;
/// The kernel takes no more of UDP (`UDP_MAX_SEGMENTS`, before it became 128).
const DATAGRAMS_MAX: usize = 64;

/// A flow's packets that follow each other; the bytes stay where they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    transport: Transport,
    version: Version,
    header_len: usize,
    /// The payload of each packet but the last.
    size: usize,
    payload: usize,
    count: usize,
    /// The sequence number that continues it.
    sequence: u32,
    identification: u16,
    /// The flags of the last packet, which the segment gets.
    flags: u8,
    /// Whether the last packet was the last that can be.
    closed: bool,
    /// Whether the checksums of the first packet were found right.
    verified: bool,
}

impl Run {
    /// Begins with this packet; `None` if no packet can follow it.
    pub(super) fn start(packet: &Packet<'_>) -> Option<Self> {
        let member = Member::of(packet)?;
        Some(Self {
            transport: member.transport,
            version: packet.version(),
            header_len: member.header_len,
            size: member.payload,
            payload: member.payload,
            count: 1,
            sequence: member.next_sequence(),
            identification: member.identification.wrapping_add(1),
            flags: member.flags,
            closed: member.is_last(),
            verified: false,
        })
    }

    /// Of what protocol the packets are.
    pub(super) const fn transport(&self) -> Transport {
        self.transport
    }

    /// The number of packets.
    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// The length of all packets together.
    pub(super) const fn len(&self) -> usize {
        self.count * self.header_len + self.payload
    }

    /// Returns where the payload of the packet just taken begins.
    pub(super) const fn header_len(&self) -> usize {
        self.header_len
    }

    /// Takes in a packet if it continues the run that began with `first`.
    pub(super) fn take(&mut self, first: &Packet<'_>, packet: &Packet<'_>) -> bool {
        let count_max = match self.transport {
            Transport::Tcp => PACKETS_MAX,
            Transport::Udp => DATAGRAMS_MAX,
        };
        if self.closed || self.count == count_max {
            return false;
        }
        let Some(member) = Member::of(packet) else { return false };
        let continues = member.transport == self.transport
            && packet.version() == self.version
            && member.header_len == self.header_len
            && member.payload <= self.size
            && self.header_len + self.payload + member.payload <= SEGMENT_MAX
            && (packet.dont_fragment() || member.identification == self.identification)
            && (self.transport == Transport::Udp || member.sequence == self.sequence)
            && same_headers(self.transport, first, packet);
        if !continues || !self.is_intact(first) || !checksums_are_right(packet) {
            return false;
        }
        self.verified = true;
        self.payload += member.payload;
        self.count += 1;
        self.sequence = member.next_sequence();
        self.identification = member.identification.wrapping_add(1);
        self.flags = member.flags;
        self.closed = member.payload < self.size || member.is_last();
        true
    }

    fn is_intact(&mut self, first: &Packet<'_>) -> bool {
        // What is wrong with one packet must not vanish in a segment; a packet that stays alone is
        // the kernel's to check.
        self.verified = self.verified || checksums_are_right(first);
        self.closed = !self.verified;
        self.verified
    }

    /// Turns the headers of the first packet into those of the segment, and says what it is.
    pub(super) fn finish(&self, headers: &mut [u8]) -> VnetHeader {
        if self.count == 1 {
            return VnetHeader::default();
        }
        let ip_len = self.version.header_len();
        let (ip, transport) = headers[..self.header_len].split_at_mut(ip_len);
        let identification = u16_at(ip, ipv4::IDENTIFICATION.start);
        finish_header(ip, self.header_len + self.payload, identification);
        let segment_len = transport.len() + self.payload;
        match self.transport {
            Transport::Tcp => transport[tcp::FLAGS] = self.flags,
            Transport::Udp => {
                put_u16(transport, udp::LENGTH, u16::try_from(segment_len).unwrap_or(0));
            }
        }
        let offset = self.transport.checksum_offset();
        put_u16(transport, offset, fold(pseudo_header_sum(ip, segment_len)));
        let short = |len: usize| u16::try_from(len).unwrap_or(0);
        VnetHeader {
            flags: VnetHeader::NEEDS_CHECKSUM,
            gso_type: self.transport.gso_type(self.version),
            header_len: short(self.header_len),
            gso_size: short(self.size),
            checksum_start: short(ip_len),
            checksum_offset: short(offset),
        }
    }
}

/// A packet that can be part of a run.
struct Member {
    transport: Transport,
    header_len: usize,
    payload: usize,
    sequence: u32,
    identification: u16,
    flags: u8,
}

impl Member {
    fn of(packet: &Packet<'_>) -> Option<Self> {
        let (transport, header_len) = Transport::of(packet)?;
        let payload = packet.bytes().len() - header_len;
        let segment = packet.payload();
        let (sequence, flags) = match transport {
            Transport::Tcp => (u32_at(segment, tcp::SEQUENCE), segment[tcp::FLAGS]),
            Transport::Udp => (0, 0),
        };
        let mergeable = match transport {
            Transport::Tcp => {
                flags & tcp::ACK != 0 && flags & (tcp::SYN | tcp::RST | tcp::URG | tcp::CWR) == 0
            }
            Transport::Udp => {
                // One without a checksum must stay so, and one that lies about its length too.
                u16_at(segment, udp::CHECKSUM) != 0
                    && usize::from(u16_at(segment, udp::LENGTH)) == segment.len()
            }
        };
        // Options of IP are rare and would have to be equal.
        let plain = packet.header_len() == packet.version().header_len() && payload > 0;
        let identification = packet.identification();
        (mergeable && plain).then_some(Self {
            transport,
            header_len,
            payload,
            sequence,
            identification,
            flags,
        })
    }

    fn next_sequence(&self) -> u32 {
        self.sequence.wrapping_add(u32::try_from(self.payload).unwrap_or(0))
    }

    const fn is_last(&self) -> bool {
        self.flags & (tcp::FIN | tcp::PSH) != 0
    }
}

/// Whether two packets of one version differ in nothing that a segment has only once.
fn same_headers(transport: Transport, first: &Packet<'_>, other: &Packet<'_>) -> bool {
    let equal =
        |range: std::ops::Range<usize>| first.bytes()[range.clone()] == other.bytes()[range];
    let at = first.header_len();
    // All but length, identification and checksum.
    let ip = match first.version() {
        Version::V4 => {
            equal(0..ipv4::TOTAL_LENGTH.start)
                && equal(ipv4::FRAGMENT.start..ipv4::CHECKSUM.start)
                && equal(ipv4::SOURCE.start..ipv4::DESTINATION.end)
        }
        Version::V6 => {
            equal(0..ipv6::PAYLOAD_LENGTH.start) && equal(ipv6::NEXT_HEADER..ipv6::DESTINATION.end)
        }
    };
    ip && match transport {
        Transport::Udp => equal(at..at + udp::LENGTH),
        // All but sequence number, checksum, and the flags that only the last one may have.
        Transport::Tcp => {
            let flags = first.payload()[tcp::FLAGS] ^ other.payload()[tcp::FLAGS];
            let header = usize::from(first.payload()[tcp::DATA_OFFSET] >> 4) * 4;
            flags & !(tcp::FIN | tcp::PSH) == 0
                && equal(at..at + tcp::SEQUENCE)
                && equal(at + tcp::SEQUENCE + 4..at + tcp::FLAGS)
                && equal(at + tcp::FLAGS + 1..at + tcp::CHECKSUM)
                && equal(at + tcp::CHECKSUM + 2..at + header)
        }
    }
}

fn checksums_are_right(packet: &Packet<'_>) -> bool {
    let segment = packet.payload();
    (packet.version() == Version::V6 || fold(sum(packet.header())) == 0xffff)
        && fold(pseudo_header_sum(packet.header(), segment.len()) + sum(segment)) == 0xffff
}

#[cfg(test)]
mod tests;
