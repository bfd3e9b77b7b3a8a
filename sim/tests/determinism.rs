//! The same seed is the same run: in two processes, and in a debug and an optimised build.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

const NODES: &str = "5";
const SEED: &str = "42";

/// Builds the example in a profile; its path, as cargo says it.
fn build(profile: &str) -> PathBuf {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let output = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--message-format",
            "json",
            "--example",
            "first-light",
        ])
        .args(["--profile", profile, "--manifest-path", manifest])
        .output()
        .expect("cargo can be run");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let messages = String::from_utf8(output.stdout).unwrap();
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut executables = messages.filter(|m| m.pointer("/target/name") == Some(&"first-light".into()));
    let found = executables.find_map(|m| m["executable"].as_str().map(PathBuf::from));
    found.expect("cargo names the example's executable")
}

/// `release` where one has been built before, so that its dependencies are there; else the profile made for this, whose
/// dependencies are compiled in a minute.
fn optimised(debug: &Path) -> &'static str {
    let target = debug
        .ancestors()
        .nth(3)
        .expect("an example is at target/PROFILE/examples/NAME");
    if target.join("release/deps").is_dir() {
        "release"
    } else {
        "determinism"
    }
}

fn run(executable: &Path, seed: &str) -> (String, Value) {
    let output = Command::new(executable)
        .args([NODES, seed])
        .output()
        .expect("the example can be run");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let value = serde_json::from_str(&text).unwrap();
    (text, value)
}

#[test]
fn two_processes_and_two_builds_give_one_trace() {
    let debug = build("dev");
    let (one, value) = run(&debug, SEED);
    let (again, _) = run(&debug, SEED);
    assert_eq!(one, again, "two processes of one build differ");
    let trace = value["trace"].as_str().unwrap();
    assert!(
        trace.len() == 64 && trace.bytes().all(|b| b.is_ascii_hexdigit()),
        "{trace}"
    );
    let (_, other) = run(&debug, "43");
    assert_ne!(other["trace"], value["trace"], "two seeds give one trace");
    let profile = optimised(&debug);
    println!("debug beside {profile}");
    let (optimised, _) = run(&build(profile), SEED);
    assert_eq!(
        one, optimised,
        "a build of profile dev and one of profile {profile} differ"
    );
}
