//! A full and a read-only file system, made for the test in a mount namespace of its own.
#![allow(
    clippy::disallowed_methods,
    reason = "the namespace belongs to a thread of its own"
)]

mod common;

use common::{BOOT, id, lease};
use meshd_ipam::{FileStore, LeaseStore, StoreError};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::path::Path;
use std::thread;

/// Runs `body` on a thread of its own, in a mount namespace of its own, with a tmpfs of 128 KiB mounted on a
/// folder; both are gone with the thread. Says so by name where the system allows no such thing.
fn with_tmpfs(test: &str, body: fn(&Path)) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let ran = thread::spawn(move || -> nix::Result<()> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(
            Some("tmpfs"),
            &path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=128k"),
        )?;
        body(&path);
        Ok(())
    });
    let outcome = ran
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let required =
        std::env::var("MESHD_REQUIRE_ARMS").is_ok_and(|arms| arms.split(',').any(|arm| arm == "netns"));
    match outcome {
        Ok(()) => {}
        Err(errno) if required => panic!("{test} is required and cannot run: no mount namespace: {errno}"),
        Err(errno) => {
            eprintln!("skipped: {test}: a mount namespace of its own was refused: {errno} (needs root)")
        }
    }
}

fn remount_read_only(path: &Path) {
    let none = None::<&str>;
    mount(none, path, none, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none).unwrap();
}

fn errno(error: &StoreError) -> Option<Errno> {
    error.errno().map(Errno::from_raw)
}

#[test]
fn a_full_file_system() {
    with_tmpfs("a_full_file_system", |folder| {
        let path = folder.join("store");
        let mut store = FileStore::open(&path, BOOT).unwrap();
        store.put(&lease("before", 1)).unwrap();
        let filler = folder.join("filler");
        let full = fs::write(&filler, vec![0; 1 << 20]).unwrap_err();
        assert_eq!(full.raw_os_error(), Some(Errno::ENOSPC as i32));

        let error = store.put(&lease("new", 1)).unwrap_err();
        assert_eq!(errno(&error), Some(Errno::ENOSPC), "{error}");
        assert!(error.to_string().contains("free space"), "{error}");
        let error = store.put(&lease("before", 2)).unwrap_err();
        assert_eq!(errno(&error), Some(Errno::ENOSPC), "{error}");

        // What was there is whole, nothing half written stays, and what frees space still works.
        let loaded = store.load().unwrap();
        assert_eq!(
            (loaded.leases, loaded.damaged),
            (vec![lease("before", 1)], vec![])
        );
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
    });
}

#[test]
fn a_read_only_file_system() {
    with_tmpfs("a_read_only_file_system", |folder| {
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
    });
}

#[test]
fn a_folder_that_is_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = FileStore::open(file.path(), BOOT).unwrap_err();
    assert!(errno(&error).is_some(), "{error}");
    assert!(error.to_string().contains("make the folder"), "{error}");
}
