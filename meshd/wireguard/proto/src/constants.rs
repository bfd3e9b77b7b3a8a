//! The constants of the whitepaper, section 6.1, and the bounds that are ours.

use std::time::Duration;

/// A session that has sent this many messages is replaced.
pub(crate) const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// A session sends and accepts no more than this.
pub(crate) const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// The initiator of a session this old replaces it when it sends.
pub(crate) const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// A session this old is used no more.
pub(crate) const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// Keys this old are wiped.
pub(crate) const WIPE_AFTER_TIME: Duration = Duration::from_secs(3 * 180);
/// An initiation without response is sent again after this, and never sooner.
pub(crate) const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// Up to this is added to it at random, in nanoseconds.
pub(crate) const REKEY_TIMEOUT_JITTER_NANOS: u64 = 333_000_000;
/// So often is an initiation sent again (REKEY_ATTEMPT_TIME of 90 s).
pub(crate) const MAX_ATTEMPTS: u8 = 18;
/// Who received data and had nothing to send says so after this.
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The initiator that receives over a session this old replaces it, so that one which only receives is not cut off.
pub(crate) const REKEY_ON_RECEIVE: Duration = Duration::from_secs(180 - 10 - 5);
/// A peer's initiations closer together than this are not answered.
pub(crate) const INITIATION_INTERVAL: Duration = Duration::from_millis(20);

/// Peers of a device (as in Linux).
pub(crate) const MAX_PEERS: usize = 1 << 20;
/// Packets of one peer that wait for a handshake; the oldest go first.
pub(crate) const MAX_STAGED: usize = 128;
/// Packets of all peers that wait.
pub(crate) const MAX_STAGED_ALL: usize = 8192;
/// Outputs that wait to be polled.
pub(crate) const MAX_OUTPUTS: usize = 4096;
/// Handshake messages a second beyond which the device is under load, unless set otherwise.
pub(crate) const LOAD_THRESHOLD: u32 = 1000;
/// MTU until it is set.
pub(crate) const DEFAULT_MTU: usize = 1420;
