//! A process that writes to the store is killed at any moment, many times: what it said to be done is done.

mod common;

use common::{BOOT, id, killing, lease};
use meshd_ipam_store::{FileStore, LeaseStore};
use meshd_model::Lease;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Attachments that the child works on.
const CONTAINERS: u32 = 8;

/// What the store must hold of an attachment: a version of its lease, or none.
type State = Option<u32>;

/// Not a test: what the child does until it is killed. It writes down each change before and after.
#[test]
fn changing_child() {
    let Some((folder, mut log)) = killing::child() else {
        return;
    };
    let mut store = FileStore::open(&folder.join("store"), BOOT).unwrap();
    let newest = store.load().unwrap().leases.iter().map(version).max();
    for step in newest.unwrap_or(0) + 1.. {
        let container = ((step.wrapping_mul(2_654_435_761) >> 16) % CONTAINERS).to_string();
        if step % 3 == 0 {
            log.note(&format!("begin {container} none"));
            store.remove(&id(&container)).unwrap();
            log.note(&format!("done {container} none"));
        } else {
            log.note(&format!("begin {container} {step}"));
            store.put(&lease(&container, step)).unwrap();
            log.note(&format!("done {container} {step}"));
        }
    }
}

#[test]
fn killed_at_any_moment() {
    let folder = tempfile::tempdir().unwrap();
    let (mut changes, mut unfinished) = (0, 0);
    let rounds = killing::rounds("changing_child", folder.path(), |log| {
        let (settled, open) = read(log);
        changes += log.matches("done").count();
        unfinished += usize::from(open.is_some());
        check(&folder.path().join("store"), &settled, open)
    });
    println!("{rounds} rounds, {changes} changes, {unfinished} killed within a change");
    assert!(changes > rounds as usize, "the child did nothing");
}

fn version(lease: &Lease) -> u32 {
    lease.netns.rsplit('/').next().unwrap().parse().unwrap()
}

/// What was acknowledged, and the change that was begun and not.
fn read(log: &str) -> (BTreeMap<String, State>, Option<(String, State)>) {
    let (mut settled, mut open) = (BTreeMap::new(), None);
    for line in log.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [verb, container, state] = words[..] else {
            panic!("a torn line in the log: {line:?}");
        };
        let change = (container.to_owned(), state.parse().ok());
        if verb == "begin" {
            open = Some(change);
        } else {
            settled.insert(change.0, change.1);
            open = None;
        }
    }
    (settled, open)
}

/// Holds the store to what the child said; gives what it holds as the beginning of the next log.
fn check(store: &Path, settled: &BTreeMap<String, State>, open: Option<(String, State)>) -> String {
    let loaded = FileStore::open(store, BOOT).unwrap().load().unwrap();
    assert_eq!(loaded.damaged, [], "damaged by a kill");
    let versions: BTreeMap<&str, u32> = loaded
        .leases
        .iter()
        .map(|held| {
            assert_eq!(*held, lease(&held.id.container_id, version(held)));
            (held.id.container_id.as_str(), version(held))
        })
        .collect();
    for container in 0..CONTAINERS {
        let container = container.to_string();
        let held = versions.get(&*container).copied();
        let acknowledged = settled.get(&container).copied().flatten();
        let begun = open.as_ref().filter(|(name, _)| *name == container);
        assert!(
            held == acknowledged || Some(held) == begun.map(|(_, state)| *state),
            "container {container}: the store holds {held:?}, acknowledged was {acknowledged:?}, begun {begun:?}"
        );
    }
    let files = fs::read_dir(store.join("leases")).unwrap().count();
    assert_eq!(files, loaded.leases.len(), "something but leases is left");
    versions
        .iter()
        .map(|(name, version)| format!("held {name} {version}\n"))
        .collect()
}
