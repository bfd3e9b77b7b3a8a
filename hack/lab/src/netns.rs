//! Network namespaces, kept by a bind mount under [`FOLDER`] as a container runtime keeps them, each with a thread
//! that lives in it: what must be done inside is sent there.

use anyhow::{Context, Result, anyhow};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

/// Where the namespaces are mounted.
pub const FOLDER: &str = "/run/netns";

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace of our own making. Dropping it unmounts it and ends its thread; the kernel removes it when
/// nothing else holds it.
pub struct Netns {
    name: String,
    path: PathBuf,
    inode: u64,
    jobs: Option<mpsc::SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Netns {
    /// Makes one, with its loopback down, as the kernel makes it.
    pub fn create(name: &str) -> Result<Self> {
        let path = Path::new(FOLDER).join(name);
        File::create_new(&path).with_context(|| format!("make {}", path.display()))?;
        let (jobs, inbox) = mpsc::sync_channel::<Job>(16);
        let (ready, made) = mpsc::sync_channel(1);
        let target = path.clone();
        let thread = std::thread::Builder::new()
            .name(format!("ns-{name}"))
            .spawn(move || {
                let outcome = unshare_onto(&target);
                let good = outcome.is_ok();
                let _ = ready.send(outcome);
                if good {
                    inbox.into_iter().for_each(|job| job());
                }
            })
            .context("start the namespace's thread")?;
        made.recv().context("the namespace's thread ended")??;
        let inode = std::fs::metadata(&path)
            .with_context(|| format!("look at {}", path.display()))?
            .ino();
        Ok(Self {
            name: name.to_owned(),
            path,
            inode,
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    /// Its name under [`FOLDER`].
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path, as CNI_NETNS has it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the kernel tells it by.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Runs something in the namespace and waits for it. Sockets made there stay there, wherever they are used.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (answer, result) = mpsc::sync_channel(1);
        let gone = || anyhow!("the thread of network namespace {} has ended", self.name);
        self.jobs
            .as_ref()
            .ok_or_else(gone)?
            .send(Box::new(move || {
                let _ = answer.send(job());
            }))
            .map_err(|_| gone())?;
        result.recv().map_err(|_| gone())
    }

    /// A netlink connection to it.
    pub fn netlink(&self) -> Result<nlink::netlink::Connection<nlink::netlink::Route>> {
        nlink::netlink::Connection::new_in(self.path.as_path())
            .with_context(|| format!("open netlink in network namespace {}", self.name))
    }

    /// Sets a sysctl of the namespace.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{name}");
        let value = value.to_owned();
        let shown = format!("set {path} to {value} in network namespace {}", self.name);
        self.run(move || std::fs::write(path, value))?.context(shown)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // A failure shows in the search for what is left.
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        let _ = std::fs::remove_file(&self.path);
    }
}

fn unshare_onto(path: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
    mount(
        Some("/proc/thread-self/ns/net"),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .with_context(|| format!("mount the network namespace at {}", path.display()))
}
