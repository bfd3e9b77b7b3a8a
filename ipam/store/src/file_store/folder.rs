//! The folder of a store: where things are, and the few operations on it that must be done right.

use super::file_name::{LEASE, TEMPORARY};
use crate::store::StoreError;
use nix::fcntl::OFlag;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// So many damaged files are kept; then a person has to look.
const DAMAGED_MAX: u32 = 10_000;
/// Digits before a damaged file's name.
const NUMBER: usize = 4;
/// What the kernel copies into a file in one step, between two looks at whether the process was killed: a page.
const STEP: usize = 4096;

#[derive(Clone, Debug)]
pub(crate) struct Folder {
    root: PathBuf,
}

impl Folder {
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(crate) fn boot(&self) -> PathBuf {
        self.root.join("boot")
    }

    pub(crate) fn lease(&self, name: &str) -> PathBuf {
        self.leases_folder().join(name)
    }

    fn leases_folder(&self) -> PathBuf {
        self.root.join("leases")
    }

    pub(crate) fn kept_file(&self, name: &str) -> PathBuf {
        self.kept_folder().join(name)
    }

    fn kept_folder(&self) -> PathBuf {
        self.root.join("kept")
    }

    /// All that is in the folder of what is kept, in order of names.
    pub(crate) fn kept(&self) -> Result<Vec<PathBuf>, StoreError> {
        list(&self.kept_folder())
    }

    /// Has the folder of what is kept be there after a reboot, with all that it holds by now.
    pub(crate) fn sync_kept(&self) -> Result<(), StoreError> {
        sync(&self.kept_folder())
    }

    /// Writes a file as [`Self::write`] does; it survives a reboot.
    pub(crate) fn write_synced(&self, path: &Path, content: &[u8]) -> Result<(), StoreError> {
        let temporary = path.with_extension(&TEMPORARY[1..]);
        let written = options()
            .truncate(true)
            .open(&temporary)
            .and_then(|mut file| {
                file.write_all(content)?;
                file.sync_all()
            })
            .map_err(StoreError::io("write", &temporary))
            .and_then(|()| fs::rename(&temporary, path).map_err(StoreError::io("rename into place", path)));
        match written {
            Ok(()) => self.sync_kept(),
            Err(error) => {
                let _ = fs::remove_file(&temporary);
                Err(error)
            }
        }
    }

    fn damaged_folder(&self) -> PathBuf {
        self.root.join("damaged")
    }

    fn previous_folder(&self) -> PathBuf {
        self.root.join("previous")
    }

    /// Makes what is missing, and closes what is open to others.
    pub(crate) fn make(&self) -> Result<(), StoreError> {
        make_folder(&self.root)?;
        let metadata = fs::metadata(&self.root).map_err(StoreError::io("look at the folder", &self.root))?;
        if metadata.permissions().mode() & 0o7777 != 0o700 {
            fs::set_permissions(&self.root, fs::Permissions::from_mode(0o700))
                .map_err(StoreError::io("close to others the folder", &self.root))?;
        }
        make_folder(&self.leases_folder())?;
        make_folder(&self.damaged_folder())?;
        if !self.kept_folder().is_dir() {
            make_folder(&self.kept_folder())?;
            // The folders on the way to it may be as new.
            for folder in self.root.ancestors().take(3).filter(|f| f.is_absolute()) {
                sync(folder)?;
            }
        }
        Ok(())
    }

    /// All that is in the folder of leases, in order of names.
    pub(crate) fn leases(&self) -> Result<Vec<PathBuf>, StoreError> {
        list(&self.leases_folder())
    }

