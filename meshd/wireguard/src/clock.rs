//! The clocks.

use meshd_model::{Boot, Now, Wall};
use nix::time::{ClockId, clock_gettime};

/// Both clocks, now.
pub(crate) fn now() -> Now {
    Now {
        boot: Boot(read(ClockId::CLOCK_BOOTTIME)),
        wall: Wall(read(ClockId::CLOCK_REALTIME)),
    }
}

/// Nanoseconds; 0 for a clock set before 1970.
fn read(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).expect("Linux has had both clocks since 2.6.39");
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec()).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}
