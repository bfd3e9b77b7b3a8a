//! Connections.

use crate::convert;
use crate::shared::{Shared, Watch};
use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

/// Most connections at one time; one more waits.
const CONNECTIONS_MAX: usize = 4096;
/// How long a client may take to send the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Lines that wait between a watch and a connection that is slow; further ones wait in the server's bounded queue.
const LINES: usize = 16;

/// A server that is being served. Dropping it, like [`stop`](Self::stop), cuts all its connections; the objects stay
/// in the [`Shared`] and can be served again.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    accept: JoinHandle<()>,
}

impl Running {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://ADDRESS`
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Stops listening and cuts every connection, as a server that goes away does; returns when that is done, so
    /// that its address can be listened on again.
    pub async fn stop(self) {
        drop(self.stop);
        let _ = self.accept.await;
    }
}

/// Serves `shared` on `listener`, until the result is stopped or dropped.
///
/// # Errors
/// Where the listener has no address.
pub fn serve(listener: TcpListener, shared: Shared) -> std::io::Result<Running> {
    let address = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel();
    let accept = tokio::spawn(accept(listener, shared, stopped));
    Ok(Running {
        address,
        stop,
        accept,
    })
}

/// Owns every task of the server, and ends them all when it is told to stop.
async fn accept(listener: TcpListener, shared: Shared, mut stopped: oneshot::Receiver<()>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut tasks = JoinSet::new();
    tasks.spawn(shared.clone().run_timers());
    loop {
        let next = async {
            let permit = room.clone().acquire_owned().await.ok();
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            _ = &mut stopped => break,
            Some(_) = tasks.join_next() => continue,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = connection(stream, shared.clone());
                tasks.spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            // Out of descriptors, most likely: it passes, and until then must not spin.
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    tasks.shutdown().await;
}

async fn connection(stream: TcpStream, shared: Shared) {
    let _ = stream.set_nodelay(true);
    let service = hyper::service::service_fn(move |request| respond(request, shared.clone()));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "a connection ended");
    }
}

type ResponseBody = Either<Full<Bytes>, Lines>;

async fn respond(
    request: http::Request<Incoming>,
    shared: Shared,
) -> Result<http::Response<ResponseBody>, Infallible> {
    let request = match convert::request(request).await {
        Ok(request) => request,
        Err(status) => {
            let mut refused = http::Response::new(Either::Left(Full::default()));
            *refused.status_mut() =
                http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::BAD_REQUEST);
            return Ok(refused);
        }
    };
    match shared.handle(request) {
        Ok(response) => Ok(convert::response(&response).map(Either::Left)),
        Err(watch) => {
            let mut stream = http::Response::new(Either::Right(Lines::of(watch)));
            let json = http::HeaderValue::from_static("application/json");
            stream.headers_mut().insert(http::header::CONTENT_TYPE, json);
            Ok(stream)
        }
    }
}

/// The body of a watch. It goes with its connection, and the watch with it.
struct Lines {
    lines: mpsc::Receiver<Vec<u8>>,
    task: JoinHandle<()>,
}

impl Lines {
    fn of(mut watch: Watch) -> Self {
        let (tx, lines) = mpsc::channel(LINES);
        let task = tokio::spawn(async move {
            while let Some(line) = watch.next_line().await {
                if tx.send(line).await.is_err() {
                    return;
                }
            }
        });
        Self { lines, task }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let line = self.lines.poll_recv(cx);
        line.map(|l| l.map(|line| Ok(Frame::data(Bytes::from(line)))))
    }
}
