//! Leases as files, one an attachment.
//!
//! ```text
//! FOLDER/           0700
//!   lock            held (flock) while a store is open
//!   boot            the boot that the leases belong to
//!   leases/         CONTAINER@IFNAME.lease
//!   kept/           NAMESPACE@POD@IFNAME.kept: addresses that are kept for pods, of any boot
//!   damaged/        what could not be read: NUMBER-NAME; of leases of former boots NUMBER~NAME
//!   previous/       the leases of the boot before
//! ```
//!
//! A file is written under a temporary name and renamed, or over one that is as long, in one step: so under its own name it
//! is always whole, also after kill -9. No lease is flushed to the disk: after a reboot the leases are void anyway. What is kept is, see [`crate::kept`].

pub(crate) mod codec;
pub(crate) mod file_name;
pub(crate) mod folder;

use crate::kept::KeptStore;
use crate::store::{Damaged, LeaseStore, Loaded, StoreError};
use codec::{Kind, Unreadable};
use folder::Folder;
use meshd_model::{AttachmentId, Kept, Lease};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Longest file that is written or read, in bytes.
pub(crate) const FILE_MAX: usize = 64 << 10;
/// A lease's length is a multiple of it, in bytes.
const FILL: usize = 128;

/// The store of a daemon; at most one process has it open.
#[derive(Debug)]
pub struct FileStore {
    folder: Folder,
    /// Found when the store was opened, to be named by the next load.
    damaged: Vec<Damaged>,
    previous: Option<PathBuf>,
    /// Closing it lets go of the lock; the store of what is kept has it open as well.
    lock: Arc<File>,
}

impl FileStore {
    /// Opens the store in a folder of its own, or makes it.
    ///
    /// `boot_id` names the boot of the machine (`/proc/sys/kernel/random/boot_id`): leases of another boot are set
    /// aside. Where the note of the boot is damaged they are kept, since an address given twice is worse than one
    /// that is held for nothing.
    pub fn open(path: &Path, boot_id: &str) -> Result<FileStore, StoreError> {
        let folder = Folder::new(path);
        folder.make()?;
        let mut store = FileStore {
            lock: Arc::new(lock(&folder.lock())?),
            folder,
            damaged: Vec::new(),
            previous: None,
        };
        store.settle(boot_id.trim().as_bytes())?;
        Ok(store)
    }

    /// Where the leases of the boot before are, if opening the store has set them aside.
    #[must_use]
    pub fn previous(&self) -> Option<&Path> {
        self.previous.as_deref()
    }

    /// What writes records of kept addresses, for a thread of its own: the store stays locked while it is there.
    #[must_use]
    pub fn kept(&self) -> KeptStore {
        KeptStore::new(self.folder.clone(), Arc::clone(&self.lock))
    }

    /// Every record of kept addresses that can be read, and what was put aside.
    fn load_kept(&mut self) -> Result<(Vec<Kept>, Vec<Damaged>), StoreError> {
        let (mut kept, mut damaged) = (Vec::new(), Vec::new());
        for found in self.folder.kept()? {
            match crate::kept::read(&found) {
                Ok(record) => kept.push(record),
                Err(Unread::Damaged(reason)) => {
                    let kept = self.folder.keep_damaged(&found)?;
                    damaged.push(Damaged { found, kept, reason });
                }
                Err(Unread::Error(error)) => return Err(error),
                // Removed by hand between listing and reading.
                Err(Unread::Absent) => {}
            }
        }
        kept.sort_by(|a, b| a.key.cmp(&b.key));
        Ok((kept, damaged))
    }

    /// Removes what a killed process left half done, and sees to the boot.
    fn settle(&mut self, boot_id: &[u8]) -> Result<(), StoreError> {
        self.folder.remove_temporaries()?;
        let noted = match read(&self.folder.boot(), Kind::Boot) {
            Ok(noted) => Some(noted),
            Err(Unread::Absent) => None,
            Err(Unread::Error(error)) => return Err(error),
            Err(Unread::Damaged(reason)) => {
                self.put_aside(self.folder.boot(), reason)?;
                None
            }
        };
        if noted.is_some() && noted.as_deref() != Some(boot_id) {
            self.folder.retire_damaged_leases()?;
            self.previous = self.folder.set_leases_aside()?;
        }
        // Their pods may still run, however often a daemon has started since.
        for kept in self.folder.damaged_leases()? {
            self.damaged.push(Damaged {
                found: kept.clone(),
                kept,
                reason: "could not be read at an earlier start of this boot".to_owned(),
            });
        }
        if noted.as_deref() == Some(boot_id) {
            return Ok(());
        }
        self.folder
            .write(&self.folder.boot(), &codec::encode(Kind::Boot, boot_id))
    }

