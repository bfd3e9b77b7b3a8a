//! The file store on good days and bad ones.

mod common;

use common::{BOOT, id, lease};
use meshd_ipam_store::{FileStore, LeaseStore, StoreError};
use meshd_model::{Kept, KeptKey, LeasePhase};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

const OTHER_BOOT: &str = "6f1c2a9e-0000-4000-8000-000000000002";

fn open(folder: &Path) -> FileStore {
    FileStore::open(folder, BOOT).unwrap()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

fn only_file(folder: &Path) -> PathBuf {
    let files = files(folder);
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

#[test]
fn leases_come_back_in_order_and_removed_ones_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    for lease in [lease("b", 1), lease("a", 1), lease("c", 1), lease("b", 2)] {
        store.put(&lease).unwrap();
    }
    store.remove(&id("c")).unwrap();
    store.remove(&id("never-put")).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!(loaded.leases, [lease("a", 1), lease("b", 2)]);
    assert_eq!(loaded.damaged, []);

    drop(store);
    let mut again = open(folder.path());
    assert_eq!(again.load().unwrap(), loaded);
    assert_eq!(again.previous(), None);
}

/// Each file that is made, renamed or removed is one more thing that the disk's journal may wait for, in ADD's way.
#[test]
fn the_next_phase_of_a_lease_is_written_into_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    let mut phases = Vec::new();
    for phase in [LeasePhase::Adding, LeasePhase::Ready, LeasePhase::Deleting] {
        let lease = meshd_model::Lease {
            phase,
            ..lease("a", 1)
        };
        store.put(&lease).unwrap();
        assert_eq!(store.load().unwrap().leases, [lease]);
        phases.push(inode(&only_file(&folder.path().join("leases"))));
    }
    assert!(phases.iter().all(|inode| *inode == phases[0]), "{phases:?}");

    // A lease of another length, and one in whose place something else was put, are files of their own.
    let path = only_file(&folder.path().join("leases"));
    let longer = meshd_model::Lease {
        network: "n".repeat(300),
        ..lease("a", 1)
    };
    store.put(&longer).unwrap();
    assert_eq!(store.load().unwrap().leases, [longer]);
    store.put(&lease("a", 1)).unwrap();
    let elsewhere = folder.path().join("elsewhere");
    fs::rename(&path, &elsewhere).unwrap();
    symlink(&elsewhere, &path).unwrap();
    store.put(&lease("a", 2)).unwrap();
    assert_eq!(store.load().unwrap().leases, [lease("a", 2)]);
    assert!(!fs::read_to_string(&elsewhere).unwrap().contains("/run/netns/2"));
}

#[test]
fn the_folder_and_its_files_are_closed_to_others() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("made/on/the/way");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let mut store = open(&folder);
    store.put(&lease("a", 1)).unwrap();
    assert_eq!(mode(&folder), 0o700);
    assert_eq!(mode(&only_file(&folder.join("leases"))), 0o600);
    drop(store);

    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    let _store = open(&folder);
    assert_eq!(mode(&folder), 0o700);
}

#[test]
fn two_daemons_do_not_share_a_store() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path());
    let error = FileStore::open(folder.path(), BOOT).unwrap_err();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    assert!(error.to_string().contains("stop the other meshd"), "{error}");
    drop(first);
    open(folder.path());
}

#[test]
fn hostile_ids_stay_in_the_folder() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("store");
    let mut store = open(&folder);
    let texts = [
        "../../escaped",
        "/etc/passwd",
        "..",
        "",
        "a/b",
        "a\0b",
        "a@b",
        "a.tmp",
        "née",
    ];
    for text in texts {
        let mut lease = lease(text, 1);
        store.put(&lease).unwrap();
        lease.id.ifname = format!("{text}/../x");
        store.put(&lease).unwrap();
    }
    assert_eq!(store.load().unwrap().leases.len(), texts.len() * 2);
    assert_eq!(files(parent.path()), [folder.as_path()]);
    drop(store);
    assert_eq!(open(&folder).load().unwrap().leases.len(), texts.len() * 2);

    let error = open(&folder).put(&lease(&"x".repeat(300), 1)).unwrap_err();
    assert!(matches!(error, StoreError::Unstorable { .. }), "{error}");
    open(&folder).remove(&id(&"x".repeat(300))).unwrap();
}

