//! A file of ours in a folder that is not: there is either the old one or the new one, whole, whenever we are killed.

use std::fmt;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What was tried on which file or folder, and why it did not work.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}: {error}", path = path.display())]
pub struct FileError {
    what: &'static str,
    path: PathBuf,
    error: io::Error,
}

impl FileError {
    pub(super) fn new(what: &'static str, path: &Path, error: io::Error) -> Self {
        Self {
            what,
            path: path.to_owned(),
            error,
        }
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// It was there already, the same.
    Same,
    /// It is there now.
    New,
}

impl fmt::Display for Placed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Same => "there already",
            Self::New => "put in place",
        })
    }
}

/// Copies `source` to `name` in `folder`, with this mode: written beside, flushed to the disk, renamed. A file with the
/// same content and mode is left as it is. What an earlier attempt left beside it is removed.
pub fn place(source: &Path, folder: &Path, name: &str, mode: u32) -> Result<Placed, FileError> {
    let target = folder.join(name);
    sweep(&target)?;
    let mut from = File::open(source).map_err(|e| FileError::new("open", source, e))?;
    if is_same(&mut from, &target, mode).map_err(|e| FileError::new("compare", &target, e))? {
        return Ok(Placed::Same);
    }
    let mut random = [0; 8];
    getrandom::fill(&mut random)
        .map_err(|e| FileError::new("name", &target, io::Error::other(e.to_string())))?;
    let beside = folder.join(format!("{}{:016x}", prefix(name), u64::from_ne_bytes(random)));
    let written = write(&mut from, &beside, mode)
        .and_then(|()| std::fs::rename(&beside, &target))
        // The rename is on the disk once the folder is.
        .and_then(|()| File::open(folder)?.sync_all());
    written.map_err(|error| {
        let _ = std::fs::remove_file(&beside);
        FileError::new("put in place", &target, error)
    })?;
    Ok(Placed::New)
}

/// Removes what an attempt that was killed has left beside this file.
pub(super) fn sweep(target: &Path) -> Result<(), FileError> {
    let (Some(folder), Some(name)) = (target.parent(), target.file_name()) else {
        return Ok(());
    };
    let prefix = prefix(&name.to_string_lossy());
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(FileError::new("list", folder, error)),
    };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            match std::fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(FileError::new("remove the leftover", &entry.path(), error));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Runtimes take neither hidden files nor unknown endings for a configuration.
fn prefix(name: &str) -> String {
    format!(".{name}.meshd-")
}

fn write(from: &mut File, to: &Path, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)?;
    io::copy(from, &mut file)?;
    // Whatever the umask is.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.flush()?;
    file.sync_all()
}

/// Leaves `from` at its start.
fn is_same(from: &mut File, target: &Path, mode: u32) -> io::Result<bool> {
    // A link is not the file: what it leads to may go away.
    let there = match std::fs::symlink_metadata(target) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if !there.is_file() || there.mode() & 0o7777 != mode || there.len() != from.metadata()?.len() {
        return Ok(false);
    }
    let same = same_bytes(from, &File::open(target)?)?;
    from.rewind()?;
    Ok(same)
}

fn same_bytes(a: &File, b: &File) -> io::Result<bool> {
    const CHUNK: u64 = 64 << 10;
    let (mut left, mut right) = (Vec::new(), Vec::new());
    loop {
        left.clear();
        right.clear();
        a.take(CHUNK).read_to_end(&mut left)?;
        b.take(CHUNK).read_to_end(&mut right)?;
        if left != right {
            return Ok(false);
        }
        if left.is_empty() {
            return Ok(true);
        }
    }
}
