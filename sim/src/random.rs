//! Chance, all of it from the seed.

use sha2::{Digest, Sha256};

/// A stream of numbers (SplitMix64): 8 bytes of state, so that each link can have its own, and a packet lost on one
/// changes no other's fate.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The stream of this name under the seed.
    pub(crate) fn new(seed: u64, name: &str, numbers: &[u64]) -> Random {
        let bytes = derive(seed, name, numbers);
        let (head, _) = bytes.split_at(8);
        Random(u64::from_le_bytes(
            head.try_into().expect("8 bytes were split off"),
        ))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`; 0 where that is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.next()) * u128::from(bound);
        u64::try_from(wide >> 64).expect("a product of two u64, halved, is one")
    }

    /// Whether something happens that happens so many times in a million.
    pub(crate) fn happens(&mut self, per_million: u32) -> bool {
        per_million > 0 && self.below(1_000_000) < u64::from(per_million)
    }
}

/// 32 bytes for this purpose: keys and the seeds of others.
pub(crate) fn derive(seed: u64, name: &str, numbers: &[u64]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update(name.as_bytes());
    for number in numbers {
        hash.update(number.to_le_bytes());
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_differ_by_name() {
        let take = |seed, name, n| {
            (0..4)
                .map({
                    let mut random = Random::new(seed, name, &[n]);
                    move |_| random.next()
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(take(1, "link", 2), take(1, "link", 2));
        assert_ne!(take(1, "link", 2), take(1, "link", 3));
        assert_ne!(take(1, "link", 2), take(2, "link", 2));
        assert_ne!(take(1, "link", 2), take(1, "node", 2));
    }

    #[test]
    fn chances_are_as_asked_for() {
        let mut random = Random::new(7, "chance", &[]);
        assert!(!(0..1000).any(|_| random.happens(0)));
        assert!((0..1000).all(|_| random.happens(1_000_000)));
        let hits = (0..10_000).filter(|_| random.happens(100_000)).count();
        assert!((900..1100).contains(&hits), "{hits}");
        assert!((0..1000).all(|_| random.below(3) < 3));
        assert_eq!(random.below(0), 0);
    }
}
