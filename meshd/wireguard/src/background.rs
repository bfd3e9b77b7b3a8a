//! Going to the background: a second process that runs in the foreground of nobody.

use anyhow::{Context, bail};
use std::io::{Read, Write};
use std::process::{Command, Stdio};

const READY: &str = "ready";

/// Starts this program again with `--foreground` and waits until it answers on its socket.
pub(crate) fn start() -> anyhow::Result<()> {
    let program =
        std::env::current_exe().context("find the path of this program, to start it in the background")?;
    let mut child = Command::new(&program)
        .args(["--foreground", "--report"])
        .args(std::env::args_os().skip(1))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {} in the background", program.display()))?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout
            .take(64)
            .read_to_string(&mut said)
            .context("wait for the background process")?;
    }
    if said.trim() == READY {
        return Ok(());
    }
    let status = child.wait().context("wait for the background process")?;
    bail!("the background process ended before it was ready ({status}); it said why above")
}

/// Leaves the session of whoever started us, tells the parent, and keeps none of its streams.
pub(crate) fn report() -> anyhow::Result<()> {
    nix::unistd::setsid().context("start a session of my own")?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{READY}")
        .and_then(|()| stdout.flush())
        .context("report to the parent process")?;
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .context("open /dev/null")?;
    nix::unistd::dup2_stdout(&null).context("close standard output")?;
    nix::unistd::dup2_stderr(&null).context("close standard error")?;
    Ok(())
}