#[test]
fn damaged_files_are_kept_aside_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let leases = folder.path().join("leases");
    let mut store = open(folder.path());
    store.put(&lease("good", 1)).unwrap();
    store.put(&lease("bad", 1)).unwrap();
    let whole = fs::read(leases.join("bad@eth0.lease")).unwrap();

    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 0x10;
    let bad: [(&str, &[u8], &str); 6] = [
        ("bad@eth0.lease", &flipped, "checksum"),
        ("torn@eth0.lease", &whole[..whole.len() / 2], "checksum"),
        ("empty@eth0.lease", b"", "empty"),
        ("copied@eth0.lease", &whole, "holds the lease of bad/eth0"),
        ("README", b"hello\n", "header"),
        ("long@eth0.lease", &vec![b'x'; 1 << 20], "at most 64 KiB"),
    ];
    for (name, content, _) in bad {
        fs::write(leases.join(name), content).unwrap();
    }
    symlink("/etc/hostname", leases.join("link@eth0.lease")).unwrap();
    fs::create_dir(leases.join("folder@eth0.lease")).unwrap();

    let loaded = store.load().unwrap();
    assert_eq!(loaded.leases, [lease("good", 1)]);
    assert_eq!(loaded.damaged.len(), bad.len() + 2);
    for (name, content, reason) in bad {
        let damaged = loaded
            .damaged
            .iter()
            .find(|d| d.found == leases.join(name))
            .unwrap();
        assert!(damaged.reason.contains(reason), "{damaged}");
        assert_eq!(fs::read(&damaged.kept).unwrap(), content, "{damaged}");
    }
    assert_eq!(only_file(&leases).file_name().unwrap(), "good@eth0.lease");

    // A second one of the same name does not replace the first.
    fs::write(leases.join("torn@eth0.lease"), b"torn again").unwrap();
    let again = store.load().unwrap();
    assert_eq!(again.damaged.len(), 1);
    assert_eq!(files(&folder.path().join("damaged")).len(), bad.len() + 3);
}

#[test]
fn a_file_of_a_newer_version_stops_the_load_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    let body = b"{\"what\":\"we cannot know\"}";
    let mut crc = crc32fast::Hasher::new();
    crc.update(b"meshd-lease 2 ");
    crc.update(body);
    let path = folder.path().join("leases/new@eth0.lease");
    let header = format!("meshd-lease 2 {:08x}\n", crc.finalize());
    fs::write(&path, [header.as_bytes(), body].concat()).unwrap();
    let error = store.load().unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Newer {
                found: 2,
                known: 1,
                ..
            }
        ),
        "{error}"
    );
    assert!(path.exists());
}

#[test]
fn leases_of_another_boot_are_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).put(&lease("a", 1)).unwrap();

    let mut rebooted = FileStore::open(folder.path(), OTHER_BOOT).unwrap();
    assert_eq!(rebooted.load().unwrap().leases, []);
    let previous = rebooted.previous().unwrap().to_owned();
    assert_eq!(only_file(&previous).file_name().unwrap(), "a@eth0.lease");
    rebooted.put(&lease("b", 1)).unwrap();
    drop(rebooted);

    // The same boot again changes nothing; a third one replaces what was set aside.
    let mut same = FileStore::open(folder.path(), &format!("{OTHER_BOOT}\n")).unwrap();
    assert_eq!(same.load().unwrap().leases.len(), 1);
    assert_eq!(same.previous(), None);
    drop(same);
    let third = open(folder.path());
    assert_eq!(third.previous(), Some(previous.as_path()));
    assert_eq!(only_file(&previous).file_name().unwrap(), "b@eth0.lease");
}

#[test]
fn a_damaged_note_of_the_boot_loses_no_lease() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).put(&lease("a", 1)).unwrap();
    for content in [&b"rubbish"[..], b""] {
        fs::write(folder.path().join("boot"), content).unwrap();
        let loaded = open(folder.path()).load().unwrap();
        assert_eq!(loaded.leases, [lease("a", 1)]);
        assert_eq!(loaded.damaged.len(), 1, "{:?}", loaded.damaged);
    }
    assert_eq!(open(folder.path()).load().unwrap().damaged, []);
}

