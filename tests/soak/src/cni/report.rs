//! What is counted, and how it is told.

use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Figures of a run.
pub(crate) struct Report {
    seed: u64,
    begun: Instant,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    /// By verb.
    done: BTreeMap<String, Vec<Duration>>,
    /// By verb and error code.
    errors: BTreeMap<String, (u64, String)>,
    others: BTreeMap<&'static str, u64>,
}

impl Report {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            begun: Instant::now(),
            counts: Mutex::default(),
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    fn with<T>(&self, f: impl FnOnce(&mut Counts) -> T) -> T {
        f(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn done(&self, verb: &str, took: Duration) {
        self.with(|counts| counts.done.entry(verb.to_owned()).or_default().push(took));
    }

    /// With the last text of each.
    pub(crate) fn error(&self, verb: &str, code: u64, said: &str) {
        self.with(|counts| {
            let (count, last) = counts.errors.entry(format!("{verb} {code}")).or_default();
            *count += 1;
            said.clone_into(last);
        });
    }

    pub(crate) fn count(&self, what: &'static str) {
        self.with(|counts| *counts.others.entry(what).or_default() += 1);
    }

    pub(crate) fn daemon_killed(&self) {
        self.count("daemons killed");
    }

    pub(crate) fn progress(&self, live: usize) {
        let (added, deleted, killed) = self.with(|counts| {
            let of = |verb: &str| counts.done.get(verb).map_or(0, Vec::len);
            let killed = counts.others.get("daemons killed").copied().unwrap_or(0);
            (of("ADD"), of("DEL"), killed)
        });
        eprintln!(
            "{:>5} s: {added} added, {deleted} deleted, {live} addresses live, {killed} daemons killed",
            self.begun.elapsed().as_secs()
        );
    }

    /// To stdout.
    pub(crate) fn print(&self, as_json: bool, left: &[String], clean: Duration, wrong: &[String]) {
        let seconds = self.begun.elapsed().as_secs_f64();
        self.with(|counts| {
            for times in counts.done.values_mut() {
                times.sort_unstable();
            }
            let at = |times: &[Duration], permille: usize| {
                let index = (times.len() * permille / 1000).min(times.len().saturating_sub(1));
                times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e3)
            };
            let of = |prefix: &str| left.iter().filter(|line| line.contains(prefix)).count();
            let kinds = [
                ("leases", of("file ")),
                ("links", of("interface ")),
                ("rules", of("element ") + of("rule ")),
                ("routes", of("route ")),
            ];
            if as_json {
                let verbs: BTreeMap<&String, _> = counts
                    .done
                    .iter()
                    .map(|(verb, t)| {
                        (
                            verb,
                            json!({"count": t.len(), "p50_ms": at(t, 500), "p99_ms": at(t, 990)}),
                        )
                    })
                    .collect();
                let value = json!({
                    "seed": self.seed, "seconds": seconds, "verbs": verbs, "errors": counts.errors,
                    "events": counts.others, "left": BTreeMap::from(kinds), "wrong": wrong.len(),
                });
                return println!("{value}");
            }
            for (verb, times) in &counts.done {
                println!(
                    "{verb}: {} done, p50 {:.2} ms, p99 {:.2} ms",
                    times.len(),
                    at(times, 500),
                    at(times, 990)
                );
            }
            for (what, (count, last)) in &counts.errors {
                println!("error {what}: {count}, the last: {}", last.trim_end());
            }
            for (what, count) in &counts.others {
                println!("{what}: {count}");
            }
            let left: Vec<String> = kinds
                .iter()
                .map(|(kind, count)| format!("{count} {kind}"))
                .collect();
            println!(
                "left, {:.1} s after the last DEL: {}; {} wrong; {seconds:.0} s in all, seed {}",
                clean.as_secs_f64(),
                left.join(", "),
                wrong.len(),
                self.seed
            );
        });
    }
}
