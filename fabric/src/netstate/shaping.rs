//! How much a link may send.

use std::time::Duration;

/// A token bucket filter as the root queueing discipline of a link (tc-tbf(8)).
///
/// The kernel knows the size of the bucket as the time in which it would be emptied at the rate, in
/// ticks of 64 ns (`PSCHED_SHIFT` of its `net/pkt_sched.h`), and so does this, so that what was set is
/// what is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes per second; not zero.
    pub rate: u64,
    /// Size of the bucket, in ticks at the rate.
    pub buffer: u32,
    /// Bytes that may wait.
    pub limit: u32,
}

impl TokenBucket {
    /// Returns a bucket of `burst` bytes that is filled at `rate` bytes per second, in front of which
    /// no packet waits longer than `latency`; `None` if the rate is zero. What the kernel has no
    /// number for becomes the largest that it has.
    pub fn new(rate: u64, burst: u64, latency: Duration) -> Option<Self> {
        let nanoseconds = (u128::from(burst) * NANOSECONDS).checked_div(u128::from(rate))?;
        let waiting = u128::from(rate) * latency.as_nanos() / NANOSECONDS;
        Some(Self {
            rate,
            buffer: saturate(nanoseconds / TICK_NANOSECONDS),
            limit: saturate(waiting + u128::from(burst)),
        })
    }

    /// The size of the bucket in bytes, as exact as the kernel knows it.
    pub fn burst(&self) -> u64 {
        let bytes =
            u128::from(self.buffer) * TICK_NANOSECONDS * u128::from(self.rate) / NANOSECONDS;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

const NANOSECONDS: u128 = 1_000_000_000;
const TICK_NANOSECONDS: u128 = 64;

fn saturate(number: u128) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_has_the_numbers_of_tc() {
        let latency = Duration::from_millis(25);
        // As `tc -s -r qdisc show` prints them for 1 Mbit/s with a burst of 100,000 bytes.
        let bucket = TokenBucket::new(125_000, 100_000, latency).unwrap();
        let expected = TokenBucket { rate: 125_000, buffer: 12_500_000, limit: 103_125 };
        assert_eq!(bucket, expected);
        assert_eq!(bucket.burst(), 100_000);
        assert_eq!(TokenBucket::new(0, 1, latency), None);
    }

    #[test]
    fn numbers_that_the_kernel_does_not_have_become_its_largest() {
        // The burst that containerd asks for, in bytes.
        let bucket = TokenBucket::new(1, u64::from(u32::MAX) / 8, Duration::from_secs(1)).unwrap();
        assert_eq!((bucket.buffer, bucket.limit), (u32::MAX, 536_870_912));
        let bucket = TokenBucket::new(u64::MAX, u64::MAX, Duration::from_secs(1)).unwrap();
        assert_eq!((bucket.buffer, bucket.limit), (15_625_000, u32::MAX));
    }
}
