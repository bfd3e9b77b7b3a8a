//! A daemon that is absent, hangs, or speaks rubbish: the plugin answers in time, and says so.

mod common;

use common::{Daemon, config, run, with};
use meshd_model::cni::{CniError, Response};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

/// How long the plugin may wait where the daemon hangs, and how late it may be on a busy machine.
const TIMEOUT: Duration = Duration::from_millis(400);
const LATE: Duration = Duration::from_secs(10);
/// How long it may wait where the daemon does not hang.
const PATIENT: Duration = Duration::from_secs(60);

fn impatient(config: Value) -> Value {
    waiting(config, TIMEOUT)
}

fn patient(config: Value) -> Value {
    waiting(config, PATIENT)
}

fn waiting(config: Value, timeout: Duration) -> Value {
    let previous = json!({
        "interfaces": [{ "name": "eth0", "sandbox": "/run/netns/pod" }],
        "ips": [{ "address": "10.244.1.2/32", "interface": 0 }],
    });
    with(
        config,
        &json!({ "timeoutSeconds": timeout.as_secs_f64(), "prevResult": previous }),
    )
}

/// Runs every verb that asks the daemon; each must fail with this code.
#[track_caller]
fn all_fail(config: &Value, code: u32) -> Vec<(Value, Duration)> {
    some_fail(&["ADD", "DEL", "CHECK", "GC"], config, code)
}

#[track_caller]
fn some_fail(verbs: &[&str], config: &Value, code: u32) -> Vec<(Value, Duration)> {
    let mut add = config.clone();
    add.as_object_mut().unwrap().remove("prevResult");
    let gc = with(
        config.clone(),
        &json!({ "cniVersion": "1.1.0", "cni.dev/valid-attachments": [] }),
    );
    let of = |verb: &str| match verb {
        "ADD" => &add,
        "GC" | "STATUS" => &gc,
        _ => config,
    };
    verbs
        .iter()
        .map(|verb| (*verb, of(verb)))
        .map(|(verb, config)| {
            let run = run(verb, config);
            assert!(run.took < TIMEOUT + LATE, "{verb}: {run:?}");
            (run.failed(code), run.took)
        })
        .collect()
}

#[track_caller]
fn all_time_out(config: &Value) {
    for (error, took) in all_fail(config, 11) {
        assert!(took >= TIMEOUT, "gave up after {took:?}: {error}");
        assert!(
            error["msg"].as_str().unwrap().contains("did not answer in time"),
            "{error}"
        );
    }
    // Whatever keeps the daemon from answering, no pod can be added.
    some_fail(&["STATUS"], config, 50);
}

/// DEL succeeds: see without_a_daemon.rs.
const IN_NEED: [&str; 3] = ["ADD", "CHECK", "GC"];

#[test]
fn absent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("meshd.sock");
    let refused = |error: &Value| {
        assert!(
            error["msg"].as_str().unwrap().contains("does not listen"),
            "{error}"
        )
    };
    let absent = |path: &Path| {
        let config = patient(config(path));
        let failed = some_fail(&IN_NEED, &config, 11);
        failed.iter().for_each(|(error, _)| refused(error));
        refused(&some_fail(&["STATUS"], &impatient(config), 50)[0].0);
    };
    absent(&path);
    // A socket that a killed daemon has left behind.
    drop(UnixListener::bind(&path).unwrap());
    absent(&path);
    // No socket at all.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"").unwrap();
    absent(&path);
}

/// A daemon that is restarted between two calls of STATUS does not turn the node NotReady.
#[test]
fn status_waits_for_one_that_starts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("meshd.sock");
    let config = with(config(&path), &json!({ "cniVersion": "1.1.0" }));
    let daemon = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        let listener = UnixListener::bind(&path).unwrap();
        let not_yet = Response::Error(CniError {
            code: 50,
            msg: "the Nodes are not listed yet".to_owned(),
            details: String::new(),
        });
        for answer in [not_yet, Response::Done] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = serde_json::to_vec(&answer).unwrap();
            line.push(b'\n');
            BufReader::new(&stream).read_line(&mut String::new()).unwrap();
            stream.write_all(&line).unwrap();
        }
    });
    let run = run("STATUS", &config);
    assert!(run.status == Some(0) && run.stdout.is_empty(), "{run:?}");
    daemon.join().unwrap();
}

#[test]
fn hung_after_the_request() {
    let daemon = Daemon::serving(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
        thread::sleep(Duration::from_secs(60));
    });
    all_time_out(&impatient(daemon.config()));
}

#[test]
fn hung_before_it_accepts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("meshd.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    all_time_out(&impatient(config(&path)));
}

