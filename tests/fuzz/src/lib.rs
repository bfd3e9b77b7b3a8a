//! What is fuzzed: each target is a function of bytes that panics where something does not hold.
//!
//! The fuzzer (`hack/fuzz`, in the workspace of `fuzz/`) calls them with what it makes up, and `tests/corpus.rs` with
//! what was kept of that.

mod daemon;
mod plugin;
mod store;

pub use daemon::{annotations, request};
pub use plugin::{environment, response, stdin};
pub use store::{kept, lease};

/// A target.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also that of its folder in `fuzz/corpus`.
pub const TARGETS: [(&str, Target); 7] = [
    ("annotations", annotations),
    ("environment", environment),
    ("kept", kept),
    ("lease", lease),
    ("request", request),
    ("response", response),
    ("stdin", stdin),
];

/// Longest text of an error, in bytes: whatever came in, a runtime's log takes it.
const ERROR_MAX: usize = 16 << 10;

fn check_error(error: &meshd_model::cni::CniError, codes: &[u32]) {
    assert!(codes.contains(&error.code), "code {} in {error}", error.code);
    assert!(!error.msg.is_empty(), "an error without a message");
    assert!(!error.msg.contains('\n'), "more than a line: {:?}", error.msg);
    let length = error.msg.len() + error.details.len();
    assert!(length <= ERROR_MAX, "an error of {length} bytes");
}
