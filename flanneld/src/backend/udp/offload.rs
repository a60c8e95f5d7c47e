//! Segments larger than packets: what the kernel hands out uncut is cut here, with checksums.
//!
//! The kernel puts a `virtio_net_hdr` (`linux/virtio_net.h`) before every packet that it hands out
//! or takes. It says how much work is left to do: a checksum to complete, or a segment to cut.

use std::ops::Range;

use super::checksum::{fold, sum};
use super::packet::{
    Packet, Version, finish_header, protocol, pseudo_header_sum, put_u16, put_u32, u32_at,
};

/// The length of a [`VnetHeader`] in bytes.
pub(super) const VNET_HEADER: usize = 10;
/// IPv4 and TCP headers, each with as many options as can be; IPv6 and TCP headers are shorter.
pub(super) const HEADERS_MAX: usize = 120;

/// Fields of the TCP header, by offset (RFC 9293, section 3.1).
pub(super) mod tcp {
    pub(in super::super) const SEQUENCE: usize = 4;
    pub(in super::super) const DATA_OFFSET: usize = 12;
    pub(in super::super) const FLAGS: usize = 13;
    pub(in super::super) const CHECKSUM: usize = 16;
    pub(in super::super) const HEADER: usize = 20;

    pub(in super::super) const FIN: u8 = 0x01;
    pub(in super::super) const SYN: u8 = 0x02;
    pub(in super::super) const RST: u8 = 0x04;
    pub(in super::super) const PSH: u8 = 0x08;
    pub(in super::super) const ACK: u8 = 0x10;
    pub(in super::super) const URG: u8 = 0x20;
    pub(in super::super) const CWR: u8 = 0x80;
}

/// Fields of the UDP header, by offset (RFC 768).
pub(super) mod udp {
    pub(in super::super) const LENGTH: usize = 4;
    pub(in super::super) const CHECKSUM: usize = 6;
    pub(in super::super) const HEADER: usize = 8;
}

/// What is left to do for a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct VnetHeader {
    pub(super) flags: u8,
    pub(super) gso_type: u8,
    /// The length of all headers.
    pub(super) header_len: u16,
    /// The payload of each packet.
    pub(super) gso_size: u16,
    /// Where the checksum begins, and where it goes from there.
    pub(super) checksum_start: u16,
    pub(super) checksum_offset: u16,
}

impl VnetHeader {
    pub(super) const NEEDS_CHECKSUM: u8 = 1;
    pub(super) const GSO_NONE: u8 = 0;
    pub(super) const GSO_TCP4: u8 = 1;
    pub(super) const GSO_TCP6: u8 = 4;
    pub(super) const GSO_UDP: u8 = 5;
    /// Goes with a type: the segment has the CWR flag.
    pub(super) const GSO_ECN: u8 = 0x80;

    /// In the byte order of the machine, as long as nothing else is asked for.
    pub(super) fn decode(bytes: &[u8; VNET_HEADER]) -> Self {
        let field = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            header_len: field(2),
            gso_size: field(4),
            checksum_start: field(6),
            checksum_offset: field(8),
        }
    }

    pub(super) fn encode(self) -> [u8; VNET_HEADER] {
        let mut bytes = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        let fields = [self.header_len, self.gso_size, self.checksum_start, self.checksum_offset];
        for (to, from) in bytes[2..].chunks_exact_mut(2).zip(fields) {
            to.copy_from_slice(&from.to_ne_bytes());
        }
        bytes
    }
}

/// A protocol whose segments can be cut and merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    /// Returns the protocol of a packet and the length of all its headers.
    pub(super) fn of(packet: &Packet<'_>) -> Option<(Self, usize)> {
        let segment = packet.payload();
        let (transport, header_len) = match packet.protocol() {
            protocol::TCP => {
                let words = segment.get(tcp::DATA_OFFSET)? >> 4;
                (Self::Tcp, usize::from(words) * 4)
            }
            protocol::UDP => (Self::Udp, udp::HEADER),
            _ => return None,
        };
        let shortest = match transport {
            Self::Tcp => tcp::HEADER,
            Self::Udp => udp::HEADER,
        };
        let fits = (shortest..=segment.len()).contains(&header_len) && !packet.is_fragment();
        fits.then_some((transport, packet.header_len() + header_len))
    }

    pub(super) const fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => tcp::CHECKSUM,
            Self::Udp => udp::CHECKSUM,
        }
    }

    /// Returns the type of a segment of this protocol.
    pub(super) const fn gso_type(self, version: Version) -> u8 {
        match (self, version) {
            (Self::Tcp, Version::V4) => VnetHeader::GSO_TCP4,
            (Self::Tcp, Version::V6) => VnetHeader::GSO_TCP6,
            (Self::Udp, _) => VnetHeader::GSO_UDP,
        }
    }
}

