//! Runs an entry in a sandbox with a folder for its logs, which is kept and named if something fails.

use crate::arms::Trouble;
use meshd_lab::sandbox::{Ended, Sandbox};
use serde::Serialize;
use std::path::Path;
use tempfile::TempDir;

/// Runs an entry to its end, which must leave nothing; hands its messages on.
pub(crate) fn run(
    entry: &str,
    input: &impl Serialize,
    mut hear: impl FnMut(serde_json::Value),
) -> Result<(), Trouble> {
    with_folder(|folder| {
        let mut sandbox = Sandbox::start(entry, input, folder)?;
        while let Some(message) = sandbox.message() {
            hear(message);
        }
        judge(sandbox.finish())
    })
}

/// An entry must not fail, and nothing may be left.
pub(crate) fn judge(ended: Ended) -> Result<(), Trouble> {
    if let Some(failure) = ended.failure {
        return Err(Trouble::Failed(failure));
    }
    nothing_is_left(&ended)
}

/// Nothing of a sandbox is on the machine.
pub(crate) fn nothing_is_left(ended: &Ended) -> Result<(), Trouble> {
    if ended.remains.is_empty() {
        return Ok(());
    }
    Err(Trouble::Failed(format!(
        "left on the machine: {}",
        ended.remains.join("; ")
    )))
}

/// Gives the body a folder, and keeps it if the body fails.
pub(crate) fn with_folder(body: impl FnOnce(&Path) -> Result<(), Trouble>) -> Result<(), Trouble> {
    let folder =
        TempDir::with_prefix("meshd-arms-").map_err(|e| Trouble::Failed(format!("make a folder: {e}")))?;
    let outcome = body(folder.path());
    if let Err(Trouble::Failed(why)) = outcome {
        let kept = folder.keep();
        return Err(Trouble::Failed(format!(
            "{why}\nlogs are kept in {}",
            kept.display()
        )));
    }
    outcome
}
