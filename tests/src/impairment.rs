//! What becomes of packets on a bad way: some are lost, some are overtaken.

/// Which packets of a way do not arrive in their turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Impairment {
    /// Every so many packets, one is lost; 0 is never.
    pub lose_every: usize,
    /// Every so many packets, one is overtaken by the next; 0 is never.
    pub hold_every: usize,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is passed on at once.
    Passes,
    /// It is passed on behind the next one that passes.
    Waits,
    /// It is not passed on.
    Lost,
}

impl Impairment {
    /// Returns what becomes of the packet with this number.
    pub const fn fate(self, number: usize) -> Fate {
        const fn is_turn(number: usize, every: usize) -> bool {
            every > 0 && number.is_multiple_of(every)
        }
        if is_turn(number, self.lose_every) {
            Fate::Lost
        } else if is_turn(number, self.hold_every) {
            Fate::Waits
        } else {
            Fate::Passes
        }
    }
}
