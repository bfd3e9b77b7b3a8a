//! Jitter without a random source: SplitMix64 (Steele, Lea, Flood 2014) over the agent's seed. It spreads retries;
//! nothing secret depends on it.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The generator's state; serialised with the agent, so that a replay draws the same.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Jitter(u64);

impl Jitter {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number smaller than `end`; 0 where that is 0.
    pub(crate) fn below(&mut self, end: u128) -> u128 {
        let drawn = u128::from(self.next()) << 64 | u128::from(self.next());
        drawn % end.max(1)
    }

    /// A duration shorter than `end`.
    pub(crate) fn within(&mut self, end: Duration) -> Duration {
        let end = u64::try_from(end.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.next() % end.max(1))
    }

    /// A duration between three quarters of `around` and five quarters of it.
    pub(crate) fn spread(&mut self, around: Duration) -> Duration {
        let quarter = around / 4;
        let span = u64::try_from((quarter * 2).as_nanos()).unwrap_or(u64::MAX);
        around - quarter + Duration::from_nanos(self.next() % span.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_sequence_within_its_bounds() {
        let (mut a, mut b, mut c) = (Jitter::new(7), Jitter::new(7), Jitter::new(8));
        let around = Duration::from_secs(4);
        let mut differed = false;
        for _ in 0..100 {
            let drawn = a.spread(around);
            assert_eq!(drawn, b.spread(around));
            assert!(
                drawn >= Duration::from_secs(3) && drawn < Duration::from_secs(5),
                "{drawn:?}"
            );
            differed |= drawn != c.spread(around);
        }
        assert!(differed);
        assert_eq!(a.spread(Duration::ZERO), Duration::ZERO);
    }
}
