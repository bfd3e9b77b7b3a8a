//! What container runtimes look for in the node's own folders: the plugin, and the configuration that names it.
//!
//! [`install`] puts the plugin there before the daemon starts. [`Keeper`] puts the configuration there once the daemon
//! is ready, because from then on the runtime calls the node ready; it stays while the daemon restarts, whose plugin
//! says "try again later" meanwhile. [`remove`] takes both away.

mod keeper;
mod place;

pub use keeper::{Keeper, KeeperProblem};
pub use place::{FileError, Placed, place};

use crate::settings::Cni;
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};

/// The plugin's name: the `type` of its entry in the configuration, and its file's name.
pub const PLUGIN: &str = "meshd-cni";
/// Longest configuration of a network, in bytes.
const CONFLIST_MAX: u64 = 1 << 20;

/// Why the configuration is not one that a runtime could use.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Of a file or folder.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not configured.
    #[error("{0} is not set: it names the host's folder, as it is mounted here")]
    NotSet(&'static str),
    /// It is no list of plugins.
    #[error("the CNI configuration {path} is none: {reason}")]
    Conflist {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A plugin that the configuration names is not on the host.
    #[error(
        "the CNI configuration {path} chains the plugin {plugin}, which is not in {folder}: install it there (it is one \
         of the reference plugins, containernetworking-plugins), or take it out of the chain; without it no pod starts"
    )]
    NoPlugin {
        /// The configuration.
        path: PathBuf,
        /// Name of the plugin.
        plugin: String,
        /// The host's folder.
        folder: PathBuf,
    },
}

/// Puts the plugin into the host's folder, and checks that what the configuration chains is there too. Gives what was
/// done, one line each.
pub fn install(cni: &Cni, plugin: &Path) -> Result<Vec<String>, InstallError> {
    let folder = cni
        .bin_dir
        .as_deref()
        .ok_or(InstallError::NotSet("cni.bin_dir"))?;
    let done = place(plugin, folder, PLUGIN, 0o755)?;
    let mut lines = vec![format!("{}: {done}", folder.join(PLUGIN).display())];
    if let Some(conflist) = &cni.conflist {
        let chained = plugins(conflist)?;
        if let Some(missing) = chained.iter().find(|name| !folder.join(name).is_file()) {
            return Err(InstallError::NoPlugin {
                path: conflist.clone(),
                plugin: missing.clone(),
                folder: folder.to_owned(),
            });
        }
        lines.push(format!(
            "plugins of {}: {}",
            conflist.display(),
            chained.join(", ")
        ));
    }
    Ok(lines)
}

/// Takes plugin and configuration off the host. Gives what was removed; goes on past failures.
pub fn remove(cni: &Cni) -> (Vec<PathBuf>, Vec<FileError>) {
    let conflist = cni.target();
    let plugin = cni.bin_dir.as_ref().map(|folder| folder.join(PLUGIN));
    let (mut removed, mut failed) = (Vec::new(), Vec::new());
    // The configuration first: a runtime that still had it would miss the plugin at each pod.
    for path in conflist.into_iter().chain(plugin) {
        let leftovers = place::sweep(&path);
        match std::fs::remove_file(&path) {
            Ok(()) => removed.push(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => failed.push(FileError::new("remove", &path, error)),
        }
        failed.extend(leftovers.err());
    }
    (removed, failed)
}

/// Names of the plugins that a network configuration list chains (CNI specification, section 1).
fn plugins(path: &Path) -> Result<Vec<String>, InstallError> {
    let wrong = |reason: String| InstallError::Conflist {
        path: path.to_owned(),
        reason,
    };
    let text = read(path)?;
    let list: Value = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let types = list["plugins"]
        .as_array()
        .ok_or_else(|| wrong("it has no list \"plugins\"".into()))?
        .iter()
        .map(|plugin| plugin["type"].as_str().map(str::to_owned));
    let types: Vec<String> = types
        .collect::<Option<_>>()
        .ok_or_else(|| wrong("a plugin has no \"type\"".into()))?;
    if types.first().map(String::as_str) != Some(PLUGIN) {
        return Err(wrong(format!("its first plugin is not {PLUGIN}")));
    }
    // Names are looked up in the folder: none may lead out of it.
    match types
        .iter()
        .find(|name| name.is_empty() || name.contains('/') || name.starts_with('.'))
    {
        Some(name) => Err(wrong(format!("{name:?} is no plugin's name"))),
        None => Ok(types),
    }
}

fn read(path: &Path) -> Result<String, FileError> {
    use std::io::Read as _;
    let failed = |error| FileError::new("read", path, error);
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    let length = file
        .take(CONFLIST_MAX + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if length as u64 > CONFLIST_MAX {
        return Err(failed(io::Error::other(format!(
            "it is longer than {CONFLIST_MAX} bytes"
        ))));
    }
    Ok(text)
}
