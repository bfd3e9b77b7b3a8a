//! Puts the CNI configuration in place when the daemon is ready, and again when somebody takes it away.

use super::{FileError, Placed, place, plugins};
use crate::settings::Cni;
use meshd_model::status::Problem;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(10);
/// How soon it is tried again when it could not be put there.
const RETRY: Duration = Duration::from_secs(1);

/// Endings of what container runtimes take for a network's configuration (libcni's ConfFiles).
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];

/// Why the configuration is not in place, or not the one in use; none if it is, or is not wanted yet.
#[derive(Clone, Debug, Default)]
pub struct KeeperProblem(Arc<Mutex<Option<Problem>>>);

impl KeeperProblem {
    /// What is wrong.
    #[must_use]
    pub fn get(&self) -> Option<Problem> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, found: Option<(String, &str)>) {
        let new = found.map(|(message, remedy)| Problem {
            subject: "cni".into(),
            message,
            remedy: remedy.into(),
        });
        let mut problem = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *problem == new {
            return;
        }
        if let Some(new) = &new {
            tracing::warn!("{}: {}", new.message, new.remedy);
        }
        *problem = new;
    }
}

/// Keeps the file in place. See [`Keeper::run`].
#[derive(Debug)]
pub struct Keeper {
    source: PathBuf,
    folder: PathBuf,
    name: String,
    problem: KeeperProblem,
}

impl Keeper {
    /// None if it is not configured.
    #[must_use]
    pub fn new(cni: &Cni) -> Option<Self> {
        let (source, folder, target) = (cni.conflist.clone()?, cni.conf_dir.clone()?, cni.target()?);
        Some(Self {
            source,
            folder,
            name: target.file_name()?.to_string_lossy().into_owned(),
            problem: KeeperProblem::default(),
        })
    }

    /// Where it says what is wrong.
    #[must_use]
    pub fn problem(&self) -> KeeperProblem {
        self.problem.clone()
    }

    /// Waits until the daemon is ready for the first time, then keeps the file there for good: that the daemon is not
    /// ready any more is the plugin's to say. Ends when the daemon does.
    pub async fn run(self, mut ready: watch::Receiver<bool>) {
        if ready.wait_for(|ready| *ready).await.is_err() {
            return;
        }
        loop {
            // A small file, and nothing waits for this task.
            let pause = match self.put() {
                Ok(placed) => {
                    if placed == Placed::New {
                        let path = self.folder.join(&self.name);
                        tracing::info!(path = %path.display(), "the CNI configuration is in place");
                    }
                    self.problem.set(self.another_network());
                    LOOK
                }
                Err(error) => {
                    let remedy = "until it is in place the container runtime may not know this network: see cni.conflist and \
                                  cni.conf_dir of the configuration";
                    self.problem.set(Some((error.to_string(), remedy)));
                    RETRY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                gone = ready.wait_for(|_| false) => if gone.is_err() { return },
            }
        }
    }

    fn put(&self) -> Result<Placed, super::InstallError> {
        plugins(&self.source)?;
        place(&self.source, &self.folder, &self.name, 0o644).map_err(|e: FileError| e.into())
    }

    /// What runtimes take instead of ours: the first by name.
    fn another_network(&self) -> Option<(String, &'static str)> {
        let names = std::fs::read_dir(&self.folder).ok()?.filter_map(Result::ok);
        let first = names
            .map(|entry| PathBuf::from(entry.file_name()))
            .filter(|name| {
                name.extension()
                    .is_some_and(|e| ENDINGS.iter().any(|ending| e == *ending))
            })
            .min()?;
        let message = format!(
            "{} comes before {} in {}: the container runtime gives new pods that network",
            first.display(),
            self.name,
            self.folder.display()
        );
        let remedy = "remove that network from the node, or its file from the folder, and start the pods anew that it has \
                      attached meanwhile";
        (first.as_os_str() < self.name.as_str()).then_some((message, remedy))
    }
}
