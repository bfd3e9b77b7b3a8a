//! The event loop's side of a driver.

use std::collections::VecDeque;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender};

/// A driver has ended: nobody carries the agent's actions out any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {0} driver has ended; the daemon cannot go on without it")]
pub struct Closed(pub &'static str);

/// Events of a driver, and actions for it.
///
/// Both channels are bounded. Actions wait here while the driver is busy, so that the loop never waits for a driver
/// that waits for the loop; what they can amount to is bounded by the agent, which has one action in flight for
/// each resource, and the loop takes in no more from outside while [`Port::is_behind`].
#[derive(Debug)]
pub struct Port<E, A> {
    name: &'static str,
    events: Receiver<E>,
    actions: Sender<A>,
    waiting: VecDeque<A>,
}

/// Actions that may wait before the loop stops taking in from outside.
const BEHIND: usize = 4096;

impl<E, A> Port<E, A> {
    /// A port to the driver of this name.
    #[must_use]
    pub fn new(name: &'static str, events: Receiver<E>, actions: Sender<A>) -> Self {
        Self {
            name,
            events,
            actions,
            waiting: VecDeque::new(),
        }
    }

    /// The next event; meanwhile hands over what waits, as the driver gets room. May be cancelled at any time.
    pub async fn next(&mut self) -> Result<E, Closed> {
        loop {
            if self.waiting.is_empty() {
                return self.events.recv().await.ok_or(Closed(self.name));
            }
            tokio::select! {
                biased;
                event = self.events.recv() => return event.ok_or(Closed(self.name)),
                room = self.actions.reserve() => {
                    let room = room.map_err(|_| Closed(self.name))?;
                    if let Some(action) = self.waiting.pop_front() {
                        room.send(action);
                    }
                }
            }
        }
    }

    /// The next event, if there is one.
    pub fn try_next(&mut self) -> Option<E> {
        self.events.try_recv().ok()
    }

    /// Hands an action over, or lets it wait.
    pub fn send(&mut self, action: A) -> Result<(), Closed> {
        self.waiting.push_back(action);
        self.flush()
    }

    fn flush(&mut self) -> Result<(), Closed> {
        while let Some(action) = self.waiting.pop_front() {
            match self.actions.try_send(action) {
                Ok(()) => {}
                Err(TrySendError::Full(action)) => {
                    self.waiting.push_front(action);
                    return Ok(());
                }
                Err(TrySendError::Closed(_)) => return Err(Closed(self.name)),
            }
        }
        Ok(())
    }

    /// Whether so many wait that no more should be asked of the agent.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.waiting.len() > BEHIND
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn actions_wait_in_order_for_a_busy_driver_and_a_gone_one_is_an_error() {
        let (events, from_driver) = mpsc::channel::<u8>(1);
        let (to_driver, mut actions) = mpsc::channel(2);
        let mut port = Port::new("test", from_driver, to_driver);
        for action in 0..5 {
            port.send(action).unwrap();
        }
        assert!(!port.waiting.is_empty());
        // Waiting for an event hands them over, also when it is cancelled in between.
        let mut seen = Vec::new();
        while seen.len() < 5 {
            tokio::select! {
                biased;
                action = actions.recv() => seen.push(action.unwrap()),
                event = port.next() => panic!("{event:?}"),
            }
        }
        assert_eq!(seen, [0, 1, 2, 3, 4]);
        events.send(7).await.unwrap();
        assert_eq!(port.next().await, Ok(7));
        drop((events, actions));
        assert_eq!(port.send(6), Err(Closed("test")));
        assert_eq!(port.next().await, Err(Closed("test")));
    }
}
