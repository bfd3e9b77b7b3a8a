//! Calls of the local socket by runtimes, counted and timed.

use meshd_model::cni::{Call, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::time::Duration;

/// Upper ends of the histogram's buckets, in seconds: a call takes some milliseconds, and ten seconds at the longest.
const BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0,
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    verb: &'static str,
    /// 0 for success, else the code of the CNI error; `gone` if the caller did not wait for it.
    code: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Verb {
    verb: &'static str,
}

/// All clones count together.
#[derive(Clone, Debug)]
pub struct Calls {
    outcomes: Family<Outcome, Counter>,
    durations: Family<Verb, Histogram, fn() -> Histogram>,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            outcomes: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
        }
    }
}

impl Calls {
    /// A call has ended, with an answer or without one. What is no verb of CNI is not counted.
    pub(crate) fn ended(&self, verb: Option<&'static str>, response: Option<&Response>, took: Duration) {
        let Some(verb) = verb else { return };
        let code = match response {
            Some(Response::Error(error)) => error.code.to_string(),
            Some(_) => "0".to_owned(),
            None => "gone".to_owned(),
        };
        self.outcomes.get_or_create(&Outcome { verb, code }).inc();
        self.durations
            .get_or_create(&Verb { verb })
            .observe(took.as_secs_f64());
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Calls of the CNI plugin by verb and by code of the CNI error: 0 for success, gone if the caller left";
        registry.register("cni_calls", help, self.outcomes.clone());
        let help = "Time from a call of the CNI plugin to its answer";
        registry.register_with_unit("cni_call_duration", help, Unit::Seconds, self.durations.clone());
    }
}

/// The verb of CNI that is called.
pub(crate) fn verb(call: &Call) -> Option<&'static str> {
    match call {
        Call::Add(_) => Some("add"),
        Call::Del(_) => Some("del"),
        Call::Check(_) => Some("check"),
        Call::Gc(_) => Some("gc"),
        Call::CniStatus => Some("status"),
        Call::Status | Call::Ready => None,
    }
}
