//! From the underlay to the device.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::counters::Drop;
use super::icmp::{self, ANSWER_MAX, Limit, Message};
use super::lane::Lane;
use super::merge::{PACKETS_MAX, Run};
use super::offload::VnetHeader;
use super::packet::{Packet, decrement_ttl};
use super::routing::View;
use super::socket::Receiver;

/// The receiving half of a lane.
pub(super) struct Inbound {
    lane: Arc<Lane>,
    view: View,
    receiver: Receiver,
    /// The packets that follow each other, not written yet.
    run: Option<Run>,
    /// Who sent them.
    from: SocketAddr,
    /// The whole first packet of the run, and the payloads of the others.
    pieces: Vec<Range<usize>>,
    limit: Limit,
}

impl Inbound {
    pub(super) fn new(lane: Arc<Lane>, view: View) -> Self {
        let pieces = Vec::with_capacity(PACKETS_MAX);
        let limit = Limit::new(Instant::now());
        let from = (Ipv4Addr::UNSPECIFIED, 0).into();
        Self { lane, view, receiver: Receiver::new(), run: None, from, pieces, limit }
    }

    /// Carries the packets that are there.
    ///
    /// # Errors
    /// With `WouldBlock` if there is none.
    pub(super) fn step(&mut self) -> io::Result<()> {
        let count = self.receiver.receive(&self.lane.socket)?;
        self.view.refresh();
        for index in 0..count {
            self.accept_message(index);
        }
        self.flush();
        Ok(())
    }

    fn accept_message(&mut self, index: usize) {
        let message = self.receiver.message(index);
        let mut start = message.bytes.start;
        while start < message.bytes.end {
            let end = (start + message.segment).min(message.bytes.end);
            if let Err(reason) = self.accept(message.from, start..end) {
                self.refuse(message.from, start..end, reason);
            }
            start = end;
        }
    }

    /// Puts the packet of a datagram behind those that it follows, or writes those and begins anew.
    fn accept(&mut self, from: SocketAddr, range: Range<usize>) -> Result<(), Drop> {
        let bytes = self.receiver.bytes();
        let packet = Packet::parse(&bytes[range.clone()]).ok_or(Drop::Malformed)?;
        let range = range.start..range.start + packet.bytes().len();
        let first = self.pieces.first().and_then(|first| Packet::parse(&bytes[first.clone()]));
        if let (Some(run), Some(first)) = (&mut self.run, first)
            && self.from == from
            && run.take(&first, &packet)
        {
            // It has the addresses and the TTL of the first one, which was let in.
            self.pieces.push(range.start + run.header_len()..range.end);
            return Ok(());
        }
        self.admit(from, &packet)?;
        let next = Run::start(&packet).filter(|run| self.lane.queue.takes(run.transport()));
        self.flush();
        self.run = next;
        self.from = from;
        self.pieces.push(range);
        Ok(())
    }

    /// Decides whether a packet may enter.
    fn admit(&self, from: SocketAddr, packet: &Packet<'_>) -> Result<(), Drop> {
        let routing = self.view.routing();
        let peer = routing.peers.owner(packet.source());
        let Some(peer) = peer.filter(|peer| peer.address == from) else {
            let known = routing.peers.at(from).is_some();
            return Err(if known { Drop::ForeignSource } else { Drop::UnknownSender });
        };
        if !routing.own.contains(packet.destination()) {
            return Err(Drop::ForeignDestination);
        }
        peer.traffic.received.add(1, packet.bytes().len());
        if packet.ttl() <= 1 { Err(Drop::TimeExceeded) } else { Ok(()) }
    }

    fn refuse(&mut self, from: SocketAddr, datagram: Range<usize>, reason: Drop) {
        self.lane.drops.add(reason, 1);
        if let Some(peer) = self.view.routing().peers.at(from) {
            peer.traffic.dropped.add(reason, 1);
        }
        if reason == Drop::TimeExceeded {
            self.tell(from, &datagram);
        }
    }

    fn flush(&mut self) {
        let Some(first) = self.pieces.first().cloned() else { return };
        decrement_ttl(&mut self.receiver.bytes_mut()[first.clone()]);
        let (mut vnet, mut packets) = (VnetHeader::default(), 1);
        if let Some(run) = self.run.take() {
            self.count_others(&run, first.clone());
            vnet = run.finish(&mut self.receiver.bytes_mut()[first]);
            packets = run.count();
        }
        if self.lane.queue.write(vnet, self.receiver.bytes(), &self.pieces).is_err() {
            self.lane.drops.add(Drop::DeviceFailed, packets);
        }
        self.pieces.clear();
    }

    /// Counts the packets of a run but for the first, which was counted when it was let in.
    fn count_others(&self, run: &Run, first: Range<usize>) {
        let others = run.count() - 1;
        if others == 0 {
            return;
        }
        let Some(packet) = Packet::parse(&self.receiver.bytes()[first]) else { return };
        if let Some(peer) = self.view.routing().peers.owner(packet.source()) {
            peer.traffic.received.add(others, run.len() - packet.bytes().len());
        }
    }

    /// Tells a peer's pod that its packet got no further than here.
    fn tell(&mut self, from: SocketAddr, packet: &Range<usize>) {
        let Some(packet) = Packet::parse(&self.receiver.bytes()[packet.clone()]) else { return };
        if !self.limit.allows(Instant::now()) {
            return;
        }
        let mut buffer = [0; ANSWER_MAX];
        let address = self.view.routing().address();
        if let Some(len) = icmp::answer(Message::TimeExceeded, address, &packet, &mut buffer) {
            let _best_effort = self.lane.socket.send_to(&buffer[..len], from);
        }
    }
}
