//! Programs that run in a namespace, each with a log file of its own.

use crate::netns::Netns;
use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest output of a program that is run to its end.
const OUTPUT_MAX: u64 = 4 << 20;

/// A program that runs until it is ended.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it in the namespace; its output is appended to `LOGS/NAME.log`.
    pub fn start(netns: &Netns, name: &str, mut command: Command, logs: &Path) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open {}", log.display()))?;
        let errors = file.try_clone().context("duplicate a log's descriptor")?;
        let program = command.get_program().to_owned();
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        let child = netns
            .run(move || command.spawn())?
            .with_context(|| format!("start {} as {name}", program.to_string_lossy()))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// Its pid inside the sandbox.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error if it has ended, with the end of its log.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => bail!(
                "{} ended with {status}; it wrote:\n{}",
                self.name,
                tail(&self.log)
            ),
            Err(error) => Err(anyhow!(error).context(format!("ask after {}", self.name))),
        }
    }

    /// kill -9, and waits for its end.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("kill {}", self.name))?;
        self.child
            .wait()
            .map(drop)
            .with_context(|| format!("wait for {}", self.name))
    }

    /// SIGTERM, and waits for its end; SIGKILL if it does not.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        kill(pid, Signal::SIGTERM).with_context(|| format!("terminate {}", self.name))?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill()?;
        bail!(
            "{} did not end within {PATIENCE:?} of SIGTERM and was killed",
            self.name
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a program that was run to its end has said.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
}

/// Runs a program in the namespace to its end, or kills it when time is up.
pub fn run(netns: &Netns, mut command: Command, input: &str, within: Duration) -> Result<Finished> {
    let program = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = netns
        .run(move || command.spawn())?
        .with_context(|| format!("start {program}"))?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let input = input.to_owned();
    // Threads, so that a program that reads nothing or writes much stands in nobody's way.
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let stdout = reader(child.stdout.take().context("no stdout")?);
    let stderr = reader(child.stderr.take().context("no stderr")?);
    let deadline = Instant::now() + within;
    let status = loop {
        if let Some(status) = child.try_wait().with_context(|| format!("wait for {program}"))? {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            break child.wait().with_context(|| format!("wait for {program}"))?;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let _ = writer.join();
    if status.signal() == Some(libc::SIGKILL) && Instant::now() > deadline {
        bail!("{program} did not end within {within:?} and was killed");
    }
    Ok(Finished {
        status,
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    })
}

fn reader(pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = pipe.take(OUTPUT_MAX).read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    })
}

/// The last lines of a log.
#[must_use]
pub fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}
