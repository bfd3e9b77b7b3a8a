//! The arms: which are required, which can run, how long each took.

use libtest_mimic::{Completion, Failed, Trial};
use meshd_lab::sandbox::StartError;
use meshd_skip::{VARIABLE, is_required};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// All that there are, also those that other test binaries run.
const KNOWN: [&str; 6] = ["sim", "netns", "kubernetes", "boringtun", "helm", "cnitool"];

static DURATIONS: Mutex<BTreeMap<&str, Duration>> = Mutex::new(BTreeMap::new());

/// Why a trial on an arm did not succeed.
pub(crate) enum Trouble {
    /// The machine cannot run the arm.
    Unable(String),
    /// It ran and failed.
    Failed(String),
}

impl From<StartError> for Trouble {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Refused(refusal) => Trouble::Unable(refusal.to_string()),
            StartError::Failed(error) => Trouble::Failed(format!("{error:#}")),
        }
    }
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Self {
        Trouble::Failed(format!("{error:#}"))
    }
}

/// A trial on an arm: skipped where the arm cannot run, a failure if it is required.
pub(crate) fn trial(
    arm: &'static str,
    name: &str,
    body: impl FnOnce() -> Result<(), Trouble> + Send + 'static,
) -> Trial {
    Trial::ignorable_test(format!("{arm}::{name}"), move || {
        let begin = Instant::now();
        let outcome = body();
        let mut durations = DURATIONS.lock().unwrap_or_else(PoisonError::into_inner);
        *durations.entry(arm).or_default() += begin.elapsed();
        match outcome {
            Ok(()) => Ok(Completion::Completed),
            Err(Trouble::Unable(reason)) if is_required(arm) => Err(Failed::from(format!(
                "{VARIABLE} names {arm}, which cannot run: {reason}"
            ))),
            Err(Trouble::Unable(reason)) => Ok(Completion::ignored_with(format!("arm {arm}: {reason}"))),
            Err(Trouble::Failed(why)) => Err(Failed::from(why)),
        }
    })
}

/// A misspelt arm would require nothing.
pub(crate) fn required_are_known() -> Trial {
    Trial::test("required_arms_are_known", || {
        let unknown: Vec<String> = required()
            .into_iter()
            .filter(|r| !KNOWN.contains(&r.as_str()))
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let known = KNOWN.join(", ");
        Err(Failed::from(format!(
            "{VARIABLE} names {}; there are {known}",
            unknown.join(", ")
        )))
    })
}

fn required() -> Vec<String> {
    let text = std::env::var(VARIABLE).unwrap_or_default();
    text.split(',')
        .map(str::trim)
        .filter(|t| !t.is_empty())
        .map(str::to_owned)
        .collect()
}

/// How long each arm took, building of programs left out.
pub(crate) fn print_durations() {
    let durations = DURATIONS.lock().unwrap_or_else(PoisonError::into_inner);
    let built = crate::programs::time_to_build();
    for (arm, time) in durations.iter() {
        let own = if *arm == "netns" {
            time.saturating_sub(built)
        } else {
            *time
        };
        println!("arm {arm}: {:.1} s", own.as_secs_f64());
    }
    if !built.is_zero() {
        println!("programs built in {:.1} s", built.as_secs_f64());
    }
}
