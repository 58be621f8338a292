//! Durations, sizes and rates as they are written: always with a unit.

use std::fmt;
use std::time::Duration;

/// So many in so much time, written `"50/s"`, `"600/m"` or `"5/10s"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many; at least 1.
    pub count: u32,
    /// In how much time; never zero.
    pub period: Duration,
}

impl Rate {
    /// Time between two at this rate; never zero.
    pub fn interval(&self) -> Duration {
        (self.period / self.count).max(Duration::from_nanos(1))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.period.as_secs() {
            1 => write!(f, "{}/s", self.count),
            60 => write!(f, "{}/m", self.count),
            3600 => write!(f, "{}/h", self.count),
            secs => write!(f, "{}/{secs}s", self.count),
        }
    }
}
