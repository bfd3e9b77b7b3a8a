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
        let sent = self.thread()?.send(job).ok();
        let done = match sent.and_then(|()| entry.recv().ok()) {
            Some(Ok(())) => result.recv().ok(),
            Some(Err(e)) => return Err(e),
            None => None,
        };
        done.unwrap_or_else(|| {
            // Another takes its place.
            self.jobs = None;
            Err(ended())
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_ended_is_replaced() {
        let mut entrant = Entrant::default();
        let (jobs, queue) = sync_channel(0);
        drop(queue);
        entrant.jobs = Some(jobs);
        let own = Netns::open("/proc/thread-self/ns/net").unwrap();
        assert!(entrant.run(&own, || Ok(())).is_err());
        assert!(entrant.jobs.is_none());
    }
}
