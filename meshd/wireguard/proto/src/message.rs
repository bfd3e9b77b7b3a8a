//! The four messages on the wire (whitepaper, section 5.4): lengths and places of their fields.

/// Type, reserved zeros: the first word of each message, little endian.
pub(crate) const INITIATION: u32 = 1;
pub(crate) const RESPONSE: u32 = 2;
pub(crate) const COOKIE_REPLY: u32 = 3;
pub(crate) const DATA: u32 = 4;

/// type, sender, ephemeral 32, static 32+16, timestamp 12+16, mac1 16, mac2 16
pub(crate) const INITIATION_LEN: usize = 148;
/// type, sender, receiver, ephemeral 32, empty 16, mac1 16, mac2 16
pub(crate) const RESPONSE_LEN: usize = 92;
/// type, receiver, nonce 24, cookie 16+16
pub(crate) const COOKIE_REPLY_LEN: usize = 64;
/// type, receiver, counter 8
pub(crate) const DATA_HEADER: usize = 16;
/// A data message without data: a keepalive.
pub(crate) const DATA_MIN: usize = DATA_HEADER + 16;

/// What a datagram may be, by its type and length; nothing in it is authenticated yet.
pub(crate) enum Message<'a> {
    Initiation(&'a [u8; INITIATION_LEN]),
    Response(&'a [u8; RESPONSE_LEN]),
    CookieReply(&'a [u8; COOKIE_REPLY_LEN]),
    Data(&'a mut [u8]),
}

impl<'a> Message<'a> {
    pub(crate) fn parse(datagram: &'a mut [u8]) -> Option<Self> {
        let kind = u32::from_le_bytes(*datagram.first_chunk()?);
        match kind {
            INITIATION => Some(Message::Initiation((&*datagram).try_into().ok()?)),
            RESPONSE => Some(Message::Response((&*datagram).try_into().ok()?)),
            COOKIE_REPLY => Some(Message::CookieReply((&*datagram).try_into().ok()?)),
            DATA if datagram.len() >= DATA_MIN => Some(Message::Data(datagram)),
            _ => None,
        }
    }
}

/// The `N` bytes at `at` of a message whose length is known.
pub(crate) fn field<const N: usize>(message: &[u8], at: usize) -> &[u8; N] {
    message[at..]
        .first_chunk()
        .expect("the field lies within the message")
}

/// The word at `at`.
pub(crate) fn word(message: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*field(message, at))
}

/// Writes `bytes` at `at`.
pub(crate) fn put(message: &mut [u8], at: usize, bytes: &[u8]) {
    message[at..at + bytes.len()].copy_from_slice(bytes);
}
