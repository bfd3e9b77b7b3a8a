//! One watch: kube's own, with pauses after failures and a bound on how long a list may take.

use crate::backoff::{Backoff, between};
use crate::client::chain;
use crate::clients::Clients;
use crate::link::{Closed, Link};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use kube::runtime::watcher::{self, Event};
use meshd_core::KubeEvent;
use meshd_translate::{Frame, ObjectProblem};
use std::time::Duration;

/// How long the API server may take for one page of a list.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// After the history of a watch is gone (410), which all nodes meet at one moment when the API server has restarted,
/// lists begin within this time and within so much more for each object that there was: with 1,000 Nodes, 1,000 lists
/// of 1,000 Nodes spread over 11 s. Meanwhile what was known goes on to be in force.
const RELIST_SPREAD: Duration = Duration::from_secs(1);
const RELIST_SPREAD_EACH: Duration = Duration::from_millis(10);

/// What a watch is about, and how its events are told.
pub(crate) trait Kind {
    /// The objects.
    type Object: Send + 'static;
    /// As in `watch Nodes`.
    const NAME: &'static str;
    /// The first list begins within this time.
    const START_SPREAD: Duration = Duration::ZERO;
    /// A fresh stream, which begins with a list.
    fn stream(&self, listing: Listing) -> BoxStream<'static, watcher::Result<Event<Self::Object>>>;
    /// A list begins.
    fn reset(&mut self) -> Option<KubeEvent>;
    /// A list is complete.
    fn synced(&mut self) -> Option<KubeEvent>;
    /// An object changed; `listed` while a list is read.
    fn change(
        &mut self,
        frame: Frame<&Self::Object>,
        listed: bool,
    ) -> Result<Option<KubeEvent>, ObjectProblem>;
    /// Whether to begin anew after every failure of any watch, so that a success is told.
    fn begins_anew(&self) -> bool {
        false
    }
}

/// How a list is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listing {
    /// As the beginning of a watch: one request, each object read by itself (Kubernetes 1.27 and later, where the
    /// feature WatchList is on).
    Streamed,
    /// In pages.
    Paged,
}

#[derive(Debug, thiserror::Error)]
#[error("the API server took longer than {} s for a list", LIST_TIMEOUT.as_secs())]
struct SlowList;

/// Follows a kind for as long as the agent listens.
pub(crate) async fn follow<K: Kind>(mut kind: K, link: &Link, mut clients: Clients) -> Result<(), Closed> {
    tokio::time::sleep(between(Duration::ZERO, K::START_SPREAD)).await;
    let mut backoff = Backoff::new();
    let mut listing = Listing::Streamed;
    let mut watch = Following::new(&kind, listing);
    loop {
        let next = tokio::select! {
            next = watch.next() => next,
            () = link.lost(), if kind.begins_anew() => {
                watch = Following::new(&kind, listing);
                continue;
            }
            () = clients.renewed() => {
                watch = Following::new(&kind, listing);
                continue;
            }
        };
        if let Err(trouble) = &next
            && let Some(other) = trouble.other_listing(listing)
        {
            tracing::debug!(
                kind = K::NAME,
                "lists are asked for otherwise from now on: {other:?}"
            );
            listing = other;
            watch = Following::new(&kind, listing);
        }
        let pause = match next {
            Ok(event) => {
                if watch.handle(&mut kind, link, event).await? {
                    backoff.reset();
                }
                continue;
            }
            Err(Trouble::Expired) => {
                watch.state = State::Asked;
                between(Duration::ZERO, relist_spread(watch.objects))
            }
            Err(Trouble::Failed(error)) => {
                link.unreachable(&format!("watch {}", K::NAME), &*error).await?;
                backoff.pause()
            }
            Err(Trouble::Slow) => {
                link.unreachable(&format!("list {}", K::NAME), &SlowList).await?;
                watch = Following::new(&kind, listing);
                backoff.pause()
            }
        };
        let renewed = tokio::select! {
            () = tokio::time::sleep(pause) => false,
            () = clients.renewed() => true,
        };
        if renewed || kind.begins_anew() {
            watch = Following::new(&kind, listing);
        }
    }
}

/// Why a watch gave no event.
enum Trouble {
    /// Its history is gone; the stream lists again by itself.
    Expired,
    /// Anything else; the stream goes on by itself.
    Failed(Box<dyn std::error::Error + Send + Sync>),
    /// A list did not come; the stream must be made anew.
    Slow,
}

