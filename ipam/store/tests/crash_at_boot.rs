//! A process that opens the store after one reboot and the next is killed at any moment: the store opens again, with
//! the leases of this boot and no others.

mod common;

use common::{killing, lease};
use meshd_ipam_store::{FileStore, LeaseStore};

/// Not a test: what the child does until it is killed. Each turn is a boot.
#[test]
fn rebooting_child() {
    let Some((folder, mut log)) = killing::child() else {
        return;
    };
    let noted = std::fs::read_to_string(folder.join("log")).unwrap();
    let (boot, _) = last(&noted);
    for boot in boot + 1.. {
        log.note(&format!("boot {boot}"));
        let mut store = FileStore::open(&folder.join("store"), &boot.to_string()).unwrap();
        for name in ["a", "b", "c"] {
            store.put(&lease(name, boot)).unwrap();
        }
        log.note(&format!("leased {boot}"));
    }
}

#[test]
fn killed_while_leases_are_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let (mut boots, mut unfinished) = (0, 0);
    let rounds = killing::rounds("rebooting_child", folder.path(), |log| {
        let (boot, leased) = last(log);
        let mut store = FileStore::open(&folder.path().join("store"), &boot.to_string()).unwrap();
        let loaded = store.load().unwrap();
        assert_eq!(loaded.damaged, [], "damaged by a kill");
        for held in &loaded.leases {
            assert_eq!(
                *held,
                lease(&held.id.container_id, boot),
                "a lease of another boot"
            );
        }
        assert!(
            !leased || loaded.leases.len() == 3,
            "boot {boot} holds {:?}",
            loaded.leases
        );
        (boots, unfinished) = (boot, unfinished + u32::from(!leased));
        format!("boot {boot}\n")
    });
    println!("{rounds} rounds, {boots} boots, {unfinished} killed before all was leased");
    assert!(boots > rounds && unfinished > 0, "the child did nothing");
}

/// The last boot that was begun, and whether it has all its leases.
fn last(log: &str) -> (u32, bool) {
    let Some((verb, boot)) = log.lines().last().and_then(|line| line.split_once(' ')) else {
        return (0, false);
    };
    (boot.parse().unwrap(), verb == "leased")
}
