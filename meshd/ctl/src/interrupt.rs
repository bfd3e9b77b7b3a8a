//! Ctrl-C, SIGTERM and SIGHUP while a sandbox runs: everything inside ends at once, and the caller goes on to look
//! for what is left and to remove what it made.

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Begins to listen; call it before any other thread is started, since threads inherit what is blocked.
pub(crate) fn listen() -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("block signals")?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            while signals.wait().is_ok() {
                // A second one means: at once.
                if INTERRUPTED.swap(true, Ordering::AcqRel) || !meshd_lab::sandbox::kill_all() {
                    std::process::exit(130);
                }
            }
        })
        .context("start the thread that waits for signals")?;
    Ok(())
}

/// Whether there was one.
pub(crate) fn happened() -> bool {
    INTERRUPTED.load(Ordering::Acquire)
}
