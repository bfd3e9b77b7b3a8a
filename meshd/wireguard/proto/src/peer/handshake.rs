//! Handshakes with one peer: sending initiations, answering them, taking in answers.

use super::{Active, Context, Peer};
use crate::constants::{INITIATION_INTERVAL, REKEY_TIMEOUT, WIPE_AFTER_TIME};
use crate::cookie::{Jar, MacKeys};
use crate::key::PrivateKey;
use crate::keypairs::Keypairs;
use crate::message::{COOKIE_REPLY_LEN, RESPONSE_LEN, word};
use crate::noise::{Initiator, UnprovenInitiation};
use crate::session::Session;
use crate::tai64n::Tai64n;
use crate::timers::{Timer, Timers};
use crate::{DropReason, Path};
use meshd_model::PublicKey;
use std::collections::VecDeque;

/// Why an initiation is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    /// There is a new reason for it.
    First,
    /// The last one was not answered.
    Again,
}

impl Active {
    pub(super) fn new(cx: &Context<'_>, peer: &PublicKey) -> Self {
        let mut timers = Timers::default();
        timers.arm(Timer::Wipe, cx.now.boot + WIPE_AFTER_TIME);
        Self {
            static_static: cx.identity.private.diffie_hellman(&peer.0),
            mac_keys: MacKeys::new(peer),
            jar: Jar::default(),
            initiation: None,
            keypairs: Keypairs::default(),
            staged: VecDeque::new(),
            timers,
            attempts: 0,
            last_handshake_sent: None,
            last_initiation_received: None,
            needs_another_keepalive: false,
            has_rekeyed_on_receive: false,
        }
    }
}

impl Peer {
    /// Sends an initiation, unless one was sent less than REKEY_TIMEOUT ago; then it is sent when that has passed.
    pub(super) fn initiate(&mut self, cx: &mut Context<'_>, attempt: Attempt) {
        let now = cx.now.boot;
        let Some(endpoint) = self.endpoint else {
            return;
        };
        let active = self.activate(cx);
        if attempt == Attempt::First {
            active.attempts = 0;
        }
        if let Some(last) = active.last_handshake_sent
            && now.since(last) < REKEY_TIMEOUT
        {
            active.timers.arm_if_idle(Timer::Retransmit, last + REKEY_TIMEOUT);
            return;
        }
        let Some(mut message) = self.make_initiation(cx) else {
            return;
        };
        let active = self.activate(cx);
        active.jar.sign(now, &active.mac_keys, &mut message);
        active.last_handshake_sent = Some(now);
        let again = now + REKEY_TIMEOUT + cx.jitter();
        active.timers.arm(Timer::Retransmit, again);
        self.authentic_sent(cx);
        // A full queue drops it like a network would: the timer sends another.
        let _ = self.transmit(cx.shared, endpoint, message);
    }

    /// None where the peer's key is of low order.
    fn make_initiation(&mut self, cx: &mut Context<'_>) -> Option<Vec<u8>> {
        let active = self.active.as_mut()?;
        let static_static = active.static_static.as_ref()?;
        let stamp = Tai64n::next(cx.now.wall, self.sent_stamp);
        let ephemeral = PrivateKey::generate(&mut cx.shared.rng);
        let index = cx.shared.indices.allocate(&mut cx.shared.rng, cx.id);
        let made = Initiator::new(
            cx.identity,
            &self.public_key,
            static_static,
            ephemeral,
            index,
            stamp,
        );
        let Some((initiator, message)) = made else {
            cx.shared.indices.release(index);
            return None;
        };
        if let Some(old) = active.initiation.replace(initiator) {
            cx.shared.indices.release(old.local_index);
        }
        self.sent_stamp = stamp;
        Some(message.to_vec())
    }

    /// Answers an initiation.
    pub(crate) fn handle_initiation(
        &mut self,
        cx: &mut Context<'_>,
        from: Path,
        initiation: UnprovenInitiation<'_>,
    ) -> Result<(), DropReason> {
        let now = cx.now.boot;
        let active = self.activate(cx);
        let static_static = active.static_static.as_ref().ok_or(DropReason::Unauthentic)?;
        let (stamp, responder) = initiation.prove(static_static).ok_or(DropReason::Unauthentic)?;
        let received = active.last_initiation_received;
        if stamp <= self.received_stamp {
            return Err(DropReason::Replay);
        }
        if received.is_some_and(|last| now.since(last) < INITIATION_INTERVAL) {
            return Err(DropReason::UnderLoad);
        }
        let ephemeral = PrivateKey::generate(&mut cx.shared.rng);
        let index = cx.shared.indices.allocate(&mut cx.shared.rng, cx.id);
        let Some((keys, mut response)) = responder.respond(self.preshared_key.as_ref(), &ephemeral, index)
        else {
            cx.shared.indices.release(index);
            return Err(DropReason::Unauthentic);
        };
        self.received_stamp = stamp;
        let active = self.activate(cx);
        active.last_initiation_received = Some(now);
        active.last_handshake_sent = Some(now);
        active.jar.sign(now, &active.mac_keys, &mut response);
        let session = Session::new(&keys, index, now, false);
        active
            .keypairs
            .install_as_responder(session, &mut cx.shared.indices);
        active.timers.arm(Timer::Wipe, now + WIPE_AFTER_TIME);
        self.authentic_received(cx, from, crate::message::INITIATION_LEN);
        self.authentic_sent(cx);
        self.transmit(cx.shared, from, response.to_vec())
    }

    /// Takes in the answer to our initiation; what waited is sent, or a keepalive that tells the peer it may send.
    pub(crate) fn handle_response(
        &mut self,
        cx: &mut Context<'_>,
        from: Path,
        message: &[u8; RESPONSE_LEN],
    ) -> Result<(), DropReason> {
        let now = cx.now.boot;
        let active = self.active.as_mut().ok_or(DropReason::UnknownIndex)?;
        let initiation = active
            .initiation
            .as_ref()
            .filter(|i| i.local_index == word(message, 8))
            .ok_or(DropReason::UnknownIndex)?;
        let keys = initiation
            .consume_response(cx.identity, self.preshared_key.as_ref(), message)
            .ok_or(DropReason::Unauthentic)?;
        let session = Session::new(&keys, initiation.local_index, now, true);
        active.initiation = None;
        active
            .keypairs
            .install_as_initiator(now, session, &mut cx.shared.indices);
        active.timers.arm(Timer::Wipe, now + WIPE_AFTER_TIME);
        self.authentic_received(cx, from, RESPONSE_LEN);
        self.handshake_completed(cx);
        if !self.send_staged(cx) {
            self.send_keepalive(cx);
        }
        Ok(())
    }

    /// Takes in a cookie, to be used in the next handshake message.
    pub(crate) fn handle_cookie(
        &mut self,
        cx: &mut Context<'_>,
        message: &[u8; COOKIE_REPLY_LEN],
    ) -> Result<(), DropReason> {
        let active = self.active.as_mut().ok_or(DropReason::UnknownIndex)?;
        if !active.jar.accept(cx.now.boot, &active.mac_keys, message) {
            return Err(DropReason::Unauthentic);
        }
        self.rx_bytes += message.len() as u64;
        Ok(())
    }

    /// A session is confirmed.
    pub(super) fn handshake_completed(&mut self, cx: &Context<'_>) {
        self.last_handshake = Some(cx.now.wall);
        if let Some(active) = &mut self.active {
            active.timers.cancel(Timer::Retransmit);
            active.attempts = 0;
            active.has_rekeyed_on_receive = false;
        }
    }
}
