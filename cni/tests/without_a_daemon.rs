//! DEL where the daemon is absent, comes, or goes; and what is sent again when it was cut off.

mod common;

use common::{config, environment, id, run, run_with, with};
use meshd_model::AttachmentId;
use meshd_model::cni::{Call, NOTES_MAX, Request, Response, note_name, notes_folder};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// A folder with no daemon's socket in it.
fn nobody() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("run/meshd.sock");
    (folder, socket)
}

fn note(socket: &Path) -> PathBuf {
    notes_folder(socket).join(note_name(&id()))
}

fn notes(socket: &Path) -> usize {
    std::fs::read_dir(notes_folder(socket)).map_or(0, Iterator::count)
}

fn hear(stream: &UnixStream) -> Call {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str::<Request>(&line).unwrap().call
}

fn say(mut stream: UnixStream, response: &Response) {
    let line = format!("{}\n", serde_json::to_string(response).unwrap());
    stream.write_all(line.as_bytes()).unwrap();
}

#[test]
fn del_leaves_a_note_for_root_alone() {
    let (_folder, socket) = nobody();
    for _ in 0..2 {
        assert_eq!(run("DEL", &config(&socket)).succeeded(), Value::Null);
        let text = std::fs::read(note(&socket)).unwrap();
        assert_eq!(serde_json::from_slice::<AttachmentId>(&text).unwrap(), id());
        assert_eq!(notes(&socket), 1, "and nothing else");
    }
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&notes_folder(&socket)), 0o700);
    assert_eq!(mode(&note(&socket)), 0o600);
}

/// After a reboot containerd gives no namespace; and a container that is gone has no prevResult.
#[test]
fn del_without_a_namespace_leaves_a_note_too() {
    let (_folder, socket) = nobody();
    let mut variables = environment("DEL");
    variables.retain(|(name, _)| *name != "CNI_ARGS");
    variables
        .iter_mut()
        .filter(|(name, _)| *name == "CNI_NETNS")
        .for_each(|(_, value)| value.clear());
    run_with(&variables, config(&socket).to_string().as_bytes()).succeeded();
    assert!(note(&socket).is_file());
}

#[test]
fn del_fails_where_no_note_can_be_left() {
    let (_folder, socket) = nobody();
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    std::fs::write(notes_folder(&socket), b"no folder").unwrap();
    let error = run("DEL", &config(&socket)).failed(5);
    assert!(
        error["msg"].as_str().unwrap().contains("meshd.sock.deleted"),
        "{error}"
    );
}

#[test]
fn notes_are_bounded() {
    let (_folder, socket) = nobody();
    let folder = notes_folder(&socket);
    std::fs::create_dir_all(&folder).unwrap();
    for n in 0..NOTES_MAX {
        std::fs::write(folder.join(format!("mshp{n}")), b"").unwrap();
    }
    run("DEL", &config(&socket)).failed(11);
    assert_eq!(notes(&socket), NOTES_MAX);
    std::fs::rename(folder.join("mshp0"), note(&socket)).unwrap();
    // One that is there already needs no room.
    run("DEL", &config(&socket)).succeeded();
}

/// The daemon comes between the first look for it and the note: it has looked for notes already, and so is asked.
#[test]
fn a_daemon_that_comes_meanwhile_is_asked() {
    let (_folder, socket) = nobody();
    let notes = notes_folder(&socket);
    std::fs::create_dir_all(&notes).unwrap();
    // The plugin's first look finds a socket that nobody listens on.
    let listener = thread::spawn({
        let (socket, notes) = (socket.clone(), note(&socket));
        move || {
            while !notes.exists() {
                thread::yield_now();
            }
            UnixListener::bind(&socket)
        }
    });
    // Whether it finds the daemon or leaves the note depends on who is first: both are right, and one must be.
    let done = thread::spawn({
        let socket = socket.clone();
        move || run("DEL", &with(config(&socket), &json!({ "timeoutSeconds": 30 })))
    });
    let listener = listener.join().unwrap().unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut asked = false;
    while !done.is_finished() {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                assert_eq!(hear(&stream), Call::Del(id()));
                asked = true;
                say(stream, &Response::Done);
            }
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
    done.join().unwrap().succeeded();
    assert_eq!(note(&socket).exists(), !asked);
}

