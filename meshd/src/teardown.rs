//! `meshd teardown`: removes from the node what meshd has set up.

use crate::drivers::driver_config;
use crate::settings::Settings;
use anyhow::Context;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

/// Removes it, says what, goes on past failures and names them all.
pub fn run(settings: &Settings, force: bool) -> anyhow::Result<ExitCode> {
    if UnixStream::connect(&settings.socket).is_ok() {
        anyhow::bail!(
            "a daemon listens on {} and would set up again what is removed; stop it first",
            settings.socket.display()
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let report = runtime.block_on(meshd_kernel::teardown(&driver_config(settings), force));
    for line in &report.removed {
        println!("removed {line}");
    }
    for line in &report.failed {
        eprintln!("meshd: {line}");
    }
    if report.failed.is_empty() {
        println!("nothing of meshd is in force on this node any more");
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}
