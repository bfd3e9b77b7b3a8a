//! A session: the keys that one handshake gave (whitepaper, section 5.4.6).

use crate::DropReason;
use crate::aead::AeadKey;
use crate::constants::{REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME};
use crate::crypto::TAG;
use crate::message::{DATA, DATA_HEADER, field};
use crate::noise::TransportKeys;
use crate::replay::ReplayWindow;
use meshd_model::Boot;

pub(crate) struct Session {
    send: AeadKey,
    receive: AeadKey,
    /// The index that messages to us carry.
    pub(crate) local_index: u32,
    remote_index: u32,
    /// Counter of the next message to be sent.
    pub(crate) counter: u64,
    window: ReplayWindow,
    /// When it was derived.
    pub(crate) born: Boot,
    /// Whether we sent the initiation: the initiator is the one who makes the next handshake.
    pub(crate) is_initiator: bool,
}

impl Session {
    pub(crate) fn new(keys: &TransportKeys, local_index: u32, born: Boot, is_initiator: bool) -> Self {
        Self {
            send: AeadKey::new(&keys.send),
            receive: AeadKey::new(&keys.receive),
            local_index,
            remote_index: keys.remote_index,
            counter: 0,
            window: ReplayWindow::new(),
            born,
            is_initiator,
        }
    }

    pub(crate) fn is_expired(&self, now: Boot) -> bool {
        now.since(self.born) >= REJECT_AFTER_TIME
    }

    pub(crate) fn can_send(&self, now: Boot) -> bool {
        !self.is_expired(now) && self.counter < REJECT_AFTER_MESSAGES
    }

    /// A data message with the packet, padded to a multiple of 16 bytes but not beyond the MTU.
    pub(crate) fn seal(&mut self, packet: &[u8], mtu: usize) -> Vec<u8> {
        let padded = packet.len().next_multiple_of(16).min(mtu).max(packet.len());
        let mut message = Vec::with_capacity(DATA_HEADER + padded + TAG);
        message.extend_from_slice(&DATA.to_le_bytes());
        message.extend_from_slice(&self.remote_index.to_le_bytes());
        message.extend_from_slice(&self.counter.to_le_bytes());
        message.extend_from_slice(packet);
        message.resize(DATA_HEADER + padded + TAG, 0);
        self.send.seal(self.counter, &[], &mut message[DATA_HEADER..]);
        self.counter += 1;
        message
    }

    /// Opens a data message in place; gives the packet with its padding.
    pub(crate) fn open<'a>(&mut self, now: Boot, message: &'a mut [u8]) -> Result<&'a mut [u8], DropReason> {
        let counter = u64::from_le_bytes(*field(message, 8));
        if self.is_expired(now) || counter >= REJECT_AFTER_MESSAGES {
            return Err(DropReason::Expired);
        }
        let packet = self
            .receive
            .open(counter, &[], &mut message[DATA_HEADER..])
            .ok_or(DropReason::Unauthentic)?;
        if self.window.accept(counter) {
            Ok(packet)
        } else {
            Err(DropReason::Replay)
        }
    }
}
