//! The recording: what the agent was told and what it wanted done, so that an incident on a node becomes a test.
//!
//! ```text
//! FOLDER/0000000007.meshdrec        oldest segment, dropped whole when the folder grows too large
//! FOLDER/0000000008.meshdrec
//!     "meshdrec" version:u32        little endian, as all numbers here
//!     frame Header                  agent version, configuration, how many records were lost before
//!     frame NodeAgent               the agent as it was: where a replay begins
//!     frame Record                  event, timeout or action, in the order in which they happened; of an observation
//!                                   of the kernel only what the one before did not have
//!     ...                           frame = length:u32 crc32:u32 CBOR
//! ```
//!
//! [`Recorder`] is the event loop's end and never blocks it: records pass through a bounded queue to a thread that
//! writes them with write(2), so that they survive kill -9 of the daemon. When the queue is full, records are lost;
//! they are counted, and the next segment begins with a fresh snapshot and says how many. [`read_segment`] reads
//! one back and [`replay`] runs the agent through it and compares every action. No secret can be in a recording:
//! none is in an event, an action or the agent.

mod delta;
mod frame;
mod reader;
mod recorder;
mod replay;
mod writer;

use meshd_core::{Action, Config, Event};
use meshd_model::Now;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

pub use delta::KernelDelta;
pub use reader::{ReadError, Segment, Tail, read_segment, segments};
pub use recorder::{Recorder, flush_all};
pub use replay::{Divergence, ReplayError, ReplayReport, replay, replay_path};

/// Version of the format; earlier ones are read, later ones are refused.
pub const FORMAT_VERSION: u32 = 2;
/// How a segment's name ends.
pub const EXTENSION: &str = "meshdrec";

/// Where a recording goes and how large it becomes.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its folder; made if need be, 0700.
    pub dir: PathBuf,
    /// Bytes of records after which a segment ends.
    pub segment_bytes: u64,
    /// Bytes of all segments together.
    pub total_bytes: u64,
    /// Bytes of records that may wait for the writer.
    pub queue_bytes: usize,
    /// How long to wait after a failed write before the next try.
    pub retry: Duration,
}

impl Options {
    /// Segments of 8 MiB, 64 MiB together.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            segment_bytes: 8 << 20,
            total_bytes: 64 << 20,
            queue_bytes: 16 << 20,
            retry: Duration::from_secs(10),
        }
    }
}

/// What a segment says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the agent that wrote it: another one may decide otherwise, or not read its snapshot.
    pub agent_version: String,
    /// When the daemon was started that wrote it: tells one run from the next.
    pub run: Now,
    /// Records that were lost since the segment before; none at a daemon's start.
    pub lost_before: u64,
    /// The agent's configuration.
    pub config: Config,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// The agent was told.
    Event {
        /// When.
        now: Now,
        /// What.
        event: Event,
    },
    /// The agent was told what the kernel holds (`Event::Kernel(Observed)`).
    Observed {
        /// When.
        now: Now,
        /// What was different from the observation before in this segment, or, of the first, from nothing at all.
        delta: KernelDelta,
    },
    /// A timer came due.
    Timeout {
        /// When.
        now: Now,
    },
    /// The agent wanted this done, because of the last event or timeout before it.
    Action(Action),
}

/// [`Record`] on its way in, without a copy.
#[derive(Serialize)]
#[serde(rename = "Record")]
enum RecordRef<'a> {
    Event { now: Now, event: &'a Event },
    Observed { now: Now, delta: &'a KernelDelta },
    Timeout { now: Now },
    Action(&'a Action),
}