    fn put_aside(&mut self, found: PathBuf, reason: String) -> Result<(), StoreError> {
        let kept = self.folder.keep_damaged(&found)?;
        self.damaged.push(Damaged { found, kept, reason });
        Ok(())
    }
}

impl LeaseStore for FileStore {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let mut leases = Vec::new();
        for path in self.folder.leases()? {
            match read_lease(&path) {
                Ok(lease) => leases.push(lease),
                Err(Unread::Damaged(reason)) => self.put_aside(path, reason)?,
                Err(Unread::Error(error)) => return Err(error),
                // Removed by hand between listing and reading.
                Err(Unread::Absent) => {}
            }
        }
        leases.sort_by(|a, b| a.id.cmp(&b.id));
        let (kept, damaged_kept) = self.load_kept()?;
        Ok(Loaded {
            leases,
            damaged: std::mem::take(&mut self.damaged),
            kept,
            damaged_kept,
        })
    }

    fn put(&mut self, lease: &Lease) -> Result<(), StoreError> {
        let unstorable = |reason| StoreError::Unstorable {
            id: lease.id.to_string(),
            reason,
        };
        let name = file_name::of(&lease.id)
            .ok_or_else(|| unstorable("the container id is too long for a file name"))?;
        let mut body = serde_json::to_vec(lease).map_err(|_| unstorable("it does not serialise"))?;
        // White space, so that the lease is mostly as long in its next phase.
        body.resize(body.len().next_multiple_of(FILL), b' ');
        let content = codec::encode(Kind::Lease, &body);
        if content.len() > FILE_MAX {
            return Err(unstorable("it is longer than 64 KiB"));
        }
        self.folder.write(&self.folder.lease(&name), &content)
    }

    fn remove(&mut self, id: &AttachmentId) -> Result<(), StoreError> {
        // What has no file name was never put.
        let Some(name) = file_name::of(id) else {
            return Ok(());
        };
        let path = self.folder.lease(&name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("remove the lease", &path)(error))
            }
            _ => Ok(()),
        }
    }
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let file = folder::options()
        .open(path)
        .map_err(StoreError::io("open the lock", path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked {
            path: path.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(StoreError::io("lock", path)(error)),
    }
}

/// Why a file gave nothing.
pub(crate) enum Unread {
    Absent,
    Damaged(String),
    Error(StoreError),
}

fn read_lease(path: &Path) -> Result<Lease, Unread> {
    let body = read(path, Kind::Lease)?;
    let lease: Lease = serde_json::from_slice(&body)
        .map_err(|error| Unread::Damaged(format!("is whole, but no lease: {error}")))?;
    let own_name = file_name::of(&lease.id);
    if own_name.as_deref().map(AsRef::as_ref) != path.file_name() {
        return Err(Unread::Damaged(format!(
            "holds the lease of {:.80}",
            lease.id.to_string()
        )));
    }
    Ok(lease)
}

pub(crate) fn read(path: &Path, kind: Kind) -> Result<Vec<u8>, Unread> {
    let content = match folder::read(path, FILE_MAX) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Unread::Absent),
        Err(error) => return Err(Unread::Error(StoreError::io("read", path)(error))),
    };
    let content =
        content.ok_or_else(|| Unread::Damaged("is no regular file of at most 64 KiB".to_owned()))?;
    codec::decode(kind, &content).map_err(|error| match error {
        Unreadable::Damaged(reason) => Unread::Damaged(reason.to_owned()),
        Unreadable::Newer(found) => Unread::Error(StoreError::Newer {
            path: path.to_owned(),
            found,
            known: codec::FORMAT,
        }),
    })
}
