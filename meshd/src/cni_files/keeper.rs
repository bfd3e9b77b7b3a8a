//! Puts the CNI configuration in place when the daemon is ready, and again when somebody takes it away.

use super::{FileError, Placed, place, plugins};
use crate::settings::Cni;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(10);
/// How soon it is tried again when it could not be put there.
const RETRY: Duration = Duration::from_secs(1);

/// Why the configuration is not in place; none if it is, or is not wanted yet.
#[derive(Clone, Debug, Default)]
pub struct KeeperProblem(Arc<Mutex<Option<String>>>);

impl KeeperProblem {
    /// What is wrong.
    #[must_use]
    pub fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, problem: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = problem;
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
                Ok(Placed::Same) => {
                    self.problem.set(None);
                    LOOK
                }
                Ok(Placed::New) => {
                    self.problem.set(None);
                    tracing::info!(path = %self.folder.join(&self.name).display(), "the CNI configuration is in place");
                    LOOK
                }
                Err(error) => {
                    let message = error.to_string();
                    if self.problem.get().as_ref() != Some(&message) {
                        tracing::warn!("{message}");
                    }
                    self.problem.set(Some(message));
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
}
