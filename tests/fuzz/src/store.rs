//! The files of leases and of kept addresses, as whatever a disk may hold.

use meshd_ipam_store::{Damaged, FileStore, LeaseStore, Loaded};
use meshd_model::{Kept, Lease};
use std::cell::RefCell;
use std::fs;
use tempfile::TempDir;

const BOOT: &str = "6f1c2a9e-0000-4000-8000-000000000001";
/// A file's name says whose it is.
const LEASE: &str = "leases/c1@eth0.lease";
const KEPT: &str = "kept/default@web-0@eth0.kept";

thread_local! {
    static STORE: RefCell<Option<Place>> = const { RefCell::new(None) };
}

/// One store for all inputs: making one costs more than reading.
struct Place {
    folder: TempDir,
    store: FileStore,
}

/// A lease's file.
pub fn lease(bytes: &[u8]) {
    each(bytes, "meshd-lease 1 ", |place, content| {
        let Some(loaded) = load(place, LEASE, content) else {
            return;
        };
        check(place, LEASE, content, loaded.leases.len(), &loaded.damaged);
        for lease in &loaded.leases {
            lease_again(place, lease);
        }
    });
}

/// The file of the addresses that are kept for a pod.
pub fn kept(bytes: &[u8]) {
    each(bytes, "meshd-kept 1 ", |place, content| {
        let Some(loaded) = load(place, KEPT, content) else {
            return;
        };
        check(place, KEPT, content, loaded.kept.len(), &loaded.damaged_kept);
        for kept in &loaded.kept {
            kept_again(place, kept);
        }
    });
}

/// The bytes as they are, and as a body with a header that fits, so that what is behind the checksum is reached too.
fn each(bytes: &[u8], head: &str, read: impl Fn(&mut Place, &[u8])) {
    STORE.with_borrow_mut(|place| {
        let place = place.get_or_insert_with(|| {
            let folder = tempfile::tempdir().expect("a folder");
            let store = FileStore::open(folder.path(), BOOT).expect("a store");
            Place { folder, store }
        });
        read(place, bytes);
        read(place, &framed(head, bytes));
    });
}

/// None where it is of a format of the future: the file stays, and the daemon does not start.
fn load(place: &mut Place, name: &str, content: &[u8]) -> Option<Loaded> {
    let path = place.folder.path().join(name);
    fs::write(&path, content).expect("write the file");
    match place.store.load() {
        Ok(loaded) => Some(loaded),
        Err(error) => {
            assert!(path.exists(), "{error}");
            fs::remove_file(&path).expect("remove the file");
            None
        }
    }
}

fn check(place: &Place, name: &str, content: &[u8], whole: usize, damaged: &[Damaged]) {
    let path = place.folder.path().join(name);
    assert_eq!(
        whole + damaged.len(),
        1,
        "a file is whole, or damaged: {damaged:?}"
    );
    for damaged in damaged {
        assert!(!damaged.reason.is_empty() && !path.exists(), "{damaged}");
        let aside = fs::read(&damaged.kept).ok();
        assert_eq!(aside.as_deref(), Some(content), "{damaged}");
        fs::remove_file(&damaged.kept).expect("remove what was put aside");
    }
}

/// What could be read can be written, and is read as the same.
fn lease_again(place: &mut Place, lease: &Lease) {
    let path = place.folder.path().join(LEASE);
    place.store.remove(&lease.id).expect("remove it");
    assert!(!path.exists(), "it was of another name: {lease:?}");
    place.store.put(lease).expect("put it");
    let loaded = place.store.load().expect("load it");
    assert_eq!(loaded.leases, std::slice::from_ref(lease));
    place.store.remove(&lease.id).expect("remove it again");
}

/// The same. Each put is flushed to the disk, so this one takes its time.
fn kept_again(place: &mut Place, kept: &Kept) {
    let path = place.folder.path().join(KEPT);
    let mut store = place.store.kept();
    store.remove(&kept.key).expect("remove it");
    assert!(!path.exists(), "it was of another name: {kept:?}");
    store.put(kept).expect("put it");
    let loaded = place.store.load().expect("load it");
    assert_eq!(loaded.kept, std::slice::from_ref(kept));
    store.remove(&kept.key).expect("remove it again");
}

/// The body with the header that a store would give it.
fn framed(head: &str, body: &[u8]) -> Vec<u8> {
    let mut crc = crc32fast::Hasher::new();
    crc.update(head.as_bytes());
    crc.update(body);
    let mut content = format!("{head}{:08x}\n", crc.finalize()).into_bytes();
    content.extend_from_slice(body);
    content
}
