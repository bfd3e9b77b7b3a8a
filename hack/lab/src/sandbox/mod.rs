//! A sandbox of new namespaces in which a part of the own program runs, and which leaves nothing behind: however
//! the program ends, the kernel takes down what was inside.
//!
//! A program that uses it calls [`enter`] first in `main` with its [`Entry`]s, and starts one with
//! [`Sandbox::start`]. Entries send messages (JSON) to the caller.

mod refusal;
mod remains;
mod stages;

pub use refusal::{Refusal, Step};
pub use stages::enter;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Where the caller's folder is inside.
pub const HOST: &str = "/run/lab/host";
/// First argument of a re-executed binary.
const MAGIC: &str = "__meshd-sandbox";
/// What the worker writes to stderr goes to this file of the caller's folder.
pub const LOG: &str = "lab.log";
/// Longest line that a worker may send.
const LINE_MAX: u64 = 64 << 20;

/// Something that can run in a sandbox.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Its name, unique in the program.
    pub name: &'static str,
    /// What runs, as root of the new namespaces; the sandbox ends when it returns.
    pub run: fn(Inside) -> Result<()>,
}

/// What an entry is given.
pub struct Inside {
    /// What the caller passed on.
    pub input: Value,
    /// To the caller.
    pub reporter: Reporter,
}

/// Sends messages to the caller.
#[derive(Clone, Copy, Debug)]
pub struct Reporter(());

impl Reporter {
    /// Sends one.
    pub fn send(self, message: &impl Serialize) {
        match serde_json::to_value(message) {
            Ok(value) => report(&Line::Message(value)),
            Err(error) => report(&Line::Failed(format!("a message does not serialise: {error}"))),
        }
    }

