//! How the C library's allocator keeps memory.
//!
//! By default it keeps a heap for each thread and gives little back of what a burst took: a daemon that has learnt of
//! a thousand nodes stays a tenth larger than what it knows.

/// One heap for all threads, of which what is free at its end goes back to the system. Call it before any thread is
/// started.
pub fn keep_small() {
    set(libc::M_ARENA_MAX, 1);
    set(libc::M_TRIM_THRESHOLD, 64 << 10);
    set(libc::M_TOP_PAD, 16 << 10);
}

#[allow(unsafe_code)]
fn set(parameter: libc::c_int, value: libc::c_int) {
    // SAFETY: mallopt takes two numbers and changes the allocator's own parameters under its own lock. What it does
    // not know it refuses, which is no harm.
    unsafe { libc::mallopt(parameter, value) };
}
