//! One connection: one request, one answer.

use super::notes::Notes;
use super::{Look, Reply, SocketMessage};
use crate::clock;
use crate::metrics::{Calls, verb};
use meshd_core::{CniCall, RequestId};
use meshd_model::cni::{Call, Check, CniError, MESSAGE_MAX, REQUEST_MAX, Request, Response, code};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc::Sender, oneshot};
use tokio::time::timeout;

/// How long a caller may take to send its request, and to take its answer.
const IO_MAX: Duration = Duration::from_secs(10);
/// Longest deadline that is taken; no runtime waits longer.
const DEADLINE_MAX: Duration = Duration::from_secs(600);
/// How long a caller that is still sending is listened to after it was refused, so that it comes to read why.
const LINGER: Duration = Duration::from_secs(1);
/// How often to look whether a caller that sends no more is still there.
const LOOK: Duration = Duration::from_millis(100);
/// How long the kernel may take to be looked at before a status is given without.
const LOOK_AT_KERNEL: Duration = Duration::from_secs(1);

/// Where a session takes its questions.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) events: Sender<SocketMessage>,
    /// The number of the next request.
    pub(super) ids: Arc<AtomicU64>,
    pub(super) notes: Notes,
    pub(super) look: Look,
    pub(super) calls: Calls,
}

/// Serves one connection.
pub(super) async fn serve(mut stream: UnixStream, asked: Asked) {
    let response = match timeout(IO_MAX, read_request(&mut stream)).await {
        Err(_) => decode_error("the request did not come within 10 s", "send one line of JSON"),
        // It went away without a word.
        Ok(Ok(None)) => return,
        Ok(Ok(Some(request))) => {
            let (begun, verb) = (Instant::now(), verb(&request.call));
            let response = answer(&mut stream, request, &asked).await;
            asked.calls.ended(verb, response.as_ref(), begun.elapsed());
            match response {
                Some(response) => response,
                None => return,
            }
        }
        Ok(Err(error)) => Response::Error(error),
    };
    respond(&mut stream, &response).await;
}

/// Tells a peer that it is not permitted.
pub(super) async fn refuse(mut stream: UnixStream, peer: Result<u32, String>) {
    let who = match peer {
        Ok(uid) => format!("uid {uid} is not permitted here"),
        Err(error) => format!("the peer's credentials cannot be read: {error}"),
    };
    let error = CniError {
        code: code::IO,
        msg: who,
        details: "only root and the daemon's own user may use this socket".into(),
    };
    respond(&mut stream, &Response::Error(error)).await;
}

fn decode_error(msg: impl Into<String>, details: impl Into<String>) -> Response {
    Response::Error(decode(msg, details))
}

fn decode(msg: impl Into<String>, details: impl Into<String>) -> CniError {
    CniError {
        code: code::DECODE,
        msg: msg.into(),
        details: details.into(),
    }
}

/// Reads up to the newline, or to the end of what the caller sends. None if it sent nothing at all.
async fn read_request(stream: &mut UnixStream) -> Result<Option<Request>, CniError> {
    let mut line = Vec::with_capacity(4096);
    loop {
        let before = line.len();
        let room = (REQUEST_MAX + 1).saturating_sub(before) as u64;
        let read = (&mut *stream).take(room).read_buf(&mut line).await;
        let read = read.map_err(|error| decode("the request cannot be read", error.to_string()))?;
        if let Some(end) = line[before..].iter().position(|b| *b == b'\n') {
            let (request, more) = line.split_at(before + end);
            if more.len() > 1 {
                return Err(decode("more than one line came", "one request a connection"));
            }
            return parse(request).map(Some);
        }
        if line.len() > REQUEST_MAX {
            return Err(decode(
                format!("the request is longer than {REQUEST_MAX} bytes"),
                "no honest request is",
            ));
        }
        if read == 0 {
            return if line.is_empty() {
                Ok(None)
            } else {
                parse(&line).map(Some)
            };
        }
    }
}

