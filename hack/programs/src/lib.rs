//! Has cargo build programs of the workspace, for tests and tools that cargo has started itself.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What cargo tells whatever it starts of the package that this belongs to; names that begin so.
const OF_A_PACKAGE: [&str; 6] = [
    "CARGO_PKG_",
    "CARGO_MANIFEST_",
    "CARGO_BIN_",
    "CARGO_CRATE_NAME",
    "CARGO_PRIMARY_PACKAGE",
    "OUT_DIR",
];

/// cargo in the workspace, as a shell would start it. A build script that names variables of its package as what it
/// depends on (ring's does) would otherwise be run again, and all that depends on it compiled again, each time that cargo
/// is started the other way.
#[must_use]
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if OF_A_PACKAGE.iter().any(|begin| text.starts_with(begin)) {
            cargo.env_remove(&name);
        }
    }
    cargo
}

/// Runs `cargo build`, or another verb that builds, with these arguments; what it built, by name. Its complaints are shown.
///
/// # Errors
/// Where it cannot be run, or fails.
pub fn build<S: AsRef<OsStr>>(verb: &str, arguments: &[S]) -> Result<BTreeMap<String, PathBuf>> {
    let output = cargo()
        .args([verb, "--message-format=json-render-diagnostics"])
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .context("run cargo")?;
    if !output.status.success() {
        let arguments: Vec<_> = arguments.iter().map(|a| a.as_ref().to_string_lossy()).collect();
        bail!(
            "cargo {verb} {} ended with {}",
            arguments.join(" "),
            output.status
        );
    }
    Ok(executables(&String::from_utf8_lossy(&output.stdout)))
}

/// Programs by name, from cargo's messages.
fn executables(messages: &str) -> BTreeMap<String, PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
        .filter_map(|message| {
            let path = message["executable"].as_str()?;
            Some((message["target"]["name"].as_str()?.to_owned(), path.into()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_read_from_cargos_messages() {
        let messages = concat!(
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"lib\"},\"executable\":null}\n",
            "not JSON\n",
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"meshd\"},\"executable\":\"/t/meshd\"}\n",
            "{\"reason\":\"build-finished\",\"success\":true}\n",
        );
        let programs = executables(messages);
        assert_eq!(programs.len(), 1);
        assert_eq!(programs["meshd"], Path::new("/t/meshd"));
    }
}
