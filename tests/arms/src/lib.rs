//! Runs the scenarios on every arm that the machine has, and what else needs whole processes.
//!
//! An arm that cannot run is skipped by name with its reason; it is a failure where `MESHD_REQUIRE_ARMS` (`sim`,
//! `netns`, `kubernetes`, separated by commas) names it. Takes the usual arguments of `cargo test -- ...`.

mod arms;
mod bad_days;
mod chains;
mod command_line;
mod kubernetes;
mod plain;
mod programs;
mod sandboxed;
mod sandboxes;
mod scenarios;

use libtest_mimic::{Arguments, Trial};
use meshd_lab::sandbox::{self, Entry};
use std::process::ExitCode;

/// The test binary's `main`.
#[must_use]
pub fn main() -> ExitCode {
    let entries = entries();
    if let Some(code) = sandbox::enter(&entries) {
        return code;
    }
    if let Some(code) = sandboxes::helper().or_else(bad_days::helper) {
        return code;
    }
    let mut arguments = Arguments::from_args();
    // One cluster at a time: tests that count lost packets do not share two cores.
    arguments.test_threads.get_or_insert(1);
    let conclusion = libtest_mimic::run(&arguments, trials());
    arms::print_durations();
    conclusion.exit_code()
}

/// The `main` of the test binary that runs on a cluster of `hack/kubernetes`; a binary of its own, because it takes
/// as long as all others together.
#[must_use]
pub fn kubernetes() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let conclusion = libtest_mimic::run(&arguments, kubernetes::trials());
    let left = kubernetes::shut_down();
    arms::print_durations();
    match left {
        Ok(()) => conclusion.exit_code(),
        Err(why) => {
            eprintln!("the cluster could not be taken down: {why:#}");
            ExitCode::FAILURE
        }
    }
}

fn entries() -> Vec<Entry> {
    let mut entries = vec![meshd_lab::scenario::ENTRY];
    entries.extend(sandboxes::ENTRIES);
    entries.push(plain::ENTRY);
    entries.extend(bad_days::entries());
    entries.push(chains::ENTRY);
    entries
}

fn trials() -> Vec<Trial> {
    let mut trials = vec![arms::required_are_known()];
    trials.extend(sandboxes::trials());
    trials.extend(plain::trials());
    trials.extend(scenarios::trials());
    trials.extend(bad_days::trials());
    trials.extend(chains::trials());
    trials.extend(command_line::trials());
    trials
}