#[test]
fn a_damaged_lease_is_told_at_each_start_of_its_boot_and_at_none_of_another() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).put(&lease("a", 1)).unwrap();
    let path = folder.path().join("leases/a@eth0.lease");
    for start in 0..3 {
        if start == 0 {
            fs::write(&path, b"torn").unwrap();
        }
        let damaged = open(folder.path()).load().unwrap().damaged;
        assert_eq!(damaged.len(), 1, "at start {start}: {damaged:?}");
        assert_eq!(fs::read(&damaged[0].kept).unwrap(), b"torn");
    }
    // While it is not known that the boot is another, it is as the leases are.
    fs::write(folder.path().join("boot"), b"rubbish").unwrap();
    assert_eq!(open(folder.path()).load().unwrap().damaged.len(), 2);
    for _ in 0..2 {
        let mut rebooted = FileStore::open(folder.path(), OTHER_BOOT).unwrap();
        assert_eq!(rebooted.load().unwrap().damaged, []);
    }
    let kept = folder.path().join("damaged/0000~a@eth0.lease");
    assert_eq!(fs::read(kept).unwrap(), b"torn", "for whoever looks into it");
    // One of the same name takes no place of the former's.
    fs::write(&path, b"again").unwrap();
    let mut rebooted = FileStore::open(folder.path(), OTHER_BOOT).unwrap();
    let damaged = rebooted.load().unwrap().damaged;
    assert!(
        damaged[0].kept.ends_with("damaged/0001-a@eth0.lease"),
        "{damaged:?}"
    );
}

#[test]
fn left_over_temporaries_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).put(&lease("a", 1)).unwrap();
    fs::write(folder.path().join("leases/b@eth0.tmp"), b"half of a le").unwrap();
    fs::write(folder.path().join("boot.tmp"), b"").unwrap();
    let loaded = open(folder.path()).load().unwrap();
    assert_eq!((loaded.leases.len(), loaded.damaged.len()), (1, 0));
    assert_eq!(files(&folder.path().join("leases")).len(), 1);
    assert!(!folder.path().join("boot.tmp").exists());
}

#[test]
fn a_folder_that_is_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = FileStore::open(file.path(), BOOT).unwrap_err();
    assert!(error.errno().is_some(), "{error}");
    assert!(error.to_string().contains("make the folder"), "{error}");
}

fn kept(pod: &str, address: &str) -> Kept {
    Kept {
        key: KeptKey {
            namespace: "default".to_owned(),
            pod: pod.to_owned(),
            ifname: "eth0".to_owned(),
        },
        addresses: vec![address.parse().unwrap()],
        unused_since: None,
    }
}

#[test]
fn what_is_kept_outlives_a_boot_that_leases_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    store.put(&lease("a", 1)).unwrap();
    let mut keeper = store.kept();
    for record in [
        kept("web-1", "10.244.1.3"),
        kept("web-0", "10.244.1.2"),
        kept("web-2", "10.244.1.4"),
    ] {
        keeper.put(&record).unwrap();
    }
    keeper.put(&kept("web-1", "10.244.1.9")).unwrap();
    keeper.remove(&kept("web-2", "10.244.1.4").key).unwrap();
    keeper.remove(&kept("never-put", "10.244.1.4").key).unwrap();
    drop(store);
    let locked = FileStore::open(folder.path(), BOOT).unwrap_err();
    assert!(matches!(locked, StoreError::Locked { .. }), "{locked}");
    drop(keeper);
    for boot in [BOOT, OTHER_BOOT, BOOT] {
        let loaded = FileStore::open(folder.path(), boot).unwrap().load().unwrap();
        assert_eq!(
            loaded.kept,
            [kept("web-0", "10.244.1.2"), kept("web-1", "10.244.1.9")]
        );
        assert_eq!(loaded.damaged_kept, []);
    }
}

#[test]
fn a_torn_record_of_what_is_kept_is_put_aside_and_named_apart() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    store.kept().put(&kept("web-0", "10.244.1.2")).unwrap();
    let file = only_file(&folder.path().join("kept"));
    let whole = fs::read(&file).unwrap();
    for cut in [0, 5, 20, whole.len() - 1] {
        fs::write(&file, &whole[..cut]).unwrap();
        let loaded = store.load().unwrap();
        assert_eq!((loaded.kept, loaded.damaged), (vec![], vec![]));
        let damaged = &loaded.damaged_kept[..];
        assert!(
            damaged.len() == 1 && damaged[0].found == file,
            "cut at {cut}: {damaged:?}"
        );
        assert_eq!(fs::read(&damaged[0].kept).unwrap(), whole[..cut]);
    }
    let other = file.with_file_name("default@web-9@eth0.kept");
    fs::write(&other, &whole).unwrap();
    fs::write(file.with_extension("tmp"), b"half").unwrap();
    drop(store);
    let loaded = open(folder.path()).load().unwrap();
    assert_eq!(loaded.kept, []);
    assert!(loaded.damaged_kept[0].reason.contains("default/web-0@eth0"));
    assert!(files(&folder.path().join("kept")).is_empty());
}

#[test]
fn names_too_long_for_a_record_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let record = kept(&"a".repeat(253), "10.244.1.2");
    let refused = open(folder.path()).kept().put(&record).unwrap_err();
    assert!(refused.to_string().contains("too long"), "{refused}");
}
