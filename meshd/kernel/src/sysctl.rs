//! Kernel parameters under `/proc/sys/net`, of the network namespace of the calling thread.

use crate::error::{Context, Result};
use std::path::PathBuf;

fn path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(key)
}

/// Whether the kernel has IPv6.
pub(crate) fn has_ipv6() -> bool {
    path("ipv6").exists()
}

/// Reads a parameter, named as under `/proc/sys/net` with slashes: an interface's name may have dots.
pub(crate) fn get(key: &str) -> Result<String> {
    let text = std::fs::read_to_string(path(key)).doing(|| format!("read sysctl net/{key}"))?;
    Ok(text.trim().to_owned())
}

/// Sets a parameter where it differs: a container with a read-only `/proc/sys` still passes where all is well.
pub(crate) fn set(key: &str, value: &str) -> Result<()> {
    if get(key)? == value {
        return Ok(());
    }
    std::fs::write(path(key), value)
        .doing(|| format!("set sysctl net/{key} to {value}"))
        .map_err(|e| e.remedy("let meshd write /proc/sys (run it privileged), or set it by hand"))
}
