//! ChaCha20-Poly1305 keys that are wiped when dropped: ring's own are not.
#![allow(unsafe_code)]

use crate::crypto::TAG;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, Tag, UnboundKey};
use std::mem::MaybeUninit;
use zeroize::Zeroize;

/// A key whose nonces are 64-bit counters (whitepaper, section 5.4). Boxed, so that moving it leaves no copy behind.
pub(crate) struct AeadKey(Box<MaybeUninit<LessSafeKey>>);

impl AeadKey {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        const { assert!(!std::mem::needs_drop::<LessSafeKey>()) };
        let key = UnboundKey::new(&CHACHA20_POLY1305, key).expect("the key has 32 bytes");
        Self(Box::new(MaybeUninit::new(LessSafeKey::new(key))))
    }

    fn get(&self) -> &LessSafeKey {
        // SAFETY: `new` initialised it, and only `drop` overwrites it.
        unsafe { self.0.assume_init_ref() }
    }

    /// Seals all of `buffer` but its last 16 bytes, which take the tag.
    pub(crate) fn seal(&self, counter: u64, aad: &[u8], buffer: &mut [u8]) {
        let at = buffer.len() - TAG;
        let (text, place) = buffer.split_at_mut(at);
        let tag = self
            .get()
            .seal_in_place_separate_tag(nonce(counter), Aad::from(aad), text)
            .expect("far below ring's limit of 256 GiB a message");
        place.copy_from_slice(tag.as_ref());
    }

    /// Opens `buffer`, whose last 16 bytes are the tag.
    pub(crate) fn open<'a>(&self, counter: u64, aad: &[u8], buffer: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let at = buffer.len().checked_sub(TAG)?;
        let (text, tag) = buffer.split_at_mut(at);
        let tag = Tag::try_from(&*tag).ok()?;
        self.get()
            .open_in_place_separate_tag(nonce(counter), Aad::from(aad), tag, text, 0..)
            .ok()
    }
}

impl Drop for AeadKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// 32 bits of zeros and the counter in little endian.
fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}
