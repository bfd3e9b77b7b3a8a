//! The primitives that the whitepaper names in section 5.4: HASH, MAC, HMAC, KDF, AEAD, XAEAD.

use crate::aead::AeadKey;
use blake2::digest::{FixedOutput, KeyInit, Update, consts::U16};
use blake2::{Blake2s256, Blake2sMac, Digest};
use chacha20::{R20, hchacha};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Output of HASH.
pub(crate) type Hash = [u8; 32];
/// Output of KDF and of Diffie-Hellman: wiped when dropped.
pub(crate) type Secret = Zeroizing<[u8; 32]>;
/// Output of MAC.
pub(crate) type Mac = [u8; 16];

/// Bytes that AEAD adds.
pub(crate) const TAG: usize = 16;
/// Block of BLAKE2s, for HMAC.
const BLOCK: usize = 64;

/// HASH of the parts, one after the other.
pub(crate) fn hash(parts: &[&[u8]]) -> Hash {
    let mut hasher = Blake2s256::new();
    for part in parts {
        Update::update(&mut hasher, part);
    }
    hasher.finalize().into()
}

/// MAC: keyed BLAKE2s with 16 bytes of output. Keys have 16 or 32 bytes.
pub(crate) fn mac(key: &[u8], parts: &[&[u8]]) -> Mac {
    let mut hasher = Blake2sMac::<U16>::new_from_slice(key).expect("a key of at most 32 bytes");
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize_fixed().into()
}

/// Compares without telling by time where the difference is.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

/// HMAC of RFC 2104 with BLAKE2s, for keys no longer than a block.
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> Secret {
    let mut pad = Zeroizing::new([0x36; BLOCK]);
    for (p, k) in pad.iter_mut().zip(key) {
        *p ^= k;
    }
    let mut inner = Blake2s256::new();
    Update::update(&mut inner, pad.as_slice());
    for part in parts {
        Update::update(&mut inner, part);
    }
    let inner = Zeroizing::new(<[u8; 32]>::from(inner.finalize()));
    for p in pad.iter_mut() {
        *p ^= 0x36 ^ 0x5c;
    }
    Zeroizing::new(hash(&[pad.as_slice(), inner.as_slice()]))
}

/// KDF1, KDF2 or KDF3, by the length of the result.
pub(crate) fn kdf<const N: usize>(key: &[u8; 32], input: &[u8]) -> [Secret; N] {
    let prk = hmac(key, &[input]);
    let mut last: Secret = Zeroizing::new([0; 32]);
    let mut number = 0u8;
    std::array::from_fn(|_| {
        let previous: &[u8] = if number == 0 { &[] } else { last.as_slice() };
        number += 1;
        last = hmac(&prk, &[previous, &[number]]);
        last.clone()
    })
}

/// AEAD with counter 0 and a key that is used once, as in the handshake. `out` has 16 bytes more than `plaintext`.
pub(crate) fn seal(key: &[u8; 32], plaintext: &[u8], aad: &[u8], out: &mut [u8]) {
    out[..plaintext.len()].copy_from_slice(plaintext);
    AeadKey::new(key).seal(0, aad, out);
}

/// The inverse of [`seal`]; false if it does not authenticate. `out` has 16 bytes less than `ciphertext`.
#[must_use]
pub(crate) fn open(key: &[u8; 32], ciphertext: &[u8], aad: &[u8], out: &mut [u8]) -> bool {
    let mut buffer = Zeroizing::new([0u8; 32 + TAG]);
    let buffer = &mut buffer[..ciphertext.len()];
    buffer.copy_from_slice(ciphertext);
    let Some(plaintext) = AeadKey::new(key).open(0, aad, buffer) else {
        return false;
    };
    out.copy_from_slice(plaintext);
    true
}

/// The key of XChaCha20-Poly1305 for one nonce: HChaCha20 of its first 16 bytes; the last 8 go into ChaCha20-Poly1305
/// (draft-irtf-cfrg-xchacha-03, section 2).
fn xaead_key(key: &[u8; 32], nonce: &[u8; 24]) -> (AeadKey, u64) {
    let (head, tail) = nonce.split_at(16);
    let head = <[u8; 16]>::try_from(head).expect("16 bytes");
    let tail = <[u8; 8]>::try_from(tail).expect("8 bytes");
    let derived = Zeroizing::new(<[u8; 32]>::from(hchacha::<R20>(&(*key).into(), &head.into())));
    (AeadKey::new(&derived), u64::from_le_bytes(tail))
}

/// XAEAD of a cookie.
pub(crate) fn xseal(key: &[u8; 32], nonce: &[u8; 24], cookie: &Mac, aad: &[u8]) -> [u8; 32] {
    let (key, nonce) = xaead_key(key, nonce);
    let mut out = [0; 32];
    out[..16].copy_from_slice(cookie);
    key.seal(nonce, aad, &mut out);
    out
}

/// The inverse of [`xseal`].
pub(crate) fn xopen(key: &[u8; 32], nonce: &[u8; 24], sealed: &[u8; 32], aad: &[u8]) -> Option<Mac> {
    let (key, nonce) = xaead_key(key, nonce);
    let mut buffer = *sealed;
    let cookie = key.open(nonce, aad, &mut buffer)?;
    cookie.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xaead_opens_what_it_sealed_and_nothing_else() {
        let sealed = xseal(&[1; 32], &[2; 24], &[3; 16], b"aad");
        assert_eq!(xopen(&[1; 32], &[2; 24], &sealed, b"aad"), Some([3; 16]));
        assert_eq!(xopen(&[1; 32], &[2; 24], &sealed, b"aae"), None);
        let mut other = [2; 24];
        other[0] = 0;
        assert_eq!(xopen(&[1; 32], &other, &sealed, b"aad"), None);
        other = [2; 24];
        other[23] = 0;
        assert_eq!(xopen(&[1; 32], &other, &sealed, b"aad"), None);
    }

    /// RFC 7693, appendix B: BLAKE2s-256 of "abc".
    #[test]
    fn hash_is_blake2s() {
        let expected = [
            0x50, 0x8c, 0x5e, 0x8c, 0x32, 0x7c, 0x14, 0xe2, 0xe1, 0xa7, 0x2b, 0xa3, 0x4e, 0xeb, 0x45, 0x2f,
            0x37, 0x45, 0x8b, 0x20, 0x9e, 0xd6, 0x3a, 0x29, 0x4d, 0x99, 0x9b, 0x4c, 0x86, 0x67, 0x59, 0x82,
        ];
        assert_eq!(hash(&[b"a", b"bc"]), expected);
    }
}
