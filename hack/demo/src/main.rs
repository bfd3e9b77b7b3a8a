//! `cargo demo`: builds all programs in release, and becomes `meshctl demo` with them. Arguments are passed on:
//! `cargo demo -- --nodes 5 --json`.

use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    match run() {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("cargo demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<std::convert::Infallible> {
    eprintln!("building the programs (release); the first time this takes minutes");
    // One command for all, so that each dependency is built once.
    let packages = [
        "--package=meshd",
        "--package=meshd-wireguard",
        "--package=meshd-ctl",
    ];
    let mut programs = build("build", &[&packages[..], &["--bins"]].concat())?;
    programs.extend(plugin()?);
    let folder = together(&programs)?;
    let meshctl = folder.join("meshctl");
    let error = Command::new(&meshctl)
        .arg("demo")
        .args(passed_on(std::env::args_os().skip(1)))
        .env("MESHD_BIN_DIR", &folder)
        .exec();
    Err(error).with_context(|| format!("run {}", meshctl.display()))
}

/// The alias ends with `--` for cargo already: one more, as people write it, is not for meshctl either.
fn passed_on(arguments: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let mut arguments = arguments.peekable();
    arguments.next_if(|first| first == "--");
    arguments
}

/// The plugin: static, so that it runs on any host whose runtime starts it, unless this machine cannot link so.
fn plugin() -> Result<Programs> {
    let base = ["--package=meshd-cni", "--bin=meshd-cni"];
    // Only the plugin itself is built with other flags: what it depends on is shared.
    let linked = [&base[..], &["--", "-C", "target-feature=+crt-static"]].concat();
    match has_static_libc() {
        true => build("rustc", &linked),
        false => {
            eprintln!(
                "this machine has no libc.a (package libc6-dev or glibc-static): meshd-cni is linked dynamically"
            );
            build("rustc", &base)
        }
    }
}

/// Whether the C compiler finds a static C library.
fn has_static_libc() -> bool {
    let asked = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
        .arg("-print-file-name=libc.a")
        .output();
    // It prints the bare name where it finds none.
    asked.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_absolute())
}

type Programs = BTreeMap<String, PathBuf>;

/// In release.
fn build(verb: &str, arguments: &[&str]) -> Result<Programs> {
    meshd_programs::build(verb, &[&["--release"], arguments].concat())
}

fn target_folder() -> Result<PathBuf> {
    let output = meshd_programs::cargo()
        .args(["metadata", "--format-version=1", "--no-deps"])
        .output()
        .context("run cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata prints no JSON")?;
    let folder = metadata["target_directory"]
        .as_str()
        .context("cargo metadata names no target folder")?;
    Ok(folder.into())
}

/// One folder with a link to each program.
fn together(programs: &Programs) -> Result<PathBuf> {
    let folder = target_folder()?.join("demo");
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    for name in ["meshd", "meshd-wg", "meshd-cni", "meshctl"] {
        let program = programs
            .get(name)
            .with_context(|| format!("cargo built no program {name}"))?;
        let link = folder.join(name);
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(program, &link).with_context(|| format!("link {}", link.display()))?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_passed_on_with_and_without_dashes() {
        let of = |given: &[&str]| -> Vec<OsString> { passed_on(given.iter().map(OsString::from)).collect() };
        assert_eq!(of(&["--json"]), ["--json"]);
        assert_eq!(of(&["--", "--json"]), ["--json"]);
        assert_eq!(of(&["--nodes", "5", "--"]), ["--nodes", "5", "--"]);
        assert!(of(&["--"]).is_empty());
    }
}
