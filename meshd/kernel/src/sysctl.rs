//! Kernel parameters under `/proc/sys/net`, of the network namespace of the calling thread.
//!
//! Runtimes mount `/proc/sys` read-only in a container that is not privileged. The host's own, mounted beside it, can be
//! written: which namespace's parameters are there depends on who looks, not on whose mount it is.

use crate::error::{Context, OpError, Result};
use nix::unistd::{AccessFlags, access};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

const OWN: &str = "/proc/sys/net";
/// Where the chart mounts the host's.
const HOST: &str = "/host/proc/sys/net";

fn path(key: &str) -> PathBuf {
    static ROOT: OnceLock<&str> = OnceLock::new();
    let root = ROOT.get_or_init(|| {
        let is_read_only = access(&Path::new(OWN).join("ipv4/ip_forward"), AccessFlags::W_OK).is_err();
        match is_read_only && Path::new(HOST).is_dir() {
            true => HOST,
            false => OWN,
        }
    });
    Path::new(root).join(key)
}

/// Whether the kernel has IPv6. Once it has, it keeps it.
pub(crate) fn has_ipv6() -> bool {
    static HAS: AtomicBool = AtomicBool::new(false);
    if !HAS.load(Ordering::Relaxed) {
        HAS.store(path("ipv6").exists(), Ordering::Relaxed);
    }
    HAS.load(Ordering::Relaxed)
}

/// In one read: to ask for its length and its end costs as much again.
fn read(file: &mut File) -> std::io::Result<String> {
    let mut text = [0; 64];
    let length = file.read(&mut text)?;
    let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default());
    Ok(text.trim().to_owned())
}

fn remedy(e: OpError) -> OpError {
    e.remedy(format_args!(
        "mount the host's /proc/sys/net at {HOST}, as the chart does, or set agent.privileged; or set it by hand"
    ))
}

/// Reads a parameter, named as under `/proc/sys/net` with slashes: an interface's name may have dots.
pub(crate) fn get(key: &str) -> Result<String> {
    let text = File::open(path(key)).and_then(|mut file| read(&mut file));
    text.doing(|| format!("read sysctl net/{key}"))
}

/// Why this parameter cannot be written; none if it can.
pub(crate) fn refused(key: &str) -> Option<String> {
    let error = access(&path(key), AccessFlags::W_OK).err()?;
    Some(format!("cannot set sysctls such as net/{key}: {}", error.desc()))
}

/// Sets a parameter where it differs: a container with a read-only `/proc/sys` still passes where all is well.
pub(crate) fn set(key: &str, value: &str) -> Result<()> {
    set_one_of(key, &[value])
}

/// Sets a parameter to the first of the values unless it is one of them.
pub(crate) fn set_one_of(key: &str, values: &[impl AsRef<str>]) -> Result<()> {
    let there = get(key)?;
    let mut values = values.iter().map(AsRef::as_ref);
    let Some(first) = values.next().filter(|first| *first != there) else {
        return Ok(());
    };
    if values.any(|value| value == there) {
        return Ok(());
    }
    std::fs::write(path(key), first)
        .doing(|| format!("set sysctl net/{key} to {first}"))
        .map_err(remedy)
}
