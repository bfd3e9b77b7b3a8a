//! The thread that writes segments and drops the oldest.

use super::recorder::{Shared, size};
use super::{EXTENSION, Header, Options, frame, reader};
use meshd_core::{Config, NodeAgent};
use meshd_model::Now;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::Instant;

/// Most bytes in one write(2).
const BATCH: usize = 1 << 20;
/// Most segments, however small: a daemon that dies at once each time makes many.
const SEGMENTS_MAX: usize = 256;

/// What the event loop says to the writer.
#[derive(Debug)]
pub(super) enum Message {
    /// A record's frame.
    Frame(Vec<u8>),
    /// Begin a segment with this agent; so many records were lost before it.
    Segment {
        /// Records lost.
        lost: u64,
        /// The snapshot.
        agent: Box<NodeAgent>,
    },
    /// Say when all before this is written.
    Flush(SyncSender<()>),
    /// Asks whether the writer is still there.
    Nothing,
    /// No more follows.
    End,
}

pub(super) struct Writer {
    options: Options,
    config: Config,
    run: Now,
    shared: Arc<Shared>,
    segment: Option<Open>,
    buffer: Vec<u8>,
    /// Records in the buffer.
    buffered: u64,
    /// Records lost here, by failed writes, since the last segment that could be begun.
    lost: u64,
    /// After a failure: when to ask for a snapshot again.
    retry: Option<Instant>,
}

struct Open {
    file: File,
    path: PathBuf,
    /// Bytes of records.
    bytes: u64,
}

impl Writer {
    pub(super) fn new(options: Options, config: Config, run: Now, shared: Arc<Shared>) -> Self {
        Self {
            options,
            config,
            run,
            shared,
            segment: None,
            buffer: Vec::new(),
            buffered: 0,
            lost: 0,
            retry: None,
        }
    }

    /// Writes what comes, in as few write(2) as what waits allows, and never lets it wait for more to come.
    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        loop {
            let first = match messages.recv_timeout(self.options.retry) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            for message in first.into_iter().chain(messages.try_iter()) {
                match message {
                    Message::Frame(bytes) => self.frame(&bytes),
                    Message::Segment { lost, agent } => self.begin(lost, &agent),
                    Message::Flush(done) => {
                        self.write();
                        let _ = done.try_send(());
                    }
                    Message::Nothing => {}
                    Message::End => return self.write(),
                }
            }
            self.write();
            if self.retry.is_some_and(|at| at <= Instant::now()) {
                self.retry = None;
                self.shared.wants_segment.store(true, Ordering::Relaxed);
            }
        }
    }

    fn frame(&mut self, bytes: &[u8]) {
        self.shared.queued.fetch_sub(size(bytes), Ordering::Relaxed);
        self.buffer.extend_from_slice(bytes);
        self.buffered += 1;
        if self.buffer.len() >= BATCH {
            self.write();
        }
    }

    fn write(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        let written = match &mut self.segment {
            Some(open) => open
                .file
                .write_all(&self.buffer)
                .map_err(|e| (open.path.clone(), e)),
            // Begun in vain, which was logged.
            None => Err((PathBuf::new(), io::Error::from(io::ErrorKind::NotFound))),
        };
        match (written, &mut self.segment) {
            (Ok(()), Some(open)) => {
                open.bytes += self.buffer.len() as u64;
                if open.bytes >= self.options.segment_bytes {
                    self.shared.wants_segment.store(true, Ordering::Relaxed);
                }
            }
            (Err((path, error)), open) => {
                if open.take().is_some() {
                    tracing::warn!(path = %path.display(), %error, "cannot write the recording; trying a new segment in a while");
                    self.retry = Some(Instant::now() + self.options.retry);
                }
                self.lost += self.buffered;
                self.shared.lost.fetch_add(self.buffered, Ordering::Relaxed);
            }
            (Ok(()), None) => {}
        }
        self.buffer.clear();
        self.buffered = 0;
    }

    fn begin(&mut self, lost: u64, agent: &NodeAgent) {
        self.write();
        self.lost += lost;
        match self.try_begin(agent) {
            Ok(open) => {
                self.segment = Some(open);
                // What is written to the one before asks for another as soon as that is full: this is it.
                self.shared.wants_segment.store(false, Ordering::Relaxed);
                self.lost = 0;
                self.retry = None;
            }
            Err(error) => {
                tracing::warn!(dir = %self.options.dir.display(), %error, "cannot begin a segment of the recording; trying again in a while");
                self.segment = None;
                self.retry = Some(Instant::now() + self.options.retry);
            }
        }
    }

    fn try_begin(&self, agent: &NodeAgent) -> io::Result<Open> {
        let header = Header {
            agent_version: env!("CARGO_PKG_VERSION").into(),
            run: self.run,
            lost_before: self.lost,
            config: self.config.clone(),
        };
        let mut head = frame::preamble().to_vec();
        frame::append(&mut head, &header).map_err(io::Error::other)?;
        frame::append(&mut head, agent).map_err(io::Error::other)?;
        let dir = &self.options.dir;
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        std::fs::set_permissions(dir, Permissions::from_mode(0o700))?;
        let number = self.make_room(head.len() as u64)?;
        let path = dir.join(format!("{number:010}.{EXTENSION}"));
        let mut file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(&head)?;
        Ok(Open { file, path, bytes: 0 })
    }

    /// Drops the oldest segments until one more fits, and returns that one's number.
    fn make_room(&self, head: u64) -> io::Result<u64> {
        let mut kept: Vec<(u64, PathBuf, u64)> = Vec::new();
        for (number, path) in reader::segments(&self.options.dir)? {
            let bytes = std::fs::metadata(&path)?.len();
            kept.push((number, path, bytes));
        }
        let next = kept.last().map_or(1, |(number, ..)| number + 1);
        let mut total: u64 = kept.iter().map(|(_, _, bytes)| bytes).sum();
        let reserved = self.options.segment_bytes + head;
        let mut left = kept.len();
        for (_, path, bytes) in kept {
            if total + reserved <= self.options.total_bytes && left < SEGMENTS_MAX {
                break;
            }
            std::fs::remove_file(path)?;
            total -= bytes;
            left -= 1;
        }
        Ok(next)
    }
}
