//! The daemon's local socket, with real connections: what is served, what is refused, and what the caller is told.

use meshd::socket::{Listener, SocketError, SocketMessage};
use meshd_core::CniCall;
use meshd_model::AttachmentId;
use meshd_model::attachment::MacAddr;
use meshd_model::cni::{Add, Added, Call, CniError, Request, Response, Wants, code, note_name, notes_folder};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// A listener and what it says to the event loop, which the test plays.
struct Daemon {
    _folder: tempfile::TempDir,
    path: PathBuf,
    messages: mpsc::Receiver<SocketMessage>,
}

fn daemon() -> Daemon {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/meshd.sock");
    let listener = Listener::bind(&path).unwrap();
    let (events, messages) = mpsc::channel(16);
    tokio::spawn(listener.run(events));
    Daemon {
        _folder: folder,
        path,
        messages,
    }
}

fn attachment() -> AttachmentId {
    AttachmentId {
        container_id: "c1".into(),
        ifname: "eth0".into(),
    }
}

fn line(deadline_ms: u64, call: Call) -> Vec<u8> {
    let mut line = serde_json::to_vec(&Request { deadline_ms, call }).unwrap();
    line.push(b'\n');
    line
}

/// Sends the bytes and reads one line.
async fn exchange(path: &Path, bytes: &[u8]) -> Response {
    let mut stream = UnixStream::connect(path).await.unwrap();
    // A refused caller may find the socket closed while it still writes; the answer is there all the same.
    let _ = stream.write_all(bytes).await;
    read(&mut stream).await
}

