//! A pod's network namespace, bound to a path as a runtime does it.

use anyhow::{Context, Result, anyhow};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::fs::File;
use std::path::{Path, PathBuf};

/// It is taken away with this value, if not before.
pub(crate) struct Sandbox {
    path: PathBuf,
    there: bool,
}

impl Sandbox {
    pub(crate) fn create(path: PathBuf) -> Result<Self> {
        File::create_new(&path).with_context(|| format!("make {}", path.display()))?;
        let target = path.clone();
        // A thread that ends at once: the mount keeps the namespace.
        let made = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
            let none = None::<&str>;
            mount(
                Some("/proc/thread-self/ns/net"),
                &target,
                none,
                MsFlags::MS_BIND,
                none,
            )
            .with_context(|| format!("mount the network namespace at {}", target.display()))
        });
        made.join()
            .map_err(|_| anyhow!("the thread that makes a namespace has panicked"))??;
        Ok(Self { path, there: true })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn is_there(&self) -> bool {
        self.there
    }

    /// Takes it away under whoever uses it.
    pub(crate) fn remove(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.there) {
            return Ok(());
        }
        umount2(&self.path, MntFlags::MNT_DETACH)
            .with_context(|| format!("unmount {}", self.path.display()))?;
        std::fs::remove_file(&self.path).with_context(|| format!("remove {}", self.path.display()))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // The mount namespace ends with this process in any case.
        let _ = self.remove();
    }
}
