//! Builds the programs that the labs run: `cargo test` gives a package no programs of other packages.

use anyhow::{Context, Result};
use meshd_lab::Binaries;
use meshd_lab::binaries::VARIABLE;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

static BUILT: OnceLock<(Result<Binaries, String>, Duration)> = OnceLock::new();

/// The programs, built once, with the profile that the tests were built with; those of the folder that
/// `MESHD_BIN_DIR` names, where it is set.
pub(crate) fn find() -> Result<Binaries> {
    let (outcome, _) = BUILT.get_or_init(|| {
        let begin = Instant::now();
        (build().map_err(|e| format!("{e:#}")), begin.elapsed())
    });
    outcome.clone().map_err(anyhow::Error::msg)
}

/// `meshctl`, beside the others.
pub(crate) fn meshctl() -> Result<PathBuf> {
    let path = find()?.meshd.with_file_name("meshctl");
    path.is_file()
        .then_some(path)
        .context("there is no meshctl beside meshd")
}

/// How long building took.
pub(crate) fn time_to_build() -> Duration {
    BUILT.get().map_or(Duration::ZERO, |(_, time)| *time)
}

fn build() -> Result<Binaries> {
    if std::env::var_os(VARIABLE).is_some() {
        return Binaries::find();
    }
    // The whole workspace: a part of it would have other features, and build its dependencies again.
    let arguments = ["--quiet", "--workspace", "--bins", "--profile", profile()];
    let programs = meshd_programs::build("build", &arguments)?;
    let program = |name: &str| {
        let path = programs.get(name).cloned();
        path.with_context(|| format!("cargo built no program {name}"))
    };
    Ok(Binaries {
        meshd: program("meshd")?,
        meshd_wg: program("meshd-wg")?,
        meshd_cni: program("meshd-cni")?,
    })
}

/// The tests are in `target/FOLDER/deps/`.
fn profile() -> &'static str {
    static PROFILE: OnceLock<String> = OnceLock::new();
    PROFILE.get_or_init(|| {
        let own = std::env::current_exe().unwrap_or_default();
        let folder = own.parent().and_then(Path::parent).and_then(Path::file_name);
        match folder.and_then(|f| f.to_str()) {
            None | Some("debug") => "dev".to_owned(),
            Some(other) => other.to_owned(),
        }
    })
}
