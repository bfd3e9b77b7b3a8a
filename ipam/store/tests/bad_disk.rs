//! A full and a read-only file system, made for the tests in a mount namespace of their own; without root, in a user
//! namespace as well. That one can be entered by a process of one thread only, hence no test harness.

mod common;

use common::{BOOT, id, lease};
use meshd_ipam_store::{FileStore, LeaseStore, StoreError};
use meshd_model::Lease;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Uid, getgid, getuid};
use std::fs;
use std::path::Path;

type Test = (&'static str, fn(&Path));

const TESTS: [Test; 2] = [
    ("a_full_file_system", a_full_file_system),
    ("a_read_only_file_system", a_read_only_file_system),
];

fn main() {
    if let Err(reason) = enter_namespaces() {
        for (name, _) in TESTS {
            meshd_skip::skip_on("netns", name, &reason);
        }
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, test) in TESTS {
        println!("test {name} ...");
        mount(
            Some("tmpfs"),
            folder.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=128k"),
        )
        .unwrap();
        test(folder.path());
        umount2(folder.path(), MntFlags::MNT_DETACH).unwrap();
        println!("test {name} ... ok");
    }
}

fn enter_namespaces() -> Result<(), String> {
    let (uid, gid) = (getuid(), getgid());
    let mut flags = CloneFlags::CLONE_NEWNS;
    if !Uid::effective().is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(flags).map_err(|errno| format!("a mount namespace was refused: {errno}"))?;
    if flags.contains(CloneFlags::CLONE_NEWUSER) {
        let map = |file: &str, text: String| {
            fs::write(file, text).map_err(|error| format!("cannot write {file}: {error}"))
        };
        map("/proc/self/setgroups", "deny".to_owned())?;
        map("/proc/self/uid_map", format!("0 {uid} 1"))?;
        map("/proc/self/gid_map", format!("0 {gid} 1"))?;
    }
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(|errno| format!("mounts cannot be made private: {errno}"))
}

fn remount_read_only(path: &Path) {
    let none = None::<&str>;
    mount(none, path, none, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none).unwrap();
}

fn errno(error: &StoreError) -> Option<Errno> {
    error.errno().map(Errno::from_raw)
}

fn a_full_file_system(folder: &Path) {
    let path = folder.join("store");
    let mut store = FileStore::open(&path, BOOT).unwrap();
    store.put(&lease("before", 1)).unwrap();
    let filler = folder.join("filler");
    let full = fs::write(&filler, vec![0; 1 << 20]).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(Errno::ENOSPC as i32));

    let error = store.put(&lease("new", 1)).unwrap_err();
    assert_eq!(errno(&error), Some(Errno::ENOSPC), "{error}");
    assert!(error.to_string().contains("free space"), "{error}");
    let longer = Lease {
        network: "n".repeat(300),
        ..lease("before", 1)
    };
    let error = store.put(&longer).unwrap_err();
    assert_eq!(errno(&error), Some(Errno::ENOSPC), "{error}");

    // What was there is whole, nothing half written stays, and what needs no space, or frees it, still works.
    let loaded = store.load().unwrap();
    assert_eq!(
        (loaded.leases, loaded.damaged),
        (vec![lease("before", 1)], vec![])
    );
    store.put(&lease("before", 2)).unwrap();
    assert_eq!(store.load().unwrap().leases, [lease("before", 2)]);
    assert_eq!(fs::read_dir(path.join("leases")).unwrap().count(), 1);
    drop(store);
    let mut store = FileStore::open(&path, BOOT).unwrap();
    store.remove(&id("before")).unwrap();
    fs::remove_file(filler).unwrap();
    store.put(&lease("new", 1)).unwrap();
    drop(store);

    fs::write(folder.join("filler"), vec![0; 1 << 20]).unwrap_err();
    let error = FileStore::open(&folder.join("second"), BOOT).unwrap_err();
    assert_eq!(errno(&error), Some(Errno::ENOSPC), "{error}");
}

fn a_read_only_file_system(folder: &Path) {
    let path = folder.join("store");
    let mut store = FileStore::open(&path, BOOT).unwrap();
    store.put(&lease("a", 1)).unwrap();
    drop(store);
    remount_read_only(folder);
    for path in [path, folder.join("new")] {
        let error = FileStore::open(&path, BOOT).unwrap_err();
        assert_eq!(errno(&error), Some(Errno::EROFS), "{error}");
        assert!(
            error.to_string().contains("mount its file system writable"),
            "{error}"
        );
    }
}
