//! Runs commands to their end, within a time.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Output that an error quotes, in bytes, from its end.
const QUOTED: usize = 2000;

/// Runs a command with some input; its standard output. A command that fails, or takes longer than `within`, is an
/// error that shows what it said.
pub(crate) fn run<A: AsRef<OsStr>>(
    program: &Path,
    arguments: &[A],
    input: &str,
    within: Duration,
) -> Result<String> {
    let shown = || {
        let words: Vec<_> = arguments.iter().map(|a| a.as_ref().to_string_lossy()).collect();
        let name = program.file_name().unwrap_or(program.as_os_str());
        format!("{} {}", name.to_string_lossy(), words.join(" "))
    };
    let mut child = Command::new("timeout")
        .args(["--kill-after=5", &format!("{}", within.as_secs_f64())])
        .arg(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {}", shown()))?;
    let stdin = child.stdin.take();
    let text = input.to_owned();
    // Beside the reading: whoever does not read its input until its output was taken would wait for ever.
    let writer = std::thread::spawn(move || stdin.map(|mut pipe| pipe.write_all(text.as_bytes())));
    let output = child
        .wait_with_output()
        .with_context(|| format!("wait for {}", shown()))?;
    let _ = writer.join();
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said[said.len().saturating_sub(QUOTED)..]).into_owned();
    match output.status.code() {
        Some(124 | 137) => bail!("{} did not end within {within:?}: {}", shown(), said.trim()),
        _ => bail!("{} ended with {}: {}", shown(), output.status, said.trim()),
    }
}
