//! Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s as WireGuard uses it (whitepaper, sections 5.4.2 to 5.4.5).

use crate::crypto::{self, Hash, Secret, hash, kdf};
use crate::key::{PresharedKey, PrivateKey};
use crate::message::{INITIATION, INITIATION_LEN, RESPONSE, RESPONSE_LEN, field, put, word};
use crate::tai64n::Tai64n;
use meshd_model::PublicKey;
use zeroize::Zeroizing;

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

const NO_PRESHARED_KEY: [u8; 32] = [0; 32];

/// The device's own key pair.
pub(crate) struct Identity {
    pub(crate) private: PrivateKey,
    pub(crate) public: PublicKey,
}

impl Identity {
    pub(crate) fn new(private: PrivateKey) -> Self {
        let public = private.public_key();
        Self { private, public }
    }
}

/// Keys of a new session, and the index that the other side wants to be addressed with.
pub(crate) struct TransportKeys {
    pub(crate) send: Secret,
    pub(crate) receive: Secret,
    pub(crate) remote_index: u32,
}

/// Chaining key and hash.
#[derive(Clone)]
struct Symmetric {
    key: Secret,
    hash: Hash,
}

impl Symmetric {
    fn new(responder: &PublicKey) -> Self {
        let key = hash(&[CONSTRUCTION]);
        let identified = hash(&[&key, IDENTIFIER]);
        Self {
            key: Zeroizing::new(key),
            hash: hash(&[&identified, &responder.0]),
        }
    }

    fn mix_hash(&mut self, data: &[u8]) {
        self.hash = hash(&[&self.hash, data]);
    }

    fn mix_key(&mut self, input: &[u8]) {
        [self.key] = kdf(&self.key, input);
    }

    /// As `mix_key`; the second output is a key for AEAD.
    fn mix_key_for_aead(&mut self, input: &[u8]) -> Secret {
        let [key, aead] = kdf(&self.key, input);
        self.key = key;
        aead
    }

    fn mix_preshared(&mut self, psk: Option<&PresharedKey>) -> Secret {
        let psk = psk.map_or(&NO_PRESHARED_KEY, PresharedKey::as_bytes);
        let [key, mixed, aead] = kdf(&self.key, psk);
        self.key = key;
        self.mix_hash(mixed.as_slice());
        aead
    }

    fn mix_ephemeral(&mut self, public: &[u8; 32]) {
        self.mix_key(public);
        self.mix_hash(public);
    }

    fn seal(&mut self, key: &Secret, plaintext: &[u8], out: &mut [u8]) {
        crypto::seal(key, plaintext, &self.hash, out);
        self.mix_hash(out);
    }

    fn open(&mut self, key: &Secret, ciphertext: &[u8], out: &mut [u8]) -> Option<()> {
        crypto::open(key, ciphertext, &self.hash, out).then_some(())?;
        self.mix_hash(ciphertext);
        Some(())
    }

    /// The initiator's sending key, and its receiving key.
    fn split(&self) -> [Secret; 2] {
        kdf(&self.key, &[])
    }
}

/// An initiator that waits for its response.
pub(crate) struct Initiator {
    symmetric: Symmetric,
    ephemeral: PrivateKey,
    /// Our index.
    pub(crate) local_index: u32,
}

impl Initiator {
    /// Makes an initiation, all but its MACs. None if the peer's key is of low order.
    pub(crate) fn new(
        identity: &Identity,
        peer: &PublicKey,
        static_static: &Secret,
        ephemeral: PrivateKey,
        local_index: u32,
        stamp: Tai64n,
    ) -> Option<(Self, [u8; INITIATION_LEN])> {
        let mut message = [0; INITIATION_LEN];
        put(&mut message, 0, &INITIATION.to_le_bytes());
        put(&mut message, 4, &local_index.to_le_bytes());
        let mut symmetric = Symmetric::new(peer);
        let public = ephemeral.public_key().0;
        put(&mut message, 8, &public);
        symmetric.mix_ephemeral(&public);
        let shared = ephemeral.diffie_hellman(&peer.0)?;
        let key = symmetric.mix_key_for_aead(shared.as_slice());
        symmetric.seal(&key, &identity.public.0, &mut message[40..88]);
        let key = symmetric.mix_key_for_aead(static_static.as_slice());
        symmetric.seal(&key, &stamp.0, &mut message[88..116]);
        let state = Self {
            symmetric,
            ephemeral,
            local_index,
        };
        Some((state, message))
    }

