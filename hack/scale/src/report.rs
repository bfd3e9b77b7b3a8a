//! What is printed: one line a figure, as it is taken.

use std::time::{Duration, Instant};

pub(crate) struct Report {
    begun: Instant,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self {
            begun: Instant::now(),
        }
    }

    /// A heading, or a remark.
    pub(crate) fn note(&self, text: &str) {
        println!("[{:6.1} s] {text}", self.begun.elapsed().as_secs_f64());
    }

    /// A figure.
    pub(crate) fn line(&self, what: &str, figure: impl std::fmt::Display) {
        println!("    {what:<58} {figure}");
    }
}

pub(crate) fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

pub(crate) fn kib(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss)]
    let kib = bytes as f64 / 1024.0;
    format!("{kib:.1} KiB")
}

pub(crate) fn mib(kib: u64) -> String {
    #[allow(clippy::cast_precision_loss)]
    let mib = kib as f64 / 1024.0;
    format!("{mib:.1} MiB")
}
