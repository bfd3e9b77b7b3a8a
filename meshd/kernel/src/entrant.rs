//! A thread that enters pods' network namespaces and comes back, so that a pod costs no new thread.

use crate::error::{Context, OpError, Result};
use crate::netns::Netns;
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

type Work = Box<dyn FnOnce() + Send>;

/// The thread, once there is one. One that could not come back ends, and another takes its place.
#[derive(Default)]
pub(crate) struct Entrant {
    jobs: Option<SyncSender<Job>>,
}

struct Job {
    netns: File,
    path: String,
    work: Work,
    entered: SyncSender<Result<()>>,
}

impl Entrant {
    /// Does `work` within the namespace and waits for it: it must not wait for anybody.
    pub(crate) fn run<T: Send + 'static>(
        &mut self,
        netns: &Netns,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (done, result) = sync_channel(1);
        let (entered, entry) = sync_channel(1);
        let (file, path) = netns.parts()?;
        let job = Job {
            netns: file,
            path: path.clone(),
            work: Box::new(move || drop(done.send(work()))),
            entered,
        };
        let ended = || OpError::plain(format!("the thread that worked in {path} ended early"));
        self.thread()?.send(job).map_err(|_| ended())?;
        match entry.recv() {
            Ok(Ok(())) => result.recv().map_err(|_| ended())?,
            Ok(Err(e)) => Err(e),
            Err(_) => {
                self.jobs = None;
                Err(ended())
            }
        }
    }

    /// The thread that is there, or a new one in the caller's namespace.
    fn thread(&mut self) -> Result<&SyncSender<Job>> {
        if self.jobs.is_none() {
            let own = "/proc/thread-self/ns/net";
            let own = File::open(own).doing(|| format!("open {own}"))?;
            let (jobs, queue) = sync_channel(0);
            std::thread::Builder::new()
                .name("meshd-netns".to_owned())
                .spawn(move || serve(&own, &queue))
                .doing(|| "start a thread for pods' network namespaces")?;
            self.jobs = Some(jobs);
        }
        self.jobs
            .as_ref()
            .ok_or_else(|| OpError::plain("there is no thread for pods' network namespaces"))
    }
}

fn serve(own: &File, jobs: &Receiver<Job>) {
    while let Ok(job) = jobs.recv() {
        let entered = setns(&job.netns, CloneFlags::CLONE_NEWNET)
            .doing(|| format!("enter network namespace {}", job.path))
            .map_err(|e| e.remedy("meshd needs CAP_SYS_ADMIN there"));
        let is_in = entered.is_ok();
        // Told first: who waits for a panic would wait for ever.
        let _ = job.entered.send(entered);
        if !is_in {
            continue;
        }
        (job.work)();
        if setns(own, CloneFlags::CLONE_NEWNET).is_err() {
            return;
        }
    }
}
