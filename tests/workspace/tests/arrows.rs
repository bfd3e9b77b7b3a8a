//! Imports point one way: what is pure never reaches what does IO, and the layers never turn round.
//! ARCHITECTURE.md, section "The crates", has the picture.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// For each package of the workspace, the packages of the workspace that it may name as normal or build
/// dependencies. A new crate, or a new arrow, is added here and in ARCHITECTURE.md.
const ARROWS: &[(&str, &[&str])] = &[
    ("meshd-model", &[]),
    ("meshd-ipam", &["meshd-model"]),
    ("meshd-ipam-store", &["meshd-model"]),
    ("meshd-core", &["meshd-model", "meshd-ipam"]),
    ("meshd-translate", &["meshd-model", "meshd-core"]),
    ("meshd-wireguard-proto", &["meshd-model"]),
    ("meshd-apiserver", &[]),
    ("meshd-apiserver-http", &["meshd-apiserver"]),
    ("meshd-scenario", &["meshd-model"]),
    (
        "meshd-sim",
        &[
            "meshd-model",
            "meshd-core",
            "meshd-ipam",
            "meshd-translate",
            "meshd-wireguard-proto",
            "meshd-apiserver",
            "meshd-scenario",
        ],
    ),
    ("meshd-kube", &["meshd-model", "meshd-core", "meshd-translate"]),
    ("meshd-kernel", &["meshd-model", "meshd-core"]),
    ("meshd-wireguard", &["meshd-model", "meshd-wireguard-proto"]),
    ("meshd-cni", &["meshd-model"]),
    (
        "meshd",
        &[
            "meshd-model",
            "meshd-core",
            "meshd-ipam-store",
            "meshd-kube",
            "meshd-kernel",
            "meshd-translate",
        ],
    ),
    (
        "meshd-lab",
        &[
            "meshd-model",
            "meshd-scenario",
            "meshd-apiserver",
            "meshd-apiserver-http",
            "meshd-translate",
        ],
    ),
    (
        "meshd-ctl",
        &["meshd-model", "meshd-sim", "meshd-lab", "meshd-scenario"],
    ),
    ("meshd-demo", &["meshd-programs"]),
    ("meshd-programs", &[]),
    (
        "meshd-arms",
        &[
            "meshd-model",
            "meshd-sim",
            "meshd-lab",
            "meshd-scenario",
            "meshd-apiserver",
            "meshd-apiserver-http",
            "meshd-kubernetes-arm",
            "meshd-skip",
            "meshd-programs",
            "meshd",
        ],
    ),
    (
        "meshd-kubernetes-arm",
        &["meshd-model", "meshd-lab", "meshd-scenario"],
    ),
    ("meshd-vm", &["meshd-model", "meshd-lab", "meshd-scenario"]),
    ("meshd-skip", &[]),
    ("meshd-control-plane", &["meshd-skip"]),
    (
        "meshd-scale",
        &[
            "meshd",
            "meshd-model",
            "meshd-core",
            "meshd-kube",
            "meshd-translate",
            "meshd-control-plane",
        ],
    ),
    (
        "meshd-fuzz-targets",
        &["meshd-model", "meshd-cni", "meshd-ipam-store", "meshd-translate"],
    ),
    (
        "meshd-soak",
        &[
            "meshd-model",
            "meshd-ipam-store",
            "meshd-lab",
            "meshd-apiserver",
            "meshd-apiserver-http",
        ],
    ),
    ("meshd-workspace-tests", &[]),
];

/// Crates that decide and never do: no clock, no randomness, no sockets, no threads.
const PURE: &[&str] = &[
    "meshd-model",
    "meshd-ipam",
    "meshd-core",
    "meshd-translate",
    "meshd-wireguard-proto",
    "meshd-apiserver",
    "meshd-scenario",
    "meshd-sim",
];

/// What no pure crate may reach, however deep.
const IMPURE: &[&str] = &[
    "tokio",
    "mio",
    "kube",
    "kube-client",
    "hyper",
    "nix",
    "rtnetlink",
    "nlink",
    "socket2",
    "tun-rs",
];

/// The normal dependencies of each package of the lock file, by name.
fn graph() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let out = Command::new(cargo)
        // Only what this platform resolves: the rest was never downloaded, and the arrows are the same.
        .args([
            "metadata",
            "--format-version=1",
            "--offline",
            "--locked",
            "--filter-platform",
        ])
        .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata runs");
    assert!(
        out.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    let metadata: Value = serde_json::from_slice(&out.stdout).expect("cargo metadata prints JSON");
    let names: BTreeMap<&str, &str> = list(&metadata["packages"])
        .map(|p| (text(&p["id"]), text(&p["name"])))
        .collect();
    let mut graph = BTreeMap::<String, BTreeSet<String>>::new();
    for node in list(&metadata["resolve"]["nodes"]) {
        let of = graph.entry(names[text(&node["id"])].to_owned()).or_default();
        for dep in list(&node["deps"]) {
            let normal = list(&dep["dep_kinds"]).any(|k| k["kind"] != "dev");
            if normal {
                of.insert(names[text(&dep["pkg"])].to_owned());
            }
        }
    }
    graph
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().expect("an array").iter()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

#[test]
fn arrows_of_the_workspace_point_one_way() {
    let graph = graph();
    let ours: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    let found: BTreeSet<&str> = graph
        .keys()
        .map(String::as_str)
        .filter(|n| *n == "meshd" || n.starts_with("meshd-"))
        .collect();
    assert_eq!(
        found, ours,
        "every package of the workspace has its arrows listed in this test"
    );
    for (name, allowed) in ARROWS {
        let actual: BTreeSet<&str> = graph[*name]
            .iter()
            .map(String::as_str)
            .filter(|d| ours.contains(d))
            .collect();
        let allowed: BTreeSet<&str> = allowed.iter().copied().collect();
        let extra: Vec<_> = actual.difference(&allowed).collect();
        assert!(
            extra.is_empty(),
            "{name} imports {extra:?}, against the arrows of ARCHITECTURE.md"
        );
    }
}

#[test]
fn pure_crates_reach_nothing_that_does_io() {
    let graph = graph();
    for pure in PURE {
        let mut seen = BTreeSet::from([(*pure).to_owned()]);
        let mut todo = vec![(*pure).to_owned()];
        while let Some(name) = todo.pop() {
            assert!(!IMPURE.contains(&name.as_str()), "{pure} reaches {name}");
            let deps = graph.get(&name).cloned().unwrap_or_default();
            todo.extend(deps.into_iter().filter(|d| seen.insert(d.clone())));
        }
    }
}
