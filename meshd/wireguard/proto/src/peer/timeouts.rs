//! What the timers of one peer do, and what moves them.

use super::handshake::Attempt;
use super::{Context, Peer};
use crate::Path;
use crate::constants::{KEEPALIVE_TIMEOUT, MAX_ATTEMPTS, REKEY_TIMEOUT_JITTER_NANOS, WIPE_AFTER_TIME};
use crate::timers::Timer;
use rand_core::Rng;
use std::time::Duration;

impl Context<'_> {
    /// Keeps two peers that began at once from beginning again at once.
    pub(super) fn jitter(&mut self) -> Duration {
        Duration::from_nanos(self.shared.rng.next_u64() % REKEY_TIMEOUT_JITTER_NANOS)
    }
}

impl Peer {
    /// Does what has come due. Each timer fires once at most: none is armed again for now or earlier.
    pub(crate) fn handle_timeout(&mut self, cx: &mut Context<'_>) {
        while let Some(timer) = self
            .active
            .as_mut()
            .and_then(|active| active.timers.pop(cx.now.boot))
        {
            match timer {
                Timer::Retransmit => self.retransmit(cx),
                Timer::Keepalive => self.keepalive_due(cx),
                Timer::NewHandshake => self.initiate(cx, Attempt::First),
                Timer::Wipe => self.wipe(cx),
                Timer::PersistentKeepalive => self.persistent_keepalive_due(cx),
            }
        }
    }

    fn retransmit(&mut self, cx: &mut Context<'_>) {
        let now = cx.now.boot;
        let Some(active) = &mut self.active else {
            return;
        };
        if active.attempts < MAX_ATTEMPTS {
            active.attempts += 1;
            self.initiate(cx, Attempt::Again);
            return;
        }
        active.timers.cancel(Timer::Keepalive);
        active.timers.arm_if_idle(Timer::Wipe, now + WIPE_AFTER_TIME);
        self.drop_staged(cx);
    }

    fn keepalive_due(&mut self, cx: &mut Context<'_>) {
        self.send_keepalive(cx);
        if let Some(active) = &mut self.active
            && std::mem::take(&mut active.needs_another_keepalive)
        {
            active
                .timers
                .arm(Timer::Keepalive, cx.now.boot + KEEPALIVE_TIMEOUT);
        }
    }

    /// Nothing is left of the sessions. A peer that is kept alive, and one that a handshake is under way with, begin
    /// anew with the timer that they have.
    fn wipe(&mut self, cx: &mut Context<'_>) {
        let Some(active) = &mut self.active else {
            return;
        };
        if active.timers.next().is_none() && active.staged.is_empty() {
            self.deactivate(cx.shared);
            return;
        }
        active.keypairs.clear(&mut cx.shared.indices);
        if let Some(initiation) = active.initiation.take() {
            cx.shared.indices.release(initiation.local_index);
        }
        active.timers.arm(Timer::Wipe, cx.now.boot + WIPE_AFTER_TIME);
    }

    fn persistent_keepalive_due(&mut self, cx: &mut Context<'_>) {
        if self.keepalive == 0 {
            return;
        }
        self.send_keepalive(cx);
        self.arm_persistent_keepalive(cx);
    }

    fn arm_persistent_keepalive(&mut self, cx: &Context<'_>) {
        let interval = Duration::from_secs(self.keepalive.into());
        if let Some(active) = &mut self.active
            && !interval.is_zero()
        {
            active
                .timers
                .arm(Timer::PersistentKeepalive, cx.now.boot + interval);
        }
    }

    /// A message that authenticates us goes out.
    pub(super) fn authentic_sent(&mut self, cx: &Context<'_>) {
        self.arm_persistent_keepalive(cx);
        if let Some(active) = &mut self.active {
            active.timers.cancel(Timer::Keepalive);
        }
    }

    /// A message that authenticates the peer came in: that is where the peer is now.
    pub(super) fn authentic_received(&mut self, cx: &Context<'_>, from: Path, length: usize) {
        self.endpoint = Some(from);
        self.rx_bytes += length as u64;
        self.arm_persistent_keepalive(cx);
        if let Some(active) = &mut self.active {
            active.timers.cancel(Timer::NewHandshake);
        }
    }
}
