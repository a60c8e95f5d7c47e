//! What was carried for each peer, and what was dropped, by reason.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a packet did not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drop {
    /// It is no complete packet, or no segment that can be cut.
    Malformed,
    /// From the tunnel: no peer has the address that it came from, or it left another port.
    UnknownSender,
    /// From the tunnel: its source is not inside the subnet of the peer that sent it.
    ForeignSource,
    /// From the tunnel: its destination is not inside our subnet.
    ForeignDestination,
    /// To the tunnel: no peer has its destination.
    NoPeer,
    /// Its TTL ran out.
    TimeExceeded,
    /// The underlay did not take it.
    SendFailed,
    /// The device did not take it.
    DeviceFailed,
}

impl Drop {
    const ALL: [Self; 8] = [
        Self::Malformed,
        Self::UnknownSender,
        Self::ForeignSource,
        Self::ForeignDestination,
        Self::NoPeer,
        Self::TimeExceeded,
        Self::SendFailed,
        Self::DeviceFailed,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownSender => "unknown sender",
            Self::ForeignSource => "foreign source",
            Self::ForeignDestination => "foreign destination",
            Self::NoPeer => "no peer",
            Self::TimeExceeded => "time exceeded",
            Self::SendFailed => "send failed",
            Self::DeviceFailed => "device failed",
        }
    }
}

/// Dropped packets, by reason: of all threads, or of one peer.
#[derive(Debug, Default)]
pub(crate) struct Drops([AtomicU64; Drop::ALL.len()]);

impl Drops {
    pub(super) fn add(&self, reason: Drop, packets: usize) {
        self.0[reason as usize].fetch_add(packets as u64, Ordering::Relaxed);
    }

    /// Returns how many were dropped for a reason.
    pub(crate) fn get(&self, reason: Drop) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }
}

/// Those that are not zero: `3 malformed, 1 no peer`; otherwise `none`.
impl fmt::Display for Drops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = Drop::ALL.map(|reason| (self.get(reason), reason.as_str()));
        let mut separator = "";
        for (count, reason) in counts.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, "{separator}{count} {reason}")?;
            separator = ", ";
        }
        if separator.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

/// Packets and their bytes, all headers but those of the tunnel included.
#[derive(Debug, Default)]
pub(crate) struct Volume {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl Volume {
    pub(super) fn add(&self, packets: usize, bytes: usize) {
        self.packets.fetch_add(packets as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        write!(f, "{} packets, {} bytes", get(&self.packets), get(&self.bytes))
    }
}

/// What passed between us and one peer.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) sent: Volume,
    pub(crate) received: Volume,
    /// What came from it or was for it, and did not go on.
    pub(crate) dropped: Drops,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_happened_is_told() {
        let drops = Drops::default();
        assert_eq!(drops.to_string(), "none");
        Drop::ALL.iter().for_each(|reason| assert_eq!(drops.get(*reason), 0));
        drops.add(Drop::NoPeer, 2);
        drops.add(Drop::Malformed, 1);
        assert_eq!(drops.to_string(), "1 malformed, 2 no peer");
        let volume = Volume::default();
        volume.add(2, 120);
        assert_eq!(volume.to_string(), "2 packets, 120 bytes");
    }
}
