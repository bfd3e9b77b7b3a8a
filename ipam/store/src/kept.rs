//! Records of addresses that are kept for pods. Other than leases they are for after a reboot: each is flushed to the disk,
//! with its folder, before a call returns. That takes tens of milliseconds on a busy disk, so it is done beside the leases.

use crate::file_store::codec::{self, Kind};
use crate::file_store::folder::Folder;
use crate::file_store::{FILE_MAX, Unread, file_name};
use crate::store::StoreError;
use meshd_model::{Kept, KeptKey};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Writes and removes records; [`crate::LeaseStore::load`] reads them.
#[derive(Debug)]
pub struct KeptStore {
    folder: Folder,
    _lock: Arc<File>,
}

impl KeptStore {
    pub(crate) fn new(folder: Folder, lock: Arc<File>) -> Self {
        Self { folder, _lock: lock }
    }

    /// Writes a record, replacing an older one of the same pod as a whole. Once it returns, a reboot changes nothing of it.
    ///
    /// # Errors
    /// Where the system refuses; the record is the old one or the new one then.
    pub fn put(&mut self, kept: &Kept) -> Result<(), StoreError> {
        let unstorable = |reason| StoreError::UnstorableKept {
            key: kept.key.to_string(),
            reason,
        };
        let name = file_name::of_kept(&kept.key)
            .ok_or_else(|| unstorable("the names of the pod are too long for a file name"))?;
        let body = serde_json::to_vec(kept).map_err(|_| unstorable("it does not serialise"))?;
        let content = codec::encode(Kind::Kept, &body);
        if content.len() > FILE_MAX {
            return Err(unstorable("it is longer than 64 KiB"));
        }
        self.folder.write_synced(&self.folder.kept_file(&name), &content)
    }

    /// Removes a record, for good. That there is none is success.
    ///
    /// # Errors
    /// Where the system refuses.
    pub fn remove(&mut self, key: &KeptKey) -> Result<(), StoreError> {
        // What has no file name was never put.
        let Some(name) = file_name::of_kept(key) else {
            return Ok(());
        };
        let path = self.folder.kept_file(&name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io(
                "remove the record of kept addresses",
                &path,
            )(error)),
            _ => self.folder.sync_kept(),
        }
    }
}

pub(crate) fn read(path: &Path) -> Result<Kept, Unread> {
    let body = crate::file_store::read(path, Kind::Kept)?;
    let kept: Kept = serde_json::from_slice(&body)
        .map_err(|error| Unread::Damaged(format!("is whole, but no record of kept addresses: {error}")))?;
    let own_name = file_name::of_kept(&kept.key);
    if own_name.as_deref().map(AsRef::as_ref) != path.file_name() {
        let whose = kept.key.to_string();
        return Err(Unread::Damaged(format!("holds the record of {whose:.80}")));
    }
    Ok(kept)
}
