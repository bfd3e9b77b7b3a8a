//! The HTTP server of `/metrics`: bounded in connections and time, and no part of what the node's network needs. That it
//! cannot listen is told and tried again; pods get their network all the same.

use super::{Calls, render::render};
use crate::socket::SocketMessage;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc::Sender, oneshot};
use tokio::time::{sleep, timeout};

/// Most connections at a time; one more waits in the backlog.
const CONNECTIONS_MAX: usize = 16;
/// How long a connection lasts, whatever it does: a scrape takes milliseconds.
const CONNECTION_MAX: Duration = Duration::from_secs(15);
/// How long the head of a request may take.
const HEAD_MAX: Duration = Duration::from_secs(5);
/// How long the event loop may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Longest head of a request, in bytes.
const BUFFER_MAX: usize = 16 << 10;
/// How long to wait where it cannot listen, or take a connection.
const PAUSE: Duration = Duration::from_secs(10);
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves `/metrics` at `address` until the event loop is gone.
pub async fn run(address: SocketAddr, calls: Calls, events: Sender<SocketMessage>) {
    let listener = tokio::select! {
        listener = listen(address) => listener,
        () = events.closed() => return,
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = events.closed() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, %address, "cannot take a connection for metrics");
                sleep(PAUSE).await;
                continue;
            }
        };
        let (calls, events) = (calls.clone(), events.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let (calls, events) = (calls.clone(), events.clone());
                async move { Ok::<_, Infallible>(answer(&request, &calls, &events).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_MAX)
                .max_buf_size(BUFFER_MAX)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = timeout(CONNECTION_MAX, connection).await {
                tracing::debug!(%error, "a connection for metrics failed");
            }
            drop(place);
        });
    }
}

async fn listen(address: SocketAddr) -> TcpListener {
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) if !told => {
                told = true;
                tracing::error!(%error, %address, "cannot listen for metrics: give another metrics_listen; it is tried again");
            }
            Err(_) => {}
        }
        sleep(PAUSE).await;
    }
}

async fn answer(
    request: &Request<Incoming>,
    calls: &Calls,
    events: &Sender<SocketMessage>,
) -> Response<Full<Bytes>> {
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "only /metrics is here\n");
    }
    if request.method() != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "/metrics takes GET only\n");
    }
    let (reply, replied) = oneshot::channel();
    let asked = async {
        events.send(SocketMessage::Numbers(reply)).await.ok()?;
        replied.await.ok()
    };
    let Ok(Some(numbers)) = timeout(ANSWER_MAX, asked).await else {
        return plain(StatusCode::SERVICE_UNAVAILABLE, "the agent does not answer\n");
    };
    match render(&numbers, calls) {
        Ok(text) => with_type(StatusCode::OK, CONTENT_TYPE, text),
        Err(_) => plain(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the metrics cannot be written\n",
        ),
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    with_type(status, "text/plain; charset=utf-8", text.to_owned())
}

fn with_type(status: StatusCode, content_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let value = header::HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}