async fn read(stream: &mut UnixStream) -> Response {
    let mut answer = String::new();
    let mut stream = BufReader::new(stream);
    let read = stream.read_line(&mut answer);
    tokio::time::timeout(Duration::from_secs(20), read)
        .await
        .unwrap()
        .unwrap();
    serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

async fn error(path: &Path, bytes: &[u8]) -> CniError {
    match exchange(path, bytes).await {
        Response::Error(error) => error,
        other => panic!("{other:?}"),
    }
}

async fn next(daemon: &mut Daemon) -> SocketMessage {
    let message = daemon.messages.recv();
    tokio::time::timeout(Duration::from_secs(10), message)
        .await
        .unwrap()
        .unwrap()
}

#[tokio::test]
async fn a_request_reaches_the_loop_with_its_deadline_and_its_answer_comes_back() {
    let mut daemon = daemon();
    let mut stream = UnixStream::connect(&daemon.path).await.unwrap();
    let before = meshd::clock::now().boot;
    stream
        .write_all(&line(5_000, Call::Del(attachment())))
        .await
        .unwrap();
    let SocketMessage::Request {
        deadline,
        call,
        reply,
        ..
    } = next(&mut daemon).await
    else {
        panic!("not a request");
    };
    assert_eq!(*call, CniCall::Del(attachment()));
    let five = Duration::from_secs(5);
    let after = meshd::clock::now().boot;
    assert!(
        (before + five..=after + five).contains(&deadline),
        "{before:?} {deadline:?} {after:?}"
    );
    reply.send(Ok(None)).unwrap();
    assert_eq!(read(&mut stream).await, Response::Done);
}

#[tokio::test]
async fn a_caller_that_only_finished_sending_is_answered_and_one_that_went_away_is_reported() {
    let mut daemon = daemon();
    let add = Call::Add(Add {
        id: attachment(),
        netns: "/run/netns/x".into(),
        pod: None,
        wants: Wants::default(),
        token: 0,
        network: String::new(),
    });
    let mut stream = UnixStream::connect(&daemon.path).await.unwrap();
    // Without its newline: the end of what is sent ends the line as well.
    let bytes = line(60_000, add.clone());
    stream.write_all(&bytes[..bytes.len() - 1]).await.unwrap();
    stream.shutdown().await.unwrap();
    let SocketMessage::Request { reply, .. } = next(&mut daemon).await else {
        panic!()
    };
    tokio::time::sleep(Duration::from_millis(250)).await;
    let refusal = CniError {
        code: code::EXHAUSTED,
        msg: "m".into(),
        details: "d".into(),
    };
    reply.send(Err(refusal.clone())).unwrap();
    assert_eq!(read(&mut stream).await, Response::Error(refusal));

    for half_close_first in [false, true] {
        let mut stream = UnixStream::connect(&daemon.path).await.unwrap();
        stream.write_all(&line(60_000, add.clone())).await.unwrap();
        let SocketMessage::Request { id, .. } = next(&mut daemon).await else {
            panic!()
        };
        if half_close_first {
            stream.shutdown().await.unwrap();
        }
        drop(stream);
        match next(&mut daemon).await {
            SocketMessage::Gone(gone) => assert_eq!(gone, id),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_too_long_or_not_a_request_gets_an_answer_that_says_what() {
    let daemon = daemon();
    let too_long = vec![b'x'; 1 << 20];
    let nested = [vec![b'['; 100_000], vec![b'\n']].concat();
    let twice = [line(1000, Call::Status), line(1000, Call::Status)].concat();
    let cases: [(&[u8], &str); 8] = [
        (&too_long, "longer than 262144 bytes"),
        (b"hello\n", "not JSON"),
        (b"\n", "not JSON"),
        (b"\xff\xfe\n", "not JSON"),
        (&nested, "no request that this daemon knows"),
        (b"{\"deadline_ms\":1,\"call\":\"reboot\"}\n", "reboot"),
        (b"{\"deadline_ms\":1,\"call\":\"status\",\"more\":1}\n", "more"),
        (&twice, "more than one line"),
    ];
    for (bytes, expected) in cases {
        let error = error(&daemon.path, bytes).await;
        assert_eq!(error.code, code::DECODE, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_request_without_an_answer_ends_at_its_deadline() {
    let mut daemon = daemon();
    let mut stream = UnixStream::connect(&daemon.path).await.unwrap();
    stream
        .write_all(&line(100, Call::Del(attachment())))
        .await
        .unwrap();
    let SocketMessage::Request { reply, id, .. } = next(&mut daemon).await else {
        panic!()
    };
    let Response::Error(error) = read(&mut stream).await else {
        panic!()
    };
    assert_eq!(error.code, code::TRY_AGAIN);
    assert!(matches!(next(&mut daemon).await, SocketMessage::Gone(gone) if gone == id));
    assert!(reply.is_closed());
}

#[tokio::test]
async fn connections_are_bounded_and_the_next_is_served_when_one_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("meshd.sock");
    let listener = Listener::bind(&path).unwrap().with_connections(2);
    let (events, _messages) = mpsc::channel(16);
    tokio::spawn(listener.run(events));
    let idle = [
        UnixStream::connect(&path).await.unwrap(),
        UnixStream::connect(&path).await.unwrap(),
    ];
    let third = exchange(&path, b"hello\n");
    tokio::pin!(third);
    let early = tokio::time::timeout(Duration::from_millis(200), &mut third).await;
    assert!(early.is_err(), "{early:?}");
    drop(idle);
    assert!(matches!(third.await, Response::Error(error) if error.code == code::DECODE));
}

#[tokio::test]
async fn callers_are_hung_up_on_when_the_daemon_stops_and_the_socket_goes() {
    let mut daemon = daemon();
    let mut stream = UnixStream::connect(&daemon.path).await.unwrap();
    stream
        .write_all(&line(60_000, Call::Del(attachment())))
        .await
        .unwrap();
    let request = next(&mut daemon).await;
    drop((request, daemon.messages));
    // Whoever is hung up on asks the next daemon, or leaves a note for it; whoever is told would give up.
    let mut answer = String::new();
    let mut stream = BufReader::new(stream);
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_line(&mut answer));
    assert_eq!(read.await.unwrap().unwrap(), 0, "{answer}");
    drop(stream);
    for _ in 0..200 {
        if !daemon.path.exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the socket's file is still there");
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_or_another_file_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("meshd.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let first = Listener::bind(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    assert!(matches!(Listener::bind(&path), Err(SocketError::Live(_))));
    assert!(path.exists());
    drop(first);
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(Listener::bind(&path), Err(SocketError::Taken(_))));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[tokio::test]
async fn a_peer_that_is_not_permitted_is_told_so_and_reaches_nothing() {
    const NAME: &str = "a_peer_that_is_not_permitted_is_told_so_and_reaches_nothing";
    if !nix::unistd::geteuid().is_root() {
        return meshd_skip::skip(NAME, "becoming another user needs root");
    }
    let mut daemon = daemon();
    // Let another user reach the socket at all, which its mode forbids: the daemon must look for itself.
    let folder = daemon.path.parent().unwrap();
    std::fs::set_permissions(folder.parent().unwrap(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&daemon.path, std::fs::Permissions::from_mode(0o666)).unwrap();
    // A copy, because the build folder may be closed to others.
    let program = folder.join("meshd");
    std::fs::copy(env!("CARGO_BIN_EXE_meshd"), &program).unwrap();
    let asked = tokio::process::Command::new(&program)
        .args(["ready", "--socket"])
        .arg(&daemon.path)
        .uid(65_534)
        .output()
        .await;
    let Ok(asked) = asked else {
        return meshd_skip::skip(NAME, "there is no other user in this user namespace");
    };
    let said = String::from_utf8_lossy(&asked.stderr);
    assert!(said.contains("uid 65534 is not permitted"), "{said}");
    assert_eq!(asked.status.code(), Some(1));
    assert!(daemon.messages.try_recv().is_err());
    // The same question of the daemon's own user arrives.
    let mut asked = tokio::process::Command::new(&program)
        .args(["ready", "--socket"])
        .arg(&daemon.path)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let SocketMessage::Ready(reply) = next(&mut daemon).await else {
        panic!("a probe asks for no more than it needs");
    };
    reply.send(None).unwrap();
    assert!(asked.wait().await.unwrap().success());
}

#[tokio::test]
async fn the_kernel_is_looked_at_before_a_status_is_given_but_not_waited_for_in_vain() {
    let mut daemon = daemon();
    let path = daemon.path.clone();
    let asked = tokio::spawn(async move { exchange(&path, &line(10_000, Call::Status)).await });
    assert!(matches!(next(&mut daemon).await, SocketMessage::Look(_)));
    assert!(matches!(next(&mut daemon).await, SocketMessage::Status(_)));
    asked.abort();
}

/// Writes a note as the plugin does, with this text under this name.
fn leave_note(path: &Path, name: &str, text: &[u8]) -> PathBuf {
    let folder = notes_folder(path);
    std::fs::create_dir_all(&folder).unwrap();
    let note = folder.join(name);
    std::fs::write(&note, text).unwrap();
    note
}

#[tokio::test]
async fn deletions_that_were_noted_are_finished_at_the_start_and_what_is_no_note_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("meshd.sock");
    let id = attachment();
    let text = serde_json::to_vec(&id).unwrap();
    let note = leave_note(&path, &note_name(&id), &text);
    let rubbish = [
        leave_note(&path, "mshpaaaaaaaaaaa", &text),
        leave_note(&path, "mshpbbbbbbbbbbb", b"{"),
        leave_note(&path, "mshpccccccccccc", &[b'x'; 4096]),
    ];
    let half = leave_note(&path, ".mshpdddddddddd.17", b"{");
    let link = notes_folder(&path).join("mshpeeeeeeeeeee");
    std::os::unix::fs::symlink(&note, &link).unwrap();

    let listener = Listener::bind(&path).unwrap();
    assert!(listener.has_noted());
    assert!(rubbish.iter().all(|path| !path.exists()));
    assert!(std::fs::symlink_metadata(&link).is_err() && note.exists());
    assert!(half.exists(), "somebody may be writing it");
    let (events, messages) = mpsc::channel(16);
    tokio::spawn(listener.run(events));
    let mut daemon = Daemon {
        _folder: folder,
        path,
        messages,
    };
    let SocketMessage::Request { call, reply, .. } = next(&mut daemon).await else {
        panic!("the noted deletion comes first");
    };
    assert_eq!(*call, CniCall::Del(id));
    assert!(note.exists(), "it stays until it is done");
    reply.send(Ok(None)).unwrap();
    assert!(matches!(next(&mut daemon).await, SocketMessage::Finished));
    assert!(!note.exists());
}

/// A note that was left though the daemon did the DEL must not meet the attachment that is added next.
#[tokio::test]
async fn whoever_is_answered_leaves_no_note_behind() {
    let mut daemon = daemon();
    for added in [true, false] {
        let text = serde_json::to_vec(&attachment()).unwrap();
        let note = leave_note(&daemon.path, &note_name(&attachment()), &text);
        let call = if added {
            Call::Add(Add {
                id: attachment(),
                netns: "/run/netns/x".into(),
                pod: None,
                wants: Wants::default(),
                token: 1,
                network: String::new(),
            })
        } else {
            Call::Del(attachment())
        };
        let path = daemon.path.clone();
        let asked = tokio::spawn(async move { exchange(&path, &line(10_000, call)).await });
        let SocketMessage::Request { reply, .. } = next(&mut daemon).await else {
            panic!("not a request");
        };
        let result = added.then(|| Added {
            host_ifname: "mshpx".into(),
            host_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            mac: MacAddr([2, 0, 0, 0, 0, 2]),
            ips: Vec::new(),
            mtu: 1420,
            secondary: false,
        });
        reply.send(Ok(result)).unwrap();
        assert!(matches!(
            asked.await.unwrap(),
            Response::Added(_) | Response::Done
        ));
        assert!(!note.exists());
    }
}

#[tokio::test]
async fn a_runtimes_status_asks_nothing_but_the_daemon() {
    let mut daemon = daemon();
    for (said, code) in [(Ok(()), 0), (Err(50), 50), (Err(51), 51)] {
        let path = daemon.path.clone();
        let asked = tokio::spawn(async move { exchange(&path, &line(10_000, Call::CniStatus)).await });
        let SocketMessage::CniStatus(reply) = next(&mut daemon).await else {
            panic!("not a status");
        };
        let error = |code| CniError {
            code,
            msg: "why".into(),
            details: "what to do".into(),
        };
        reply.send(said.map_err(error)).unwrap();
        match asked.await.unwrap() {
            Response::Done => assert_eq!(code, 0),
            Response::Error(error) => assert_eq!(error.code, code),
            other => panic!("{other:?}"),
        }
    }
}
