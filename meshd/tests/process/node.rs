//! A network namespace with an underlay and the daemon's process in it.

#![allow(unreachable_pub)]

use meshd_model::cni::{Call, Request, Response};
use meshd_model::status::Status;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nlink::netlink::addr::Ipv4Address;
use nlink::netlink::link::VethLink;
use nlink::{Connection, Route};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Runs `test` in namespaces of its own, or says why it cannot.
pub fn isolated<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F + Send + 'static) {
    isolated_for(Duration::from_secs(60), name, test);
}

/// The same for a test that may take longer than a minute.
pub fn isolated_for<F: Future<Output = ()>>(
    most: Duration,
    name: &str,
    test: impl FnOnce() -> F + Send + 'static,
) {
    let name = name.to_owned();
    let body = move || match isolate() {
        Ok(()) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                underlay().await;
                let test = tokio::time::timeout(most, test());
                test.await.expect("the test takes no longer than it may");
            });
        }
        Err(error) => {
            let reason = format_args!("{error} (it needs root, or a user namespace that maps it)");
            meshd_skip::skip_on("netns", &name, reason);
        }
    };
    if let Err(panic) = std::thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

fn isolate() -> Result<(), String> {
    let what = |what: &'static str| move |error: nix::Error| format!("{what}: {error}");
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).map_err(what("unshare"))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(what("make mounts private"))?;
    std::fs::write("/proc/sys/net/ipv4/conf/lo/rp_filter", "0").map_err(|e| format!("write /proc/sys: {e}"))
}

async fn underlay() {
    let conn = Connection::<Route>::new().unwrap();
    conn.set_link_up("lo").await.unwrap();
    conn.add_link(VethLink::new("eth0", "eth0-far")).await.unwrap();
    conn.set_link_up("eth0").await.unwrap();
    conn.set_link_up("eth0-far").await.unwrap();
    let link = conn.get_link_by_name("eth0").await.unwrap().unwrap();
    let address = Ipv4Address::with_index(link.ifindex(), "192.0.2.1".parse().unwrap(), 24);
    conn.add_address(address).await.unwrap();
}

/// A kubeconfig of nobody for this server, in place of what is there, by a rename.
pub fn kubeconfig(path: &Path, api_server: &str) {
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: c, cluster: {{server: \"{api_server}\"}}}}]\n\
         users: [{{name: u, user: {{}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
    );
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// The daemon of one node: its files, and its process while it runs.
pub struct Daemon {
    folder: tempfile::TempDir,
    process: Option<Child>,
}

impl Daemon {
    pub fn new(api_server: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kubeconfig");
        kubeconfig(&file, api_server);
        let access = format!("kubeconfig = '{}'", file.display());
        Self::with_access(folder, "n1", &access)
    }

    /// In this folder, with these lines of configuration that say where the API server is.
    pub fn with_access(folder: tempfile::TempDir, node: &str, access: &str) -> Self {
        let path = |name: &str| folder.path().join(name).display().to_string();
        let config = format!(
            "node_name = '{node}'\n{access}\nstate_dir = '{}'\nsocket = '{}'\n\
             cluster_pod_cidrs = ['10.244.0.0/16']\nservice_cidrs = ['10.96.0.0/12']\n\
             [wireguard]\nmode = 'userspace'\nsocket_dir = '{}'\n",
            path("state"),
            path("meshd.sock"),
            path("wireguard"),
        );
        std::fs::write(folder.path().join("meshd.toml"), config).unwrap();
        Self {
            folder,
            process: None,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("meshd.sock")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meshd"));
        command.arg("--config").arg(self.path("meshd.toml"));
        command.env_remove("NODE_NAME").env("MESHD_LOG", "debug");
        command
    }

    /// Starts it with a log that nobody reads.
    pub fn start_unheard(&mut self) {
        let mut process = self
            .command()
            .stderr(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        drop(process.stderr.take());
        self.process = Some(process);
    }

    pub fn start(&mut self) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        self.process = Some(self.command().stderr(log).stdin(Stdio::null()).spawn().unwrap());
    }

    /// Runs a verb to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command().args(args).output().unwrap()
    }

    pub fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// SIGTERM, and the end.
    pub fn stop(&mut self) -> std::process::ExitStatus {
        let mut process = self.process.take().unwrap();
        let id = nix::unistd::Pid::from_raw(i32::try_from(process.id()).unwrap());
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).unwrap();
        process.wait().unwrap()
    }

    pub fn ask(&self, call: Call) -> std::io::Result<Response> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut line = serde_json::to_vec(&Request {
            deadline_ms: 500,
            call,
        })?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        Ok(serde_json::from_str(&answer)?)
    }

    /// Waits for a status of which this is true.
    pub async fn until(&self, what: &str, is: impl Fn(&Status) -> bool) -> Status {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut last = None;
        while Instant::now() < deadline {
            if let Ok(Response::Status(status)) = self.ask(Call::Status) {
                if is(&status) {
                    return *status;
                }
                last = Some(status);
            }
            // The API server of the test runs on this thread.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{what} does not come: {last:#?}\n{}", self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Whether a file, or a file under a folder, holds these bytes.
pub fn holds(path: &Path, needle: &[u8]) -> bool {
    if path.is_dir() {
        return std::fs::read_dir(path)
            .unwrap()
            .any(|entry| holds(&entry.unwrap().path(), needle));
    }
    let bytes = std::fs::read(path).unwrap();
    bytes.windows(needle.len()).any(|window| window == needle)
}
