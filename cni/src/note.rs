//! A note of a DEL that found no daemon: a file that the daemon's next start finishes and removes.
//!
//! It lies beside the socket, so on a file system that a reboot empties, as it does away with what the note is about. The
//! daemon listens before it looks for notes, and the plugin writes a note before it looks for the daemon again: so either
//! the daemon finds the note, or the plugin the daemon.

use crate::error;
use meshd_model::AttachmentId;
use meshd_model::cni::{CniError, NOTE_MAX, NOTES_MAX, code, note_name, notes_folder};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A note that is on the disk.
#[derive(Debug)]
pub struct Note {
    path: PathBuf,
}

impl Note {
    /// Writes one: it survives kill -9 of any process from now on. Error code 11 where there are too many, 5 where the
    /// system refuses.
    pub fn write(socket: &Path, id: &AttachmentId) -> Result<Note, CniError> {
        let folder = notes_folder(socket);
        let path = folder.join(note_name(id));
        let refused = |reason: io::Error| {
            error(
                code::IO,
                format!(
                    "meshd does not listen at {}, and {} cannot be written: {reason}",
                    socket.display(),
                    path.display()
                ),
                "start the meshd pod of this node, or let the plugin write there what it is to do at its start",
            )
        };
        make(&folder).map_err(refused)?;
        if !path.exists() && is_full(&folder).map_err(refused)? {
            return Err(error(
                code::TRY_AGAIN,
                format!(
                    "meshd does not listen at {}, and {NOTES_MAX} deletions wait for its start already",
                    socket.display()
                ),
                "start the meshd pod of this node",
            ));
        }
        put(&folder, &path, id).map_err(refused)?;
        Ok(Note { path })
    }

    /// The daemon has done it.
    pub fn remove(self) {
        // It may have taken the note itself; one that stays does no harm to a container that is gone.
        let _ = fs::remove_file(&self.path);
    }
}

/// The socket's folder as the daemon would make it, and in it one for root alone.
fn make(folder: &Path) -> io::Result<()> {
    if let Some(parent) = folder.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn is_full(folder: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(folder)?.take(NOTES_MAX).count() >= NOTES_MAX)
}

/// Under its name it is whole. Another DEL of the same attachment at the same time writes the same.
fn put(folder: &Path, path: &Path, id: &AttachmentId) -> io::Result<()> {
    let mut text = serde_json::to_vec(id)?;
    text.push(b'\n');
    if text.len() > NOTE_MAX {
        return Err(io::Error::other("its container id is too long"));
    }
    let beside = folder.join(format!(".{}.{}", note_name(id), std::process::id()));
    let _ = fs::remove_file(&beside);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside);
    let written = written.and_then(|mut file| {
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(folder)?.sync_all()
    });
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}
