//! What is going on: one line that is redrawn on a terminal, plain lines elsewhere. All of it goes to stderr.

use meshd_scenario::Proof;
use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Shows progress.
pub(crate) struct Display {
    begin: Instant,
    is_terminal: bool,
    step: String,
}

impl Display {
    pub(crate) fn new() -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|t| t == "dumb");
        Self {
            begin: Instant::now(),
            is_terminal: std::io::stderr().is_terminal() && !dumb,
            step: String::new(),
        }
    }

    /// A step begins.
    pub(crate) fn step(&mut self, number: usize, of: usize, name: &str) {
        self.step = format!("[{number}/{of}] {name}");
        self.transient(&self.step.clone());
    }

    /// Something is being done.
    pub(crate) fn doing(&mut self, what: &str) {
        let line = if self.step.is_empty() {
            what.to_owned()
        } else {
            format!("{}: {what}", self.step)
        };
        self.transient(&line);
    }

    /// An expectation was met, or not.
    pub(crate) fn proof(&mut self, proof: &Proof) {
        let mark = if proof.held { "ok  " } else { "FAIL" };
        self.lasting(&format!("{mark} {}{}", proof.name, numbers(proof)));
        if !proof.held {
            self.lasting(&format!("     {}", proof.detail));
        }
    }

    /// A line that stays.
    pub(crate) fn lasting(&mut self, line: &str) {
        let clear = if self.is_terminal { "\r\x1b[2K" } else { "" };
        // Nobody may be looking any more.
        let _ = writeln!(
            std::io::stderr(),
            "{clear}{:6.1}s  {line}",
            self.begin.elapsed().as_secs_f64()
        );
    }

    /// Nothing more is going on.
    pub(crate) fn end(&mut self) {
        if self.is_terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[2K");
        }
    }

    fn transient(&mut self, line: &str) {
        if !self.is_terminal {
            return self.lasting(line);
        }
        // Longer than the terminal is wide, it could not be taken back.
        let line: String = line.chars().take(70).collect();
        let mut err = std::io::stderr().lock();
        let _ = write!(
            err,
            "\r\x1b[2K{:6.1}s  {line}",
            self.begin.elapsed().as_secs_f64()
        );
        let _ = err.flush();
    }
}

/// ` (30 probes, 30 answered)`
pub(crate) fn numbers(proof: &Proof) -> String {
    let shown: Vec<String> = proof
        .numbers
        .iter()
        .map(|(name, count)| match name.as_str() {
            "microseconds" => duration(*count),
            name => format!("{} {count}", name.replace('_', " ")),
        })
        .collect();
    if shown.is_empty() {
        String::new()
    } else {
        format!(" ({})", shown.join(", "))
    }
}

fn duration(micros: u64) -> String {
    match micros {
        0..1_000_000 => format!("{} ms", crate::table::millis(micros)),
        _ => format!("{:.2} s", micros as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_time_is_not_shown_as_none() {
        assert_eq!(duration(1029), "1.03 ms");
        assert_eq!(duration(12_345_678), "12.35 s");
    }
}
