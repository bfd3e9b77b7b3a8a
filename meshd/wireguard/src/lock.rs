//! One process a socket: who holds the lock may replace the socket that a killed process left.

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Held until it is dropped, or the process ends in whatever way.
pub(crate) struct Lock {
    path: PathBuf,
    _file: Flock<File>,
}

impl Lock {
    pub(crate) fn take(path: PathBuf) -> anyhow::Result<Self> {
        // Whoever held it may remove the file between our opening and our locking it: a few times at most.
        for _ in 0..16 {
            let file = open(&path)?;
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((_, Errno::EWOULDBLOCK)) => bail!(
                    "another meshd-wg runs with this socket: {} is locked; end it first",
                    path.display()
                ),
                Err((_, errno)) => {
                    return Err(errno).with_context(|| format!("lock {}", path.display()));
                }
            };
            if is_still_there(&file, &path) {
                return Ok(Self { path, _file: file });
            }
        }
        bail!(
            "lock {}: it keeps being replaced by other processes",
            path.display()
        )
    }
}

fn open(path: &Path) -> anyhow::Result<File> {
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .with_context(|| format!("open the lock file {}", path.display()))
}

fn is_still_there(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(ours), Ok(there)) => ours.ino() == there.ino() && ours.dev() == there.dev(),
        _ => false,
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Left behind it would do no harm.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_nothing_left() {
        let path = std::env::temp_dir().join(format!("meshd-wg-lock-{}", std::process::id()));
        let first = Lock::take(path.clone()).unwrap();
        assert!(Lock::take(path.clone()).is_err());
        drop(first);
        assert!(!path.exists());
        drop(Lock::take(path).unwrap());
    }
}
