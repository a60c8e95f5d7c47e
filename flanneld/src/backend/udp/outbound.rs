//! From the device to the underlay.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::batch::{self, Batch};
use super::counters::Drop;
use super::icmp::{self, ANSWER_MAX, Limit, Message};
use super::lane::Lane;
use super::offload::{Cut, VNET_HEADER, VnetHeader, complete_checksum};
use super::overhead;
use super::packet::{Packet, decrement_ttl};
use super::routing::View;
use super::socket::{Sender, path_mtu};
use crate::family::Family;

/// The sending half of a lane.
pub(super) struct Outbound {
    lane: Arc<Lane>,
    view: View,
    batch: Batch,
    sender: Sender,
    limit: Limit,
}

impl Outbound {
    pub(super) fn new(lane: Arc<Lane>, view: View, sender: Sender) -> Self {
        let limit = Limit::new(Instant::now());
        Self { lane, view, batch: Batch::new(), sender, limit }
    }

    /// Carries the packets that are there. Never waits for more: a single one leaves at once.
    ///
    /// # Errors
    /// With `WouldBlock` if there is none.
    pub(super) fn step(&mut self) -> io::Result<()> {
        self.batch.clear(self.sender.segments_max());
        let len = self.lane.queue.read(self.batch.room())?;
        self.view.refresh();
        self.accept(len);
        while self.batch.has_room()
            && let Ok(len) = self.lane.queue.read(self.batch.room())
        {
            self.accept(len);
        }
        self.flush();
        Ok(())
    }

    fn accept(&mut self, len: usize) {
        let range = self.batch.keep(len);
        if let Err(reason) = self.admit(range) {
            self.lane.drops.add(reason, 1);
        }
    }

    fn admit(&mut self, mut range: Range<usize>) -> Result<(), Drop> {
        let header = self.batch.bytes()[range.clone()].first_chunk::<VNET_HEADER>();
        let vnet = VnetHeader::decode(header.ok_or(Drop::Malformed)?);
        range.start += VNET_HEADER;
        let packet = Packet::parse(&self.batch.bytes()[range.clone()]).ok_or(Drop::Malformed)?;
        range.end = range.start + packet.bytes().len();
        let Some(peer) = self.view.routing().peers.owner(packet.destination()) else {
            self.tell(&range, Message::NetUnreachable);
            return Err(Drop::NoPeer);
        };
        let to = peer.address;
        if packet.ttl() <= 1 {
            self.tell(&range, Message::TimeExceeded);
            return Err(Drop::TimeExceeded);
        }
        if vnet.gso_type == VnetHeader::GSO_NONE {
            peer.traffic.sent.add(1, range.len());
            decrement_ttl(&mut self.batch.bytes_mut()[range.clone()]);
            self.push_whole(vnet, to, range)
        } else {
            let cut = Cut::new(vnet, &packet).ok_or(Drop::Malformed)?;
            peer.traffic.sent.add(cut.count(), range.len());
            decrement_ttl(&mut self.batch.bytes_mut()[range.clone()]);
            self.push_cut(cut, to, &range);
            Ok(())
        }
    }

    fn push_whole(
        &mut self,
        vnet: VnetHeader,
        to: SocketAddr,
        range: Range<usize>,
    ) -> Result<(), Drop> {
        if !complete_checksum(vnet, &mut self.batch.bytes_mut()[range.clone()]) {
            return Err(Drop::Malformed);
        }
        if self.batch.is_full() {
            self.flush();
        }
        self.batch.push(to, [range]);
        Ok(())
    }

    fn push_cut(&mut self, cut: Cut, to: SocketAddr, range: &Range<usize>) {
        for index in 0..cut.count() {
            if self.batch.is_full() {
                self.flush();
            }
            let (packets, room, start) = self.batch.split();
            let payload = cut.write_headers(&packets[range.clone()], index, room);
            let headers = start..start + cut.header_len();
            let payload = range.start + payload.start..range.start + payload.end;
            self.batch.push(to, [headers, payload]);
        }
    }

    /// Answers a packet of this node that cannot go on.
    fn tell(&mut self, packet: &Range<usize>, message: Message) {
        let Some(packet) = Packet::parse(&self.batch.bytes()[packet.clone()]) else { return };
        let routing = self.view.routing();
        if !routing.own.contains(packet.source()) || !self.limit.allows(Instant::now()) {
            return;
        }
        let mut buffer = [0; ANSWER_MAX];
        if let Some(len) = icmp::answer(message, routing.address(), &packet, &mut buffer) {
            self.deliver(&buffer[..len]);
        }
    }

    /// Hands an answer to this node, for whoever it is for.
    fn deliver(&self, answer: &[u8]) {
        // Nobody waits for it.
        let _best_effort = self.lane.queue.write(
            VnetHeader::default(),
            answer,
            std::slice::from_ref(&(0..answer.len())),
        );
    }

    fn flush(&mut self) {
        let mut too_big = None;
        let Self { sender, lane, batch, view, .. } = self;
        sender.send(&lane.socket, batch, |message, error| {
            // Too big to be cut by the kernel, which sends it all the same, in fragments.
            if message.datagrams > 1 && error.raw_os_error() == Some(libc::EMSGSIZE) {
                too_big = Some(message.clone());
                return;
            }
            lane.drops.add(Drop::SendFailed, message.datagrams);
            if let Some(peer) = view.routing().peers.at(message.to) {
                peer.traffic.dropped.add(Drop::SendFailed, message.datagrams);
            }
            tracing::trace!(to = %message.to, %error, "datagrams were not sent");
        });
        if let Some(message) = too_big {
            self.tell_too_big(&message);
        }
        self.batch.sent();
    }

    /// Tells a sender that could use smaller packets that its packets become fragments.
    fn tell_too_big(&mut self, message: &batch::Message) {
        let mut bytes = [0; ANSWER_MAX];
        let mut len = 0;
        for piece in self.batch.pieces(message).take(2) {
            let part = &piece[..piece.len().min(bytes.len() - len)];
            bytes[len..len + part.len()].copy_from_slice(part);
            len += part.len();
        }
        let routing = self.view.routing();
        let Some(packet) = Packet::parse_beginning(&bytes[..len]) else { return };
        let is_ours = routing.own.contains(packet.source()) && packet.dont_fragment();
        if !is_ours || !self.limit.allows(Instant::now()) {
            return;
        }
        let mtu = path_mtu(message.to)
            .and_then(|mtu| mtu.checked_sub(overhead(Family::of(message.to.ip()))));
        let Some(mtu) = mtu.filter(|mtu| usize::from(*mtu) < message.segment) else { return };
        let mut buffer = [0; ANSWER_MAX];
        let answer = Message::TooBig(mtu);
        if let Some(len) = icmp::answer(answer, routing.address(), &packet, &mut buffer) {
            self.deliver(&buffer[..len]);
        }
    }
}
