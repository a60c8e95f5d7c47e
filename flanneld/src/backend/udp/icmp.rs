//! Telling senders what became of their packets (RFC 792), as seldom as RFC 1812, section 4.3.2,
//! wants it.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::packet::{IPV4_HEADER, Packet, finish_header, fold, ipv4, protocol, put_u16, sum};

/// Header of the answer, ICMP header, and the beginning of the packet: its header and eight bytes.
pub(super) const ANSWER_MAX: usize = IPV4_HEADER + 8 + 60 + 8;
const ECHO_REQUEST: u8 = 8;

/// What to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// Nobody has the destination.
    NetUnreachable,
    /// The TTL ran out on the way.
    TimeExceeded,
    /// It may not be fragmented, and is larger than this.
    TooBig(u16),
}

/// Writes the answer to `packet` into `answer` and returns its length, or `None` if the packet must
/// not be answered.
pub(super) fn answer(
    message: Message,
    from: Ipv4Addr,
    packet: &Packet<'_>,
    answer: &mut [u8; ANSWER_MAX],
) -> Option<usize> {
    if !may_be_answered(packet) {
        return None;
    }
    let (kind, code, mtu) = match message {
        Message::NetUnreachable => (3, 0, 0),
        Message::TimeExceeded => (11, 0, 0),
        Message::TooBig(mtu) => (3, 4, mtu),
    };
    let quoted = packet.header_len() + packet.payload().len().min(8);
    let len = IPV4_HEADER + 8 + quoted;
    answer.fill(0);
    let (ip, icmp) = answer[..len].split_at_mut(IPV4_HEADER);
    ip[0] = 0x45;
    ip[ipv4::TTL] = 64;
    ip[ipv4::PROTOCOL] = protocol::ICMP;
    ip[ipv4::SOURCE].copy_from_slice(&from.octets());
    ip[ipv4::DESTINATION].copy_from_slice(&packet.source().octets());
    finish_header(ip, len, 0);
    icmp[0] = kind;
    icmp[1] = code;
    put_u16(icmp, 6, mtu);
    icmp[8..].copy_from_slice(&packet.bytes()[..quoted]);
    let checksum = !fold(sum(icmp));
    put_u16(icmp, 2, checksum);
    Some(len)
}

/// No errors about errors, none to many, and none to nobody.
fn may_be_answered(packet: &Packet<'_>) -> bool {
    let is_echo = packet.payload().first() == Some(&ECHO_REQUEST);
    let is_station = |ip: Ipv4Addr| {
        !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast())
    };
    (packet.protocol() != protocol::ICMP || is_echo)
        && !packet.is_later_fragment()
        && is_station(packet.source())
        && is_station(packet.destination())
}

/// Lets through so many a second, and as many at once.
#[derive(Debug)]
pub(super) struct Limit {
    left: u32,
    since: Instant,
}

impl Limit {
    const PER_SECOND: u32 = 100;

    pub(super) fn new(now: Instant) -> Self {
        Self { left: Self::PER_SECOND, since: now }
    }

    /// Whether one more may pass.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= Duration::from_secs(1) {
            *self = Self::new(now);
        }
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 0);

    fn packet(protocol: u8, source: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; IPV4_HEADER];
        packet[0] = 0x45;
        packet[ipv4::TTL] = 1;
        packet[ipv4::PROTOCOL] = protocol;
        packet[ipv4::SOURCE].copy_from_slice(&source);
        packet[ipv4::DESTINATION].copy_from_slice(&[10, 244, 9, 9]);
        packet.extend(payload);
        let len = packet.len();
        finish_header(&mut packet[..IPV4_HEADER], len, 1);
        packet
    }

    fn answered(bytes: &[u8], message: Message) -> Option<Vec<u8>> {
        let mut buffer = [0; ANSWER_MAX];
        let len = answer(message, ROUTER, &Packet::parse(bytes).unwrap(), &mut buffer)?;
        Some(buffer[..len].to_vec())
    }

    #[test]
    fn the_sender_gets_the_beginning_of_its_packet_back() {
        let bytes = packet(protocol::UDP, [10, 244, 1, 5], b"0123456789");
        for (message, words) in [
            (Message::NetUnreachable, [3, 0, 0, 0]),
            (Message::TimeExceeded, [11, 0, 0, 0]),
            (Message::TooBig(1400), [3, 4, 0x05, 0x78]),
        ] {
            let answer = answered(&bytes, message).unwrap();
            let packet = Packet::parse(&answer).unwrap();
            assert_eq!((packet.source(), packet.destination().octets()), (ROUTER, [10, 244, 1, 5]));
            let icmp = packet.payload();
            assert_eq!([icmp[0], icmp[1], icmp[6], icmp[7]], words);
            assert_eq!(icmp[8..], bytes[..28]);
            assert_eq!((fold(sum(packet.header())), fold(sum(icmp))), (0xffff, 0xffff));
        }
    }

    #[test]
    fn errors_fragments_and_senders_that_are_nobody_are_not_answered() {
        let pod = [10, 244, 1, 5];
        let told = |bytes: &[u8]| answered(bytes, Message::TimeExceeded).is_some();
        assert!(told(&packet(protocol::ICMP, pod, &[8, 0])));
        assert!(told(&packet(protocol::TCP, pod, &[])));
        assert!(!told(&packet(protocol::ICMP, pod, &[3, 0])));
        assert!(!told(&packet(protocol::ICMP, pod, &[])));
        for source in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255, 255, 255, 255]] {
            assert!(!told(&packet(protocol::UDP, source, b"x")), "{source:?}");
        }
        let mut fragment = packet(protocol::UDP, pod, b"x");
        fragment[7] = 1;
        assert!(!told(&fragment));
    }

    #[test]
    fn answers_are_limited() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        let passed = (0..1000).filter(|_| limit.allows(start)).count();
        assert_eq!(passed, 100);
        assert!(limit.allows(start + Duration::from_secs(1)));
    }
}
