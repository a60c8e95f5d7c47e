//! What a benchmark prints about its samples.

use std::fmt;
use std::time::Duration;

/// The durations of one operation, of which at least one was measured.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// Adds a measurement.
    pub fn push(&mut self, sample: Duration) {
        let place = self.0.partition_point(|other| *other <= sample);
        self.0.insert(place, sample);
    }

    /// The middle one.
    pub fn median(&self) -> Duration {
        self.percentile(50)
    }

    /// The smallest that `percent` of all do not exceed.
    pub fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100);
        self.0.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }

    /// How many times as long as the other it takes, by the medians.
    pub fn ratio_to(&self, other: &Self) -> f64 {
        self.median().as_secs_f64() / other.median().as_secs_f64()
    }
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |sample: Duration| sample.as_secs_f64() * 1e3;
        write!(
            f,
            "median {:8.2} ms   p99 {:8.2} ms   min {:8.2} ms   n {}",
            ms(self.median()),
            ms(self.percentile(99)),
            ms(self.percentile(0)),
            self.0.len()
        )
    }
}

/// The first line of a report: what else the machine was doing.
pub fn machine() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{cores} cores, load {}", load.split(' ').next().unwrap_or("?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_by_rank() {
        let mut samples = Samples::default();
        for ms in [40, 10, 30, 20, 50] {
            samples.push(Duration::from_millis(ms));
        }
        for (percent, ms) in [(0, 10), (20, 10), (21, 20), (50, 30), (99, 50), (100, 50)] {
            assert_eq!(samples.percentile(percent), Duration::from_millis(ms), "{percent}");
        }
        assert_eq!(Samples::default().median(), Duration::ZERO);
    }
}
