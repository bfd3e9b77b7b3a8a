//! What a sandbox has left on the machine: asked from outside, after it ended.

use nix::ifaddrs::getifaddrs;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the kernel may take to end what was inside.
const PATIENCE: Duration = Duration::from_secs(5);

/// Kinds of namespaces, as `/proc/PID/ns` names them.
const SPACES: [&str; 5] = ["user", "mnt", "pid", "net", "ipc"];

/// The namespaces in which a sandbox runs, held open: the kernel gives the number of one that is gone to the next that
/// anybody makes, who would be taken for the sandbox then. Those that are made inside are not held, so that they go when
/// their time has come; whatever lives in one of them lives in these, too.
#[derive(Debug, Default)]
pub(super) struct Held(Vec<File>);

impl Held {
    /// Those of the sandbox's init.
    pub(super) fn of(init: u32) -> Self {
        let open = |space: &&str| File::open(format!("/proc/{init}/ns/{space}"));
        Self(SPACES.iter().filter_map(|s| open(s).ok()).collect())
    }

    /// As root without a user namespace the sandbox's is the caller's.
    fn inodes(&self) -> BTreeSet<u64> {
        let all = self.0.iter().filter_map(|file| file.metadata().ok());
        let own = own_namespaces();
        all.map(|m| m.ino()).filter(|i| !own.contains(i)).collect()
    }
}

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
    pub(super) fn compare(&self, held: &Held, folder: &Path) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.compare_once(&held.inodes(), folder);
            if found.is_empty() || Instant::now() > deadline {
                return found;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn compare_once(&self, namespaces: &BTreeSet<u64>, folder: &Path) -> Vec<String> {
        if namespaces.is_empty() {
            return vec![
                "the sandbox's namespaces were not seen: whether processes are left is not known".to_owned(),
            ];
        }
        let mut found = processes(namespaces);
        found.extend(mounts(folder));
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
fn processes(namespaces: &BTreeSet<u64>) -> Vec<String> {
    let Ok(folder) = fs::read_dir("/proc") else {
        return vec!["/proc cannot be read: whether processes are left is not known".to_owned()];
    };
    let mut found = Vec::new();
    for entry in folder.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        for space in SPACES {
            let Ok(meta) = fs::metadata(entry.path().join("ns").join(space)) else {
                continue;
            };
            if namespaces.contains(&meta.ino()) {
                found.push(format!("process {pid} in the sandbox's {space} namespace"));
            }
        }
    }
    found
}

fn own_namespaces() -> BTreeSet<u64> {
    SPACES
        .iter()
        .filter_map(|space| fs::metadata(format!("/proc/self/ns/{space}")).ok())
        .map(|meta| meta.ino())
        .collect()
}

/// Mounts of the shared folder, or beneath it, in the caller's own mount namespace. Where that shows outside, so does
/// whatever else was mounted inside: all of it is under one `/run`.
fn mounts(folder: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let folder = folder.to_string_lossy();
    let ours = |line: &&str| line.contains(super::HOST) || line.contains(folder.as_ref());
    let lines = table.lines().filter(ours);
    lines.map(|line| format!("mount {line}")).collect()
}

fn interfaces() -> BTreeSet<String> {
    getifaddrs()
        .map(|all| all.map(|i| i.interface_name).collect())
        .unwrap_or_default()
}
