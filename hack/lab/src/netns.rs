//! Network namespaces, each with a thread that lives in it: what must be done inside is sent there. Those of our own
//! making are kept by a bind mount under [`FOLDER`] as a container runtime keeps them, or by their thread alone;
//! those of others are only entered.

use anyhow::{Context, Result, anyhow};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

/// Where the namespaces are mounted.
pub const FOLDER: &str = "/run/netns";

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace. Dropping it ends its thread, and unmounts it where it was mounted here; the kernel removes it
/// when nothing else holds it.
pub struct Netns {
    name: String,
    path: PathBuf,
    mounted: bool,
    jobs: Option<mpsc::SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Netns {
    /// Makes one, with its loopback down, as the kernel makes it.
    pub fn create(name: &str) -> Result<Self> {
        let path = Path::new(FOLDER).join(name);
        File::create_new(&path).with_context(|| format!("make {}", path.display()))?;
        let target = path.clone();
        let mut made = Self::enter(name, move || {
            unshare_onto(&target)?;
            Ok(target)
        })?;
        made.mounted = true;
        Ok(made)
    }

    /// Makes one that is mounted nowhere: it is gone with this value, and with this process.
    pub fn unmounted(name: &str) -> Result<Self> {
        Self::enter(name, || {
            unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
            let thread = nix::unistd::gettid();
            Ok(format!("/proc/{}/task/{thread}/ns/net", std::process::id()).into())
        })
    }

    /// Enters one that somebody else made, by its path: a mount of it, or `/proc/PID/ns/net`.
    pub fn open(name: &str, path: &Path) -> Result<Self> {
        let path = path.to_owned();
        Self::enter(name, move || {
            let shown = || format!("enter the network namespace {}", path.display());
            let file = File::open(&path).with_context(shown)?;
            setns(file, CloneFlags::CLONE_NEWNET).with_context(shown)?;
            // By the thread, which keeps it: what was opened may be unmounted.
            let thread = nix::unistd::gettid();
            Ok(format!("/proc/{}/task/{thread}/ns/net", std::process::id()).into())
        })
    }

    /// Starts the thread; `begin` brings it into the namespace, and says under which path that is found.
    fn enter(name: &str, begin: impl FnOnce() -> Result<PathBuf> + Send + 'static) -> Result<Self> {
        let (jobs, inbox) = mpsc::sync_channel::<Job>(16);
        let (ready, begun) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(format!("ns-{name}"))
            .spawn(move || {
                let outcome = begin();
                let good = outcome.is_ok();
                let _ = ready.send(outcome);
                if good {
                    inbox.into_iter().for_each(|job| job());
                }
            })
            .context("start the namespace's thread")?;
        let path = begun.recv().context("the namespace's thread ended")??;
        Ok(Self {
            name: name.to_owned(),
            path,
            mounted: false,
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    /// Its name under [`FOLDER`].
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path; where it is mounted, as CNI_NETNS has it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
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
        if !self.mounted {
            return;
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