/// How a segment is cut into packets: all of `size` bytes of payload, the last one maybe of less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    transport: Transport,
    ip_len: usize,
    header_len: usize,
    identification: u16,
    size: usize,
    count: usize,
}

impl Cut {
    /// Returns `None` if this is no segment that can be cut as the kernel says.
    pub(super) fn new(vnet: VnetHeader, packet: &Packet<'_>) -> Option<Self> {
        let (transport, header_len) = Transport::of(packet)?;
        let size = usize::from(vnet.gso_size);
        let payload = packet.bytes().len() - header_len;
        let gso_type = transport.gso_type(packet.version());
        if vnet.gso_type & !VnetHeader::GSO_ECN != gso_type || size == 0 || payload == 0 {
            return None;
        }
        Some(Self {
            transport,
            ip_len: packet.header_len(),
            header_len,
            identification: packet.identification(),
            size,
            count: payload.div_ceil(size),
        })
    }

    /// The number of packets.
    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// The length of the headers of each packet.
    pub(super) const fn header_len(&self) -> usize {
        self.header_len
    }

    /// Writes the headers of one packet to the beginning of `room`, and returns where in the segment
    /// its payload is.
    pub(super) fn write_headers(
        &self,
        segment: &[u8],
        index: usize,
        room: &mut [u8; HEADERS_MAX],
    ) -> Range<usize> {
        let start = self.header_len + index * self.size;
        let range = start..(start + self.size).min(segment.len());
        let payload = &segment[range.clone()];
        match segment.first_chunk() {
            // Always the same length: it takes no call to copy that.
            Some(beginning) => *room = *beginning,
            None => room[..self.header_len].copy_from_slice(&segment[..self.header_len]),
        }
        let headers = &mut room[..self.header_len];
        let (ip, transport) = headers.split_at_mut(self.ip_len);
        let [low, high, ..] = index.to_le_bytes();
        let identification = self.identification.wrapping_add(u16::from_le_bytes([low, high]));
        finish_header(ip, self.header_len + payload.len(), identification);
        match self.transport {
            Transport::Tcp => self.write_tcp(transport, index),
            Transport::Udp => {
                let len = u16::try_from(transport.len() + payload.len()).unwrap_or(0);
                put_u16(transport, udp::LENGTH, len);
            }
        }
        write_checksum(ip, transport, self.transport, payload);
        range
    }

    fn write_tcp(&self, header: &mut [u8], index: usize) {
        let [a, b, c, d, ..] = (index * self.size).to_le_bytes();
        let sequence = u32_at(header, tcp::SEQUENCE);
        let sequence = sequence.wrapping_add(u32::from_le_bytes([a, b, c, d]));
        put_u32(header, tcp::SEQUENCE, sequence);
        if index > 0 {
            header[tcp::FLAGS] &= !tcp::CWR;
        }
        if index + 1 < self.count {
            header[tcp::FLAGS] &= !(tcp::FIN | tcp::PSH);
        }
    }
}

fn write_checksum(ip: &[u8], header: &mut [u8], transport: Transport, payload: &[u8]) {
    put_u16(header, transport.checksum_offset(), 0);
    let segment_len = header.len() + payload.len();
    let checksum = !fold(pseudo_header_sum(ip, segment_len) + sum(header) + sum(payload));
    put_u16(header, transport.checksum_offset(), non_zero(transport, checksum));
}

/// Zero says that a UDP datagram has no checksum (RFC 768).
const fn non_zero(transport: Transport, checksum: u16) -> u16 {
    match transport {
        Transport::Udp if checksum == 0 => 0xffff,
        _ => checksum,
    }
}

/// Completes the checksum of a packet that is not cut. Returns false if it does not fit the packet.
pub(super) fn complete_checksum(vnet: VnetHeader, packet: &mut [u8]) -> bool {
    if vnet.flags & VnetHeader::NEEDS_CHECKSUM == 0 {
        return true;
    }
    let start = usize::from(vnet.checksum_start);
    let at = start + usize::from(vnet.checksum_offset);
    if packet.len() < at + 2 {
        return false;
    }
    // The field holds the sum over the pseudo-header already.
    let checksum = !fold(sum(&packet[start..]));
    put_u16(packet, at, if checksum == 0 { 0xffff } else { checksum });
    true
}
