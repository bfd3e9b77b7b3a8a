//! What the daemon tells a Prometheus server: `GET /metrics` in the OpenMetrics text format, off unless configured.
//!
//! Nothing in it is secret or names a pod: numbers, verbs, codes and families only, so that the number of time series is
//! bounded by what the program knows, not by what it is asked.

mod calls;
mod endpoint;
mod render;

pub use calls::Calls;
pub(crate) use calls::verb;
pub use endpoint::run;
