//! The window that a data message's counter must fall in, once (RFC 6479).

const WORD: u64 = u64::BITS as u64;
const WORDS: u64 = 128;
/// Counters this far behind the greatest one are still told apart. A word less than the bits there are: the word
/// that the greatest counter is in is not full yet.
const WINDOW: u64 = (WORDS - 1) * WORD;

/// The last 8,128 counters at least, in 1 KiB.
pub(crate) struct ReplayWindow {
    /// One more than the greatest counter accepted.
    next: u64,
    words: [u64; WORDS as usize],
}

impl ReplayWindow {
    pub(crate) fn new() -> Self {
        Self {
            next: 0,
            words: [0; WORDS as usize],
        }
    }

    /// Whether the counter is new; from now on it is not. To be asked only about messages that are authentic.
    pub(crate) fn accept(&mut self, counter: u64) -> bool {
        if counter == u64::MAX || counter.saturating_add(WINDOW) < self.next {
            return false;
        }
        let word = counter / WORD;
        if counter >= self.next {
            self.advance(word);
            self.next = counter + 1;
        }
        let slot = &mut self.words[(word % WORDS) as usize];
        let bit = 1 << (counter % WORD);
        let new = *slot & bit == 0;
        *slot |= bit;
        new
    }

    /// Clears the words between that of the greatest counter so far and `word`, which are used again.
    fn advance(&mut self, word: u64) {
        let Some(greatest) = self.next.checked_sub(1) else {
            return;
        };
        let last = greatest / WORD;
        for step in 1..=(word - last).min(WORDS) {
            self.words[((last + step) % WORDS) as usize] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn edges_of_the_window() {
        let mut window = ReplayWindow::new();
        assert!(window.accept(0));
        assert!(!window.accept(0));
        assert!(window.accept(WINDOW));
        assert!(!window.accept(0));
        assert!(window.accept(1));
        assert!(window.accept(WINDOW + 64));
        assert!(!window.accept(2), "behind the window");
        assert!(window.accept(65));
        assert!(window.accept(1 << 60));
        assert!(!window.accept(66));
        assert!(!window.accept(u64::MAX));
        assert!(window.accept((1 << 60) - WINDOW + 1));
    }

    proptest! {
        /// Against a set that remembers everything: nothing is accepted twice, and what is within the window and
        /// new is accepted.
        #[test]
        fn like_a_set(steps in prop::collection::vec((0u64..3, 0u64..20_000), 1..400)) {
            let mut window = ReplayWindow::new();
            let (mut seen, mut greatest) = (BTreeSet::new(), 0u64);
            for (kind, distance) in steps {
                let counter = match kind {
                    0 => greatest + distance % 100,
                    1 => greatest.saturating_sub(distance),
                    _ => greatest + distance,
                };
                let accepted = window.accept(counter);
                if accepted {
                    prop_assert!(seen.insert(counter));
                } else {
                    prop_assert!(seen.contains(&counter) || counter + WINDOW <= greatest);
                }
                greatest = greatest.max(counter);
            }
        }
    }
}
