//! The soak and the crashes, made small. `hack/soak` has the whole of both.

use std::path::Path;
use std::process::{Command, Output};

/// Runs the program, with the daemon, the device and the plugin of this workspace.
fn soak(arguments: &[&str]) -> Option<Output> {
    if !nix::unistd::Uid::effective().is_root() {
        meshd_skip::skip_on("netns", arguments[0], "it needs root");
        return None;
    }
    // The whole workspace: a part of it would have other features, and build its dependencies again.
    let own = Path::new(env!("CARGO_BIN_EXE_meshd-soak"));
    let is_dev = own.parent().is_some_and(|folder| folder.ends_with("debug"));
    let profile = if is_dev { "dev" } else { "release" };
    let programs = meshd_programs::build(
        "build",
        &["--quiet", "--workspace", "--bins", "--profile", profile],
    )
    .unwrap();
    let output = Command::new(own)
        .args(arguments)
        .arg("--bin")
        .arg(programs["meshd"].parent().unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // With the seed.
    println!("{said}{}", String::from_utf8_lossy(&output.stdout));
    Some(output)
}

#[test]
fn nothing_is_left_after_pods_came_and_went_while_processes_were_killed() {
    let Some(output) = soak(&["cni", "--count", "400", "--kill-every", "1500", "--json"]) else {
        return;
    };
    let figures: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(figures["verbs"]["ADD"]["count"], 400, "{figures}");
    assert!(
        figures["events"]["daemons killed"].as_u64() > Some(0),
        "no daemon was killed: {figures}"
    );
    for kind in ["leases", "links", "rules", "routes"] {
        assert_eq!(figures["left"][kind], 0, "{figures}");
    }
}

/// A sample: a walk of all stops takes the better part of an hour.
#[test]
fn killed_at_a_system_call_of_add_and_del_nothing_is_lost() {
    let Some(output) = soak(&["crash", "--seconds", "8", "--json"]) else {
        return;
    };
    let figures: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let walks = figures["walks"].as_array().unwrap();
    assert_eq!(walks.len(), 5, "{figures}");
    for walk in walks {
        assert!(walk["killed_at"].as_u64() > Some(0), "{figures}");
        assert!(walk["stops"].as_u64() > Some(50), "{figures}");
    }
}

/// What the walks go by when they say that neither ADD nor DEL waits for the disk.
#[test]
fn a_call_that_waits_for_the_disk_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (file, count) = (folder.path().join("file"), folder.path().join("count"));
    std::fs::write(&file, b"to be written").unwrap();
    for (program, syncs) in [("sync", "1"), ("stat", "0")] {
        let traced = Command::new(env!("CARGO_BIN_EXE_meshd-soak"))
            .stdout(std::process::Stdio::null())
            .args(["trace", "--at", "1000000", "--count"])
            .args([
                count.as_os_str(),
                "--".as_ref(),
                program.as_ref(),
                file.as_os_str(),
            ])
            .status()
            .unwrap();
        assert!(traced.success());
        let said = std::fs::read_to_string(&count).unwrap();
        assert_eq!(said.split(' ').nth(1), Some(syncs), "{program}: {said}");
    }
}
