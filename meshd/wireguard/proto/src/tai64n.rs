//! TAI64N: the stamp in an initiation, which makes a replayed one worthless (whitepaper, section 5.4.2).

use meshd_model::Wall;

/// Seconds since 1970 plus 2^62 + 10, then nanoseconds, both big endian; compared as bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tai64n(pub(crate) [u8; 12]);

/// Stamps are rounded down to this many nanoseconds, so that they do not tell the clock's exact state; a peer takes
/// at most 50 initiations a second anyway.
const STEP: u64 = 1 << 24;
const NANOS: u64 = 1_000_000_000;
const EPOCH: u64 = (1 << 62) + 10;

impl Tai64n {
    /// The stamp for a moment, or if that does not lie after `last`, the next one after `last`: wall time may jump
    /// back, stamps to one peer must not.
    pub(crate) fn next(now: Wall, last: Tai64n) -> Tai64n {
        let stamp = Self::encode(now.0 / NANOS, now.0 % NANOS / STEP * STEP);
        if stamp > last { stamp } else { last.successor() }
    }

    fn encode(seconds: u64, nanos: u64) -> Tai64n {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&(EPOCH + seconds).to_be_bytes());
        bytes[8..].copy_from_slice(&u32::try_from(nanos).expect("less than a second").to_be_bytes());
        Tai64n(bytes)
    }

    fn successor(self) -> Tai64n {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3] = self.0;
        let seconds = u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]).saturating_sub(EPOCH);
        let nanos = u64::from(u32::from_be_bytes([n0, n1, n2, n3])) + STEP;
        Self::encode(seconds + nanos / NANOS, nanos % NANOS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_only_go_forward() {
        let first = Tai64n::next(Wall(1_700_000_000 * NANOS + 999_999_999), Tai64n::default());
        let again = Tai64n::next(Wall(1_700_000_000 * NANOS + 999_999_999), first);
        let back = Tai64n::next(Wall(5), again);
        let ahead = Tai64n::next(Wall(1_700_000_002 * NANOS), back);
        assert!(first < again && again < back && back < ahead);
        assert_eq!(ahead.0[..8], (EPOCH + 1_700_000_002).to_be_bytes());
    }

    #[test]
    fn seconds_carry() {
        let mut stamp = Tai64n::encode(7, 0);
        for _ in 0..60 {
            let next = stamp.successor();
            assert!(next > stamp);
            stamp = next;
        }
        assert_eq!(stamp.0[..8], (EPOCH + 8).to_be_bytes());
    }
}
