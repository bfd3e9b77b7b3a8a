//! The frame of each file: one line that tells what it is, and whether it is whole.
//!
//! ```text
//! meshd-lease 1 89abcdef
//! {"id":{..
//! ```
//!
//! Kind, format version, CRC-32 of kind, version and body in hexadecimal. The line stays as it is in later formats, so
//! that a file of a newer meshd can be told from a damaged one.

/// The format that is written, and the newest that can be read.
pub(crate) const FORMAT: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Lease,
    Boot,
    Kept,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    Damaged(&'static str),
    /// Whole, and of this format.
    Newer(u32),
}

impl Kind {
    fn magic(self) -> &'static str {
        match self {
            Kind::Lease => "meshd-lease",
            Kind::Boot => "meshd-boot",
            Kind::Kept => "meshd-kept",
        }
    }
}

pub(crate) fn encode(kind: Kind, body: &[u8]) -> Vec<u8> {
    frame(kind, FORMAT, body)
}

pub(crate) fn decode(kind: Kind, content: &[u8]) -> Result<Vec<u8>, Unreadable> {
    if content.is_empty() {
        return Err(Unreadable::Damaged("is empty"));
    }
    let no_header = Unreadable::Damaged("does not begin with the header of such a file");
    let Some(end) = content.iter().position(|&byte| byte == b'\n') else {
        return Err(no_header);
    };
    let (header, body) = (&content[..end], &content[end + 1..]);
    let Some(format) = format_of(kind, header) else {
        return Err(no_header);
    };
    if frame(kind, format, body) != content {
        return Err(Unreadable::Damaged("is torn or damaged: its checksum is another"));
    }
    if format > FORMAT {
        return Err(Unreadable::Newer(format));
    }
    Ok(body.to_vec())
}

fn format_of(kind: Kind, header: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(header).ok()?.split(' ');
    if words.next()? != kind.magic() {
        return None;
    }
    words.next()?.parse().ok()
}

fn frame(kind: Kind, format: u32, body: &[u8]) -> Vec<u8> {
    let head = format!("{} {format} ", kind.magic());
    let mut crc = crc32fast::Hasher::new();
    crc.update(head.as_bytes());
    crc.update(body);
    let mut content = format!("{head}{:08x}\n", crc.finalize()).into_bytes();
    content.extend_from_slice(body);
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_framed_comes_back() {
        for body in [&b""[..], b"x", b"two\nlines\n", &[0xff, 0, b'\n']] {
            assert_eq!(
                decode(Kind::Lease, &encode(Kind::Lease, body)).as_deref(),
                Ok(body)
            );
        }
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_noticed() {
        let content = encode(Kind::Lease, br#"{"id":{"container_id":"a"}}"#);
        for length in 0..content.len() {
            let torn = decode(Kind::Lease, &content[..length]);
            assert!(
                matches!(torn, Err(Unreadable::Damaged(_))),
                "cut at {length}: {torn:?}"
            );
        }
        for bit in 0..content.len() * 8 {
            let mut flipped = content.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let read = decode(Kind::Lease, &flipped);
            assert!(matches!(read, Err(Unreadable::Damaged(_))), "bit {bit}: {read:?}");
        }
    }

    #[test]
    fn a_newer_format_and_another_kind_are_told_from_damage() {
        let newer = frame(Kind::Lease, FORMAT + 1, b"what we do not know");
        assert_eq!(decode(Kind::Lease, &newer), Err(Unreadable::Newer(FORMAT + 1)));
        let other = encode(Kind::Boot, b"body");
        assert!(matches!(decode(Kind::Lease, &other), Err(Unreadable::Damaged(_))));
    }
}
