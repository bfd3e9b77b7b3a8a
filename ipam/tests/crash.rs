//! A process that writes to the store is killed at any moment, many times: what it said to be done is done.

mod common;

use common::{BOOT, id, lease};
use meshd_ipam::{FileStore, LeaseStore};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// Tells the child of [`killed_at_any_moment`] its folder.
const FOLDER: &str = "MESHD_TEST_CRASH_FOLDER";
/// How long the rounds go on.
const BUDGET: Duration = Duration::from_secs(4);
/// Attachments that the child works on.
const CONTAINERS: u32 = 8;

/// What the store must hold of an attachment: a version of its lease, or none.
type State = Option<u32>;

/// Not a test: what the child does, until it is killed. Before and after each change it writes a line; a line is one
/// write, which the kernel keeps when the process dies.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let folder = Path::new(&folder);
    let mut log = OpenOptions::new()
        .append(true)
        .create(true)
        .open(folder.join("log"))
        .unwrap();
    let mut note = |text: String| log.write_all(text.as_bytes()).unwrap();
    let mut store = FileStore::open(&folder.join("store"), BOOT).unwrap();
    let first = store
        .load()
        .unwrap()
        .leases
        .iter()
        .map(version)
        .max()
        .unwrap_or(0)
        + 1;
    for step in first.. {
        let container = (step.wrapping_mul(2_654_435_761) >> 16) % CONTAINERS;
        let name = container.to_string();
        if step % 3 == 0 {
            note(format!("begin {container} none\n"));
            store.remove(&id(&name)).unwrap();
            note(format!("done {container} none\n"));
        } else {
            note(format!("begin {container} {step}\n"));
            store.put(&lease(&name, step)).unwrap();
            note(format!("done {container} {step}\n"));
        }
    }
}

#[test]
fn killed_at_any_moment() {
    let folder = tempfile::tempdir().unwrap();
    let seed = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let mut random = seed | 1;
    let end = Instant::now() + BUDGET;
    let (mut rounds, mut changes, mut unfinished) = (0, 0, 0);
    while Instant::now() < end || rounds < 10 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--test-threads=1"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // xorshift64
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        wait_for_log(folder.path());
        thread::sleep(Duration::from_micros(random % 12_000));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), None, "the child ended by itself: {status}");

        let log = fs::read_to_string(folder.path().join("log")).unwrap();
        let (settled, open) = read(&log);
        changes += log.matches("done").count();
        unfinished += usize::from(open.is_some());
        check(folder.path(), &settled, open);
        rounds += 1;
        restate(folder.path());
    }
    println!("{rounds} rounds, {changes} changes, {unfinished} killed within a change");
    assert!(changes > rounds, "the child did nothing");
}

/// Waits until the child works, so that it is not killed while it is loaded.
fn wait_for_log(folder: &Path) {
    let end = Instant::now() + Duration::from_secs(10);
    let log = folder.join("log");
    let before = fs::metadata(&log).map_or(0, |m| m.len());
    while fs::metadata(&log).map_or(0, |m| m.len()) == before && Instant::now() < end {
        thread::sleep(Duration::from_micros(200));
    }
}

/// The log begins the next round with what the store holds now.
fn restate(folder: &Path) {
    let mut store = FileStore::open(&folder.join("store"), BOOT).unwrap();
    let lines = store.load().unwrap().leases.into_iter().map(|lease| {
        let (container, version) = (&lease.id.container_id, version(&lease));
        format!("held {container} {version}\n")
    });
    fs::write(folder.join("log"), lines.collect::<String>()).unwrap();
}

fn version(lease: &meshd_model::Lease) -> u32 {
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

fn check(folder: &Path, settled: &BTreeMap<String, State>, open: Option<(String, State)>) {
    let loaded = FileStore::open(&folder.join("store"), BOOT)
        .unwrap()
        .load()
        .unwrap();
    assert_eq!(loaded.damaged, [], "damaged by a kill");
    let held: BTreeMap<&str, u32> = loaded
        .leases
        .iter()
        .map(|lease| {
            let version = version(lease);
            assert_eq!(*lease, common::lease(&lease.id.container_id, version));
            (lease.id.container_id.as_str(), version)
        })
        .collect();
    for container in 0..CONTAINERS {
        let container = container.to_string();
        let (held, acknowledged) = (
            held.get(&*container).copied(),
            settled.get(&container).copied().flatten(),
        );
        let begun = open
            .as_ref()
            .filter(|(name, _)| *name == container)
            .map(|(_, state)| *state);
        assert!(
            held == acknowledged || Some(held) == begun,
            "container {container}: the store holds {held:?}, acknowledged was {acknowledged:?}, begun {begun:?}"
        );
    }
    let leftovers = fs::read_dir(folder.join("store/leases")).unwrap().count();
    assert_eq!(leftovers, loaded.leases.len(), "something but leases is left");
}
