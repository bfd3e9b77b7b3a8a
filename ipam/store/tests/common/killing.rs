//! Children that are killed at any moment, and what they said before.
#![allow(clippy::disallowed_methods, reason = "processes run against the clock")]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// Tells a child its folder.
const FOLDER: &str = "MESHD_TEST_CRASH_FOLDER";
/// How long the rounds of a test go on.
const BUDGET: Duration = Duration::from_secs(3);
/// The longest that a child works before it is killed.
const LIFE: Duration = Duration::from_millis(12);

/// What a child writes down. A line is one write, which the kernel keeps when the process dies; one that crosses the border
/// of a page may be cut off there, and does not count.
pub struct Log(File);

impl Log {
    pub fn note(&mut self, line: &str) {
        self.0.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

/// In a child: where it works, and its log. None in a usual run of the tests.
pub fn child() -> Option<(PathBuf, Log)> {
    let folder = PathBuf::from(std::env::var_os(FOLDER)?);
    let log = OpenOptions::new().append(true).create(true).open(log(&folder));
    Some((folder, Log(log.unwrap())))
}

fn log(folder: &Path) -> PathBuf {
    folder.join("log")
}

/// Starts the test `child` in a process of its own, kills it a moment after its first line, and gives its log to
/// `check`, which returns how the log of the next round begins. So on, until the time is over; gives the number of rounds.
pub fn rounds(child: &str, folder: &Path, mut check: impl FnMut(&str) -> String) -> u32 {
    let seed = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let mut random = seed | 1;
    let end = Instant::now() + BUDGET;
    let mut rounds = 0;
    while Instant::now() < end || rounds < 10 {
        // xorshift64
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let life = Duration::from_nanos(random % LIFE.as_nanos() as u64);
        let start = check(&live_and_die(child, folder, life));
        fs::write(log(folder), start).unwrap();
        rounds += 1;
    }
    rounds
}

fn live_and_die(child: &str, folder: &Path, life: Duration) -> String {
    let before = fs::metadata(log(folder)).map_or(0, |m| m.len());
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", child, "--test-threads=1"])
        .env(FOLDER, folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let patience = Instant::now() + Duration::from_secs(10);
    while fs::metadata(log(folder)).map_or(0, |m| m.len()) == before && Instant::now() < patience {
        thread::sleep(Duration::from_micros(200));
    }
    thread::sleep(life);
    process.kill().unwrap();
    let status = process.wait().unwrap();
    assert_eq!(status.code(), None, "the child ended by itself: {status}");
    let mut said = fs::read_to_string(log(folder)).unwrap();
    said.truncate(said.rfind('\n').map_or(0, |end| end + 1));
    said
}
