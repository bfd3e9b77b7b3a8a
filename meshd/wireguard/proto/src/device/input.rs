//! What comes in: datagrams and packets.

use super::Device;
use crate::constants::MAX_OUTPUTS;
use crate::ip::Header;
use crate::message::{COOKIE_REPLY_LEN, INITIATION_LEN, Message, RESPONSE_LEN, word};
use crate::noise::UnprovenInitiation;
use crate::peers::PeerId;
use crate::{DropReason, Path};
use meshd_model::Now;

impl Device {
    /// Takes in a UDP datagram, which came from there; it is decrypted in place.
    ///
    /// # Errors
    /// Why it was dropped; for counting, there is nothing to be done about it.
    pub fn handle_datagram(
        &mut self,
        now: Now,
        from: impl Into<Path>,
        datagram: &mut [u8],
    ) -> Result<(), DropReason> {
        let from = from.into();
        if self.own.is_none() {
            return Err(DropReason::NoPrivateKey);
        }
        match Message::parse(datagram).ok_or(DropReason::Malformed)? {
            Message::Data(message) => self.handle_data(now, from, message),
            Message::Initiation(message) => self.handle_initiation(now, from, message),
            Message::Response(message) => self.handle_response(now, from, message),
            Message::CookieReply(message) => self.handle_cookie(now, message),
        }
    }

    /// Takes in an IP packet to be sent to the peer whose allowed IPs cover its destination; it is sent, or waits
    /// for a handshake.
    ///
    /// # Errors
    /// Why it was dropped; `NoRoute` and `NoEndpoint` could be told to the sender by ICMP.
    pub fn handle_packet(&mut self, now: Now, packet: &[u8]) -> Result<(), DropReason> {
        let header = Header::parse(packet).ok_or(DropReason::NotIp)?;
        let id = self
            .routes
            .lookup(header.destination)
            .ok_or(DropReason::NoRoute)?;
        self.with_peer(now, id, |peer, cx| peer.send_packet(cx, &packet[..header.length]))
            .unwrap_or(Err(DropReason::NoPrivateKey))
    }

    fn handle_data(&mut self, now: Now, from: Path, message: &mut [u8]) -> Result<(), DropReason> {
        let id = self.peer_by_index(word(message, 4))?;
        let packet = self
            .with_peer(now, id, |peer, cx| peer.handle_data(cx, from, message))
            .ok_or(DropReason::NoPrivateKey)??;
        if packet.is_empty() {
            return Ok(());
        }
        let header = Header::parse(packet).ok_or(DropReason::NotIp)?;
        if self.routes.lookup(header.source) != Some(id) {
            return Err(DropReason::SourceNotAllowed);
        }
        if self.packets.len() >= MAX_OUTPUTS {
            return Err(DropReason::QueueFull);
        }
        self.packets.push_back(packet[..header.length].to_vec());
        Ok(())
    }

    fn handle_initiation(
        &mut self,
        now: Now,
        from: Path,
        message: &[u8; INITIATION_LEN],
    ) -> Result<(), DropReason> {
        self.admit(now, from, message)?;
        let own = self.own.as_ref().ok_or(DropReason::NoPrivateKey)?;
        let initiation = UnprovenInitiation::open(&own.identity, message).ok_or(DropReason::Unauthentic)?;
        let id = self.peers.id(&initiation.peer).ok_or(DropReason::UnknownPeer)?;
        self.with_peer(now, id, |peer, cx| peer.handle_initiation(cx, from, initiation))
            .unwrap_or(Err(DropReason::NoPrivateKey))
    }

    fn handle_response(
        &mut self,
        now: Now,
        from: Path,
        message: &[u8; RESPONSE_LEN],
    ) -> Result<(), DropReason> {
        self.admit(now, from, message)?;
        let id = self.peer_by_index(word(message, 8))?;
        self.with_peer(now, id, |peer, cx| peer.handle_response(cx, from, message))
            .unwrap_or(Err(DropReason::NoPrivateKey))
    }

    fn handle_cookie(&mut self, now: Now, message: &[u8; COOKIE_REPLY_LEN]) -> Result<(), DropReason> {
        let id = self.peer_by_index(word(message, 4))?;
        self.with_peer(now, id, |peer, cx| peer.handle_cookie(cx, message))
            .unwrap_or(Err(DropReason::NoPrivateKey))
    }

    fn peer_by_index(&self, index: u32) -> Result<PeerId, DropReason> {
        self.shared.indices.get(index).ok_or(DropReason::UnknownIndex)
    }

    /// Whether a handshake message may cost us Diffie-Hellman: its sender knows our key, and under load, holds the
    /// cookie of its address and has not sent many. Who holds no cookie is sent one.
    fn admit(&mut self, now: Now, from: Path, message: &[u8]) -> Result<(), DropReason> {
        let own = self.own.as_mut().ok_or(DropReason::NoPrivateKey)?;
        if !own.checker.mac1_is_valid(message) {
            return Err(DropReason::Unauthentic);
        }
        if !self.limiter.is_under_load(now.boot) {
            return Ok(());
        }
        let rng = &mut self.shared.rng;
        if !own.checker.mac2_is_valid(now.boot, rng, from.remote, message) {
            let reply = own.checker.reply(now.boot, rng, from.remote, message);
            self.shared.transmit(from, reply.to_vec())?;
            return Err(DropReason::UnderLoad);
        }
        if self.limiter.allow(now.boot, from.remote.ip()) {
            Ok(())
        } else {
            Err(DropReason::UnderLoad)
        }
    }
}