    /// Tells that a network namespace was made: the caller counts them.
    pub fn namespace(self) {
        report(&Line::Namespace);
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// The pid of init, as the caller sees it.
    Init(u32),
    /// A network namespace was made.
    Namespace,
    /// The worker runs.
    Started,
    /// From the entry.
    Message(Value),
    /// The system refused.
    Refused(Refusal),
    /// A stage or the entry failed.
    Failed(String),
}

/// Writes a line to stdout, whole: lines of several threads do not mix.
fn report(line: &Line) {
    let mut text = serde_json::to_string(line).unwrap_or_default();
    text.push('\n');
    let mut out = std::io::stdout().lock();
    // Where the caller is gone there is nobody to tell.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Why a sandbox did not start.
#[derive(Debug)]
pub enum StartError {
    /// The system does not allow it.
    Refused(Refusal),
    /// Something else.
    Failed(anyhow::Error),
}

/// How a sandbox ended.
#[derive(Debug)]
pub struct Ended {
    /// What the entry or a stage failed with.
    pub failure: Option<String>,
    /// What is left of it on the machine, one line each.
    pub remains: Vec<String>,
}

/// The launchers of the sandboxes that this process runs.
static RUNNING: Mutex<Vec<u32>> = Mutex::new(Vec::new());

fn running() -> MutexGuard<'static, Vec<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends all sandboxes of this process now; whoever waits for one hears that it ended. False if there is none.
pub fn kill_all() -> bool {
    let launchers = running();
    for pid in launchers.iter().filter_map(|pid| i32::try_from(*pid).ok()) {
        // Not waited for yet, so the pid is still the launcher's.
        let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    !launchers.is_empty()
}

/// Waits for a launcher; from then on it is not among those that run.
fn reap(child: &mut Child) -> std::io::Result<ExitStatus> {
    // Blocks without reaping, so that the lock is not held meanwhile.
    if let Ok(pid) = i32::try_from(child.id()) {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(Pid::from_raw(pid)), flags) == Err(Errno::EINTR) {}
    }
    let mut launchers = running();
    launchers.retain(|pid| *pid != child.id());
    child.wait()
}

/// A sandbox that runs. Dropping it ends everything inside at once.
pub struct Sandbox {
    child: Child,
    stdin: Option<ChildStdin>,
    /// What the entry is given, and waits for.
    input: String,
    lines: BufReader<ChildStdout>,
    folder: PathBuf,
    before: remains::Before,
    init: Option<u32>,
    held: remains::Held,
    namespaces: usize,
    failure: Option<String>,
}

impl Sandbox {
    /// Starts an entry of the own program in new namespaces; `folder` is shown inside as [`HOST`].
    ///
    /// The calling thread must outlive the sandbox: the kernel takes its end for the parent's.
    pub fn start(entry: &str, input: &impl Serialize, folder: &Path) -> Result<Self, StartError> {
        let mut sandbox = Self::spawn(entry, input, folder).map_err(StartError::Failed)?;
        loop {
            match sandbox.line() {
                Some(Line::Started) => return Ok(sandbox),
                Some(Line::Refused(refusal)) => return Err(StartError::Refused(refusal)),
                Some(_) => {}
                None => {
                    let why = sandbox
                        .failure
                        .take()
                        .unwrap_or_else(|| "it ended without a word".into());
                    return Err(StartError::Failed(anyhow!("the sandbox did not start: {why}")));
                }
            }
        }
    }

    fn spawn(entry: &str, input: &impl Serialize, folder: &Path) -> Result<Self> {
        let folder = folder
            .canonicalize()
            .with_context(|| format!("the sandbox's folder {}", folder.display()))?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(folder.join(LOG))
            .with_context(|| format!("open {} in {}", LOG, folder.display()))?;
        let mut text = serde_json::to_string(input).context("the sandbox's input")?;
        text.push('\n');
        let before = remains::Before::look();
        let mut child = Command::new("/proc/self/exe")
            .arg0("meshd-sandbox")
            .args([MAGIC, "launch", entry])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // The terminal's Ctrl-C is for the caller, who ends the sandbox in order.
            .process_group(0)
            .spawn()
            .context("start the own program again for the sandbox")?;
        running().push(child.id());
        let stdin = child.stdin.take().context("the sandbox has no stdin")?;
        let stdout = child.stdout.take().context("the sandbox has no stdout")?;
        Ok(Self {
            child,
            stdin: Some(stdin),
            input: text,
            lines: BufReader::new(stdout),
            folder,
            before,
            init: None,
            held: remains::Held::default(),
            namespaces: 0,
            failure: None,
        })
    }

    fn line(&mut self) -> Option<Line> {
        let mut text = Vec::new();
        let read = std::io::Read::take(&mut self.lines, LINE_MAX).read_until(b'\n', &mut text);
        if !matches!(read, Ok(n) if n > 0) {
            return None;
        }
        let line = serde_json::from_slice(&text).unwrap_or_else(|_| {
            Line::Failed(format!(
                "it wrote {:?}",
                String::from_utf8_lossy(&text).trim_end()
            ))
        });
        match &line {
            Line::Init(pid) => {
                self.init = Some(*pid);
                self.held = remains::Held::of(*pid);
                // Only now: before, the sandbox could be over, and its namespaces gone.
                if let Some(stdin) = &mut self.stdin {
                    // One that was refused may be gone by now; its own words say why.
                    let _ = stdin.write_all(self.input.as_bytes());
                }
            }
            Line::Namespace => self.namespaces += 1,
            Line::Failed(why) => self.failure = Some(why.clone()),
            _ => {}
        }
        Some(line)
    }

    /// The next message of the entry; None when it has ended.
    pub fn message(&mut self) -> Option<Value> {
        loop {
            if let Line::Message(value) = self.line()? {
                return Some(value);
            }
        }
    }

    /// Pid of the sandbox's init as the caller sees it.
    #[must_use]
    pub fn init_pid(&self) -> Option<u32> {
        self.init
    }

    /// How many network namespaces were made inside so far, as far as the entry tells.
    #[must_use]
    pub fn namespaces(&self) -> usize {
        self.namespaces
    }

    /// Waits for the end and looks for what is left.
    #[must_use]
    pub fn finish(mut self) -> Ended {
        while self.line().is_some() {}
        self.stdin = None;
        let status = reap(&mut self.child);
        let mut failure = self.failure.take();
        if failure.is_none() && !matches!(&status, Ok(s) if s.success()) {
            failure = Some(match status {
                Ok(status) => format!("the sandbox ended with {status}"),
                Err(error) => format!("the sandbox could not be waited for: {error}"),
            });
        }
        Ended {
            failure,
            remains: self.before.compare(&self.held, &self.folder),
        }
    }

    /// Ends everything inside now, and looks for what is left.
    #[must_use]
    pub fn stop(mut self) -> Ended {
        self.stdin = None;
        let _ = self.child.kill();
        self.finish()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.kill();
        let _ = reap(&mut self.child);
    }
}
