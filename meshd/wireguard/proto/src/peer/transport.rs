//! Data to and from one peer.

use super::handshake::Attempt;
use super::{Context, Peer};
use crate::constants::{
    KEEPALIVE_TIMEOUT, MAX_STAGED, MAX_STAGED_ALL, REKEY_AFTER_MESSAGES, REKEY_AFTER_TIME, REKEY_ON_RECEIVE,
    REKEY_TIMEOUT,
};
use crate::message::word;
use crate::timers::Timer;
use crate::{DropReason, Path};

impl Peer {
    /// Sends a packet, or lets it wait for a handshake.
    pub(crate) fn send_packet(&mut self, cx: &mut Context<'_>, packet: &[u8]) -> Result<(), DropReason> {
        if self.endpoint.is_none() {
            return Err(DropReason::NoEndpoint);
        }
        match self.seal(cx, packet) {
            Some(sent) => sent,
            None => {
                self.stage(cx, packet)?;
                self.initiate(cx, Attempt::First);
                Ok(())
            }
        }
    }

    /// Sends a packet, empty for a keepalive, if there is a session to send it with.
    fn seal(&mut self, cx: &mut Context<'_>, packet: &[u8]) -> Option<Result<(), DropReason>> {
        let now = cx.now.boot;
        let endpoint = self.endpoint?;
        let session = self.active.as_mut()?.keypairs.current()?;
        if !session.can_send(now) {
            return None;
        }
        let message = session.seal(packet, cx.shared.mtu);
        let stale = session.counter > REKEY_AFTER_MESSAGES
            || (session.is_initiator && now.since(session.born) >= REKEY_AFTER_TIME);
        let sent = self.transmit(cx.shared, endpoint, message);
        self.authentic_sent(cx);
        if !packet.is_empty() {
            self.data_sent(cx);
        }
        if stale {
            self.initiate(cx, Attempt::First);
        }
        Some(sent)
    }

    fn stage(&mut self, cx: &mut Context<'_>, packet: &[u8]) -> Result<(), DropReason> {
        let active = self.activate(cx);
        if active.staged.len() >= MAX_STAGED
            || (cx.shared.staged >= MAX_STAGED_ALL && !active.staged.is_empty())
        {
            active.staged.pop_front();
            cx.shared.staged -= 1;
        }
        if cx.shared.staged >= MAX_STAGED_ALL {
            return Err(DropReason::QueueFull);
        }
        active.staged.push_back(packet.to_vec());
        cx.shared.staged += 1;
        Ok(())
    }

    /// Sends what waited for a session; whether there was any.
    pub(super) fn send_staged(&mut self, cx: &mut Context<'_>) -> bool {
        let staged = match &mut self.active {
            Some(active) => std::mem::take(&mut active.staged),
            None => return false,
        };
        cx.shared.staged -= staged.len();
        let any = !staged.is_empty();
        for packet in staged {
            // A full queue drops it like a network would.
            let _ = self.seal(cx, &packet);
        }
        any
    }

    /// Drops what waited for a session.
    pub(super) fn drop_staged(&mut self, cx: &mut Context<'_>) {
        if let Some(active) = &mut self.active {
            cx.shared.staged -= std::mem::take(&mut active.staged).len();
        }
    }

    /// Sends a keepalive. Where there is no session to send it with, the handshake that makes one says as much.
    pub(crate) fn send_keepalive(&mut self, cx: &mut Context<'_>) {
        if self.seal(cx, &[]).is_none() {
            self.initiate(cx, Attempt::First);
        }
    }

    /// Opens a data message in place; gives the packet with its padding, empty for a keepalive.
    pub(crate) fn handle_data<'a>(
        &mut self,
        cx: &mut Context<'_>,
        from: Path,
        message: &'a mut [u8],
    ) -> Result<&'a [u8], DropReason> {
        let now = cx.now.boot;
        let index = word(message, 4);
        let length = message.len();
        let active = self.active.as_mut().ok_or(DropReason::UnknownIndex)?;
        let session = active.keypairs.by_index(index).ok_or(DropReason::UnknownIndex)?;
        let packet = session.open(now, message)?;
        let confirmed = active.keypairs.confirm(now, index, &mut cx.shared.indices);
        self.authentic_received(cx, from, length);
        if confirmed {
            self.handshake_completed(cx);
            self.send_staged(cx);
        }
        self.rekey_on_receive(cx);
        if !packet.is_empty() {
            self.data_received(cx);
        }
        Ok(packet)
    }

    /// An initiator that only receives would not notice that its session expires.
    fn rekey_on_receive(&mut self, cx: &mut Context<'_>) {
        let Some(active) = &mut self.active else {
            return;
        };
        if active.has_rekeyed_on_receive {
            return;
        }
        let due = active
            .keypairs
            .current()
            .is_some_and(|s| s.is_initiator && cx.now.boot.since(s.born) >= REKEY_ON_RECEIVE);
        if due {
            active.has_rekeyed_on_receive = true;
            self.initiate(cx, Attempt::First);
        }
    }

    fn data_sent(&mut self, cx: &mut Context<'_>) {
        if let Some(active) = &mut self.active
            && !active.timers.is_armed(Timer::NewHandshake)
        {
            let at = cx.now.boot + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + cx.jitter();
            active.timers.arm(Timer::NewHandshake, at);
        }
    }

    fn data_received(&mut self, cx: &Context<'_>) {
        let Some(active) = &mut self.active else {
            return;
        };
        if active.timers.is_armed(Timer::Keepalive) {
            active.needs_another_keepalive = true;
        } else {
            active
                .timers
                .arm(Timer::Keepalive, cx.now.boot + KEEPALIVE_TIMEOUT);
        }
    }
}