fn parse(line: &[u8]) -> Result<Request, CniError> {
    serde_json::from_slice(line).map_err(|error| {
        let what = if error.is_data() {
            "is no request that this daemon knows"
        } else {
            "is not JSON"
        };
        decode(
            format!("the message {what}: {error}"),
            "send {\"deadline_ms\":..,\"call\":..}; are the plugin and the daemon of one version?",
        )
    })
}

/// Asks the event loop and waits, for the answer, the deadline, or the caller to go away: then there is none.
async fn answer(stream: &mut UnixStream, request: Request, asked: &Asked) -> Option<Response> {
    let Asked {
        events,
        ids,
        notes,
        look: looks,
        ..
    } = asked;
    let wait = Duration::from_millis(request.deadline_ms).min(DEADLINE_MAX);
    let call = match request.call {
        Call::Status => return Some(status(events, wait).await),
        Call::Ready => return Some(ready(events, wait).await),
        Call::CniStatus => return Some(cni_status(events, wait).await),
        Call::Add(add) => CniCall::Add(add),
        Call::Del(id) => CniCall::Del(id),
        Call::Check(check) => CniCall::Check(check),
        Call::Gc(gc) => CniCall::Gc(gc),
    };
    let looked_at = match &call {
        CniCall::Check(check) => Some(check.clone()),
        _ => None,
    };
    let about = match &call {
        CniCall::Add(add) => Some(add.id.clone()),
        CniCall::Del(id) => Some(id.clone()),
        _ => None,
    };
    let id = RequestId(ids.fetch_add(1, Ordering::Relaxed));
    let begun = Instant::now();
    let deadline = clock::now().boot + wait;
    let (reply, mut replied) = oneshot::channel();
    let message = SocketMessage::Request {
        id,
        deadline,
        call: Box::new(call),
        reply,
    };
    // A daemon that stops hangs up: whoever asked asks the next one, or leaves a note for it.
    let asked = async {
        if events.send(message).await.is_err() {
            return None;
        }
        (&mut replied).await.ok().map(replied_with)
    };
    let response = tokio::select! {
        biased;
        response = asked => response,
        () = gone(stream) => None,
        () = tokio::time::sleep(wait) => Some(too_late(wait)),
    };
    if let (Some(check), Some(Response::Done)) = (&looked_at, &response) {
        return Some(look(check, *looks, wait.saturating_sub(begun.elapsed())).await);
    }
    if let (Some(id), Some(Response::Added(_) | Response::Done)) = (&about, &response) {
        notes.remove(id);
    }
    if matches!(
        response,
        None | Some(Response::Error(CniError {
            code: code::TRY_AGAIN,
            ..
        }))
    ) {
        // Harmless where the agent has answered; where the message was never sent, nobody knows the id.
        let _ = timeout(IO_MAX, events.send(SocketMessage::Gone(id))).await;
    }
    response
}

/// What the agent does not know: whether the pod's end is as prevResult says. A look changes nothing, so that it needs
/// neither the agent nor the queue of its actions.
async fn look(check: &Check, looks: Look, wait: Duration) -> Response {
    let told = |code, msg: String, details: &str| {
        Response::Error(CniError {
            code,
            msg,
            details: details.into(),
        })
    };
    match timeout(wait, looks(check.clone())).await {
        Ok(Ok(found)) if found.is_empty() => Response::Done,
        Ok(Ok(found)) => told(
            code::DIFFERS,
            format!("{} is not as ADD left it: {}", check.id, found.join("; ")),
            "DEL and ADD mend it",
        ),
        Ok(Err(why)) => told(
            code::KERNEL,
            format!("{} cannot be looked at: {why}", check.id),
            "see meshd's log, and the kernel's",
        ),
        Err(_) => too_late(wait),
    }
}

fn replied_with(reply: Reply) -> Response {
    match reply {
        Ok(Some(added)) => Response::Added(added),
        Ok(None) => Response::Done,
        Err(error) => Response::Error(error),
    }
}

fn stopping() -> Response {
    Response::Error(CniError {
        code: code::TRY_AGAIN,
        msg: "meshd is being stopped".into(),
        details: "try again once it is back; nothing was lost".into(),
    })
}

