//! IP packets as views over bytes that were checked once (RFC 791, RFC 8200).
//!
//! Nothing here trusts a length that a packet tells about itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::{fold, sum};

/// The length of an IPv4 header without options.
pub(super) const IPV4_HEADER: usize = 20;
/// The length of an IPv6 header without extension headers.
pub(super) const IPV6_HEADER: usize = 40;

/// Protocol numbers (RFC 790), which are the next headers of IPv6 as well.
pub(super) mod protocol {
    pub(in super::super) const ICMP: u8 = 1;
    pub(in super::super) const TCP: u8 = 6;
    pub(in super::super) const UDP: u8 = 17;
    pub(in super::super) const ICMPV6: u8 = 58;
}

/// Fields of the IPv4 header, by offset.
pub(super) mod ipv4 {
    use std::ops::Range;

    pub(in super::super) const TOTAL_LENGTH: Range<usize> = 2..4;
    pub(in super::super) const IDENTIFICATION: Range<usize> = 4..6;
    pub(in super::super) const FRAGMENT: Range<usize> = 6..8;
    pub(in super::super) const TTL: usize = 8;
    pub(in super::super) const PROTOCOL: usize = 9;
    pub(in super::super) const CHECKSUM: Range<usize> = 10..12;
    pub(in super::super) const SOURCE: Range<usize> = 12..16;
    pub(in super::super) const DESTINATION: Range<usize> = 16..20;
}

/// Fields of the IPv6 header, by offset.
pub(super) mod ipv6 {
    use std::ops::Range;

    pub(in super::super) const PAYLOAD_LENGTH: Range<usize> = 4..6;
    pub(in super::super) const NEXT_HEADER: usize = 6;
    pub(in super::super) const HOP_LIMIT: usize = 7;
    pub(in super::super) const SOURCE: Range<usize> = 8..24;
    pub(in super::super) const DESTINATION: Range<usize> = 24..40;
}

/// Of the Internet Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V4,
    V6,
}

impl Version {
    /// Returns what the first byte of a packet says.
    fn of(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Some(Self::V4),
            6 => Some(Self::V6),
            _ => None,
        }
    }

    /// The length of a header that has nothing but what it must have.
    pub(super) const fn header_len(self) -> usize {
        match self {
            Self::V4 => IPV4_HEADER,
            Self::V6 => IPV6_HEADER,
        }
    }
}

/// A complete packet: header and length fit the bytes, and nothing follows it.
///
/// Extension headers of IPv6 belong to the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet<'a> {
    bytes: &'a [u8],
    version: Version,
    header_len: usize,
}

impl<'a> Packet<'a> {
    /// Returns `None` if the bytes do not begin with a complete packet. What follows it is cut off.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let beginning = Self::parse_beginning(bytes)?;
        let total = match beginning.version {
            Version::V4 => usize::from(u16_at(bytes, ipv4::TOTAL_LENGTH.start)),
            Version::V6 => IPV6_HEADER + usize::from(u16_at(bytes, ipv6::PAYLOAD_LENGTH.start)),
        };
        let bytes = bytes.get(..total).filter(|packet| packet.len() >= beginning.header_len)?;
        Some(Self { bytes, ..beginning })
    }

    /// Returns the beginning of a packet whose end may be missing.
    pub(super) fn parse_beginning(bytes: &'a [u8]) -> Option<Self> {
        let version = Version::of(bytes)?;
        let header_len = match version {
            Version::V4 => usize::from(bytes[0] & 0x0f) * 4,
            Version::V6 => IPV6_HEADER,
        };
        let fits = (version.header_len()..=bytes.len()).contains(&header_len);
        fits.then_some(Self { bytes, version, header_len })
    }

    pub(super) const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub(super) const fn version(&self) -> Version {
        self.version
    }

    pub(super) const fn header_len(&self) -> usize {
        self.header_len
    }

    pub(super) fn header(&self) -> &'a [u8] {
        &self.bytes[..self.header_len]
    }

    pub(super) fn payload(&self) -> &'a [u8] {
        &self.bytes[self.header_len..]
    }

    pub(super) fn source(&self) -> IpAddr {
        match self.version {
            Version::V4 => self.ipv4_at(ipv4::SOURCE.start),
            Version::V6 => self.ipv6_at(ipv6::SOURCE.start),
        }
    }

    pub(super) fn destination(&self) -> IpAddr {
        match self.version {
            Version::V4 => self.ipv4_at(ipv4::DESTINATION.start),
            Version::V6 => self.ipv6_at(ipv6::DESTINATION.start),
        }
    }

    /// The protocol of the payload; with IPv6 it may be an extension header.
    pub(super) fn protocol(&self) -> u8 {
        match self.version {
            Version::V4 => self.bytes[ipv4::PROTOCOL],
            Version::V6 => self.bytes[ipv6::NEXT_HEADER],
        }
    }

    /// TTL or hop limit.
    pub(super) fn ttl(&self) -> u8 {
        match self.version {
            Version::V4 => self.bytes[ipv4::TTL],
            Version::V6 => self.bytes[ipv6::HOP_LIMIT],
        }
    }

    /// Whether it may not be fragmented on its way.
    pub(super) fn dont_fragment(&self) -> bool {
        match self.version {
            Version::V4 => self.bytes[ipv4::FRAGMENT.start] & 0x40 != 0,
            Version::V6 => true,
        }
    }

    /// Whether it is a part of a larger packet. One of IPv6 has an extension header.
    pub(super) fn is_fragment(&self) -> bool {
        self.version == Version::V4 && u16_at(self.bytes, ipv4::FRAGMENT.start) & 0x3fff != 0
    }

    /// Whether it is a part of a larger packet of IPv4, and not the first one.
    pub(super) fn is_later_fragment(&self) -> bool {
        self.version == Version::V4 && u16_at(self.bytes, ipv4::FRAGMENT.start) & 0x1fff != 0
    }

    /// What identifies the packet that a fragment is of; IPv6 without extension has none.
    pub(super) fn identification(&self) -> u16 {
        match self.version {
            Version::V4 => u16_at(self.bytes, ipv4::IDENTIFICATION.start),
            Version::V6 => 0,
        }
    }

    fn ipv4_at(&self, at: usize) -> IpAddr {
        Ipv4Addr::from(u32_at(self.bytes, at)).into()
    }

    fn ipv6_at(&self, at: usize) -> IpAddr {
        let mut octets = [0; 16];
        octets.copy_from_slice(&self.bytes[at..at + 16]);
        Ipv6Addr::from(octets).into()
    }
}

