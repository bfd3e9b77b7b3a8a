//! `meshctl demo`.

pub(crate) mod progress;
pub(crate) mod report;

use crate::cli::DemoArgs;
use crate::interrupt;
use anyhow::{Context, Result, bail};
use meshd_lab::Binaries;
use meshd_lab::cluster::node::Mode;
use meshd_lab::sandbox::{Refusal, StartError};
use meshd_lab::scenario::{self, Event, Left, Order};
use meshd_scenario::{Progress, Report, Scenario};
use progress::Display;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Seed of the simulated run that stands in for a refused one.
const SEED: u64 = 1;

/// What `--json` prints.
#[derive(Serialize)]
struct Outcome {
    /// Whether every proof holds.
    held: bool,
    /// Which arm ran: `netns`, or `sim` where that was refused.
    arm: String,
    /// Why it is not `netns`.
    refused: Option<Refusal>,
    /// How long it took, in seconds of the wall clock.
    seconds: f64,
    /// Where the logs are, if they were kept.
    logs: Option<PathBuf>,
    /// The proofs, and the table of nodes.
    report: Report,
}

pub(crate) fn run(args: &DemoArgs) -> Result<ExitCode> {
    let order = Order {
        scenario: Scenario::FIRST_LIGHT.to_owned(),
        nodes: Some(args.nodes.into()),
        binaries: Binaries::find()?,
        mode: Mode::Userspace,
    };
    interrupt::listen()?;
    let begin = Instant::now();
    let logs = Logs::new(args.keep_logs.as_deref())?;
    let mut display = Display::new();
    let ran = scenario::run(&order, logs.folder(), &mut |event| show(&mut display, event));
    display.end();
    if interrupt::happened() {
        match &ran {
            Err(StartError::Failed(error)) if error.downcast_ref::<Left>().is_some() => {
                eprintln!("interrupted: {error:#}");
            }
            _ => eprintln!("interrupted: everything was taken down"),
        }
        return Ok(ExitCode::from(130));
    }
    let outcome = match ran {
        Ok(report) => Outcome {
            held: report.held,
            arm: report.arm.clone(),
            refused: None,
            seconds: begin.elapsed().as_secs_f64(),
            logs: logs.settle(report.held),
            report,
        },
        Err(StartError::Refused(refusal)) => instead(args, refusal, begin)?,
        Err(StartError::Failed(error)) => {
            let kept = logs.settle(false);
            let kept = kept.map_or(String::new(), |path| format!("; logs are in {}", path.display()));
            bail!("the demo could not be run: {error:#}{kept}");
        }
    };
    print(args, &outcome)?;
    Ok(if outcome.held {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn show(display: &mut Display, event: Event) {
    match event {
        Event::Step { number, of, name } => display.step(number, of, &name),
        Event::Doing(what) => display.doing(&what),
        Event::Proof(proof) => display.proof(&proof),
        Event::Report(_) => {}
    }
}

/// The same scenario in the simulator, because the system refused the real one.
fn instead(args: &DemoArgs, refusal: Refusal, begin: Instant) -> Result<Outcome> {
    eprintln!("This system refuses what a cluster of network namespaces needs.");
    eprintln!("  refused:     {}: {}", refusal.what, refusal.why);
    eprintln!("  to allow it: {}", refusal.how);
    eprintln!("The same scenario runs in the SIMULATOR instead: nothing below was seen on a real kernel.");
    let mut display = Display::new();
    let mut tell = |progress: Progress<'_>| show(&mut display, Event::from(progress));
    let simulated = meshd_sim::run_demo(args.nodes.into(), SEED, None, &mut tell)?;
    display.end();
    if let Some(violation) = &simulated.violation {
        eprintln!("an invariant was violated: {violation:?}");
    }
    Ok(Outcome {
        held: simulated.held(),
        arm: simulated.report.arm.clone(),
        refused: Some(refusal),
        seconds: begin.elapsed().as_secs_f64(),
        logs: None,
        report: simulated.report,
    })
}

fn print(args: &DemoArgs, outcome: &Outcome) -> Result<()> {
    if args.json {
        return crate::print_json(outcome).map(drop);
    }
    let mut text = report::text(&outcome.report, Duration::from_secs_f64(outcome.seconds));
    if let Some(refusal) = &outcome.refused {
        text += &format!("This was the simulator, because {refusal}\n");
    }
    if let Some(logs) = &outcome.logs {
        text += &format!("Logs and recordings are in {}\n", logs.display());
    }
    crate::print(text.as_bytes()).map(drop)
}

/// The folder of logs: kept where the user wants it, or where something failed.
enum Logs {
    Kept(PathBuf),
    Passing(tempfile::TempDir),
}

impl Logs {
    fn new(keep: Option<&Path>) -> Result<Self> {
        match keep {
            Some(folder) => {
                std::fs::create_dir_all(folder)
                    .with_context(|| format!("make the folder {}", folder.display()))?;
                Ok(Self::Kept(folder.canonicalize()?))
            }
            None => Ok(Self::Passing(
                tempfile::TempDir::with_prefix("meshd-demo-").context("make a folder for logs")?,
            )),
        }
    }

    fn folder(&self) -> &Path {
        match self {
            Self::Kept(folder) => folder,
            Self::Passing(folder) => folder.path(),
        }
    }

    /// Where the logs are from now on, if anywhere.
    fn settle(self, is_well: bool) -> Option<PathBuf> {
        match self {
            Self::Kept(folder) => Some(folder),
            Self::Passing(_) if is_well => None,
            Self::Passing(folder) => Some(folder.keep()),
        }
    }
}
