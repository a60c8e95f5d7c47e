//! Telling senders what became of their packets (RFC 792, RFC 4443), as seldom as RFC 1812, section
//! 4.3.2, wants it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::checksum::{fold, sum};
use super::packet::{
    Packet, Version, finish_header, ipv4, ipv6, protocol, pseudo_header_sum, put_u16,
};

/// The longest answer: what every way carries over IPv6 (RFC 4443, section 3.1).
pub(super) const ANSWER_MAX: usize = 1280;
const ICMP_HEADER: usize = 8;
const TTL: u8 = 64;
const ECHO_REQUEST: u8 = 8;
/// ICMPv6 types from here on are no errors.
const INFORMATIONAL: u8 = 128;

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

impl Message {
    /// Returns type and code, and the MTU or zero.
    const fn fields(self, version: Version) -> (u8, u8, u16) {
        match (self, version) {
            (Self::NetUnreachable, Version::V4) => (3, 0, 0),
            (Self::TimeExceeded, Version::V4) => (11, 0, 0),
            (Self::TooBig(mtu), Version::V4) => (3, 4, mtu),
            (Self::NetUnreachable, Version::V6) => (1, 0, 0),
            (Self::TimeExceeded, Version::V6) => (3, 0, 0),
            (Self::TooBig(mtu), Version::V6) => (2, 0, mtu),
        }
    }
}

/// Writes the answer to `packet` into `answer` and returns its length, or `None` if the packet must
/// not be answered. `from` is an address of the same version.
pub(super) fn answer(
    message: Message,
    from: IpAddr,
    packet: &Packet<'_>,
    answer: &mut [u8; ANSWER_MAX],
) -> Option<usize> {
    if !may_be_answered(packet) {
        return None;
    }
    let ip_len = packet.version().header_len();
    let quoted = match packet.version() {
        Version::V4 => packet.header_len() + packet.payload().len().min(8),
        Version::V6 => packet.bytes().len().min(ANSWER_MAX - ip_len - ICMP_HEADER),
    };
    let len = ip_len + ICMP_HEADER + quoted;
    answer.fill(0);
    let (ip, icmp) = answer[..len].split_at_mut(ip_len);
    write_header(ip, from, packet.source(), len)?;
    let (kind, code, mtu) = message.fields(packet.version());
    icmp[0] = kind;
    icmp[1] = code;
    // With IPv6 the field has 32 bits, of which these are the lower ones.
    put_u16(icmp, 6, mtu);
    icmp[ICMP_HEADER..].copy_from_slice(&packet.bytes()[..quoted]);
    let pseudo_header = match packet.version() {
        Version::V4 => 0,
        Version::V6 => pseudo_header_sum(ip, icmp.len()),
    };
    let checksum = !fold(pseudo_header + sum(icmp));
    put_u16(icmp, 2, checksum);
    Some(len)
}

/// Returns `None` if the addresses are of different versions.
fn write_header(ip: &mut [u8], from: IpAddr, to: IpAddr, total_len: usize) -> Option<()> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            ip[0] = 0x45;
            ip[ipv4::TTL] = TTL;
            ip[ipv4::PROTOCOL] = protocol::ICMP;
            ip[ipv4::SOURCE].copy_from_slice(&from.octets());
            ip[ipv4::DESTINATION].copy_from_slice(&to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            ip[0] = 0x60;
            ip[ipv6::HOP_LIMIT] = TTL;
            ip[ipv6::NEXT_HEADER] = protocol::ICMPV6;
            ip[ipv6::SOURCE].copy_from_slice(&from.octets());
            ip[ipv6::DESTINATION].copy_from_slice(&to.octets());
        }
        _ => return None,
    }
    finish_header(ip, total_len, 0);
    Some(())
}

