//! The log: `tracing` to standard error, as text or JSON, and the last words of a panic.

use crate::settings::value::LogFormat;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// The variable that overrides the filter of the configuration.
pub const FILTER_VARIABLE: &str = "MESHD_LOG";
/// How long the recording gets to reach its file before a panic ends the process.
const FLUSH: Duration = Duration::from_millis(500);

/// Why the log cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter does not parse.
    #[error("log filter {filter:?} does not parse ({error}); try info, or info,meshd=debug")]
    Filter {
        /// Which.
        filter: String,
        /// Why.
        error: String,
    },
    /// Someone else has set one up.
    #[error("the log was set up already: {0}")]
    Twice(String),
}

/// Sets up the log for the whole process.
pub fn init(filter: &str, format: LogFormat) -> Result<(), LogError> {
    let filter = std::env::var(FILTER_VARIABLE).unwrap_or_else(|_| filter.to_owned());
    let parsed = EnvFilter::try_new(&filter).map_err(|error| LogError::Filter {
        filter,
        error: error.to_string(),
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(std::io::stderr)
        // A log that nobody reads any more must not end the daemon: saying so on the same stream panics.
        .log_internal_errors(false)
        .with_ansi(false);
    let set = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    set.map_err(|error| LogError::Twice(error.to_string()))
}

/// From now on a panic in any thread or task is logged, the recording written out, and the process ended: half a
/// daemon must not go on as if it were whole.
pub fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("a value that is no text");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(
            thread = std::thread::current().name().unwrap_or("unnamed"),
            place,
            "panic, the daemon ends and will be restarted: {message}"
        );
        crate::record::flush_all(FLUSH);
        std::process::abort();
    }));
}
