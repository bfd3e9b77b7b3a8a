//! The timers of one peer (whitepaper, section 6).

use meshd_model::Boot;

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// The initiation was not answered: send another, or give up.
    Retransmit,
    /// Data came, and nothing went back since: say that it arrived.
    Keepalive,
    /// Data went out, and nothing came back since: make a new session.
    NewHandshake,
    /// Nothing was negotiated for long: forget all keys.
    Wipe,
    /// The peer is to hear from us regularly.
    PersistentKeepalive,
}

const ALL: [Timer; 5] = [
    Timer::Retransmit,
    Timer::Keepalive,
    Timer::NewHandshake,
    Timer::Wipe,
    Timer::PersistentKeepalive,
];

#[derive(Default)]
pub(crate) struct Timers([Option<Boot>; ALL.len()]);

impl Timers {
    pub(crate) fn arm(&mut self, timer: Timer, at: Boot) {
        self.0[timer as usize] = Some(at);
    }

    pub(crate) fn arm_if_idle(&mut self, timer: Timer, at: Boot) {
        self.0[timer as usize].get_or_insert(at);
    }

    pub(crate) fn cancel(&mut self, timer: Timer) {
        self.0[timer as usize] = None;
    }

    pub(crate) fn is_armed(&self, timer: Timer) -> bool {
        self.0[timer as usize].is_some()
    }

    /// The earliest deadline.
    pub(crate) fn next(&self) -> Option<Boot> {
        self.0.iter().flatten().min().copied()
    }

    /// Disarms and gives a timer that has come due, the earliest first.
    pub(crate) fn pop(&mut self, now: Boot) -> Option<Timer> {
        let due = self.next().filter(|at| *at <= now)?;
        let timer = *ALL.iter().find(|t| self.0[**t as usize] == Some(due))?;
        self.cancel(timer);
        Some(timer)
    }
}
