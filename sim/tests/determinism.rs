//! The same seed is the same run: in two processes, and in a debug and an optimised build.

use serde_json::Value;
use std::path::Path;
use std::process::Command;

const NODES: &str = "5";
const SEED: &str = "42";

/// All crates of this workspace that the simulator is made of. Optimising these alone, within the profile that the tests
/// are built with, leaves the hundred others as they are: they are not compiled again.
const OURS: [&str; 8] = [
    "meshd-model",
    "meshd-ipam",
    "meshd-core",
    "meshd-translate",
    "meshd-wireguard-proto",
    "meshd-apiserver",
    "meshd-scenario",
    "meshd-sim",
];

/// What a release has and a debug build has not, for our crates.
fn optimised() -> Vec<String> {
    let settings = [
        "opt-level=3",
        "debug-assertions=false",
        "overflow-checks=false",
        "debug=false",
        "codegen-units=16",
    ];
    OURS.iter()
        .flat_map(|name| settings.map(|setting| format!("profile.dev.package.{name}.{setting}")))
        .flat_map(|setting| ["--config".to_owned(), setting])
        .collect()
}

/// Builds the example; a copy of it, because the next build has the same path.
fn build(settings: &[String], copy: &Path) {
    // The whole workspace: a part of it would have other features, and compile its dependencies again.
    let base = ["--quiet", "--workspace", "--example", "first-light"];
    let arguments: Vec<&str> = base
        .into_iter()
        .chain(settings.iter().map(String::as_str))
        .collect();
    let built = meshd_programs::build("build", &arguments).expect("the example builds");
    let found = built
        .get("first-light")
        .expect("cargo names the example's executable");
    std::fs::copy(found, copy).expect("an executable can be copied");
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
    let folder = tempfile::tempdir().unwrap();
    let (debug, release) = (folder.path().join("debug"), folder.path().join("release"));
    build(&optimised(), &release);
    // Last, so that the example at its usual path is the usual one.
    build(&[], &debug);
    assert_ne!(
        std::fs::read(&debug).unwrap(),
        std::fs::read(&release).unwrap(),
        "one build is held to itself"
    );
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
    let (optimised, _) = run(&release, SEED);
    assert_eq!(one, optimised, "a debug and an optimised build differ");
}
