//! What must hold for any bytes that come through the tunnel (tests and fuzzing).

use std::net::IpAddr;

use super::icmp::{self, ANSWER_MAX, Message};
use super::merge::Run;
use super::offload::{Cut, HEADERS_MAX, VNET_HEADER, VnetHeader, complete_checksum};
use super::packet::{Packet, decrement_ttl};

/// Takes the bytes as what the device hands out: a header and a packet or segment.
///
/// # Panics
/// If a segment is not cut into as many packets as its payload makes, or if anything else panics.
pub(crate) fn cut_and_merge(bytes: &[u8]) {
    let Some((vnet, packet)) = bytes.split_first_chunk::<VNET_HEADER>() else { return };
    let vnet = VnetHeader::decode(vnet);
    let Some(packet) = Packet::parse(packet) else { return };
    let _fits = complete_checksum(vnet, &mut packet.bytes().to_vec());
    if packet.ttl() > 0 {
        decrement_ttl(&mut packet.bytes().to_vec());
    }
    let from: IpAddr = packet.source();
    let mut answer = [0; ANSWER_MAX];
    for message in [Message::NetUnreachable, Message::TimeExceeded, Message::TooBig(1400)] {
        let len = icmp::answer(message, from, &packet, &mut answer);
        assert!(len.is_none_or(|len| Packet::parse(&answer[..len]).is_some()));
    }
    if let Some(cut) = Cut::new(vnet, &packet) {
        let packets: Vec<_> = (0..cut.count()).map(|index| cut_out(&cut, &packet, index)).collect();
        let payload: usize = packets.iter().map(|packet| packet.len() - cut.header_len()).sum();
        assert_eq!(payload, packet.bytes().len() - cut.header_len());
        merge(&packets);
    }
}

fn cut_out(cut: &Cut, segment: &Packet<'_>, index: usize) -> Vec<u8> {
    let mut room = [0; HEADERS_MAX];
    let payload = cut.write_headers(segment.bytes(), index, &mut room);
    [&room[..cut.header_len()], &segment.bytes()[payload]].concat()
}

/// What merges stays a packet.
fn merge(packets: &[Vec<u8>]) {
    let Some(first) = packets.first().and_then(|bytes| Packet::parse(bytes)) else { return };
    let Some(mut run) = Run::start(&first) else { return };
    let mut segment = first.bytes().to_vec();
    for packet in packets[1..].iter().filter_map(|bytes| Packet::parse(bytes)) {
        if !run.take(&first, &packet) {
            break;
        }
        segment.extend(&packet.bytes()[run.header_len()..]);
    }
    run.finish(&mut segment);
    assert!(Packet::parse(&segment).is_some_and(|packet| packet.bytes().len() == segment.len()));
}
