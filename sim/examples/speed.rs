//! How fast the simulator is: runs the built-in scenario on clusters of the given sizes and prints a line for each.
//! `cargo run --release -p meshd-sim --example speed -- 10 30 100 300`
#![allow(
    clippy::disallowed_methods,
    reason = "this measures the simulator from outside: it takes wall time to do so"
)]

use meshd_sim::{SimReport, run_demo};
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    println!(
        "nodes  simulated s  wall s  simulated/wall    packets  handshakes  watch events    checks  held"
    );
    for argument in std::env::args().skip(1) {
        let begin = Instant::now();
        let report = match argument
            .parse()
            .map_err(|_| ())
            .and_then(|n| run_demo(n, 1, None, &mut |_| {}).map_err(|_| ()))
        {
            Ok(report) => report,
            Err(()) => {
                eprintln!("{argument:?} is no number of nodes, 3 or more; usage: speed NODES...");
                return ExitCode::from(2);
            }
        };
        print(&report, begin.elapsed().as_secs_f64());
    }
    ExitCode::SUCCESS
}

fn print(report: &SimReport, wall: f64) {
    let simulated = std::time::Duration::from_micros(report.simulated_us).as_secs_f64();
    println!(
        "{:>5}  {simulated:>11.1}  {wall:>6.1}  {:>14.1}  {:>9}  {:>10}  {:>12}  {:>8}  {}",
        report.nodes,
        simulated / wall,
        report.packets,
        report.handshakes,
        report.watch_events,
        report.invariant_checks,
        report.held(),
    );
}
