//! `meshd teardown`: removes from the node what meshd has set up.

use crate::settings::Settings;
use std::process::ExitCode;

/// Removes it, says what, goes on past failures and names them all.
pub fn run(_settings: &Settings, _force: bool) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not there yet")
}
