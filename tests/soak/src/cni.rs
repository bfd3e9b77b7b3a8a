//! Many pods at once, while everything that can be killed is.

mod gc;
mod report;
mod worker;

use crate::live::Live;
use crate::place::Place;
use crate::random::{Random, seed};
use crate::{Common, remains};
use anyhow::{Result, bail};
use report::Report;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};
use worker::Worker;

/// How long what is left of pods may take to go, after the last DEL.
const AFTERWARDS: Duration = Duration::from_secs(120);
/// The longest that the daemon is left down.
const DOWN: Duration = Duration::from_millis(400);
/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);

/// How much, and how wild.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Pods to add and delete.
    #[arg(long, default_value_t = 100_000)]
    count: u64,
    /// Ends after so many seconds, however many pods that were; 0 for no such end.
    #[arg(long, default_value_t = 0)]
    seconds: u64,
    /// How many are worked on at once.
    #[arg(long, default_value_t = 8)]
    workers: u64,
    /// Pods that each of these keeps alive at most.
    #[arg(long, default_value_t = 6)]
    pods: usize,
    /// Milliseconds from one kill -9 of the daemon to the next, on average; 0 for none.
    #[arg(long, default_value_t = 3000)]
    kill_every: u64,
    /// Plugin calls of a thousand that are killed.
    #[arg(long, default_value_t = 20)]
    kill_plugin: u64,
    /// Pods of a thousand whose namespace goes before its time.
    #[arg(long, default_value_t = 100)]
    vanish: u64,
    /// Pods of a thousand that their runtime forgets without a DEL: GC is to find them.
    #[arg(long, default_value_t = 20)]
    forget: u64,
    /// How often of a thousand times a worker asks for a GC after an ADD.
    #[arg(long, default_value_t = 5)]
    gc: u64,
    /// Seconds that a freed address rests.
    #[arg(long, default_value_t = 1)]
    rest: u32,
}

/// What all workers share.
pub(crate) struct Soak<'a> {
    pub(crate) options: &'a Options,
    pub(crate) place: &'a Place,
    pub(crate) live: Live,
    /// The containers that GC is to let be: from before ADD until after DEL.
    valid: Mutex<BTreeSet<String>>,
    /// Read by each call of the plugin, and written by GC.
    pub(crate) turns: RwLock<()>,
    pub(crate) next: AtomicU64,
    pub(crate) report: Report,
    violations: Mutex<Vec<String>>,
    stop: AtomicBool,
}

impl Soak<'_> {
    /// Something that must not be.
    pub(crate) fn violated(&self, what: String) {
        eprintln!("WRONG: {what}");
        self.violations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(what);
        self.stop.store(true, Ordering::SeqCst);
    }

    pub(crate) fn valid(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.valid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no more pods are to come.
    pub(crate) fn is_over(&self) -> bool {
        let late =
            self.options.seconds > 0 && self.report.elapsed() > Duration::from_secs(self.options.seconds);
        late || self.stop.load(Ordering::SeqCst)
    }
}

/// Runs it; an error where anything was wrong or is left.
pub(crate) fn run(options: &Options) -> Result<()> {
    let seed = seed(options.common.seed)?;
    eprintln!("seed {seed}: {} pods", options.count);
    let place = Place::make(&options.common, options.rest)?;
    let before = remains::lines(&place)?;
    let soak = Soak {
        options,
        place: &place,
        live: Live::default(),
        valid: Mutex::default(),
        turns: RwLock::default(),
        next: AtomicU64::new(0),
        report: Report::new(seed),
        violations: Mutex::default(),
        stop: AtomicBool::new(false),
    };
    work(&soak, seed)?;
    place.start_if_down()?;
    place.until_ready()?;
    gc::collect(&soak)?;
    let violations = std::mem::take(&mut *soak.violations.lock().unwrap_or_else(PoisonError::into_inner));
    let begun = Instant::now();
    let left = match violations.is_empty() {
        true => place.until_clean(&before, AFTERWARDS)?,
        false => Vec::new(),
    };
    soak.report
        .print(options.common.json, &left, begun.elapsed(), &violations);
    for line in violations.iter().chain(&left) {
        eprintln!("{line}");
    }
    if violations.is_empty() && left.is_empty() {
        return Ok(());
    }
    eprintln!("{}", place.last_words());
    bail!(
        "{} things went wrong and {} lines differ afterwards; --seed {seed} makes the same choices again",
        violations.len(),
        left.len()
    )
}

fn work(soak: &Soak<'_>, seed: u64) -> Result<()> {
    let done = AtomicBool::new(false);
    let done = &done;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..soak.options.workers)
            .map(|number| {
                let random = Random::new(seed.wrapping_mul(1000).wrapping_add(number));
                scope.spawn(move || Worker::new(soak, random, number).run())
            })
            .collect();
        let killer = scope.spawn(move || kill(soak, Random::new(!seed), done));
        let mut told = Instant::now();
        while workers.iter().any(|worker| !worker.is_finished()) {
            std::thread::sleep(Duration::from_millis(50));
            if told.elapsed() > PROGRESS {
                told = Instant::now();
                soak.report.progress(soak.live.count());
            }
        }
        done.store(true, Ordering::SeqCst);
        for worker in workers {
            match worker.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => soak.violated(format!("{error:#}")),
                Err(_) => soak.violated("a worker has panicked".to_owned()),
            }
        }
        match killer.join() {
            Ok(killed) => killed,
            Err(_) => bail!("the killer has panicked"),
        }
    })
}

/// kill -9 of the daemon, again and again, and its start after a while.
fn kill(soak: &Soak<'_>, mut random: Random, done: &AtomicBool) -> Result<()> {
    let every = Duration::from_millis(soak.options.kill_every);
    let sleep = |time: Duration| {
        let end = Instant::now() + time;
        while Instant::now() < end && !done.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5).min(time));
        }
    };
    while !done.load(Ordering::SeqCst) && !every.is_zero() {
        sleep(random.within(every * 2));
        if done.load(Ordering::SeqCst) {
            break;
        }
        if let Err(error) = soak.place.kill() {
            soak.violated(format!("{error:#}"));
        }
        soak.report.daemon_killed();
        sleep(random.within(DOWN));
        soak.place.start()?;
    }
    Ok(())
}
