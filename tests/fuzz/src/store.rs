//! A lease's file, as whatever a disk may hold.

use meshd_ipam_store::{FileStore, LeaseStore};
use std::cell::RefCell;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

const BOOT: &str = "6f1c2a9e-0000-4000-8000-000000000001";
/// The file's name says whose lease it is.
const NAME: &str = "c1@eth0.lease";

thread_local! {
    static STORE: RefCell<Option<Place>> = const { RefCell::new(None) };
}

/// One store for all inputs: making one costs more than reading.
struct Place {
    folder: TempDir,
    store: FileStore,
}

/// A lease's file: the bytes as they are, and as a body with a header that fits, so that what is behind the checksum is
/// reached too.
pub fn lease(bytes: &[u8]) {
    STORE.with_borrow_mut(|place| {
        let place = place.get_or_insert_with(|| {
            let folder = tempfile::tempdir().expect("a folder");
            let store = FileStore::open(folder.path(), BOOT).expect("a store");
            Place { folder, store }
        });
        read(place, bytes);
        read(place, &framed(bytes));
    });
}

fn read(place: &mut Place, content: &[u8]) {
    let path = place.folder.path().join("leases").join(NAME);
    fs::write(&path, content).expect("write the lease's file");
    let loaded = match place.store.load() {
        Ok(loaded) => loaded,
        // A format of the future: the file stays, and the daemon does not start.
        Err(error) => {
            assert!(path.exists(), "{error}");
            fs::remove_file(&path).expect("remove the lease's file");
            return;
        }
    };
    assert_eq!(
        loaded.leases.len() + loaded.damaged.len(),
        1,
        "a file is a lease, or damaged: {loaded:?}"
    );
    for damaged in &loaded.damaged {
        assert!(!damaged.reason.is_empty() && !path.exists(), "{damaged}");
        assert_eq!(
            fs::read(&damaged.kept).ok().as_deref(),
            Some(content),
            "{damaged}"
        );
        fs::remove_file(&damaged.kept).expect("remove what was put aside");
    }
    for lease in &loaded.leases {
        again(place, lease, &path);
    }
}

/// What could be read can be written, and is read as the same.
fn again(place: &mut Place, lease: &meshd_model::Lease, path: &Path) {
    place.store.remove(&lease.id).expect("remove it");
    assert!(!path.exists(), "it was of another name: {lease:?}");
    place.store.put(lease).expect("put it");
    let loaded = place.store.load().expect("load it");
    assert_eq!(loaded.leases, std::slice::from_ref(lease));
    place.store.remove(&lease.id).expect("remove it again");
}

/// The body with the header that a store would give it.
fn framed(body: &[u8]) -> Vec<u8> {
    let head = "meshd-lease 1 ";
    let mut crc = crc32fast::Hasher::new();
    crc.update(head.as_bytes());
    crc.update(body);
    let mut content = format!("{head}{:08x}\n", crc.finalize()).into_bytes();
    content.extend_from_slice(body);
    content
}
