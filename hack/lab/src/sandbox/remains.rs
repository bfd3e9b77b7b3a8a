//! What a sandbox has left on the machine: asked from outside, after it ended.

use nix::ifaddrs::getifaddrs;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the kernel may take to end what was inside.
const PATIENCE: Duration = Duration::from_secs(5);

/// What there was before.
pub(super) struct Before {
    interfaces: BTreeSet<String>,
}

impl Before {
    pub(super) fn look() -> Self {
        Self {
            interfaces: interfaces(),
        }
    }

    /// Everything that was not there before and is the sandbox's, one line each.
    pub(super) fn compare(&self, namespaces: &[u64], folder: &Path) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.compare_once(namespaces, folder);
            if found.is_empty() || Instant::now() > deadline {
                return found;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn compare_once(&self, namespaces: &[u64], folder: &Path) -> Vec<String> {
        let mut found = processes(namespaces);
        found.extend(mounts(namespaces, folder));
        let ours = |name: &&String| ["mshp", "meshd", "lab-"].iter().any(|p| name.starts_with(p));
        let new = interfaces();
        found.extend(
            new.difference(&self.interfaces)
                .filter(ours)
                .map(|name| format!("interface {name} outside the sandbox")),
        );
        found
    }
}

/// Processes that live in one of the namespaces: they keep it alive.
fn processes(namespaces: &[u64]) -> Vec<String> {
    let own = own_namespaces();
    let Ok(folder) = fs::read_dir("/proc") else {
        return vec!["/proc cannot be read: whether processes are left is not known".to_owned()];
    };
    let mut found = Vec::new();
    for entry in folder.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        for space in ["user", "mnt", "pid", "net", "ipc"] {
            let Ok(meta) = fs::metadata(entry.path().join("ns").join(space)) else {
                continue;
            };
            // As root without a user namespace the sandbox's is the caller's.
            if namespaces.contains(&meta.ino()) && !own.contains(&meta.ino()) {
                found.push(format!("process {pid} in the sandbox's {space} namespace"));
            }
        }
    }
    found
}

fn own_namespaces() -> BTreeSet<u64> {
    ["user", "mnt", "pid", "net", "ipc"]
        .iter()
        .filter_map(|space| fs::metadata(format!("/proc/self/ns/{space}")).ok())
        .map(|meta| meta.ino())
        .collect()
}

/// Mounts of a namespace file or of the shared folder in the caller's own mount namespace.
fn mounts(namespaces: &[u64], folder: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let folder = folder.to_string_lossy();
    table
        .lines()
        .filter(|line| {
            line.contains(super::HOST)
                || line.contains(folder.as_ref())
                || namespaces
                    .iter()
                    .any(|inode| line.contains(&format!(":[{inode}]")))
        })
        .map(|line| format!("mount {line}"))
        .collect()
}

fn interfaces() -> BTreeSet<String> {
    getifaddrs()
        .map(|all| all.map(|i| i.interface_name).collect())
        .unwrap_or_default()
}
