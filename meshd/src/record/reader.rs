//! Reads a segment back.

use super::frame::{self, Found, MAGIC, PREAMBLE};
use super::{EXTENSION, FORMAT_VERSION, Header, Record};
use meshd_core::NodeAgent;
use std::io;
use std::path::{Path, PathBuf};

/// Why a segment cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system refused.
    #[error("cannot read {path}: {error}")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Something else.
    #[error("{path} is no segment of a recording")]
    NotARecording {
        /// Which file.
        path: PathBuf,
    },
    /// Written by a later version of this format.
    #[error("{path} has format version {found}, this meshd reads up to {FORMAT_VERSION}")]
    Version {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// Its header or snapshot is not whole: nothing can be replayed.
    #[error(
        "{path}, written by agent version {agent_version}, has no readable {what}: {reason}; replay it with the version that wrote it"
    )]
    Head {
        /// Which file.
        path: PathBuf,
        /// Who wrote it, where that much could be read.
        agent_version: String,
        /// `header` or `snapshot`.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

/// How a segment ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tail {
    /// With a whole record.
    Whole,
    /// In a record of which only the first bytes were written: the daemon was killed just then.
    Torn {
        /// Where that record begins.
        offset: usize,
    },
    /// At a record that was damaged after it was written; what follows cannot be trusted.
    Damaged {
        /// Where that record begins.
        offset: usize,
    },
}

/// A segment, read.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Where it was read from.
    pub path: PathBuf,
    /// What it says of itself.
    pub header: Header,
    /// The agent at its beginning.
    pub agent: NodeAgent,
    /// What happened then.
    pub records: Vec<Record>,
    /// How it ends.
    pub tail: Tail,
}

/// The segments of a folder with their numbers, oldest first.
pub fn segments(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        if let (Some(number), true) = (number, path.extension().is_some_and(|e| e == EXTENSION)) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Reads one segment, up to its end or the first record that is not whole.
pub fn read_segment(path: &Path) -> Result<Segment, ReadError> {
    let bytes = std::fs::read(path).map_err(|error| ReadError::Io {
        path: path.to_owned(),
        error,
    })?;
    let frames = check_preamble(path, &bytes)?;
    let head_error = |agent_version: &str, what, reason: String| ReadError::Head {
        path: path.to_owned(),
        agent_version: agent_version.to_owned(),
        what,
        reason,
    };
    let (header, rest) = head_frame::<Header>(frames).map_err(|e| head_error("unknown", "header", e))?;
    let (agent, rest) =
        head_frame::<NodeAgent>(rest).map_err(|e| head_error(&header.agent_version, "snapshot", e))?;
    let (records, tail) = records(rest, bytes.len());
    Ok(Segment {
        path: path.to_owned(),
        header,
        agent,
        records,
        tail,
    })
}

fn check_preamble<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a [u8], ReadError> {
    let not_a_recording = || ReadError::NotARecording {
        path: path.to_owned(),
    };
    let (preamble, frames) = bytes
        .split_first_chunk::<PREAMBLE>()
        .ok_or_else(not_a_recording)?;
    let version = preamble.strip_prefix(MAGIC).ok_or_else(not_a_recording)?;
    let found = version
        .try_into()
        .map(u32::from_le_bytes)
        .map_err(|_| not_a_recording())?;
    // Version 1 had no deltas; all else is the same.
    if (1..=FORMAT_VERSION).contains(&found) {
        return Ok(frames);
    }
    Err(ReadError::Version {
        path: path.to_owned(),
        found,
    })
}

fn head_frame<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<(T, &[u8]), String> {
    match frame::next(bytes) {
        Found::Frame(body, rest) => Ok((frame::decode(body)?, rest)),
        Found::End | Found::Torn => Err("the file ends before it".into()),
        Found::Damaged => Err("its checksum is wrong".into()),
    }
}

fn records(mut rest: &[u8], total: usize) -> (Vec<Record>, Tail) {
    let mut records = Vec::new();
    loop {
        let offset = total - rest.len();
        let (body, after) = match frame::next(rest) {
            Found::Frame(body, after) => (body, after),
            Found::End => return (records, Tail::Whole),
            Found::Torn => return (records, Tail::Torn { offset }),
            Found::Damaged => return (records, Tail::Damaged { offset }),
        };
        match frame::decode(body) {
            Ok(record) => records.push(record),
            Err(_) => return (records, Tail::Damaged { offset }),
        }
        rest = after;
    }
}
