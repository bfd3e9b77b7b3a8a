//! The checks, in the order in which they run.

mod change;
mod lab;
mod memory;
mod mixed;
mod traffic;

use crate::console::Console;
use anyhow::{Context, Result, bail};
use meshd_lab::Binaries;
use meshd_lab::cluster::node::Mode;
use meshd_lab::sandbox::{Entry, StartError};
use meshd_lab::scenario::{self, Order};
use meshd_model::net::Family;
use meshd_scenario::Scenario;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Instant;

/// Where the programs are in the initramfs.
const PROGRAMS: &str = "/bin";
/// Lines of each log that are shown where a check fails.
const TAIL: usize = 100;

/// How long a step of a scenario may take, and how far apart the datagrams of its streams are.
const PATIENCE: &str = "120s";
const INTERVAL: &str = "50ms";

/// A check: its name, and what runs it with a folder for its logs. It gives whether all of its proofs hold.
struct Check {
    name: &'static str,
    run: fn(&Binaries, &Path, &mut Console) -> Result<bool>,
}

const CHECKS: [Check; 3] = [
    Check {
        name: "first-light",
        run: first_light,
    },
    Check {
        name: mixed::NAME,
        run: |binaries, folder, console| lab::run(mixed::NAME, binaries, folder, console),
    },
    Check {
        name: change::NAME,
        run: |binaries, folder, console| lab::run(change::NAME, binaries, folder, console),
    },
];

/// What runs inside sandboxes.
pub(crate) fn entries() -> Vec<Entry> {
    vec![
        scenario::ENTRY,
        Entry {
            name: mixed::NAME,
            run: mixed::inside,
        },
        Entry {
            name: change::NAME,
            run: change::inside,
        },
    ]
}

/// Runs those that are wanted, or all.
pub(crate) fn run(wanted: &[String], console: &mut Console) {
    for name in wanted {
        if CHECKS.iter().all(|c| c.name != name) {
            let names: Vec<_> = CHECKS.iter().map(|c| c.name).collect();
            console.failed(
                name,
                &anyhow::anyhow!("there is no such check: there are {}", names.join(", ")),
            );
        }
    }
    for check in &CHECKS {
        if !wanted.is_empty() && wanted.iter().all(|w| w != check.name) {
            continue;
        }
        let begin = Instant::now();
        let folder = Path::new("/tmp").join(check.name);
        let ran = folder_of(&folder).and_then(|binaries| (check.run)(&binaries, &folder, console));
        let held = matches!(ran, Ok(true));
        match ran {
            Ok(held) => console.passed(check.name, held, begin.elapsed()),
            Err(error) => console.failed(check.name, &error),
        }
        if !held {
            logs(&folder, console);
        }
        // Memory is all the disk there is.
        let _ = fs::remove_dir_all(&folder);
    }
}

fn folder_of(folder: &Path) -> Result<Binaries> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    Binaries::in_folder(Path::new(PROGRAMS))
}

/// The scenario of the netns arm, with the kernel's WireGuard on every node.
fn first_light(binaries: &Binaries, folder: &Path, console: &mut Console) -> Result<bool> {
    let order = Order {
        scenario: slowly(Scenario::FIRST_LIGHT)?,
        nodes: None,
        binaries: binaries.clone(),
        mode: Mode::Kernel,
    };
    let mut tell = |event| console.event("first-light", &event);
    match scenario::run(&order, folder, &mut tell) {
        Ok(report) => Ok(report.held),
        Err(StartError::Refused(refusal)) => bail!("the VM's kernel refuses: {refusal}"),
        Err(StartError::Failed(error)) => Err(error),
    }
}

/// The same scenario, with patience: a processor that is translated instruction by instruction takes ten times as long
/// and more, and a stream must leave it time for what it counts.
fn slowly(scenario: &str) -> Result<String> {
    let scenario = Scenario::parse(scenario)?;
    let mut value = serde_json::to_value(&scenario)?;
    // A scenario spells families otherwise than the model does.
    let families = scenario.families.iter().map(|family| match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    });
    value["families"] = families.collect();
    let steps = value.get_mut("steps").and_then(Value::as_array_mut);
    for step in steps.context("the scenario has no steps")? {
        for (key, wanted) in [("within", PATIENCE), ("interval", INTERVAL)] {
            if let Some(span) = step.get_mut(key) {
                *span = Value::from(wanted);
            }
        }
    }
    Ok(value.to_string())
}

/// Shows the ends of the logs.
fn logs(folder: &Path, console: &mut Console) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut paths: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.sort();
    for path in paths.iter().filter(|p| p.extension().is_some_and(|e| e == "log")) {
        let text = fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(TAIL)..].join("\n");
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        console.log(&name, &end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_with_more_patience_is_one() {
        let slow = Scenario::parse(&slowly(Scenario::FIRST_LIGHT).unwrap()).unwrap();
        assert_eq!(slow.name, Scenario::parse(Scenario::FIRST_LIGHT).unwrap().name);
    }
}
