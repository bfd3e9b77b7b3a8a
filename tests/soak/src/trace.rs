//! Counts the system calls of a process by ptrace, and kills it at one of them. Those that wait for the disk are counted
//! apart.
//!
//! Each system call stops the process twice, before and after: what a kill at the second leaves is what the call has
//! done. The tracer is a process of its own, so that nobody else waits for what it traces.

use anyhow::{Context, Result};
use nix::sys::ptrace::{self, Options as Trace};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

static COUNT: AtomicU64 = AtomicU64::new(0);
static SYNCS: AtomicU64 = AtomicU64::new(0);

/// The system calls that return when the disk has taken what was written.
const SYNCING: [i64; 6] = [
    nix::libc::SYS_fsync,
    nix::libc::SYS_fdatasync,
    nix::libc::SYS_sync,
    nix::libc::SYS_syncfs,
    nix::libc::SYS_sync_file_range,
    nix::libc::SYS_msync,
];

/// What was counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    /// Before and after each system call.
    pub(crate) stops: u64,
    /// System calls that wait for the disk.
    pub(crate) syncs: u64,
}

impl Counts {
    fn now() -> Counts {
        Counts {
            stops: COUNT.load(Ordering::SeqCst),
            syncs: SYNCS.load(Ordering::SeqCst),
        }
    }

    /// Reads what a tracer says.
    pub(crate) fn parse(said: &str) -> Result<Counts> {
        let read = |()| {
            let (stops, syncs) = said.trim().split_once(' ')?;
            Some(Counts {
                stops: stops.parse().ok()?,
                syncs: syncs.parse().ok()?,
            })
        };
        read(()).with_context(|| format!("the tracer says {said:?}"))
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.stops, self.syncs)
    }
}

/// What to trace.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Kill it at this stop; the first is 1.
    #[arg(long)]
    at: u64,
    /// A process that runs. Its count goes to stdout when stdin ends, and the process ends with that.
    #[arg(long)]
    pid: Option<i32>,
    /// Where the count of a command goes.
    #[arg(long)]
    count: Option<std::path::PathBuf>,
    /// A command to start.
    #[arg(last = true)]
    command: Vec<OsString>,
}

fn options() -> Trace {
    Trace::PTRACE_O_TRACESYSGOOD | Trace::PTRACE_O_TRACECLONE | Trace::PTRACE_O_EXITKILL
}

/// Traces to the end. A command's end is this process's own.
pub(crate) fn run(what: &Options) -> Result<()> {
    let Some(pid) = what.pid else {
        return start(what);
    };
    let pid = Pid::from_raw(pid);
    seize_all(pid)?;
    println!("traced");
    std::io::stdout().flush()?;
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        println!("{}", Counts::now());
        std::process::exit(0);
    });
    follow(pid, what.at)?;
    // Whoever started this reads the count, and then closes stdin.
    loop {
        std::thread::park();
    }
}

/// Every thread, also those that are made meanwhile.
fn seize_all(pid: Pid) -> Result<()> {
    let mut seized = BTreeSet::new();
    loop {
        let path = format!("/proc/{pid}/task");
        let before = seized.len();
        for entry in std::fs::read_dir(&path).with_context(|| format!("list {path}"))? {
            let tid: i32 = entry?.file_name().to_string_lossy().parse()?;
            if seized.insert(tid) {
                let tid = Pid::from_raw(tid);
                // A thread may have ended, or be traced already as a new one of a traced one.
                if ptrace::seize(tid, options()).is_ok() {
                    ptrace::interrupt(tid).context("interrupt a thread")?;
                }
            }
        }
        if seized.len() == before {
            return Ok(());
        }
    }
}

fn start(what: &Options) -> Result<()> {
    let (program, arguments) = what.command.split_first().context("no command to trace")?;
    let mut command = Command::new(program);
    command.args(arguments);
    trace_me(&mut command);
    let child = command.spawn().context("start the command")?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let stopped = waitpid(pid, None).context("wait for exec")?;
    if !matches!(stopped, WaitStatus::Stopped(..)) {
        anyhow::bail!("the command is not traced: {stopped:?}");
    }
    ptrace::setoptions(pid, options()).context("trace the command")?;
    ptrace::syscall(pid, None)?;
    let end = follow(pid, what.at)?;
    if let Some(path) = &what.count {
        std::fs::write(path, Counts::now().to_string())?;
    }
    match end {
        // As it ended, so that whoever started this takes it for the command.
        WaitStatus::Exited(_, code) => std::process::exit(code),
        _ => {
            kill(Pid::this(), Signal::SIGKILL)?;
            Ok(())
        }
    }
}

#[allow(
    unsafe_code,
    reason = "pre_exec is unsafe for what may be done between fork and exec"
)]
fn trace_me(command: &mut Command) {
    // SAFETY: ptrace is one system call, which takes no lock and no memory.
    unsafe {
        command.pre_exec(|| ptrace::traceme().map_err(std::io::Error::from));
    }
}

/// Lets every thread run from stop to stop, until the process is gone; how it ended.
fn follow(pid: Pid, at: u64) -> Result<WaitStatus> {
    loop {
        let status = waitpid(None, Some(WaitPidFlag::__WALL)).context("wait for a stop")?;
        match status {
            WaitStatus::PtraceSyscall(tid) => {
                if is_sync(tid) {
                    SYNCS.fetch_add(1, Ordering::SeqCst);
                }
                if COUNT.fetch_add(1, Ordering::SeqCst) + 1 == at {
                    kill(pid, Signal::SIGKILL).context("kill the process")?;
                } else {
                    go_on(tid, None);
                }
            }
            // Signals are passed on; the stop that a seized or a new thread begins with looks like one.
            WaitStatus::Stopped(tid, Signal::SIGTRAP | Signal::SIGSTOP) => go_on(tid, None),
            WaitStatus::Stopped(tid, signal) => go_on(tid, Some(signal)),
            WaitStatus::PtraceEvent(tid, ..) => go_on(tid, None),
            WaitStatus::Exited(tid, _) | WaitStatus::Signaled(tid, ..) if tid == pid => return Ok(status),
            _ => {}
        }
    }
}

/// Whether the thread has stopped before a system call that waits for the disk.
fn is_sync(tid: Pid) -> bool {
    let Ok(info) = ptrace::syscall_info(tid) else {
        return false; // killed meanwhile
    };
    if info.op != nix::libc::PTRACE_SYSCALL_INFO_ENTRY {
        return false;
    }
    #[allow(unsafe_code, reason = "the system's structure is a union")]
    // SAFETY: the kernel has filled in the member that belongs to this op.
    let number = unsafe { info.u.entry.nr };
    SYNCING.contains(&number.cast_signed())
}

/// One that was killed meanwhile is told of by its end.
fn go_on(tid: Pid, signal: Option<Signal>) {
    let _ = ptrace::syscall(tid, signal);
}
