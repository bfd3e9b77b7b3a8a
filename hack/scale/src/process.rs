//! Programs under measurement: started, watched through `/proc`, and ended.

use anyhow::{Context, bail};
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// `USER_HZ`: what `/proc` counts CPU time in, on every Linux that userspace sees.
const TICKS: u32 = 100;

/// Runs `ip` with these arguments.
pub(crate) fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let out = Command::new("ip")
        .args(arguments)
        .output()
        .context("run ip; install iproute2")?;
    if !out.status.success() {
        bail!(
            "ip {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Ok(())
}

/// A program that ends with this value.
pub(crate) struct Process(Child);

impl Process {
    /// Starts it, with what it prints in a file.
    pub(crate) fn start(program: &Path, arguments: &[String], log: &Path) -> anyhow::Result<Self> {
        let open = || File::create(log).with_context(|| format!("create {}", log.display()));
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(open()?)
            .stderr(File::options().append(true).create(true).open(log)?)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        Ok(Self(child))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        Usage::of(self.id())
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }

    /// SIGKILL, as `kill -9`.
    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a process has used.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// User and system time of all its threads.
    pub(crate) cpu: Duration,
    /// Resident now, in KiB, and what of it is not backed by a file.
    pub(crate) rss: u64,
    pub(crate) anonymous: u64,
    /// The most that was ever resident, in KiB.
    pub(crate) peak: u64,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            std::fs::read_to_string(&path).with_context(|| format!("read {path}: has the process ended?"))
        };
        let stat = read("stat")?;
        // The name may hold spaces; utime and stime are fields 14 and 15.
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<u32>().ok()).unwrap_or(0);
        let status = read("status")?;
        let kib = |key: &str| {
            let line = status.lines().find(|l| l.starts_with(key)).unwrap_or_default();
            line.split_whitespace()
                .nth(1)
                .and_then(|n| n.parse().ok())
                .unwrap_or(0)
        };
        Ok(Self {
            cpu: Duration::from_secs(1) * (ticks(11) + ticks(12)) / TICKS,
            rss: kib("VmRSS:"),
            anonymous: kib("RssAnon:"),
            peak: kib("VmHWM:"),
        })
    }
}
