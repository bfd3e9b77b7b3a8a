//! How a test says that this machine cannot run it.
//!
//! A test that is left out is named with its reason; where `MESHD_REQUIRE_ARMS` (names separated by commas) names the
//! arm that it belongs to, it fails.

use std::fmt::Display;
use std::io::Write;

/// Names the arms that must run.
pub const VARIABLE: &str = "MESHD_REQUIRE_ARMS";

/// Leaves a test of an arm out.
///
/// # Panics
/// Where the arm is required.
#[track_caller]
pub fn skip_on(arm: &str, test: &str, reason: impl Display) {
    assert!(
        !is_required(arm),
        "{test} cannot run, and {VARIABLE} names {arm}: {reason}"
    );
    skip(test, reason);
}

/// Leaves a test out that belongs to no arm.
pub fn skip(test: &str, reason: impl Display) {
    // Straight to the file descriptor: what a test that passes prints is kept back by its harness.
    let _ = writeln!(std::io::stderr(), "skipped {test}: {reason}");
}

/// Whether an arm must run.
#[must_use]
pub fn is_required(arm: &str) -> bool {
    names(&std::env::var(VARIABLE).unwrap_or_default(), arm)
}

fn names(list: &str, arm: &str) -> bool {
    list.split(',').any(|name| name.trim() == arm)
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn spaces_do_not_make_an_arm_optional() {
        assert!(names("sim, netns", "netns") && names("netns", "netns") && names(" sim ,netns", "sim"));
        assert!(!names("", "netns") && !names("netns2,simulated", "netns"));
    }
}
