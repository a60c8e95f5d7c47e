//! IPv4 packets as views over bytes that were checked once (RFC 791), and the Internet checksum
//! (RFC 1071).
//!
//! Nothing here trusts a length that a packet tells about itself.

use std::net::Ipv4Addr;

/// The length of an IPv4 header without options.
pub(super) const IPV4_HEADER: usize = 20;

/// Protocol numbers (RFC 790).
pub(super) mod protocol {
    pub(in super::super) const ICMP: u8 = 1;
    pub(in super::super) const TCP: u8 = 6;
    pub(in super::super) const UDP: u8 = 17;
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

/// A complete IPv4 packet: header and total length fit the bytes, and nothing follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet<'a> {
    bytes: &'a [u8],
    header_len: usize,
}

impl<'a> Packet<'a> {
    /// Returns `None` if the bytes do not begin with a complete packet. What follows it is cut off.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let first = *bytes.first()?;
        let header_len = usize::from(first & 0x0f) * 4;
        if first >> 4 != 4 || header_len < IPV4_HEADER || bytes.len() < header_len {
            return None;
        }
        let total = usize::from(u16_at(bytes, ipv4::TOTAL_LENGTH.start));
        let bytes = bytes.get(..total).filter(|packet| packet.len() >= header_len)?;
        Some(Self { bytes, header_len })
    }

    /// Returns the beginning of a packet whose end is missing.
    pub(super) fn parse_beginning(bytes: &'a [u8]) -> Option<Self> {
        let header_len = usize::from(*bytes.first()? & 0x0f) * 4;
        let fits = (IPV4_HEADER..=bytes.len()).contains(&header_len) && bytes[0] >> 4 == 4;
        fits.then_some(Self { bytes, header_len })
    }

    pub(super) const fn bytes(&self) -> &'a [u8] {
        self.bytes
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

    pub(super) fn source(&self) -> Ipv4Addr {
        self.address(ipv4::SOURCE.start)
    }

    pub(super) fn destination(&self) -> Ipv4Addr {
        self.address(ipv4::DESTINATION.start)
    }

    pub(super) fn protocol(&self) -> u8 {
        self.bytes[ipv4::PROTOCOL]
    }

    pub(super) fn ttl(&self) -> u8 {
        self.bytes[ipv4::TTL]
    }

    /// Whether it may not be fragmented.
    pub(super) fn dont_fragment(&self) -> bool {
        self.bytes[ipv4::FRAGMENT.start] & 0x40 != 0
    }

    /// Whether it is a part of a larger packet.
    pub(super) fn is_fragment(&self) -> bool {
        u16_at(self.bytes, ipv4::FRAGMENT.start) & 0x3fff != 0
    }

    /// Whether it is a part of a larger packet, and not the first one.
    pub(super) fn is_later_fragment(&self) -> bool {
        u16_at(self.bytes, ipv4::FRAGMENT.start) & 0x1fff != 0
    }

    fn address(&self, at: usize) -> Ipv4Addr {
        Ipv4Addr::from(u32_at(self.bytes, at))
    }
}

/// Takes one from the TTL of the packet in `header` and mends its checksum (RFC 1141).
///
/// The TTL must not be zero.
pub(super) fn decrement_ttl(header: &mut [u8]) {
    header[ipv4::TTL] -= 1;
    // The TTL is the high byte of its word, and the checksum is the complement of the sum.
    let checksum = u32::from(u16_at(header, ipv4::CHECKSUM.start)) + 0x100;
    put_u16(header, ipv4::CHECKSUM.start, fold(u64::from(checksum)));
}

/// Gives an IPv4 header its length, its identification, and the checksum that goes with both.
pub(super) fn finish_header(header: &mut [u8], total_len: usize, identification: u16) {
    put_u16(header, ipv4::TOTAL_LENGTH.start, u16::try_from(total_len).unwrap_or(0));
    put_u16(header, ipv4::IDENTIFICATION.start, identification);
    put_u16(header, ipv4::CHECKSUM.start, 0);
    let checksum = !fold(sum(header));
    put_u16(header, ipv4::CHECKSUM.start, checksum);
}

/// Returns the sum over the pseudo-header of TCP and UDP (RFC 9293, section 3.1), not folded.
pub(super) fn pseudo_header_sum(ip_header: &[u8], segment_len: usize) -> u64 {
    let addresses = sum(&ip_header[ipv4::SOURCE.start..ipv4::DESTINATION.end]);
    addresses + u64::from(ip_header[ipv4::PROTOCOL]) + segment_len as u64
}

/// Returns the sum of all 16-bit words, not folded. A last odd byte counts as the high one.
///
/// Adds 32 bits at a time, which compilers turn into vector instructions; two sums can be added as
/// long as what the first was taken over has an even length.
pub(super) fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    // In the byte order of the machine, because the order can be put right in the result.
    let native: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    u64::from(u16::from_be(fold(native + u64::from(u32::from_ne_bytes(last)))))
}

/// Folds a sum to 16 bits with end-around carry.
pub(super) fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let [low, high, ..] = ((sum & 0xffff) + (sum >> 16)).to_le_bytes();
    u16::from_le_bytes([low, high])
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

    /// The checksum as RFC 1071 explains it.
    fn naive_checksum(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            if sum > 0xffff {
                sum = (sum & 0xffff) + 1;
            }
        }
        u16::try_from(sum).unwrap()
    }

    /// Zero and all ones are the same number in this arithmetic.
    fn same(left: u16, right: u16) -> bool {
        left == right || (left.min(right) == 0 && left.max(right) == 0xffff)
    }

    proptest! {
        #[test]
        fn sums_agree_with_a_naive_one(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert!(same(fold(sum(&bytes)), naive_checksum(&bytes)));
        }

        #[test]
        fn sums_of_parts_add_up(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0_usize..100) {
            let at = (at * 2).min(bytes.len() / 2 * 2);
            let parts = sum(&bytes[..at]) + sum(&bytes[at..]);
            prop_assert!(same(fold(parts), naive_checksum(&bytes)));
        }

        #[test]
        fn a_lower_ttl_keeps_the_checksum_right(mut header in prop::array::uniform20(any::<u8>()), ttl in 1_u8..) {
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
        let mut bytes = [0; 24];
        bytes[0] = 0x45;
        finish_header(&mut bytes[..20], 22, 0);
        assert_eq!(Packet::parse(&bytes).unwrap().bytes().len(), 22);
        assert_eq!(Packet::parse(&bytes[..21]), None);
        for (at, value) in [(0, 0x65), (0, 0x44), (0, 0x4f), (3, 19), (2, 1)] {
            let mut broken = bytes;
            broken[at] = value;
            assert_eq!(Packet::parse(&broken), None, "{at} {value:#x}");
        }
    }
}
