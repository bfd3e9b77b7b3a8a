//! Keeps a line that could be logged in a loop from filling the log.

use meshd_model::Boot;
use std::time::Duration;

/// Lets one line through an interval, and counts those it held back.
#[derive(Debug)]
pub struct RateLimit {
    interval: Duration,
    last: Option<Boot>,
    held_back: u64,
}

impl RateLimit {
    /// One line an `interval`.
    #[must_use]
    pub fn new(interval: Duration) -> Self {
        Self {
            interval,
            last: None,
            held_back: 0,
        }
    }

    /// Whether to log now; the number is that of lines held back since the last one that was let through.
    pub fn allow(&mut self, now: Boot) -> Option<u64> {
        if self.last.is_some_and(|last| now.since(last) < self.interval) {
            self.held_back += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_an_interval_and_the_rest_counted() {
        let mut limit = RateLimit::new(Duration::from_secs(10));
        let at = |s| Boot::default() + Duration::from_secs(s);
        assert_eq!(limit.allow(at(0)), Some(0));
        assert_eq!(limit.allow(at(1)), None);
        assert_eq!(limit.allow(at(9)), None);
        assert_eq!(limit.allow(at(10)), Some(2));
    }
}
