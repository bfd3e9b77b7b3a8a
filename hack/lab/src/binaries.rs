//! The programs that a lab runs.

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Names a folder that holds the programs.
pub const VARIABLE: &str = "MESHD_BIN_DIR";

/// Where the programs are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Binaries {
    /// The daemon.
    pub meshd: PathBuf,
    /// The userspace device.
    pub meshd_wg: PathBuf,
    /// The plugin.
    pub meshd_cni: PathBuf,
}

impl Binaries {
    /// Looks in the folder that [`VARIABLE`] names, else beside the running program.
    pub fn find() -> Result<Self> {
        if let Some(folder) = std::env::var_os(VARIABLE) {
            return Self::in_folder(Path::new(&folder));
        }
        let own = std::env::current_exe()?;
        Self::in_folder(own.parent().unwrap_or(Path::new("/")))
    }

    /// Those in one folder.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        let binaries = Self {
            meshd: folder.join("meshd"),
            meshd_wg: folder.join("meshd-wg"),
            meshd_cni: folder.join("meshd-cni"),
        };
        for path in [&binaries.meshd, &binaries.meshd_wg, &binaries.meshd_cni] {
            if !path.is_file() {
                bail!(
                    "{} is not there: build it with `cargo build --release --bins`, or name the folder of meshd, \
                     meshd-wg and meshd-cni with {VARIABLE}",
                    path.display()
                );
            }
        }
        Ok(binaries)
    }
}
