//! How long to wait before the next try.

use std::time::Duration;
use tokio::time::Instant;

/// The first pause; each further one is twice as long.
const FIRST: Duration = Duration::from_millis(250);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(15);
/// A failure so long after the last one is a first one again.
const FORGIVEN: Duration = Duration::from_secs(60);

/// Pauses that grow, each between half and the whole of its length: daemons that lost the same server at one moment
/// do not come back at one moment.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    last_failure: Option<Instant>,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self {
            next: FIRST,
            last_failure: None,
        }
    }

    /// Something succeeded.
    pub(crate) fn reset(&mut self) {
        self.next = FIRST;
    }

    /// Something failed: how long to wait.
    pub(crate) fn pause(&mut self) -> Duration {
        let now = Instant::now();
        if self.last_failure.is_some_and(|last| now - last > FORGIVEN) {
            self.reset();
        }
        self.last_failure = Some(now);
        let whole = self.next;
        self.next = (whole * 2).min(LONGEST);
        between(whole / 2, whole)
    }
}

/// A random time of this range. Where the system has no randomness, its end.
pub(crate) fn between(least: Duration, most: Duration) -> Duration {
    let part = getrandom::u32().map_or(1.0, |bits| f64::from(bits) / f64::from(u32::MAX));
    least + most.saturating_sub(least).mul_f64(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_to_a_bound_and_begin_anew_after_success_or_time() {
        let mut backoff = Backoff::new();
        let mut whole = FIRST;
        for _ in 0..12 {
            let pause = backoff.pause();
            assert!(pause >= whole / 2 && pause <= whole, "{pause:?} {whole:?}");
            whole = (whole * 2).min(LONGEST);
        }
        tokio::time::advance(FORGIVEN * 2).await;
        assert!(backoff.pause() <= FIRST);
        backoff.pause();
        backoff.reset();
        assert!(backoff.pause() <= FIRST);
    }
}
