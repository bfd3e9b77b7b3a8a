//! `meshctl`, the operator's command line of meshd.

mod cli;
mod client;
#[cfg(feature = "lab")]
mod demo;
#[cfg(feature = "lab")]
mod interrupt;
#[cfg(feature = "lab")]
mod lab;
#[cfg(feature = "lab")]
mod sim;
mod status;
mod table;

use clap::{CommandFactory, Parser};
use cli::{Cli, Command};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(feature = "lab")]
    if let Some(code) = enter() {
        return code;
    }
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("meshctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Does what this program was started for by itself; none if a person has started it.
#[cfg(feature = "lab")]
fn enter() -> Option<ExitCode> {
    let entries = [meshd_lab::scenario::ENTRY, meshd_lab::keep::ENTRY];
    // Before any thread: a sandbox is this program, started again.
    meshd_lab::sandbox::enter(&entries).or_else(lab::supervisor::enter)
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        #[cfg(feature = "lab")]
        Command::Demo(args) => demo::run(&args),
        #[cfg(feature = "lab")]
        Command::Lab(command) => lab::run(command),
        #[cfg(feature = "lab")]
        Command::Sim(args) => sim::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "meshctl", &mut script);
            print(&script)
        }
    }
}

/// Prints to stdout; that nobody reads on is no failure of ours.
pub(crate) fn print(text: &[u8]) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Prints a value as JSON.
pub(crate) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<ExitCode> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    print(&text)
}
