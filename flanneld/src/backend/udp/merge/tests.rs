//! Cutting and merging are each other's inverse.

use proptest::prelude::*;

use super::super::offload::{Cut, HEADERS_MAX};
use super::super::packet::{protocol, put_u32};
use super::*;

/// A flow of packets with everything that can differ between flows.
#[derive(Clone, Debug)]
struct Flow {
    version: Version,
    transport: Transport,
    options: Vec<u8>,
    fragment: u16,
    tos: u8,
    ttl: u8,
    identification: u16,
    sequence: u32,
    flags: u8,
    last_flags: u8,
    size: usize,
    count: usize,
    last: usize,
}

fn flow() -> impl Strategy<Value = Flow> {
    let version = prop_oneof![Just(Version::V4), Just(Version::V6)];
    let transport = prop_oneof![Just(Transport::Tcp), Just(Transport::Udp)];
    let options =
        (0_usize..=10).prop_flat_map(|words| prop::collection::vec(any::<u8>(), words * 4));
    let header = (any::<bool>(), any::<u8>(), any::<u8>(), any::<u16>());
    // ACK, and ECE or not; the last one with FIN, PSH or both as well.
    let flags = (
        prop_oneof![Just(0x10_u8), Just(0x50)],
        prop_oneof![Just(0_u8), Just(1), Just(8), Just(9)],
    );
    let sizes = (1_usize..1500, 2_usize..44, 0.0..1.0_f64);
    (version, transport, options, header, any::<u32>(), flags, sizes).prop_map(
        |(version, transport, options, (df, tos, ttl, identification), sequence, flags, sizes)| {
            Flow {
                version,
                transport,
                options: if transport == Transport::Tcp { options } else { Vec::new() },
                fragment: if df { 0x4000 } else { 0 },
                tos,
                ttl,
                identification,
                sequence,
                flags: flags.0,
                last_flags: flags.1,
                size: sizes.0,
                count: sizes.1,
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    clippy::cast_precision_loss,
                    reason = "a part of a small number"
                )]
                last: 1 + ((sizes.0 - 1) as f64 * sizes.2) as usize,
            }
        },
    )
}

impl Flow {
    fn packets(&self) -> Vec<Vec<u8>> {
        (0..self.count).map(|index| self.packet(index)).collect()
    }

    fn packet(&self, index: usize) -> Vec<u8> {
        let is_last = index + 1 == self.count;
        let payload = if is_last { self.last } else { self.size };
        let offset = u32::try_from(index * self.size).unwrap();
        let mut packet = self.ip_header();
        let ip_len = packet.len();
        packet.extend([0x12, 0x34, 0xab, 0xcd]);
        match self.transport {
            Transport::Udp => {
                packet.extend(u16::try_from(udp::HEADER + payload).unwrap().to_be_bytes());
                packet.extend([0, 0]);
            }
            Transport::Tcp => {
                packet.extend(self.sequence.wrapping_add(offset).to_be_bytes());
                let words = u8::try_from(5 + self.options.len() / 4).unwrap();
                let flags = if is_last { self.flags | self.last_flags } else { self.flags };
                packet.extend([9, 8, 7, 6, words << 4, flags, 0x20, 0, 0, 0, 0, 0]);
                packet.extend(&self.options);
            }
        }
        let index = u16::try_from(index).unwrap();
        packet.extend((0..payload).map(|at| (at * 7 + usize::from(index)).to_le_bytes()[0]));
        let len = packet.len();
        finish_header(&mut packet[..ip_len], len, self.identification.wrapping_add(index));
        mend(&mut packet, self.transport);
        packet
    }

    fn ip_header(&self) -> Vec<u8> {
        let mut header = vec![0; self.version.header_len()];
        let protocol = match self.transport {
            Transport::Tcp => protocol::TCP,
            Transport::Udp => protocol::UDP,
        };
        match self.version {
            Version::V4 => {
                header[..2].copy_from_slice(&[0x45, self.tos]);
                put_u16(&mut header, ipv4::FRAGMENT.start, self.fragment);
                header[ipv4::TTL] = self.ttl;
                header[ipv4::PROTOCOL] = protocol;
                header[ipv4::SOURCE].copy_from_slice(&[10, 244, 1, 5]);
                header[ipv4::DESTINATION].copy_from_slice(&[10, 244, 2, 7]);
            }
            Version::V6 => {
                let [high, low] = self.identification.to_be_bytes();
                header[..4].copy_from_slice(&[0x60 | self.tos >> 4, self.tos << 4, high, low]);
                header[ipv6::HOP_LIMIT] = self.ttl;
                header[ipv6::NEXT_HEADER] = protocol;
                header[ipv6::SOURCE].copy_from_slice(b"\x20\x01\x0d\xb8node-one-pod");
                header[ipv6::DESTINATION].copy_from_slice(b"\x20\x01\x0d\xb8node-two-pod");
            }
        }
        header
    }
}

