//! Work inside a pod's network namespace, on a thread of its own: a worker of the runtime never changes its namespace.

use crate::error::{Context, OpError, Result};
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, fstatfs};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use tokio::sync::oneshot;

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS: FsType = FsType(0x6e73_6673);

/// An open network namespace.
pub(crate) struct Netns {
    file: File,
    path: String,
}

impl Netns {
    /// Opens it by path. What is not there, or is there but is no namespace (the file that a removed bind mount leaves
    /// behind), is ENOENT.
    pub(crate) fn open(path: &str) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .doing(|| format!("open network namespace {path}"))
            .map_err(|e| e.remedy("the pod's sandbox is gone"))?;
        let magic = fstatfs(&file)
            .doing(|| format!("look at {path}"))?
            .filesystem_type();
        if magic != NSFS {
            return Err(OpError::new(
                libc::ENOENT,
                format!("{path} is not a network namespace: the pod's sandbox is gone"),
            ));
        }
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// The open file once more, and the path.
    pub(crate) fn parts(&self) -> Result<(File, String)> {
        let path = self.path.clone();
        let file = self.file.try_clone().doing(|| format!("keep {path} open"))?;
        Ok((file, path))
    }

    /// Whether it is the one that the calling thread is in.
    pub(crate) fn is_ours(&self) -> Result<bool> {
        let own = "/proc/thread-self/ns/net";
        let own = std::fs::metadata(own).doing(|| format!("look at {own}"))?;
        let this = self.file.metadata().doing(|| format!("look at {}", self.path))?;
        Ok((own.dev(), own.ino()) == (this.dev(), this.ino()))
    }

    /// Runs `work` on a new thread that has entered the namespace, with an IO runtime of its own, and waits for it.
    pub(crate) async fn run<T, F>(&self, work: impl FnOnce() -> F + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>>,
    {
        let (file, path) = self.parts()?;
        let (done, result) = oneshot::channel();
        std::thread::Builder::new()
            .name("meshd-netns".to_owned())
            .spawn(move || drop(done.send(enter_and_run(&file, &path, work))))
            .doing(|| "start a thread for the pod's network namespace")?;
        let ended = || OpError::plain(format!("the thread that worked in {} ended early", self.path));
        result.await.map_err(|_| ended())?
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn enter_and_run<T, F>(file: &File, path: &str, work: impl FnOnce() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    setns(file, CloneFlags::CLONE_NEWNET)
        .doing(|| format!("enter network namespace {path}"))
        .map_err(|e| e.remedy("meshd needs CAP_SYS_ADMIN there"))?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .doing(|| "start a runtime in the pod's network namespace")?
        .block_on(work())
}
