//! The capture on the underlay: every packet, from before the first pod to the end.

mod count;
mod ring;

use anyhow::{Context, Result, bail};
use count::Counter;
use ipnetwork::IpNetwork;
use meshd_scenario::UnderlayReport;
use ring::Ring;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A capture that runs until it is dropped.
pub struct Capture {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    counter: Mutex<Counter>,
    /// How often the ring was found empty.
    idle: AtomicU64,
    stop: AtomicBool,
}

impl Capture {
    /// Captures on all interfaces of the calling thread's network namespace but loopback. Each packet is counted where
    /// it enters the underlay: at a port, or at the bridge when the machine itself sends. `pod_cidrs` are the
    /// cluster's.
    pub fn start(bridge: u32, pod_cidrs: &[IpNetwork]) -> Result<Self> {
        let ring = Ring::open()?;
        let shared = Arc::new(Shared {
            counter: Mutex::new(Counter::new(pod_cidrs)),
            idle: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("capture".into())
            .spawn(move || run(ring, bridge, &of_thread))
            .context("start the capture's thread")?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// What was seen up to now.
    pub fn report(&self) -> Result<UnderlayReport> {
        let before = self.shared.idle.load(Ordering::Acquire);
        let deadline = Instant::now() + Duration::from_secs(5);
        // Twice: once may have been on its way before the last packet was sent.
        while self.shared.idle.load(Ordering::Acquire) < before + 2 {
            if Instant::now() > deadline {
                bail!("the capture does not keep up with the underlay's traffic");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let counter = self.shared.counter.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(counter.report().clone())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(mut ring: Ring, bridge: u32, shared: &Shared) {
    while !shared.stop.load(Ordering::Acquire) {
        ring.wait();
        let mut counter = shared.counter.lock().unwrap_or_else(PoisonError::into_inner);
        while ring.take(|seen| {
            if !seen.loopback && seen.outgoing == (seen.ifindex == bridge) {
                counter.see(seen.frame);
            }
        }) {}
        counter.dropped(ring.drops());
        shared.idle.fetch_add(1, Ordering::AcqRel);
    }
}