fn too_late(wait: Duration) -> Response {
    Response::Error(CniError {
        code: code::TRY_AGAIN,
        msg: format!("meshd had no answer within {} ms", wait.as_millis()),
        details: "try again; `meshctl status` shows what it waits for".into(),
    })
}

/// Handshakes and bytes as they are now, if the kernel says so in time; as they were when it last did, if not.
async fn status(events: &Sender<SocketMessage>, wait: Duration) -> Response {
    let (done, looked) = oneshot::channel();
    let look = async {
        if events.send(SocketMessage::Look(done)).await.is_ok() {
            let _ = looked.await;
        }
    };
    let begun = Instant::now();
    let _ = timeout(LOOK_AT_KERNEL.min(wait / 2), look).await;
    let wait = wait.saturating_sub(begun.elapsed());
    let (reply, replied) = oneshot::channel();
    let asked = async {
        events.send(SocketMessage::Status(reply)).await.ok()?;
        replied.await.ok()
    };
    match timeout(wait, asked).await {
        Ok(Some(status)) => Response::Status(Box::new(status)),
        Ok(None) => stopping(),
        Err(_) => too_late(wait),
    }
}

/// A probe comes every few seconds for as long as the node lives, so it costs no more than the question.
async fn ready(events: &Sender<SocketMessage>, wait: Duration) -> Response {
    let (reply, replied) = oneshot::channel();
    let asked = async {
        events.send(SocketMessage::Ready(reply)).await.ok()?;
        replied.await.ok()
    };
    match timeout(wait, asked).await {
        Ok(Some(None)) => Response::Done,
        Ok(Some(Some(lacks))) => Response::Error(CniError {
            code: code::NOT_AVAILABLE,
            msg: lacks,
            details: "`meshctl status` says what to do".into(),
        }),
        Ok(None) => stopping(),
        Err(_) => too_late(wait),
    }
}

/// A runtime asks every few seconds, too.
async fn cni_status(events: &Sender<SocketMessage>, wait: Duration) -> Response {
    let (reply, replied) = oneshot::channel();
    let asked = async {
        events.send(SocketMessage::CniStatus(reply)).await.ok()?;
        replied.await.ok()
    };
    match timeout(wait, asked).await {
        Ok(Some(Ok(()))) => Response::Done,
        Ok(Some(Err(error))) => Response::Error(error),
        Ok(None) => stopping(),
        Err(_) => too_late(wait),
    }
}

/// Comes back once the caller has closed its socket. One that has only finished sending still waits for its answer.
async fn gone(stream: &mut UnixStream) {
    let mut ignored = [0; 512];
    loop {
        match stream.read(&mut ignored).await {
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => return,
        }
    }
    while !is_closed(stream) {
        tokio::time::sleep(LOOK).await;
    }
}

fn is_closed(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let polled = poll(&mut fds, PollTimeout::ZERO);
    let closed = PollFlags::POLLHUP | PollFlags::POLLERR;
    polled.is_err() || fds[0].revents().is_some_and(|found| found.intersects(closed))
}

async fn respond(stream: &mut UnixStream, response: &Response) {
    let encoded = serde_json::to_vec(response)
        .ok()
        .filter(|bytes| bytes.len() < MESSAGE_MAX);
    let mut bytes = encoded.unwrap_or_else(|| {
        let error = Response::Error(CniError {
            code: code::IO,
            msg: format!("the answer is longer than {MESSAGE_MAX} bytes"),
            details: "this cluster is larger than the local socket was made for: please report it".into(),
        });
        serde_json::to_vec(&error).unwrap_or_default()
    });
    bytes.push(b'\n');
    let written = timeout(IO_MAX, async {
        stream.write_all(&bytes).await?;
        stream.shutdown().await
    });
    if !matches!(written.await, Ok(Ok(()))) {
        return;
    }
    // A socket that is closed with unread bytes in it fails the caller's next write before it came to read.
    let mut ignored = [0; 4096];
    let drain = async {
        let mut left = MESSAGE_MAX;
        while let Ok(n @ 1..) = stream.read(&mut ignored).await {
            left = left.saturating_sub(n);
            if left == 0 {
                return;
            }
        }
    };
    let _ = timeout(LINGER, drain).await;
}
