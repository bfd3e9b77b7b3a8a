//! The canonical trace: everything that happened, in order, as one hash. Two runs are the same if theirs are.

use serde::Serialize;
use sha2::{Digest, Sha256};

/// What kind of thing happened; its number is part of the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// An agent took in an event.
    Event = 1,
    /// An agent wants something done.
    Action = 2,
    /// A packet was put on the underlay.
    Underlay = 3,
    /// A packet reached a pod or a node's own network.
    Delivered = 4,
    /// An agent was started.
    Start = 5,
    /// An agent was killed.
    Kill = 6,
    /// An agent's timer ran out.
    Timer = 7,
    /// Something that whoever drives the simulation did.
    Driver = 8,
}

/// The hash, and where asked for a text beside it.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: Sha256,
    records: u64,
    buffer: Vec<u8>,
    text: Option<Vec<String>>,
}

/// Lines of text that are kept.
const LINES: usize = 1_000_000;

impl Trace {
    pub(crate) fn new(text: bool) -> Trace {
        Trace {
            hash: Sha256::new(),
            records: 0,
            buffer: Vec::new(),
            text: text.then(Vec::new),
        }
    }

    /// Something happened; `node` is `usize::MAX` for what belongs to none.
    pub(crate) fn bytes(&mut self, at: u64, node: usize, kind: Kind, bytes: &[u8]) {
        let node = node as u64;
        let mut head = [0; 25];
        head[..8].copy_from_slice(&at.to_le_bytes());
        head[8..16].copy_from_slice(&node.to_le_bytes());
        head[16] = kind as u8;
        head[17..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.hash.update(head);
        self.hash.update(bytes);
        self.records += 1;
        if let Some(text) = &mut self.text
            && text.len() < LINES
        {
            text.push(line(at, node, kind, bytes));
        }
    }

    /// The same, of what serialises.
    pub(crate) fn value<T: Serialize>(&mut self, at: u64, node: usize, kind: Kind, value: &T) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        if let Err(error) = serde_json::to_writer(&mut buffer, value) {
            buffer = error.to_string().into_bytes();
        }
        self.bytes(at, node, kind, &buffer);
        self.buffer = buffer;
    }

    /// The hash so far, in hexadecimal.
    pub(crate) fn digest(&self) -> String {
        self.hash
            .clone()
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    /// The lines kept so far.
    pub(crate) fn text(&self) -> &[String] {
        self.text.as_deref().unwrap_or_default()
    }
}

fn line(at: u64, node: u64, kind: Kind, bytes: &[u8]) -> String {
    let what = match kind {
        Kind::Underlay | Kind::Delivered => crate::packet::describe(bytes),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    };
    let (seconds, nanos) = (at / 1_000_000_000, at % 1_000_000_000);
    let node = if node == usize::MAX as u64 {
        "-".to_owned()
    } else {
        node.to_string()
    };
    format!("{seconds:4}.{nanos:09} {node:>4} {kind:?} {what}")
}