impl Trouble {
    /// The other way to ask for a list, where this may come of the way it was asked for. A server that does not
    /// stream lists refuses to, or knows nothing of it and never says that the list has ended; the latter a server
    /// that hangs does too, so it is asked in turn.
    fn other_listing(&self, listing: Listing) -> Option<Listing> {
        match (self, listing) {
            (Trouble::Slow, Listing::Streamed) => Some(Listing::Paged),
            (Trouble::Slow, Listing::Paged) => Some(Listing::Streamed),
            (Trouble::Failed(error), Listing::Streamed) => {
                let refused = matches!(error.downcast_ref::<watcher::Error>(),
                    Some(watcher::Error::WatchStartFailed(kube::Error::Api(status)))
                        if matches!(status.code, 400 | 422));
                refused.then_some(Listing::Paged)
            }
            _ => None,
        }
    }
}

fn relist_spread(objects: u32) -> Duration {
    RELIST_SPREAD + RELIST_SPREAD_EACH * objects
}

struct Following<T> {
    stream: BoxStream<'static, watcher::Result<Event<T>>>,
    state: State,
    /// How many the last list had.
    objects: u32,
}

/// Where a watch stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// A list was asked for; nothing of it has come. The agent keeps what it knows until something does.
    Asked,
    /// A list is being read.
    Listing,
    /// Changes are followed.
    Watching,
}

impl<T: Send + 'static> Following<T> {
    fn new<K: Kind<Object = T>>(kind: &K, listing: Listing) -> Self {
        Self {
            stream: kind.stream(listing),
            state: State::Asked,
            objects: 0,
        }
    }

    /// The next event; may be cancelled.
    async fn next(&mut self) -> Result<Event<T>, Trouble> {
        let item = if self.state == State::Watching {
            self.stream.next().await
        } else {
            tokio::time::timeout(LIST_TIMEOUT, self.stream.next())
                .await
                .map_err(|_| Trouble::Slow)?
        };
        match item {
            Some(Ok(event)) => Ok(event),
            Some(Err(watcher::Error::WatchError(status))) if status.code == 410 => Err(Trouble::Expired),
            Some(Err(error)) => Err(Trouble::Failed(Box::new(error))),
            // kube's stream has no end; a stream that ends is as good as a list that never comes.
            None => Err(Trouble::Slow),
        }
    }

    /// Tells of an event; true where it shows that the API server was reached.
    async fn handle<K: Kind<Object = T>>(
        &mut self,
        kind: &mut K,
        link: &Link,
        event: Event<T>,
    ) -> Result<bool, Closed> {
        match event {
            Event::Init => {
                self.state = State::Asked;
                return Ok(false);
            }
            Event::InitApply(object) => {
                self.begin(kind, link).await?;
                self.objects += 1;
                tell(kind, link, Frame::Applied(&object), true).await?;
            }
            Event::InitDone => {
                self.begin(kind, link).await?;
                self.state = State::Watching;
                if let Some(event) = kind.synced() {
                    link.tell(event).await?;
                }
            }
            Event::Apply(object) => tell(kind, link, Frame::Applied(&object), false).await?,
            Event::Delete(object) => tell(kind, link, Frame::Deleted(&object), false).await?,
        }
        Ok(true)
    }

    /// The first of a list has come.
    async fn begin<K: Kind<Object = T>>(&mut self, kind: &mut K, link: &Link) -> Result<(), Closed> {
        if self.state == State::Asked {
            self.state = State::Listing;
            self.objects = 0;
            if let Some(event) = kind.reset() {
                link.tell(event).await?;
            }
        }
        Ok(())
    }
}

async fn tell<K: Kind>(
    kind: &mut K,
    link: &Link,
    frame: Frame<&K::Object>,
    listed: bool,
) -> Result<(), Closed> {
    match kind.change(frame, listed) {
        Ok(Some(event)) => link.tell(event).await,
        Ok(None) => Ok(()),
        // No server sends such objects; if one does, the other objects are still of use.
        Err(problem) => {
            tracing::warn!(problem = %chain(&problem), "an object of the API server cannot be used");
            Ok(())
        }
    }
}

/// How long the API server is asked to keep a watch open. Not the same for all nodes, or they would all come at once.
pub(crate) fn config(least: u64, most: u64, listing: Listing) -> watcher::Config {
    let seconds = between(Duration::from_secs(least), Duration::from_secs(most)).as_secs();
    let config = watcher::Config::default().timeout(u32::try_from(seconds).unwrap_or(60));
    match listing {
        Listing::Streamed => config.streaming_lists(),
        Listing::Paged => config,
    }
}

/// kube's watcher of an `Api`, boxed.
pub(crate) fn boxed<T>(
    stream: impl Stream<Item = watcher::Result<Event<T>>> + Send + 'static,
) -> BoxStream<'static, watcher::Result<Event<T>>> {
    stream.boxed()
}