/// No errors about errors, none to many, and none to nobody.
fn may_be_answered(packet: &Packet<'_>) -> bool {
    let kind = packet.payload().first();
    let is_no_error = match packet.protocol() {
        protocol::ICMP => kind == Some(&ECHO_REQUEST),
        protocol::ICMPV6 => kind.is_some_and(|kind| *kind >= INFORMATIONAL),
        _ => true,
    };
    let is_broadcast = |ip| matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    let is_station = |ip: IpAddr| {
        !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || is_broadcast(ip))
    };
    is_no_error
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
    use super::super::packet::IPV4_HEADER;
    use super::*;

    const ROUTER: &str = "10.244.1.0";
    const ROUTER6: &str = "2001:db8:1::";
    const POD: &str = "10.244.1.5";
    const POD6: &str = "2001:db8:1::5";

    fn packet(protocol: u8, source: &str, payload: &[u8]) -> Vec<u8> {
        let source = source.parse().unwrap();
        let (len, destination) = match source {
            IpAddr::V4(_) => (IPV4_HEADER, "10.244.9.9"),
            IpAddr::V6(_) => (40, "2001:db8:9::9"),
        };
        let mut packet = vec![0; len];
        let total = len + payload.len();
        write_header(&mut packet, source, destination.parse().unwrap(), total).unwrap();
        match source {
            IpAddr::V4(_) => packet[ipv4::PROTOCOL] = protocol,
            IpAddr::V6(_) => packet[ipv6::NEXT_HEADER] = protocol,
        }
        finish_header(&mut packet, total, 1);
        packet.extend(payload);
        packet
    }

    fn answered(bytes: &[u8], message: Message, from: &str) -> Option<Vec<u8>> {
        let mut buffer = [0; ANSWER_MAX];
        let packet = Packet::parse(bytes).unwrap();
        let len = answer(message, from.parse().unwrap(), &packet, &mut buffer)?;
        Some(buffer[..len].to_vec())
    }

    #[test]
    fn the_sender_gets_the_beginning_of_its_packet_back() {
        let long = [7; 2000];
        for (router, pod, quoted, kinds) in [
            (ROUTER, POD, 28, [[3, 0, 0, 0], [11, 0, 0, 0], [3, 4, 0x05, 0x78]]),
            (ROUTER6, POD6, 1232, [[1, 0, 0, 0], [3, 0, 0, 0], [2, 0, 0x05, 0x78]]),
        ] {
            let bytes = packet(protocol::UDP, pod, &long);
            let messages = [Message::NetUnreachable, Message::TimeExceeded, Message::TooBig(1400)];
            for (message, fields) in messages.into_iter().zip(kinds) {
                let answer = answered(&bytes, message, router).unwrap();
                let packet = Packet::parse(&answer).unwrap();
                assert_eq!(packet.source(), router.parse::<IpAddr>().unwrap());
                assert_eq!(packet.destination(), pod.parse::<IpAddr>().unwrap());
                let icmp = packet.payload();
                assert_eq!([icmp[0], icmp[1], icmp[6], icmp[7]], fields);
                assert_eq!(icmp[8..], bytes[..quoted]);
                let checksum = match packet.version() {
                    Version::V4 => {
                        assert_eq!(fold(sum(packet.header())), 0xffff);
                        sum(icmp)
                    }
                    Version::V6 => pseudo_header_sum(packet.header(), icmp.len()) + sum(icmp),
                };
                assert_eq!(fold(checksum), 0xffff);
            }
        }
    }

    #[test]
    fn errors_fragments_and_senders_that_are_nobody_are_not_answered() {
        let told = |bytes: &[u8]| answered(bytes, Message::TimeExceeded, ROUTER).is_some();
        assert!(told(&packet(protocol::ICMP, POD, &[8, 0])));
        assert!(told(&packet(protocol::TCP, POD, &[])));
        assert!(!told(&packet(protocol::ICMP, POD, &[3, 0])));
        assert!(!told(&packet(protocol::ICMP, POD, &[])));
        for source in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
            assert!(!told(&packet(protocol::UDP, source, b"x")), "{source}");
        }
        let mut fragment = packet(protocol::UDP, POD, b"x");
        fragment[7] = 1;
        assert!(!told(&fragment));
        let told = |bytes: &[u8]| answered(bytes, Message::TimeExceeded, ROUTER6).is_some();
        assert!(told(&packet(protocol::ICMPV6, POD6, &[128, 0])));
        assert!(told(&packet(protocol::UDP, POD6, b"x")));
        assert!(!told(&packet(protocol::ICMPV6, POD6, &[1, 0])));
        assert!(!told(&packet(protocol::ICMPV6, POD6, &[])));
        for source in ["::", "::1", "ff02::1"] {
            assert!(!told(&packet(protocol::UDP, source, b"x")), "{source}");
        }
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
