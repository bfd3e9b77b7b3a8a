//! Whether the device is under load, and how many handshakes one source may then cost it.

use meshd_model::Boot;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
/// While under load: handshakes a second of one source, and how many at once.
const PER_SOURCE: u64 = 20;
const BURST: u64 = 5;
/// Sources that are remembered.
const SOURCES: usize = 4096;

/// Counts handshake messages.
pub(crate) struct Limiter {
    threshold: u32,
    window: Boot,
    count: u32,
    loaded_until: Boot,
    sources: BTreeMap<IpAddr, Bucket>,
}

/// A token is worth a `PER_SOURCE`th of a second.
struct Bucket {
    nanos: u64,
    at: Boot,
}

const TOKEN: u64 = 1_000_000_000 / PER_SOURCE;

impl Limiter {
    pub(crate) fn new(threshold: u32, now: Boot) -> Self {
        Self {
            threshold,
            window: now,
            count: 0,
            loaded_until: now,
            sources: BTreeMap::new(),
        }
    }

    pub(crate) fn set_threshold(&mut self, threshold: u32) {
        self.threshold = threshold;
    }

    /// Counts a message; whether the device is under load: more than the threshold came within this second, or did
    /// less than a second ago.
    pub(crate) fn is_under_load(&mut self, now: Boot) -> bool {
        if now.since(self.window) >= SECOND {
            self.window = now;
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        if self.count > self.threshold {
            self.loaded_until = now + SECOND;
        }
        now < self.loaded_until
    }

    /// Takes a token of the source: an IPv4 address, or an IPv6 /64.
    pub(crate) fn allow(&mut self, now: Boot, source: IpAddr) -> bool {
        let source = match source {
            IpAddr::V4(_) => source,
            IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() >> 64 << 64).into()),
        };
        if self.sources.len() >= SOURCES && !self.sources.contains_key(&source) {
            self.sources.retain(|_, b| now.since(b.at) < SECOND);
            if self.sources.len() >= SOURCES {
                return false;
            }
        }
        let bucket = self.sources.entry(source).or_insert(Bucket {
            nanos: BURST * TOKEN,
            at: now,
        });
        let earned = u64::try_from(now.since(bucket.at).as_nanos()).unwrap_or(u64::MAX);
        bucket.nanos = bucket.nanos.saturating_add(earned).min(BURST * TOKEN);
        bucket.at = now;
        match bucket.nanos.checked_sub(TOKEN) {
            Some(left) => {
                bucket.nanos = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_gets_its_burst_then_its_rate() {
        let mut limiter = Limiter::new(0, Boot(0));
        let source = "192.0.2.1".parse().unwrap();
        let allowed = |limiter: &mut Limiter, now| (0..100).filter(|_| limiter.allow(now, source)).count();
        assert_eq!(allowed(&mut limiter, Boot(0)), 5);
        assert_eq!(allowed(&mut limiter, Boot(0) + Duration::from_millis(101)), 2);
        assert!(limiter.allow(Boot(0), "192.0.2.2".parse().unwrap()));
    }

    #[test]
    fn sources_are_bounded_and_forgotten() {
        let mut limiter = Limiter::new(0, Boot(0));
        let source = |n: u32| IpAddr::V4((0x0a00_0000 + n).into());
        for n in 0..SOURCES as u32 {
            assert!(limiter.allow(Boot(0), source(n)));
        }
        assert!(!limiter.allow(Boot(0), source(1_000_000)));
        assert!(limiter.allow(Boot(0) + SECOND, source(1_000_000)));
        assert_eq!(limiter.sources.len(), 1);
    }

    #[test]
    fn load_lasts_a_second() {
        let mut limiter = Limiter::new(2, Boot(0));
        let t = Boot(0) + Duration::from_secs(10);
        assert!(!limiter.is_under_load(t));
        assert!(!limiter.is_under_load(t));
        assert!(limiter.is_under_load(t));
        assert!(limiter.is_under_load(t + Duration::from_millis(999)));
        assert!(!limiter.is_under_load(t + Duration::from_millis(2100)));
    }
}
