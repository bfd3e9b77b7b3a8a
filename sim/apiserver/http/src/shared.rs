//! One server, shared by its connections and by whoever runs it.

use meshd_apiserver::{ApiServer, Config, Reply, Request, Response, Time, WatchFrame, WatchId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;

/// An API server that many may use at once. Clones are the same server; it keeps its objects while it is not served.
#[derive(Clone, Debug)]
pub struct Shared(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    /// The time of the next timeout may have changed.
    timer: Notify,
}

#[derive(Debug)]
struct State {
    server: ApiServer,
    /// Wakes the connection that a watch belongs to.
    wakers: BTreeMap<WatchId, Arc<Notify>>,
}

impl Shared {
    /// A new server, made at the system's time.
    #[must_use]
    pub fn start(config: Config) -> Self {
        Self::new(ApiServer::new(config, now()))
    }

    /// Shares a server; it is told the system's time from now on.
    #[must_use]
    pub fn new(server: ApiServer) -> Self {
        let state = Mutex::new(State {
            server,
            wakers: BTreeMap::new(),
        });
        let timer = Notify::new();
        Self(Arc::new(Inner { state, timer }))
    }

    /// Does something with the server itself, and lets every watch know.
    pub fn with<T>(&self, f: impl FnOnce(&mut ApiServer, Time) -> T) -> T {
        let mut state = self.lock();
        let result = f(&mut state.server, now());
        state.wake();
        drop(state);
        self.0.timer.notify_one();
        result
    }

    /// Carries out a request that is no watch, without a connection.
    ///
    /// # Panics
    /// If the request is a watch.
    pub fn request(&self, request: Request) -> Response {
        self.with(|server, now| server.handle(now, request)).response()
    }

    pub(crate) fn handle(&self, request: Request) -> Result<Response, Watch> {
        let mut state = self.lock();
        let reply = state.server.handle(now(), request);
        let reply = match reply {
            Reply::Now(response) => Ok(response),
            Reply::Watch(id) => {
                let waker = Arc::new(Notify::new());
                state.wakers.insert(id, waker.clone());
                let shared = self.clone();
                Err(Watch { shared, id, waker })
            }
        };
        state.wake();
        drop(state);
        self.0.timer.notify_one();
        reply
    }

    /// Runs the server's timers; ends only when it is dropped.
    pub(crate) async fn run_timers(self) {
        loop {
            let due = self.lock().server.poll_timeout();
            let wait = due.map_or(Duration::from_secs(3600), |due| {
                Duration::from_nanos(due.0.saturating_sub(now().0))
            });
            tokio::select! {
                () = tokio::time::sleep(wait) => self.with(|server, now| server.handle_timeout(now)),
                () = self.0.timer.notified() => {}
            }
        }
    }

    /// A panic in another's closure leaves the server in a state that is still an API server's.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wake(&self) {
        for id in self.server.ready() {
            if let Some(waker) = self.wakers.get(&id) {
                waker.notify_one();
            }
        }
    }
}

/// A watch as its connection holds it; dropping it ends the watch.
#[derive(Debug)]
pub(crate) struct Watch {
    shared: Shared,
    id: WatchId,
    waker: Arc<Notify>,
}

impl Watch {
    /// The next event as a line, or None where the stream ends.
    pub(crate) async fn next_line(&mut self) -> Option<Vec<u8>> {
        loop {
            let frame = self.shared.lock().server.poll_frame(self.id);
            match frame {
                Some(WatchFrame::End) => return None,
                Some(event) => return Some(event.to_line()),
                None => self.waker.notified().await,
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.server.close_watch(self.id);
        state.wakers.remove(&self.id);
    }
}

fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
