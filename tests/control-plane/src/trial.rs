//! Trials (`libtest-mimic`) that share one control plane.

use crate::{ControlPlane, Trouble};
use libtest_mimic::{Completion, Failed};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

/// The control plane of a test binary, for a `static`: the first trial that needs it starts it, and one trial at a time
/// has it, because some restart it.
pub struct Shared(Mutex<Option<Result<ControlPlane, Trouble>>>);

impl Shared {
    /// None is started yet.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a static needs a const")]
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Runs a trial's body with it.
    ///
    /// # Errors
    /// What the body panicked with; why the control plane does not start; and where this machine has none, if
    /// `MESHD_REQUIRE_ARMS` names `kubernetes`. Otherwise the trial is ignored with the reason.
    pub fn run<F: Future<Output = ()>>(
        &self,
        body: impl FnOnce(ControlPlane) -> F,
    ) -> Result<Completion, Failed> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.get_or_insert_with(ControlPlane::start) {
            Ok(control_plane) => {
                let control_plane = control_plane.clone();
                run(|| body(control_plane))?;
                Ok(Completion::Completed)
            }
            Err(Trouble::Failed(why)) => Err(why.clone().into()),
            Err(Trouble::Unable(reason)) if meshd_skip::is_required("kubernetes") => Err(format!(
                "{} names kubernetes, which cannot run: {reason}",
                meshd_skip::VARIABLE
            )
            .into()),
            Err(Trouble::Unable(reason)) => Ok(Completion::ignored_with(format!("arm kubernetes: {reason}"))),
        }
    }

    /// Ends it: what is static is not dropped.
    pub fn shut_down(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// Runs a trial's body on a runtime of its own.
///
/// # Errors
/// What it panicked with.
pub fn run<F: Future<Output = ()>>(body: impl FnOnce() -> F) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = runtime.map_err(|e| format!("start a runtime: {e}"))?;
    let outcome = catch_unwind(AssertUnwindSafe(|| runtime.block_on(async { body().await })));
    runtime.shutdown_background();
    outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied());
        Failed::from(text.unwrap_or("panicked").to_owned())
    })
}
