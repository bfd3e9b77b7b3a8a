//! MACs of handshake messages, and the cookies that a device under load asks for (whitepaper, sections 5.4.4 and
//! 5.4.7).

use crate::crypto::{Mac, hash, mac, same, xopen, xseal};
use crate::message::{COOKIE_REPLY, COOKIE_REPLY_LEN, field, put, word};
use meshd_model::{Boot, PublicKey};
use rand_core::Rng;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use zeroize::Zeroizing;

const LABEL_MAC1: &[u8] = b"mac1----";
const LABEL_COOKIE: &[u8] = b"cookie--";
/// How long a secret, and so a cookie, is good.
const SECRET_AGE: Duration = Duration::from_secs(120);
/// A cookie is not used for its last seconds, in which it may be too old on arrival.
const LATENCY: Duration = Duration::from_secs(5);

/// The two keys that derive from a public key.
pub(crate) struct MacKeys {
    mac1: [u8; 32],
    cookie: [u8; 32],
}

impl MacKeys {
    pub(crate) fn new(public: &PublicKey) -> Self {
        Self {
            mac1: hash(&[LABEL_MAC1, &public.0]),
            cookie: hash(&[LABEL_COOKIE, &public.0]),
        }
    }
}

/// Splits a handshake message before its two MACs.
fn split(message: &[u8]) -> (&[u8], &[u8; 16], &[u8; 16]) {
    let at = message.len() - 32;
    (&message[..at], field(message, at), field(message, at + 16))
}

/// Checks the MACs of what we receive.
pub(crate) struct Checker {
    keys: MacKeys,
    secret: Zeroizing<[u8; 32]>,
    since: Option<Boot>,
}

impl Checker {
    pub(crate) fn new(public: &PublicKey) -> Self {
        Self {
            keys: MacKeys::new(public),
            secret: Zeroizing::new([0; 32]),
            since: None,
        }
    }

    /// Whether the sender knows our public key.
    pub(crate) fn mac1_is_valid(&self, message: &[u8]) -> bool {
        let (head, mac1, _) = split(message);
        same(&mac(&self.keys.mac1, &[head]), mac1)
    }

    /// Whether the sender holds the cookie of its address.
    pub(crate) fn mac2_is_valid<R: Rng>(
        &mut self,
        now: Boot,
        rng: &mut R,
        from: SocketAddr,
        message: &[u8],
    ) -> bool {
        let cookie = self.cookie(now, rng, from);
        let (head, mac1, mac2) = split(message);
        same(&mac(&cookie, &[head, mac1]), mac2)
    }

    /// The answer to a handshake message that carries no valid cookie.
    pub(crate) fn reply<R: Rng>(
        &mut self,
        now: Boot,
        rng: &mut R,
        from: SocketAddr,
        message: &[u8],
    ) -> [u8; COOKIE_REPLY_LEN] {
        let cookie = self.cookie(now, rng, from);
        let mut nonce = [0; 24];
        rng.fill_bytes(&mut nonce);
        let (_, mac1, _) = split(message);
        let mut reply = [0; COOKIE_REPLY_LEN];
        put(&mut reply, 0, &COOKIE_REPLY.to_le_bytes());
        put(&mut reply, 4, &word(message, 4).to_le_bytes());
        put(&mut reply, 8, &nonce);
        put(&mut reply, 32, &xseal(&self.keys.cookie, &nonce, &cookie, mac1));
        reply
    }

    fn cookie<R: Rng>(&mut self, now: Boot, rng: &mut R, from: SocketAddr) -> Mac {
        if self.since.is_none_or(|since| now.since(since) >= SECRET_AGE) {
            rng.fill_bytes(self.secret.as_mut_slice());
            self.since = Some(now);
        }
        let port = from.port().to_be_bytes();
        match from.ip() {
            IpAddr::V4(ip) => mac(self.secret.as_slice(), &[&ip.octets(), &port]),
            IpAddr::V6(ip) => mac(self.secret.as_slice(), &[&ip.octets(), &port]),
        }
    }
}

/// Makes the MACs of what we send to one peer.
#[derive(Default)]
pub(crate) struct Jar {
    last_mac1: Option<Mac>,
    cookie: Option<(Mac, Boot)>,
}

impl Jar {
    /// Fills in both MACs.
    pub(crate) fn sign(&mut self, now: Boot, peer: &MacKeys, message: &mut [u8]) {
        let at = message.len() - 32;
        let mac1 = mac(&peer.mac1, &[&message[..at]]);
        put(message, at, &mac1);
        self.last_mac1 = Some(mac1);
        match self.cookie {
            Some((cookie, since)) if now.since(since) < SECRET_AGE - LATENCY => {
                let mac2 = mac(&cookie, &[&message[..at + 16]]);
                put(message, at + 16, &mac2);
            }
            _ => self.cookie = None,
        }
    }

    /// Takes in a cookie; false if it is not the answer to the last message we signed.
    pub(crate) fn accept(&mut self, now: Boot, peer: &MacKeys, reply: &[u8; COOKIE_REPLY_LEN]) -> bool {
        let Some(mac1) = self.last_mac1 else {
            return false;
        };
        let Some(cookie) = xopen(&peer.cookie, field(reply, 8), field(reply, 32), &mac1) else {
            return false;
        };
        self.last_mac1 = None;
        self.cookie = Some((cookie, now));
        true
    }
}