    /// Writes a file over the one that is there, where they are as long, or else under a temporary name and renames it.
    pub(crate) fn write(&self, path: &Path, content: &[u8]) -> Result<(), StoreError> {
        if write_over(path, content) {
            return Ok(());
        }
        let temporary = path.with_extension(&TEMPORARY[1..]);
        let written = options()
            .truncate(true)
            .open(&temporary)
            .and_then(|mut file| file.write_all(content))
            .map_err(StoreError::io("write", &temporary))
            .and_then(|()| fs::rename(&temporary, path).map_err(StoreError::io("rename into place", path)));
        if written.is_err() {
            // What failed is what the caller shall hear; opening the store removes what stays.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    pub(crate) fn remove_temporaries(&self) -> Result<(), StoreError> {
        let all = list(&self.root)?.into_iter().chain(self.leases()?);
        for path in all.chain(self.kept()?) {
            let temporary = path.as_os_str().as_bytes().ends_with(TEMPORARY.as_bytes());
            if temporary && path.symlink_metadata().is_ok_and(|m| !m.is_dir()) {
                fs::remove_file(&path).map_err(StoreError::io("remove the left-over", &path))?;
            }
        }
        Ok(())
    }

    /// Moves a file among the damaged ones; says where to.
    pub(crate) fn keep_damaged(&self, path: &Path) -> Result<PathBuf, StoreError> {
        let name = path.file_name().unwrap_or_default().as_bytes();
        for number in 0..DAMAGED_MAX {
            let mut kept = OsString::from(format!("{number:04}-")).into_vec();
            kept.extend_from_slice(&name[..name.len().min(250)]);
            let mut retired = kept.clone();
            retired[NUMBER] = b'~';
            let [kept, retired] =
                [kept, retired].map(|name| self.damaged_folder().join(OsString::from_vec(name)));
            let there = |path: &Path| path.symlink_metadata().is_ok();
            if there(&kept) || there(&retired) {
                continue;
            }
            fs::rename(path, &kept).map_err(StoreError::io("move among the damaged files", path))?;
            return Ok(kept);
        }
        let full =
            io::Error::other("ten thousand files of that name are there; look into them, then remove them");
        Err(StoreError::io(
            "add to the damaged files in",
            &self.damaged_folder(),
        )(full))
    }

    /// What keep_damaged has put aside of leases of this boot.
    pub(crate) fn damaged_leases(&self) -> Result<Vec<PathBuf>, StoreError> {
        let mut all = list(&self.damaged_folder())?;
        all.retain(|path| {
            let name = path.file_name().unwrap_or_default().as_bytes();
            name.get(NUMBER) == Some(&b'-') && name.ends_with(LEASE.as_bytes())
        });
        Ok(all)
    }

    /// Another boot: what could not be read is of no running pod. It keeps its place, under a name that says so.
    pub(crate) fn retire_damaged_leases(&self) -> Result<(), StoreError> {
        for path in self.damaged_leases()? {
            let mut name = path.file_name().unwrap_or_default().as_bytes().to_vec();
            name[NUMBER] = b'~';
            let retired = path.with_file_name(OsString::from_vec(name));
            fs::rename(&path, &retired).map_err(StoreError::io("rename the damaged lease", &path))?;
        }
        Ok(())
    }

    /// Moves all leases away, in place of those that were moved away before; says where to. None if there are none.
    pub(crate) fn set_leases_aside(&self) -> Result<Option<PathBuf>, StoreError> {
        if self.leases()?.is_empty() {
            return Ok(None);
        }
        let (leases, previous) = (self.leases_folder(), self.previous_folder());
        match fs::remove_dir_all(&previous) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io("remove", &previous)(error));
            }
            _ => {}
        }
        fs::rename(&leases, &previous).map_err(StoreError::io("set aside", &leases))?;
        make_folder(&leases)?;
        Ok(Some(previous))
    }
}

/// Writes over a file that is as long, in one step; false where there is none, or that did not work. A rename in its place
/// takes eight times as long, and ext4 first has the new file's data written to the disk (`auto_da_alloc`), on a busy disk
/// for tens of milliseconds.
fn write_over(path: &Path, content: &[u8]) -> bool {
    let opened = OpenOptions::new()
        .write(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(path);
    let Ok(mut file) = opened else { return false };
    let is_as_long = |m: fs::Metadata| m.is_file() && m.len() == content.len() as u64;
    content.len() <= STEP
        && file.metadata().is_ok_and(is_as_long)
        && file.write(content).is_ok_and(|written| written == content.len())
}

/// How files are opened for writing.
pub(crate) fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    options
}

/// The content of a file; None if it is no regular file, or longer than `max` bytes.
pub(crate) fn read(path: &Path, max: usize) -> io::Result<Option<Vec<u8>>> {
    // A link is not followed, and opening a pipe would wait for its writer.
    if !fs::symlink_metadata(path)?.is_file() {
        return Ok(None);
    }
    let mut content = Vec::new();
    fs::File::open(path)?
        .take(max as u64 + 1)
        .read_to_end(&mut content)?;
    Ok((content.len() <= max).then_some(content))
}

fn make_folder(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(StoreError::io("make the folder", path))
}

fn sync(folder: &Path) -> Result<(), StoreError> {
    let synced = fs::File::open(folder).and_then(|file| file.sync_all());
    synced.map_err(StoreError::io("flush to the disk", folder))
}

fn list(path: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = fs::read_dir(path).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let mut paths: Vec<PathBuf> = entries.map_err(StoreError::io("list the folder", path))?;
    paths.sort();
    Ok(paths)
}
