//! What will happen, in the order of simulated time; what falls on the same nanosecond, in the order in which it was
//! pushed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// More than this many events waiting is a mistake of whoever pushes them.
const BOUND: usize = 20_000_000;

#[derive(Debug)]
pub(crate) struct Queue<T> {
    order: BinaryHeap<Reverse<(u64, u64)>>,
    waiting: BTreeMap<u64, T>,
    pushed: u64,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        Self {
            order: BinaryHeap::new(),
            waiting: BTreeMap::new(),
            pushed: 0,
        }
    }

    pub(crate) fn push(&mut self, at: u64, what: T) {
        assert!(
            self.waiting.len() < BOUND,
            "more than {BOUND} events wait in the simulator"
        );
        self.order.push(Reverse((at, self.pushed)));
        self.waiting.insert(self.pushed, what);
        self.pushed += 1;
    }

    /// When the next event is due.
    pub(crate) fn next_at(&self) -> Option<u64> {
        self.order.peek().map(|Reverse((at, _))| *at)
    }

    pub(crate) fn pop(&mut self) -> Option<(u64, T)> {
        let Reverse((at, number)) = self.order.pop()?;
        let what = self.waiting.remove(&number).expect("what is in the order waits");
        Some((at, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_decides_and_then_the_order_of_pushing() {
        let mut queue = Queue::new();
        for (at, what) in [(5, 'c'), (3, 'a'), (5, 'd'), (4, 'b')] {
            queue.push(at, what);
        }
        assert_eq!(queue.next_at(), Some(3));
        let order: String = std::iter::from_fn(|| queue.pop()).map(|(_, what)| what).collect();
        assert_eq!(order, "abcd");
        assert_eq!(queue.next_at(), None);
    }
}
