//! What the VM tells the host: text for people on the first serial port, lines of JSON on the second.

use crate::boot::system;
use anyhow::{Context, Result};
use meshd_lab::scenario::Event;
use meshd_scenario::Proof;
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

/// For programs; the first one is the kernel's console, which is our standard output.
const SECOND: &str = "/dev/ttyS1";

/// The two ports, and what came of the checks so far.
pub(crate) struct Console {
    second: File,
    begin: Instant,
    checks: usize,
    failed: usize,
}

impl Console {
    pub(crate) fn open() -> Result<Self> {
        let second = File::options()
            .write(true)
            .open(SECOND)
            .with_context(|| format!("open {SECOND}"))?;
        Ok(Self {
            second,
            begin: Instant::now(),
            checks: 0,
            failed: 0,
        })
    }

    /// The machine is up.
    pub(crate) fn booted(&mut self, modules: usize) {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let release = release.trim();
        let uptime = uptime();
        self.say(&format!(
            "Linux {release}, {modules} modules, up for {uptime:.1} s"
        ));
        self.line(&json!({"boot": {"kernel": release, "modules": modules, "uptime": uptime}}));
    }

    /// What a check does just now.
    pub(crate) fn event(&mut self, check: &str, event: &Event) {
        match event {
            Event::Step { number, of, name } => self.say(&format!("{check}: [{number}/{of}] {name}")),
            Event::Doing(what) => self.say(&format!("{check}: {what}")),
            Event::Proof(proof) => self.proof(check, proof),
            Event::Report(_) => {}
        }
    }

    fn proof(&mut self, check: &str, proof: &Proof) {
        let mark = if proof.held { "ok  " } else { "FAIL" };
        let numbers: Vec<String> = proof.numbers.iter().map(|(k, v)| format!("{k} {v}")).collect();
        self.say(&format!(
            "{check}: {mark} {} ({})",
            proof.name,
            numbers.join(", ")
        ));
        if !proof.held {
            self.say(&format!("{check}:      {}", proof.detail));
        }
        self.line(&json!({"check": check, "proof": proof}));
    }

    /// A check has come to its end.
    pub(crate) fn passed(&mut self, check: &str, held: bool, took: Duration) {
        self.checks += 1;
        self.failed += usize::from(!held);
        let mark = if held { "ok" } else { "FAILED" };
        self.say(&format!("{check}: {mark}, in {:.1} s", took.as_secs_f64()));
        self.line(&json!({"check": check, "held": held, "seconds": took.as_secs_f64()}));
    }

    /// A check could not be run.
    pub(crate) fn failed(&mut self, check: &str, error: &anyhow::Error) {
        self.checks += 1;
        self.failed += 1;
        self.say(&format!("{check}: FAILED: {error:#}"));
        self.line(&json!({"check": check, "held": false, "error": format!("{error:#}")}));
    }

    /// The end of a log, where something failed.
    pub(crate) fn log(&mut self, name: &str, text: &str) {
        for line in text.lines() {
            self.say(&format!("    {name}: {line}"));
        }
        self.line(&json!({"log": name, "text": text}));
    }

    /// All checks are done.
    pub(crate) fn end(&mut self, took: Duration) {
        let held = self.failed == 0 && self.checks > 0;
        let seconds = took.as_secs_f64();
        self.say(&format!(
            "{}: {} of {} checks hold, in {seconds:.1} s",
            if held { "ok" } else { "FAILED" },
            self.checks - self.failed,
            self.checks,
        ));
        self.line(
            &json!({"end": {"held": held, "checks": self.checks, "failed": self.failed, "seconds": seconds}}),
        );
        // What is written waits in the port; the machine ends at once.
        system::drain(&self.second);
        system::drain(std::io::stdout());
    }

    fn say(&mut self, text: &str) {
        // Where nobody listens there is nobody to tell.
        let _ = writeln!(
            std::io::stdout(),
            "{:6.1}s  {text}",
            self.begin.elapsed().as_secs_f64()
        );
    }

    fn line(&mut self, value: &Value) {
        let _ = writeln!(self.second, "{value}");
    }
}

fn uptime() -> f64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let first = text.split(' ').next().and_then(|t| t.parse().ok());
    first.unwrap_or_default()
}
