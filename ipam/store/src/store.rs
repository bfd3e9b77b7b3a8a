//! What keeps leases while the daemon is away.

use meshd_model::{AttachmentId, Kept, Lease};
use std::path::{Path, PathBuf};
use std::{fmt, io};

/// Durable storage of leases: what a call has said to be done survives kill -9 of any process from then on. It need
/// not survive a reboot, after which no pod is left.
pub trait LeaseStore {
    /// Every lease, in the order of their ids. What cannot be read is put aside, and named.
    fn load(&mut self) -> Result<Loaded, StoreError>;
    /// Writes a lease, replacing an older one of the same attachment as a whole.
    fn put(&mut self, lease: &Lease) -> Result<(), StoreError>;
    /// Removes a lease. That there is none is success.
    fn remove(&mut self, id: &AttachmentId) -> Result<(), StoreError>;
}

/// What a store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// By id.
    pub leases: Vec<Lease>,
    /// What could not be read, since the store was opened or loaded last.
    pub damaged: Vec<Damaged>,
    /// Records of kept addresses, by key.
    pub kept: Vec<Kept>,
    /// Those of them that could not be read.
    pub damaged_kept: Vec<Damaged>,
}

/// Something of the store that could not be read. The agent learns the addresses of running pods from the kernel
/// all the same; whoever looks into it finds it where it was put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// Where it was found.
    pub found: PathBuf,
    /// Where it is kept.
    pub kept: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (found, kept) = (self.found.display(), self.kept.display());
        write!(f, "{found}: {}; kept as {kept}", self.reason)
    }
}

/// Why the store could not do what was asked. Nothing was done, or, where a file of several could not be treated,
/// nothing is lost and the call can be made again.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refused.
    #[error("cannot {action} {}: {source}{}", path.display(), remedy(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
    /// Another process has the store open.
    #[error(
        "{} is locked by another process: stop the other meshd, or give this one a state folder of its own",
        path.display()
    )]
    Locked {
        /// The lock.
        path: PathBuf,
    },
    /// A later version wrote it, and its format is another.
    #[error(
        "{} has format {found}, and this meshd reads up to {known}: run the newer meshd that wrote it, or drain the \
         node and remove the file",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that can be read.
        known: u32,
    },
    /// The names of the pod are longer than a file's name can be.
    #[error("record of the kept addresses of {key:.80}: {reason}")]
    UnstorableKept {
        /// Of which pod.
        key: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The lease is longer than any honest one.
    #[error("lease of attachment {id:.80}: {reason}")]
    Unstorable {
        /// Of which attachment.
        id: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl StoreError {
    /// The system's error number, where there is one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            StoreError::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// For `map_err`: names what was tried and on what.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
        let path = path.to_owned();
        move |source| StoreError::Io { action, path, source }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free space on its file system",
        io::ErrorKind::ReadOnlyFilesystem => "; mount its file system writable, or give another state folder",
        io::ErrorKind::PermissionDenied => "; the folder must belong to the user that meshd runs as",
        _ => "",
    }
}
