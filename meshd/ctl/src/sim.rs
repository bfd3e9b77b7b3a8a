//! `meshctl sim`.

use crate::cli::SimArgs;
use crate::demo::progress::Display;
use crate::demo::report;
use anyhow::Result;
use meshd_scenario::Progress;
use std::process::ExitCode;
use std::time::Duration;

pub(crate) fn run(args: &SimArgs) -> Result<ExitCode> {
    let mut display = Display::new();
    let mut tell = |progress: Progress<'_>| match progress {
        Progress::Step { number, of, name } => display.step(number, of, name),
        Progress::Doing(what) => display.doing(&what),
        Progress::Proof(proof) => display.proof(proof),
    };
    let simulated = meshd_sim::run_demo(args.nodes, args.seed, args.duration, &mut tell)?;
    display.end();
    let code = if simulated.held() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    };
    if args.json {
        crate::print_json(&simulated)?;
        return Ok(code);
    }
    let mut text = report::text(&simulated.report, Duration::from_micros(simulated.simulated_us));
    text += &format!(
        "seed {}: trace {}, {} events, {} packets, {} handshakes, {} watch events, {} invariant checks; the time is \
         simulated\n",
        simulated.seed,
        simulated.trace,
        simulated.events,
        simulated.packets,
        simulated.handshakes,
        simulated.watch_events,
        simulated.invariant_checks,
    );
    if let Some(violation) = &simulated.violation {
        text += &format!("an invariant was violated: {violation:?}\n");
    }
    crate::print(text.as_bytes())?;
    Ok(code)
}
