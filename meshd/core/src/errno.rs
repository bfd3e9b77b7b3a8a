//! The few error numbers of Linux that decisions depend on; the pure crates have no libc.

/// No such file or directory: a namespace that is gone.
pub(crate) const ENOENT: i32 = 2;
/// File exists: an interface name that is taken.
pub(crate) const EEXIST: i32 = 17;
/// No space left on device.
pub(crate) const ENOSPC: i32 = 28;
/// Read-only file system.
pub(crate) const EROFS: i32 = 30;