/// connect(2) itself blocks once the queue of a hung daemon is full.
#[test]
fn hung_with_a_full_queue() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("meshd.sock");
    let unix = |flags| socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
    let listener = unix(SockFlag::empty());
    let address = UnixAddr::new(&path).unwrap();
    bind(listener.as_raw_fd(), &address).unwrap();
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let mut waiting = Vec::new();
    loop {
        let client = unix(SockFlag::SOCK_NONBLOCK);
        if connect(client.as_raw_fd(), &address).is_err() {
            break;
        }
        waiting.push(client);
        assert!(waiting.len() < 100, "the queue does not fill");
    }
    all_time_out(&impatient(config(&path)));
}

#[test]
fn a_trickle_does_not_prolong_the_deadline() {
    let daemon = Daemon::serving(|mut stream| {
        while stream.write_all(b" ").is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    all_time_out(&impatient(daemon.config()));
}

#[test]
fn rubbish() {
    let done_and_more = [serde_json::to_vec(&Response::Done).unwrap(), b" {}\n".to_vec()].concat();
    let long = format!("{{\"{}\":1}}\n", "x".repeat(1 << 20));
    let answers: [&[u8]; 9] = [
        long.as_bytes(),
        b"\n",
        b"rubbish\n",
        b"{}\n",
        b"{\"added\":{}}\n",
        b"{\"unheard-of\":1}\n",
        b"\"done\xff\"\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        &done_and_more,
    ];
    for answer in answers {
        let daemon = Daemon::saying(answer);
        for (error, _) in all_fail(&patient(daemon.config()), 6) {
            assert!(
                error["details"].as_str().unwrap().contains("same version"),
                "{error}"
            );
        }
    }
}

#[test]
fn an_answer_to_another_question() {
    let daemon = Daemon::answering(&Response::Done);
    run("ADD", &daemon.config()).failed(6);
    let added = json!({ "added": {
        "host_ifname": "x", "host_mac": "02:00:00:00:00:01", "mac": "02:00:00:00:00:02", "ips": [], "mtu": 1420,
    }});
    let daemon = Daemon::saying(format!("{added}\n"));
    run("DEL", &daemon.config()).failed(6);
    run("CHECK", &patient(daemon.config())).failed(6);
}

#[test]
fn closed_early() {
    for answer in [&b""[..], b"{\"added\":", b"\"done\""] {
        let daemon = Daemon::saying(answer);
        for (error, took) in all_fail(&impatient(daemon.config()), 11) {
            assert!(
                took + Duration::from_millis(200) > TIMEOUT,
                "it may come back: {took:?}"
            );
            assert!(
                error["details"].as_str().unwrap().contains("restarted"),
                "{error}"
            );
        }
    }
    let daemon = Daemon::serving(drop::<UnixStream>);
    all_fail(&impatient(daemon.config()), 11);
}

#[test]
fn an_endless_line_is_cut() {
    let daemon = Daemon::serving(|mut stream| while stream.write_all(&[b'x'; 65536]).is_ok() {});
    let config = with(daemon.config(), &json!({ "timeoutSeconds": 30 }));
    let error = run("DEL", &config).failed(6);
    assert!(
        error["details"].as_str().unwrap().contains("longer than"),
        "{error}"
    );
}

/// A daemon that does not serve this caller says so and hangs up, without reading the request.
#[test]
fn refused_before_the_request_was_read() {
    let error = CniError {
        code: 5,
        msg: "not permitted".to_owned(),
        details: "uid 1000 is not root".to_owned(),
    };
    let line = format!("{}\n", serde_json::to_string(&Response::Error(error)).unwrap());
    let daemon = Daemon::serving(move |mut stream| stream.write_all(line.as_bytes()).unwrap());
    for (error, _) in all_fail(&patient(daemon.config()), 5) {
        assert_eq!(error["msg"], "not permitted");
    }
}

/// A request in parts, and an answer that comes late but in time.
#[test]
fn a_slow_daemon_is_waited_for() {
    let daemon = Daemon::serving(|mut stream| {
        BufReader::new(&stream).read_line(&mut String::new()).unwrap();
        for part in [&b"\"do"[..], b"ne", b"\"\n"] {
            thread::sleep(Duration::from_millis(100));
            stream.write_all(part).unwrap();
        }
    });
    assert_eq!(run("DEL", &daemon.config()).succeeded(), Value::Null);
}

#[test]
fn the_default_socket_is_named_when_nothing_listens() {
    let default = meshd_model::cni::SOCKET;
    if Path::new(default).exists() {
        let name = "the_default_socket_is_named_when_nothing_listens";
        return meshd_skip::skip(name, "a meshd runs on this machine");
    }
    let config = json!({ "cniVersion": "1.0.0", "name": "meshd", "type": "meshd-cni" });
    let error = run("ADD", &config).failed(11);
    assert!(error["msg"].as_str().unwrap().contains(default), "{error}");
}
