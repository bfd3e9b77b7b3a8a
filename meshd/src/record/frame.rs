//! Frames: length, checksum, CBOR.

use super::FORMAT_VERSION;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How a segment begins.
pub(super) const MAGIC: &[u8; 8] = b"meshdrec";
/// Length of magic and version.
pub(super) const PREAMBLE: usize = 12;
/// Length of a frame's head.
const HEAD: usize = 8;
/// Longest frame that is believed; a snapshot of a thousand nodes is a few megabytes.
const FRAME_MAX: usize = 256 << 20;

/// What a segment begins with.
pub(super) fn preamble() -> [u8; PREAMBLE] {
    let mut bytes = [0; PREAMBLE];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes
}

/// Why a value makes no frame.
#[derive(Debug, thiserror::Error)]
#[error("cannot encode a record: {0}")]
pub(super) struct EncodeError(String);

/// Appends a value as a frame; on error nothing is appended.
pub(super) fn append(buffer: &mut Vec<u8>, value: &impl Serialize) -> Result<(), EncodeError> {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; HEAD]);
    let encoded = ciborium::into_writer(value, &mut *buffer).map_err(|e| EncodeError(e.to_string()));
    let len = buffer.len() - start - HEAD;
    let encoded = encoded.and_then(|()| {
        let fits = len <= FRAME_MAX;
        fits.then_some(())
            .ok_or_else(|| EncodeError(format!("it has {len} bytes")))
    });
    if let Err(error) = encoded {
        buffer.truncate(start);
        return Err(error);
    }
    let sum = crc32fast::hash(&buffer[start + HEAD..]);
    let len = u32::try_from(len).expect("it was compared with FRAME_MAX");
    buffer[start..start + 4].copy_from_slice(&len.to_le_bytes());
    buffer[start + 4..start + HEAD].copy_from_slice(&sum.to_le_bytes());
    Ok(())
}

/// What is found at a place.
#[derive(Debug, PartialEq)]
pub(super) enum Found<'a> {
    /// A whole frame, and what comes after it.
    Frame(&'a [u8], &'a [u8]),
    /// The end.
    End,
    /// The beginning of a frame whose rest was never written.
    Torn,
    /// A frame that was damaged: more follows it.
    Damaged,
}

/// Takes the frame that `bytes` begins with.
pub(super) fn next(bytes: &[u8]) -> Found<'_> {
    if bytes.is_empty() {
        return Found::End;
    }
    let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() else {
        return Found::Torn;
    };
    let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let len = number(0) as usize;
    if len == 0 {
        // No value is empty. Zeros up to the end are what a file system may leave where a write was cut short.
        let zeros = bytes.iter().all(|b| *b == 0);
        return if zeros { Found::Torn } else { Found::Damaged };
    }
    if len > rest.len() {
        return if len > FRAME_MAX {
            Found::Damaged
        } else {
            Found::Torn
        };
    }
    let (body, after) = rest.split_at(len);
    match crc32fast::hash(body) == number(4) {
        true => Found::Frame(body, after),
        false if after.is_empty() => Found::Torn,
        false => Found::Damaged,
    }
}

/// Decodes a frame's body.
pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    ciborium::from_reader(body).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Vec<u8> {
        let mut bytes = Vec::new();
        append(&mut bytes, &"one").unwrap();
        append(&mut bytes, &"two").unwrap();
        bytes
    }

    #[test]
    fn frames_read_back() {
        let bytes = frames();
        let Found::Frame(body, after) = next(&bytes) else {
            panic!()
        };
        assert_eq!(decode::<String>(body).unwrap(), "one");
        let Found::Frame(body, after) = next(after) else {
            panic!()
        };
        assert_eq!(decode::<String>(body).unwrap(), "two");
        assert_eq!(next(after), Found::End);
    }

    #[test]
    fn a_cut_at_every_byte_is_torn_and_never_a_wrong_value() {
        let bytes = frames();
        let second = bytes.len() / 2;
        for cut in 1..second {
            assert_eq!(next(&bytes[..cut]), Found::Torn, "{cut}");
        }
        for cut in second + 1..bytes.len() {
            let Found::Frame(_, after) = next(&bytes[..cut]) else {
                panic!("{cut}")
            };
            assert_eq!(next(after), Found::Torn, "{cut}");
        }
        assert_eq!(next(&[0; 64]), Found::Torn);
    }

    #[test]
    fn a_changed_byte_is_never_believed() {
        let bytes = frames();
        for at in 0..bytes.len() / 2 {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x10;
            assert!(!matches!(next(&bytes), Found::Frame(..)), "{at}");
        }
    }
}