/// Takes one from the TTL or hop limit of the packet that begins with `header`, and mends the
/// checksum of an IPv4 header (RFC 1141).
///
/// It must be the header of a packet, and the TTL must not be zero.
pub(super) fn decrement_ttl(header: &mut [u8]) {
    if header[0] >> 4 == 6 {
        header[ipv6::HOP_LIMIT] -= 1;
        return;
    }
    header[ipv4::TTL] -= 1;
    // The TTL is the high byte of its word, and the checksum is the complement of the sum.
    let checksum = u32::from(u16_at(header, ipv4::CHECKSUM.start)) + 0x100;
    put_u16(header, ipv4::CHECKSUM.start, fold(u64::from(checksum)));
}

/// Gives a header its length, and one of IPv4 its identification and the checksum that goes with
/// both.
pub(super) fn finish_header(header: &mut [u8], total_len: usize, identification: u16) {
    if header[0] >> 4 == 6 {
        let len = total_len - IPV6_HEADER;
        put_u16(header, ipv6::PAYLOAD_LENGTH.start, u16::try_from(len).unwrap_or(0));
        return;
    }
    put_u16(header, ipv4::TOTAL_LENGTH.start, u16::try_from(total_len).unwrap_or(0));
    put_u16(header, ipv4::IDENTIFICATION.start, identification);
    put_u16(header, ipv4::CHECKSUM.start, 0);
    let checksum = !fold(sum(header));
    put_u16(header, ipv4::CHECKSUM.start, checksum);
}

/// Returns the sum over the pseudo-header of TCP, UDP and ICMPv6 (RFC 9293, section 3.1; RFC 8200,
/// section 8.1), not folded. The header must be followed by the protocol that it names.
pub(super) fn pseudo_header_sum(ip_header: &[u8], segment_len: usize) -> u64 {
    let (addresses, protocol) = if ip_header[0] >> 4 == 6 {
        (ipv6::SOURCE.start..ipv6::DESTINATION.end, ipv6::NEXT_HEADER)
    } else {
        (ipv4::SOURCE.start..ipv4::DESTINATION.end, ipv4::PROTOCOL)
    };
    sum(&ip_header[addresses]) + u64::from(ip_header[protocol]) + segment_len as u64
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

pub(super) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_lower_ttl_keeps_the_checksum_right(mut header in prop::array::uniform20(any::<u8>()), ttl in 1_u8..) {
            header[0] = 0x45;
            header[ipv4::TTL] = ttl;
            finish_header(&mut header, 20, 7);
            decrement_ttl(&mut header);
            prop_assert_eq!(header[ipv4::TTL], ttl - 1);
            prop_assert_eq!(fold(sum(&header)), 0xffff);
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some(packet) = Packet::parse(&bytes) {
                prop_assert!(packet.bytes().len() <= bytes.len());
                prop_assert_eq!(packet.header().len() + packet.payload().len(), packet.bytes().len());
            }
        }
    }

    #[test]
    fn only_whole_packets_are_packets() {
        let mut bytes = [0; 44];
        bytes[0] = 0x60;
        finish_header(&mut bytes[..40], 43, 0);
        assert_eq!(Packet::parse(&bytes).unwrap().bytes().len(), 43);
        assert_eq!(Packet::parse(&bytes[..42]), None);
        assert_eq!(Packet::parse(&bytes[..39]), None);
        let mut bytes = [0; 24];
        bytes[0] = 0x45;
        finish_header(&mut bytes[..20], 22, 0);
        assert_eq!(Packet::parse(&bytes).unwrap().bytes().len(), 22);
        assert_eq!(Packet::parse(&bytes[..21]), None);
        for (at, value) in [(0, 0x55), (0, 0x65), (0, 0x44), (0, 0x4f), (3, 19), (2, 1)] {
            let mut broken = bytes;
            broken[at] = value;
            assert_eq!(Packet::parse(&broken), None, "{at} {value:#x}");
        }
    }
}