/// Writes a checksum, word by word.
fn mend(packet: &mut [u8], transport: Transport) {
    let (ip_len, addresses, protocol) = match packet[0] >> 4 {
        4 => (20, 12, packet[ipv4::PROTOCOL]),
        _ => (40, 8, packet[ipv6::NEXT_HEADER]),
    };
    let at = ip_len + transport.checksum_offset();
    put_u16(packet, at, 0);
    let segment_len = u16::try_from(packet.len() - ip_len).unwrap();
    let mut words = vec![u16::from(protocol), segment_len];
    let pairs = packet[addresses..].chunks(2);
    words.extend(pairs.map(|pair| u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let sum = words.iter().fold(0_u32, |sum, word| {
        let sum = sum + u32::from(*word);
        (sum & 0xffff) + (sum >> 16)
    });
    let checksum = !u16::try_from(sum).unwrap();
    let is_zero_udp = checksum == 0 && transport == Transport::Udp;
    put_u16(packet, at, if is_zero_udp { 0xffff } else { checksum });
}

/// Merges as many packets as go into one segment.
fn merge(packets: &[Vec<u8>]) -> (Vec<u8>, VnetHeader, usize) {
    let first = Packet::parse(&packets[0]).unwrap();
    let mut run = Run::start(&first).unwrap();
    let mut segment = packets[0].clone();
    for bytes in &packets[1..] {
        if !run.take(&first, &Packet::parse(bytes).unwrap()) {
            break;
        }
        segment.extend(&bytes[run.header_len()..]);
    }
    let vnet = run.finish(&mut segment);
    (segment, vnet, run.count())
}

fn cut(segment: &[u8], vnet: VnetHeader) -> Vec<Vec<u8>> {
    let cut = Cut::new(vnet, &Packet::parse(segment).unwrap()).unwrap();
    let packet = |index| {
        let mut room = [0; HEADERS_MAX];
        let payload = cut.write_headers(segment, index, &mut room);
        [&room[..cut.header_len()], &segment[payload]].concat()
    };
    (0..cut.count()).map(packet).collect()
}

proptest! {
    #[test]
    fn what_was_merged_is_cut_into_the_same_packets(flow in flow()) {
        let packets = flow.packets();
        let (segment, vnet, count) = merge(&packets);
        prop_assert_eq!(count, flow.count);
        prop_assert_eq!(cut(&segment, vnet), packets);
    }

    #[test]
    fn what_was_cut_is_merged_into_the_same_segment(flow in flow()) {
        let (segment, vnet, _) = merge(&flow.packets());
        prop_assert_eq!(merge(&cut(&segment, vnet)), (segment, vnet, flow.count));
    }

    #[test]
    fn a_packet_that_was_changed_on_the_way_is_not_hidden_in_a_segment(
        flow in flow(), which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), bit in 0..8,
    ) {
        let mut packets = flow.packets();
        let which = which.index(packets.len());
        let at = at.index(packets[which].len());
        packets[which][at] ^= 1_u8 << bit;
        let Some(first) = Packet::parse(&packets[0]) else { return Ok(()) };
        let Some(mut run) = Run::start(&first) else { return Ok(()) };
        for (index, bytes) in packets.iter().enumerate().skip(1) {
            let Some(packet) = Packet::parse(bytes) else { break };
            if !run.take(&first, &packet) {
                break;
            }
            prop_assert!(which != 0 && which != index, "packet {} was taken", which);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 20..120), size in any::<u16>(), kind in 0_u8..6, len in 0_u8..120,
    ) {
        let protocol = if kind < 3 { protocol::TCP } else { protocol::UDP };
        if bytes[0] & 0x80 == 0 {
            bytes[0] = 0x40 | (bytes[0] & 0x0f);
            put_u16(&mut bytes, ipv4::TOTAL_LENGTH.start, len.into());
            bytes[ipv4::PROTOCOL] = protocol;
        } else {
            bytes[0] = 0x60;
            put_u16(&mut bytes, ipv6::PAYLOAD_LENGTH.start, len.into());
            bytes[ipv6::NEXT_HEADER] = protocol;
        }
        let Some(packet) = Packet::parse(&bytes) else { return Ok(()) };
        let vnet = VnetHeader { gso_type: kind, gso_size: size, ..VnetHeader::default() };
        if let Some(cut) = Cut::new(vnet, &packet) {
            for index in 0..cut.count() {
                cut.write_headers(packet.bytes(), index, &mut [0; HEADERS_MAX]);
            }
        }
        if let Some(mut run) = Run::start(&packet) {
            run.take(&packet, &packet);
            run.finish(&mut packet.bytes().to_vec());
        }
    }
}

#[test]
fn packets_that_differ_stay_apart() {
    type Change = fn(&mut Vec<u8>);
    let flow = Flow {
        version: Version::V4,
        transport: Transport::Tcp,
        options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
        fragment: 0x4000,
        tos: 0,
        ttl: 64,
        identification: 1,
        sequence: u32::MAX - 50,
        flags: tcp::ACK,
        last_flags: 0,
        size: 100,
        count: 2,
        last: 100,
    };
    let changes: [(&str, Change); 8] = [
        ("window", |packet| packet[34] ^= 1),
        ("acknowledgement", |packet| packet[28] ^= 1),
        ("timestamp", |packet| packet[45] ^= 1),
        ("port", |packet| packet[20] ^= 1),
        ("SYN", |packet| packet[33] |= tcp::SYN),
        ("CWR", |packet| packet[33] |= tcp::CWR),
        ("sequence", |packet| put_u32(packet, 24, 77)),
        ("TTL", |packet| packet[8] = 63),
    ];
    assert_eq!(merge(&flow.packets()).2, 2);
    for (what, change) in changes {
        let mut packets = flow.packets();
        change(&mut packets[1]);
        let len = packets[1].len();
        finish_header(&mut packets[1][..20], len, 2);
        mend(&mut packets[1], Transport::Tcp);
        assert_eq!(merge(&packets).2, 1, "{what}");
    }
}
