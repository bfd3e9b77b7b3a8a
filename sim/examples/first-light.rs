//! Runs the built-in scenario on a simulated cluster and prints what came of it as JSON:
//! `cargo run -p meshd-sim --example first-light -- NODES SEED`.

use meshd_sim::run_demo;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: u64| match arguments.get(index) {
        Some(text) => text
            .parse::<u64>()
            .map_err(|e| format!("{text:?} is no number: {e}")),
        None => Ok(default),
    };
    match (number(0, 3), number(1, 1)) {
        (Ok(nodes), Ok(seed)) => print(usize::try_from(nodes).unwrap_or(usize::MAX), seed),
        (Err(problem), _) | (_, Err(problem)) => {
            eprintln!("{problem}; usage: first-light [NODES [SEED]]");
            ExitCode::from(2)
        }
    }
}

fn print(nodes: usize, seed: u64) -> ExitCode {
    let report = match run_demo(nodes, seed, None, &mut |_| {}) {
        Ok(report) => report,
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::from(2);
        }
    };
    match serde_json::to_string_pretty(&report) {
        Ok(text) => println!("{text}"),
        Err(problem) => eprintln!("the report cannot be written: {problem}"),
    }
    if report.held() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
