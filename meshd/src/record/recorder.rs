//! The event loop's end of the recording: encodes, hands over, counts what it could not. Never blocks.

use super::writer::{Message, Writer};
use super::{KernelDelta, Options, RecordRef, frame};
use meshd_core::{Action, Config, Event, KernelEvent, NodeAgent};
use meshd_model::Now;
use meshd_model::kernel::KernelState;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a message in the queue takes beside its bytes: the queue is bounded by both together, not by a number of places,
/// all of which would be made at once.
const MESSAGE: usize = 256;
/// How long a recorder that goes waits for its writer.
const END: Duration = Duration::from_secs(2);

/// What a record's frame counts for in the queue.
pub(super) fn size(frame: &[u8]) -> usize {
    MESSAGE + frame.len()
}

/// What the two ends share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Bytes in the queue, by [`size`].
    pub(super) queued: AtomicUsize,
    /// The writer would have a fresh snapshot, to begin a segment with.
    pub(super) wants_segment: AtomicBool,
    /// Records that are in no segment.
    pub(super) lost: AtomicU64,
}

/// Records one agent.
#[derive(Debug)]
pub struct Recorder {
    queue: Sender<Message>,
    queue_bytes: usize,
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    /// Lost since the last record that went into the queue; while it is not 0, nothing does but a fresh snapshot.
    lost: u64,
    /// The last observation of this segment.
    kernel: KernelState,
}

/// The queues of all recorders of this process, for [`flush_all`].
static RECORDERS: Mutex<Vec<Sender<Message>>> = Mutex::new(Vec::new());

impl Recorder {
    /// Starts the writer with a first segment. A folder that cannot be written is logged and tried again later:
    /// the recording is no reason to leave pods without a network.
    pub fn start(options: Options, config: Config, agent: &NodeAgent, now: Now) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (queue, messages) = channel();
        let queue_bytes = options.queue_bytes;
        let writer = Writer::new(options, config, now, Arc::clone(&shared));
        let writer = std::thread::Builder::new()
            .name("recording".into())
            .spawn(move || writer.run(&messages))?;
        RECORDERS
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(queue.clone());
        let mut recorder = Self {
            queue,
            queue_bytes,
            shared,
            writer: Some(writer),
            lost: 0,
            kernel: KernelState::default(),
        };
        recorder.begin_segment(agent);
        Ok(recorder)
    }

    /// The agent is about to be told this.
    pub fn event(&mut self, now: Now, event: &Event) {
        if let Event::Kernel(KernelEvent::Observed(state)) = event {
            let delta = KernelDelta::between(&self.kernel, state);
            self.record(&RecordRef::Observed { now, delta: &delta });
            delta.apply(&mut self.kernel);
            return;
        }
        self.record(&RecordRef::Event { now, event });
    }

    /// The agent is about to be told that a timer came due.
    pub fn timeout(&mut self, now: Now) {
        self.record(&RecordRef::Timeout { now });
    }

    /// The agent wants this done.
    pub fn action(&mut self, action: &Action) {
        self.record(&RecordRef::Action(action));
    }

    /// To be called when every action of the agent has been polled and recorded: a new segment begins here where
    /// one is due.
    pub fn settle(&mut self, agent: &NodeAgent) {
        let behind = self.shared.queued.load(Ordering::Relaxed) > self.queue_bytes / 2;
        let due = self.lost > 0 || self.shared.wants_segment.load(Ordering::Relaxed);
        if due && !behind {
            self.begin_segment(agent);
        }
    }

    /// Records that are in no segment, since the start.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    fn record(&mut self, record: &RecordRef<'_>) {
        if self.lost > 0 || self.hand_over(record).is_err() {
            self.lost += 1;
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn hand_over(&self, record: &RecordRef<'_>) -> Result<(), ()> {
        if self.shared.queued.load(Ordering::Relaxed) >= self.queue_bytes {
            return Err(());
        }
        let mut bytes = Vec::with_capacity(256);
        frame::append(&mut bytes, record)
            .map_err(|error| tracing::error!(%error, "the recording loses a record"))?;
        // The queue counts what is in it; room made for more would be beside that.
        bytes.shrink_to_fit();
        let size = size(&bytes);
        self.shared.queued.fetch_add(size, Ordering::Relaxed);
        self.queue.send(Message::Frame(bytes)).map_err(|_| {
            self.shared.queued.fetch_sub(size, Ordering::Relaxed);
        })
    }

    fn begin_segment(&mut self, agent: &NodeAgent) {
        let begin = Message::Segment {
            lost: self.lost,
            agent: Box::new(agent.clone()),
        };
        if self.queue.send(begin).is_ok() {
            self.lost = 0;
            self.kernel = KernelState::default();
            self.shared.wants_segment.store(false, Ordering::Relaxed);
        }
    }
}

impl Drop for Recorder {
    /// Writes out what waits.
    fn drop(&mut self) {
        let mut recorders = RECORDERS.lock().unwrap_or_else(PoisonError::into_inner);
        // Which of them is ours cannot be asked; an ended one does no harm, so the ended ones go.
        recorders.retain(|queue| queue.send(Message::Nothing).is_ok());
        drop(recorders);
        flush(&self.queue, END);
        if self.queue.send(Message::End).is_ok()
            && let Some(writer) = self.writer.take()
        {
            let _ = writer.join();
        }
    }
}

/// Waits until every recorder of this process has written what it was given, but no longer than this.
pub fn flush_all(within: Duration) {
    let until = Instant::now() + within;
    let Ok(recorders) = RECORDERS.try_lock() else {
        return;
    };
    for queue in recorders.iter() {
        flush(queue, until.saturating_duration_since(Instant::now()));
    }
}

fn flush(queue: &Sender<Message>, within: Duration) {
    let (done, written) = sync_channel(1);
    if queue.send(Message::Flush(done)).is_ok() {
        let _ = written.recv_timeout(within);
    }
}
