//! Where a user's lab has its folder, and who keeps it.

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

const STATE: &str = "state.json";
const LEFT: &str = "left.json";

/// The folder of a user's lab: sockets, logs, and who keeps it.
pub(crate) struct Place(PathBuf);

/// Who keeps a lab. Processes are told by pid and start, since pids come again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    /// Pid of the supervisor.
    pub(crate) supervisor: u32,
    supervisor_start: u64,
    /// Pid of the sandbox's init.
    pub(crate) init: u32,
    init_start: u64,
}

impl State {
    pub(crate) fn new(supervisor: u32, init: u32) -> Result<Self> {
        let start = |pid| start_of(pid).with_context(|| format!("process {pid} is gone"));
        Ok(Self {
            supervisor,
            supervisor_start: start(supervisor)?,
            init,
            init_start: start(init)?,
        })
    }

    pub(crate) fn is_alive(&self) -> bool {
        start_of(self.supervisor) == Some(self.supervisor_start)
    }

    /// Ends the lab at once.
    pub(crate) fn kill(&self) {
        if let (true, Ok(pid)) = (self.is_alive(), i32::try_from(self.supervisor)) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// When a process started, in ticks since boot; None if it is gone (proc_pid_stat(5), field 22).
fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    let start = fields.nth(18)?.parse().ok()?;
    (state != "Z" && state != "X").then_some(start)
}

impl Place {
    /// The calling user's: under XDG_RUNTIME_DIR, or where there is none under /tmp.
    pub(crate) fn of_user() -> Result<Self> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let folder = match runtime.filter(|r| r.is_dir() && r.is_absolute()) {
            Some(runtime) => runtime.join("meshd-lab"),
            None => PathBuf::from(format!("/tmp/meshd-lab-{}", geteuid())),
        };
        Ok(Self(folder))
    }

    pub(crate) fn at(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.0
    }

    /// Who keeps the lab that is up.
    pub(crate) fn running(&self) -> Result<State> {
        match self.state() {
            Some(state) if state.is_alive() => self.check().map(|()| state),
            _ if self.0.exists() && self.lock().is_err() => {
                bail!("a lab is on its way up or down: try again in a moment")
            }
            _ => bail!("no lab is up: `meshctl lab up`"),
        }
    }

    /// Held by the supervisor from its start to its end, however it ends.
    pub(crate) fn lock(&self) -> Result<Flock<File>> {
        let folder = File::open(&self.0).with_context(|| format!("open {}", self.0.display()))?;
        Flock::lock(folder, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
            anyhow!(
                "a lab is on its way up or down already ({}: {errno})",
                self.0.display()
            )
        })
    }

    fn state(&self) -> Option<State> {
        serde_json::from_slice(&fs::read(self.0.join(STATE)).ok()?).ok()
    }

    /// Makes the folder ready for a new lab; one that is up is an error.
    pub(crate) fn claim(&self) -> Result<()> {
        if self.0.exists() && self.running().is_ok() {
            bail!("a lab is up already: `meshctl lab status`, or `meshctl lab down` first");
        }
        self.make()?;
        let _lock = self.lock()?;
        let entries = fs::read_dir(&self.0).with_context(|| format!("list {}", self.0.display()))?;
        for entry in entries.flatten() {
            let path = entry.path();
            let removed = if entry.file_type().is_ok_and(|t| t.is_dir()) {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.with_context(|| format!("remove {} of an earlier lab", path.display()))?;
        }
        Ok(())
    }

    /// The folder, which must be the user's own: under /tmp anybody may have been there first.
    fn make(&self) -> Result<()> {
        let folder = &self.0;
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("make the lab's folder {}", folder.display()));
            }
            _ => {}
        }
        self.check()
    }

    fn check(&self) -> Result<()> {
        let folder = &self.0;
        let found = fs::symlink_metadata(folder).with_context(|| format!("look at {}", folder.display()))?;
        if !found.is_dir() || found.uid() != geteuid().as_raw() {
            bail!(
                "{} is not a folder of yours: remove it, or set XDG_RUNTIME_DIR",
                folder.display()
            );
        }
        Ok(())
    }

    pub(crate) fn write_state(&self, state: &State) -> Result<()> {
        self.write(STATE, &serde_json::to_vec(state)?)
    }

    /// What the supervisor found outside after the end.
    pub(crate) fn write_left(&self, left: &[String]) -> Result<()> {
        self.write(LEFT, &serde_json::to_vec(left)?)
    }

    pub(crate) fn left_outside(&self) -> Vec<String> {
        let read = fs::read(self.0.join(LEFT)).ok();
        let left = read.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        left.unwrap_or_else(|| vec!["(the supervisor did not say what is left outside)".to_owned()])
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let (new, path) = (self.0.join(format!("{name}.new")), self.0.join(name));
        fs::write(&new, bytes)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("write {}", path.display()))
    }

    /// Nothing of the lab is worth keeping.
    pub(crate) fn remove(&self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_by_its_start() {
        let own = std::process::id();
        let state = State::new(own, own).unwrap();
        assert!(state.is_alive());
        let other = State {
            supervisor_start: state.supervisor_start + 1,
            ..state
        };
        assert!(!other.is_alive());
        assert!(State::new(u32::MAX, own).is_err());
    }

    #[test]
    fn a_lab_on_its_way_up_is_neither_none_nor_swept_away() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::at(folder.path());
        let lock = place.lock().unwrap();
        fs::write(folder.path().join("node-1.log"), "x").unwrap();
        assert!(place.claim().is_err());
        assert!(folder.path().join("node-1.log").exists());
        let said = place.running().unwrap_err().to_string();
        assert!(said.contains("on its way"), "{said}");
        drop(lock);
        place.claim().unwrap();
        let said = place.running().unwrap_err().to_string();
        assert!(said.contains("no lab is up"), "{said}");
    }

    #[test]
    fn a_place_is_cleaned_for_a_new_lab_and_only_then() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::at(folder.path());
        fs::create_dir(folder.path().join("node-1.recording")).unwrap();
        fs::write(folder.path().join("old.log"), "x").unwrap();
        place.claim().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        place
            .write_state(&State::new(std::process::id(), std::process::id()).unwrap())
            .unwrap();
        assert!(place.claim().is_err());
        assert!(place.running().is_ok());
    }
}
