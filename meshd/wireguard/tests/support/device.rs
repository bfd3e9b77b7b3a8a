//! A device's process, and its control socket.

use super::{IFNAME, Node};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A process that ends with the test.
pub struct Process {
    child: Child,
    pub socket: PathBuf,
}

/// `meshd-wg` on a node, not started yet.
pub fn meshd_wg(node: &Node, args: &[&str]) -> Command {
    meshd_wg_at(&node.sockets, args)
}

/// `meshd-wg` with its socket in a folder.
pub fn meshd_wg_at(sockets: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshd-wg"));
    command
        .arg("--socket-dir")
        .arg(sockets)
        .args(args)
        .arg(IFNAME)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

impl Process {
    /// Starts `meshd-wg` on a node and waits until it answers.
    pub fn start(node: &Node) -> Self {
        Self::spawn(node, meshd_wg(node, &["--foreground"]), node.socket())
    }

    /// Starts any device on a node.
    pub fn spawn(node: &Node, mut command: Command, socket: PathBuf) -> Self {
        command.stderr(Stdio::null());
        let child = node.run(move || command.spawn()).unwrap();
        let mut process = Self { child, socket };
        let end = Instant::now() + Duration::from_secs(10);
        while UnixStream::connect(&process.socket).is_err() {
            assert_eq!(process.child.try_wait().unwrap(), None, "the device ended");
            assert!(Instant::now() < end, "the device does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
        process
    }

    /// One request and its answer.
    pub fn ask(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        answer(&mut stream)
    }

    pub fn set(&self, request: &str) {
        assert_eq!(self.ask(request), "errno=0\n\n", "{request}");
    }

    /// The values of a key in the answer to `get=1`.
    pub fn get(&self, key: &str) -> Vec<String> {
        let all = self.ask("get=1\n\n");
        let value = |line: &str| line.strip_prefix(key)?.strip_prefix('=').map(str::to_owned);
        all.lines().filter_map(value).collect()
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and how it ended.
    pub fn terminate(mut self) -> bool {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.wait()
    }

    /// Waits until it ends by itself; whether it was content.
    pub fn wait(&mut self) -> bool {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            assert!(Instant::now() < end, "the device does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Reads until the empty line.
pub fn answer(stream: &mut UnixStream) -> String {
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    while !text.ends_with(b"\n\n") {
        match stream.read(&mut chunk) {
            Ok(count @ 1..) => text.extend_from_slice(&chunk[..count]),
            Ok(0) | Err(_) => break,
        }
    }
    String::from_utf8(text).unwrap()
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