/// A daemon that is there and hangs may do it later, or never: nobody knows, and there is no note.
#[test]
fn a_daemon_that_hangs_leaves_no_note() {
    let (_folder, socket) = nobody();
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let _listener = UnixListener::bind(&socket).unwrap();
    run("DEL", &with(config(&socket), &json!({ "timeoutSeconds": 0.3 }))).failed(11);
    assert_eq!(notes(&socket), 0);
}

/// Killed after it had read the request: what it was asked is asked again of the next one, by the same token.
#[test]
fn a_daemon_that_comes_back_is_asked_again() {
    for verb in ["ADD", "CHECK", "GC"] {
        let (_folder, socket) = nobody();
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let previous = json!({
            "interfaces": [{ "name": "eth0", "sandbox": common::NETNS }],
            "ips": [{ "address": "10.244.1.2/32", "interface": 0 }],
        });
        let mut keys =
            json!({ "cniVersion": "1.1.0", "timeoutSeconds": 60, "cni.dev/valid-attachments": [] });
        if verb == "CHECK" {
            keys["prevResult"] = previous;
        }
        let config = with(config(&socket), &keys);
        let first = UnixListener::bind(&socket).unwrap();
        let done = thread::spawn(move || run(verb, &config));
        let (stream, _) = first.accept().unwrap();
        let asked = hear(&stream);
        drop(first);
        drop(stream);
        thread::sleep(Duration::from_millis(200));
        std::fs::remove_file(&socket).unwrap();
        let second = UnixListener::bind(&socket).unwrap();
        // It has just come back, and is not ready yet.
        let (stream, _) = second.accept().unwrap();
        assert_eq!(hear(&stream), asked);
        let not_yet = json!({ "error": { "code": 11, "msg": "not yet", "details": "wait" } });
        say(stream, &serde_json::from_value(not_yet).unwrap());
        let (stream, _) = second.accept().unwrap();
        assert_eq!(hear(&stream), asked);
        let added = json!({ "added": {
            "host_ifname": "x", "host_mac": "02:00:00:00:00:01", "mac": "02:00:00:00:00:02", "ips": [], "mtu": 1420,
        }});
        let answer = if verb == "ADD" {
            serde_json::from_value(added).unwrap()
        } else {
            Response::Done
        };
        say(stream, &answer);
        done.join().unwrap().succeeded();
    }
}

/// A DEL that was cut off does not wait for the next daemon.
#[test]
fn a_daemon_that_goes_away_leaves_del_its_note() {
    let (_folder, socket) = nobody();
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    let done = thread::spawn({
        let config = with(config(&socket), &json!({ "timeoutSeconds": 60 }));
        move || run("DEL", &config)
    });
    let (stream, _) = listener.accept().unwrap();
    assert_eq!(hear(&stream), Call::Del(id()));
    drop(listener);
    drop(stream);
    let run = done.join().unwrap();
    run.succeeded();
    assert!(run.took < Duration::from_secs(20), "{run:?}");
    assert!(note(&socket).is_file());
}

/// The host's end goes at once: with it the pod's, and the routes.
#[test]
fn the_interface_goes_without_a_daemon() {
    let name = "the_interface_goes_without_a_daemon";
    let ip = |args: &[&str]| {
        std::process::Command::new("ip")
            .args(args)
            .status()
            .is_ok_and(|done| done.success())
    };
    // Not the container of the other tests, which delete its interface as well.
    let container = format!("c{}", std::process::id());
    let id = AttachmentId {
        container_id: container.clone(),
        ..id()
    };
    let ifname = id.host_ifname();
    if !ip(&["link", "add", &ifname, "type", "veth", "peer", "name", "b-peer0"]) {
        return meshd_skip::skip(name, "interfaces cannot be made here");
    }
    let (_folder, socket) = nobody();
    assert!(Path::new("/sys/class/net").join(&ifname).exists());
    let mut variables = environment("DEL");
    variables.retain(|(name, _)| *name != "CNI_CONTAINERID");
    variables.push(("CNI_CONTAINERID", container));
    run_with(&variables, config(&socket).to_string().as_bytes()).succeeded();
    let left = Path::new("/sys/class/net").join(&ifname).exists();
    ip(&["link", "del", &ifname]);
    assert!(!left, "{ifname} is still there");
}
