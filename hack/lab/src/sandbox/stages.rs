//! The inner side of a sandbox: three stages, each a re-execution of the own binary, so that namespaces are made
//! while a single thread runs.
//!
//! ```text
//! the caller          reads lines from the worker, holds the other end of its stdin
//!   launcher          makes the namespaces
//!     init (pid 1)    mounts, and reaps; when it ends the kernel ends all that is inside
//!       worker        runs the entry
//! ```
//!
//! Each dies with its parent (PR_SET_PDEATHSIG); the worker also ends when its stdin does, which covers a parent
//! that died before the request was made.

use super::refusal::{Refusal, Step};
use super::{Entry, Inside, Line, MAGIC, Reporter, report};
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs;
use std::io::{BufRead, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

const FAILED: u8 = 70;

/// Runs a stage, if that is what this process was started for; call it first in `main`, before any thread.
#[must_use]
pub fn enter(entries: &[Entry]) -> Option<ExitCode> {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() != Some(MAGIC) {
        return None;
    }
    // A caller that waits for signals blocks them; programs inside are to hear theirs.
    let _ = SigSet::empty().thread_set_mask();
    let stage = args.next().unwrap_or_default();
    let entry = args.next().unwrap_or_default();
    let host = args.next().unwrap_or_default();
    let outcome = match stage.as_str() {
        "launch" => launch(&entry, &host),
        "init" => init(&entry, &host),
        "work" => work(&entry, entries),
        _ => Err(anyhow::anyhow!("{MAGIC} is for the program's own use")),
    };
    match outcome {
        Ok(code) => Some(ExitCode::from(code)),
        Err(error) => {
            report(&Line::Failed(format!("{error:#}")));
            Some(ExitCode::from(FAILED))
        }
    }
}

fn launch(entry: &str, host: &str) -> Result<u8> {
    let spaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC;
    let direct = if nix::unistd::geteuid().is_root() {
        unshare(spaces)
    } else {
        Err(Errno::EPERM)
    };
    if direct.is_err() {
        if let Err(errno) = user_namespace() {
            return Ok(refuse(Step::UserNamespace, errno));
        }
        if let Err(errno) = unshare(spaces) {
            return Ok(refuse(Step::Namespaces, errno));
        }
    }
    // Only now: a change of credentials clears it.
    die_with_parent()?;
    let mut init = stage("init", entry, host)
        .spawn()
        .context("start the sandbox's init")?;
    report(&Line::Init(init.id()));
    let status = init.wait().context("wait for the sandbox's init")?;
    Ok(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(FAILED))
}

/// A user namespace in which the caller is root, and nobody else is anybody.
fn user_namespace() -> Result<(), Errno> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(CloneFlags::CLONE_NEWUSER)?;
    let write = |path: &str, text: String| {
        fs::write(path, text).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
    };
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", format!("0 {gid} 1"))
}

fn init(entry: &str, host: &str) -> Result<u8> {
    die_with_parent()?;
    for (step, outcome) in [
        (Step::Mounts, mounts(host)),
        (Step::Proc, proc_mount()),
        (Step::Tun, tun()),
    ] {
        if let Err(errno) = outcome {
            return Ok(refuse(step, errno));
        }
    }
    let worker = stage("work", entry, "")
        .spawn()
        .context("start the sandbox's worker")?;
    reap_until(Pid::from_raw(i32::try_from(worker.id())?))
}

/// Pid 1 inherits every orphan.
fn reap_until(worker: Pid) -> Result<u8> {
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == worker => {
                return Ok(u8::try_from(code).unwrap_or(FAILED));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == worker => {
                bail!("the sandbox's worker was ended by {signal}")
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => bail!("wait for the sandbox's worker: {errno}"),
        }
    }
}

fn work(name: &str, entries: &[Entry]) -> Result<u8> {
    die_with_parent()?;
    let Some(entry) = entries.iter().find(|e| e.name == name) else {
        bail!("this program has no entry {name:?}");
    };
    let mut input = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut input)
        .context("read the sandbox's input")?;
    let input = serde_json::from_str(&input).context("the sandbox's input is not JSON")?;
    std::thread::Builder::new()
        .name("life".into())
        .spawn(end_with_stdin)
        .context("start the thread that watches the parent")?;
    let inside = Inside {
        input,
        reporter: Reporter(()),
    };
    report(&Line::Started);
    (entry.run)(inside)?;
    Ok(0)
}

fn end_with_stdin() {
    let mut byte = [0];
    while matches!(std::io::stdin().lock().read(&mut byte), Ok(n) if n > 0) {}
    std::process::exit(i32::from(FAILED));
}

/// Nothing that is mounted inside shows outside; `/run` is ours, and the caller's folder is at [`super::HOST`].
fn mounts(host: &str) -> Result<(), Errno> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    // Opened before /run is covered: the folder may lie there.
    let folder = nix::fcntl::open(
        host,
        nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )?;
    mount(
        Some("tmpfs"),
        "/run",
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=0755"),
    )?;
    let made = fs::create_dir_all(super::HOST).and_then(|()| fs::create_dir_all(crate::netns::FOLDER));
    made.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
    let source = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&folder));
    mount(Some(source.as_str()), super::HOST, none, MsFlags::MS_BIND, none)
}

fn proc_mount() -> Result<(), Errno> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>)?;
    // So that /sys/class/net shows the namespace's own; nothing of ours needs it.
    let _ = mount(Some("sysfs"), "/sys", Some("sysfs"), flags, None::<&str>);
    Ok(())
}

fn tun() -> Result<(), Errno> {
    let opened = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    match opened {
        Ok(_) => Ok(()),
        Err(error) => Err(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))),
    }
}

fn stage(name: &str, entry: &str, host: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("meshd-sandbox").args([MAGIC, name, entry, host]);
    command
}

fn die_with_parent() -> Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("ask to die with the parent process")
}

fn refuse(step: Step, errno: Errno) -> u8 {
    report(&Line::Refused(Refusal::new(step, errno)));
    FAILED
}