    /// Takes in the response. None if it is not authentic: a true one may still come.
    pub(crate) fn consume_response(
        &self,
        identity: &Identity,
        psk: Option<&PresharedKey>,
        message: &[u8; RESPONSE_LEN],
    ) -> Option<TransportKeys> {
        let mut symmetric = self.symmetric.clone();
        let public = field::<32>(message, 12);
        symmetric.mix_ephemeral(public);
        let shared = self.ephemeral.diffie_hellman(public)?;
        symmetric.mix_key(shared.as_slice());
        let shared = identity.private.diffie_hellman(public)?;
        symmetric.mix_key(shared.as_slice());
        let key = symmetric.mix_preshared(psk);
        symmetric.open(&key, &message[44..60], &mut [])?;
        let [send, receive] = symmetric.split();
        Some(TransportKeys {
            send,
            receive,
            remote_index: word(message, 4),
        })
    }
}

/// An initiation of which the sender's static key was read, and nothing is known of whether the sender holds it.
pub(crate) struct UnprovenInitiation<'a> {
    symmetric: Symmetric,
    message: &'a [u8; INITIATION_LEN],
    /// Who it claims to be from.
    pub(crate) peer: PublicKey,
}

impl<'a> UnprovenInitiation<'a> {
    /// Reads the sender's key.
    pub(crate) fn open(identity: &Identity, message: &'a [u8; INITIATION_LEN]) -> Option<Self> {
        let mut symmetric = Symmetric::new(&identity.public);
        let ephemeral = field::<32>(message, 8);
        symmetric.mix_ephemeral(ephemeral);
        let shared = identity.private.diffie_hellman(ephemeral)?;
        let key = symmetric.mix_key_for_aead(shared.as_slice());
        let mut peer = PublicKey([0; 32]);
        symmetric.open(&key, &message[40..88], &mut peer.0)?;
        Some(Self {
            symmetric,
            message,
            peer,
        })
    }

    /// Checks with the shared secret of both static keys that the sender holds its key; gives its stamp.
    pub(crate) fn prove(mut self, static_static: &Secret) -> Option<(Tai64n, Responder)> {
        let key = self.symmetric.mix_key_for_aead(static_static.as_slice());
        let mut stamp = Tai64n::default();
        self.symmetric.open(&key, &self.message[88..116], &mut stamp.0)?;
        let responder = Responder {
            symmetric: self.symmetric,
            ephemeral: *field(self.message, 8),
            remote_index: word(self.message, 4),
            peer: self.peer,
        };
        Some((stamp, responder))
    }
}

/// A responder about to answer.
pub(crate) struct Responder {
    symmetric: Symmetric,
    ephemeral: [u8; 32],
    remote_index: u32,
    peer: PublicKey,
}

impl Responder {
    /// Makes the response, all but its MACs.
    pub(crate) fn respond(
        mut self,
        psk: Option<&PresharedKey>,
        ephemeral: &PrivateKey,
        local_index: u32,
    ) -> Option<(TransportKeys, [u8; RESPONSE_LEN])> {
        let mut message = [0; RESPONSE_LEN];
        put(&mut message, 0, &RESPONSE.to_le_bytes());
        put(&mut message, 4, &local_index.to_le_bytes());
        put(&mut message, 8, &self.remote_index.to_le_bytes());
        let public = ephemeral.public_key().0;
        put(&mut message, 12, &public);
        self.symmetric.mix_ephemeral(&public);
        let shared = ephemeral.diffie_hellman(&self.ephemeral)?;
        self.symmetric.mix_key(shared.as_slice());
        let shared = ephemeral.diffie_hellman(&self.peer.0)?;
        self.symmetric.mix_key(shared.as_slice());
        let key = self.symmetric.mix_preshared(psk);
        self.symmetric.seal(&key, &[], &mut message[44..60]);
        let [receive, send] = self.symmetric.split();
        let keys = TransportKeys {
            send,
            receive,
            remote_index: self.remote_index,
        };
        Some((keys, message))
    }
}
