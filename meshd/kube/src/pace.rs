//! Watches that end as soon as they began are begun again with pauses. kube's watcher takes the end of an answer for
//! the ordinary end of a watch and asks again at once: a server, or something in front of it, that answers 200 and
//! closes would be asked as fast as it answers.

use crate::backoff::Backoff;
use http::{StatusCode, Uri};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// A watch that lasted so long was one.
const LASTED: Duration = Duration::from_secs(5);

/// What became of the last watch of each kind: there are as many as the driver has.
#[derive(Debug, Default)]
pub(crate) struct Pace(Mutex<BTreeMap<Watch, Last>>);

/// A watch, by what it is of: path and field selector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Watch(String);

#[derive(Debug)]
struct Last {
    begun: Instant,
    backoff: Backoff,
}

impl Pace {
    /// Waits until this request may be sent; says which watch it is, if it is one.
    pub(crate) async fn wait(&self, uri: &Uri) -> Option<Watch> {
        let watch = Watch::of(uri)?;
        let pause = self.pause(&watch);
        tokio::time::sleep(pause).await;
        Some(watch)
    }

    fn pause(&self, watch: &Watch) -> Duration {
        let mut watches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match watches.get_mut(watch) {
            Some(last) if last.begun.elapsed() < LASTED => last.backoff.pause(),
            Some(last) => {
                last.backoff.reset();
                Duration::ZERO
            }
            None => Duration::ZERO,
        }
    }

    /// A watch has begun, if this is the answer of one. Of failures its follower keeps the pace.
    pub(crate) fn answered(&self, watch: Option<Watch>, status: StatusCode) {
        let Some(watch) = watch.filter(|_| status.is_success()) else {
            return;
        };
        let mut watches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = Instant::now();
        let last = watches.entry(watch).or_insert_with(|| Last {
            begun,
            backoff: Backoff::new(),
        });
        last.begun = begun;
    }
}

impl Watch {
    fn of(uri: &Uri) -> Option<Self> {
        let mut parameters = uri.query()?.split('&');
        let mut selector = None;
        let mut is_watch = false;
        for parameter in &mut parameters {
            match parameter.split_once('=') {
                Some(("watch", value)) => is_watch = value != "false",
                Some(("fieldSelector", value)) => selector = Some(value),
                _ => {}
            }
        }
        is_watch.then(|| Watch(format!("{} {}", uri.path(), selector.unwrap_or_default())))
    }
}
