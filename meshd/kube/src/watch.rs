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
/// After the history of a watch is gone (410), which all nodes meet at one moment, lists begin within this time.
const RELIST_SPREAD: Duration = Duration::from_secs(1);

/// What a watch is about, and how its events are told.
pub(crate) trait Kind {
    /// The objects.
    type Object: Send + 'static;
    /// As in `watch Nodes`.
    const NAME: &'static str;
    /// A fresh stream, which begins with a list.
    fn stream(&self) -> BoxStream<'static, watcher::Result<Event<Self::Object>>>;
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

#[derive(Debug, thiserror::Error)]
#[error("the API server took longer than {} s for a list", LIST_TIMEOUT.as_secs())]
struct SlowList;

/// Follows a kind for as long as the agent listens.
pub(crate) async fn follow<K: Kind>(mut kind: K, link: &Link, mut clients: Clients) -> Result<(), Closed> {
    let mut backoff = Backoff::new();
    let mut watch = Following::new(&kind);
    loop {
        let next = tokio::select! {
            next = watch.next() => next,
            () = link.lost(), if kind.begins_anew() => {
                watch = Following::new(&kind);
                continue;
            }
            () = clients.renewed() => {
                watch = Following::new(&kind);
                continue;
            }
        };
        let pause = match next {
            Ok(event) => {
                if watch.handle(&mut kind, link, event).await? {
                    backoff.reset();
                }
                continue;
            }
            Err(Trouble::Expired) => between(Duration::ZERO, RELIST_SPREAD),
            Err(Trouble::Failed(error)) => {
                link.unreachable(&format!("watch {}", K::NAME), &*error).await?;
                backoff.pause()
            }
            Err(Trouble::Slow) => {
                link.unreachable(&format!("list {}", K::NAME), &SlowList).await?;
                watch = Following::new(&kind);
                backoff.pause()
            }
        };
        let renewed = tokio::select! {
            () = tokio::time::sleep(pause) => false,
            () = clients.renewed() => true,
        };
        if renewed || kind.begins_anew() {
            watch = Following::new(&kind);
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

struct Following<T> {
    stream: BoxStream<'static, watcher::Result<Event<T>>>,
    state: State,
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
    fn new<K: Kind<Object = T>>(kind: &K) -> Self {
        Self {
            stream: kind.stream(),
            state: State::Asked,
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
pub(crate) fn config(least: u64, most: u64) -> watcher::Config {
    let seconds = between(Duration::from_secs(least), Duration::from_secs(most)).as_secs();
    watcher::Config::default().timeout(u32::try_from(seconds).unwrap_or(60))
}

/// kube's watcher of an `Api`, boxed.
pub(crate) fn boxed<T>(
    stream: impl Stream<Item = watcher::Result<Event<T>>> + Send + 'static,
) -> BoxStream<'static, watcher::Result<Event<T>>> {
    stream.boxed()
}
