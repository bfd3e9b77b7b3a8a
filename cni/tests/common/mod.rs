//! Runs the real binary as a container runtime does, against a socket that the test serves.
#![allow(dead_code, unreachable_pub)]

use meshd_model::AttachmentId;
use meshd_model::cni::{Request, Response};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

pub const NETNS: &str = "/run/netns/pod";
pub const CONTAINER: &str = "3f2a8c0d";

/// A socket that a test serves until the test's process ends.
pub struct Daemon {
    folder: tempfile::TempDir,
    requests: Receiver<String>,
}

impl Daemon {
    /// Gives each connection to `serve`, on a thread of its own.
    pub fn serving(serve: impl Fn(UnixStream) + Clone + Send + 'static) -> Daemon {
        Daemon::with_requests(move |stream, _| serve(stream))
    }

    /// Reads a request, and writes `answer` as it is.
    pub fn saying(answer: impl Into<Vec<u8>>) -> Daemon {
        let answer = answer.into();
        Daemon::with_requests(move |mut stream, note| {
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            note(line);
            // The plugin may have hung up.
            let _ = stream.write_all(&answer);
        })
    }

    /// Answers every request alike.
    pub fn answering(response: &Response) -> Daemon {
        Daemon::saying(format!("{}\n", serde_json::to_string(response).unwrap()))
    }

    fn with_requests(serve: impl Fn(UnixStream, &dyn Fn(String)) + Clone + Send + 'static) -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("meshd.sock")).unwrap();
        let (sender, requests) = channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (serve, sender) = (serve.clone(), sender.clone());
                thread::spawn(move || serve(stream.unwrap(), &move |line| sender.send(line).unwrap()));
            }
        });
        Daemon { folder, requests }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("meshd.sock")
    }

    /// A configuration that names this socket.
    pub fn config(&self) -> Value {
        config(&self.socket())
    }

    /// The one request that came.
    pub fn request(&self) -> Request {
        let line = self.requests.recv_timeout(Duration::from_secs(5)).unwrap();
        assert!(self.requests.try_recv().is_err(), "more than one request came");
        serde_json::from_str(&line).unwrap()
    }
}

pub fn config(socket: &std::path::Path) -> Value {
    json!({ "cniVersion": "1.0.0", "name": "meshd", "type": "meshd-cni", "socket": socket })
}

pub fn id() -> AttachmentId {
    AttachmentId {
        container_id: CONTAINER.to_owned(),
        ifname: "eth0".to_owned(),
    }
}

/// The configuration with some keys replaced.
pub fn with(mut config: Value, keys: &Value) -> Value {
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

/// What came of a run of the plugin.
#[derive(Debug)]
pub struct Run {
    pub status: Option<i32>,
    pub stdout: String,
    pub took: Duration,
}

impl Run {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// That it failed as the specification says, with this code; gives the error.
    #[track_caller]
    pub fn failed(&self, code: u32) -> Value {
        assert_eq!(self.status, Some(1), "{self:?}");
        let error = self.json();
        assert_eq!(error["code"], code, "{self:?}");
        for key in ["cniVersion", "msg", "details"] {
            assert!(
                error[key].as_str().is_some_and(|text| !text.is_empty()),
                "{key}: {self:?}"
            );
        }
        error
    }

    #[track_caller]
    pub fn succeeded(&self) -> Value {
        assert_eq!(self.status, Some(0), "{self:?}");
        if self.stdout.is_empty() {
            Value::Null
        } else {
            self.json()
        }
    }
}

/// The variables of a verb, as containerd sets them.
pub fn environment(verb: &str) -> Vec<(&'static str, String)> {
    let args = "K8S_POD_INFRA_CONTAINER_ID=3f2a8c0d;K8S_POD_UID=0b1c;IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0";
    vec![
        ("CNI_COMMAND", verb.to_owned()),
        ("CNI_CONTAINERID", CONTAINER.to_owned()),
        ("CNI_NETNS", NETNS.to_owned()),
        ("CNI_IFNAME", "eth0".to_owned()),
        ("CNI_ARGS", args.to_owned()),
        ("CNI_PATH", "/opt/cni/bin".to_owned()),
    ]
}

/// Runs a verb with a configuration.
pub fn run(verb: &str, config: &Value) -> Run {
    run_with(&environment(verb), config.to_string().as_bytes())
}

pub fn run_with<V: AsRef<OsStr>>(environment: &[(&str, V)], stdin: &[u8]) -> Run {
    let started = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_meshd-cni"))
        .env_clear()
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The plugin does not read to the end what is too long.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "",
        "nothing belongs on stderr"
    );
    Run {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        took: started.elapsed(),
    }
}
