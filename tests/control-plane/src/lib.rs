//! A real control plane on loopback, for tests and measurements: etcd and kube-apiserver, with certificates made for
//! the occasion.
//!
//! It needs `etcd` and `kube-apiserver`, in the folder that `MESHD_KUBERNETES_BIN` names or in `PATH`. Nothing is left
//! of it when it is dropped.

mod audit;
mod certificates;
pub mod trial;

pub use audit::Request;

use certificates::Authority;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the API server may take to be ready.
const READY: Duration = Duration::from_secs(60);

/// The user that [`ControlPlane::kubeconfig`] is for.
const ADMIN: &str = "admin";
/// The group that may do everything.
const MASTERS: &str = "system:masters";

/// A control plane; clones are the same one. Its processes end with the last.
#[derive(Clone)]
pub struct ControlPlane(Arc<Inner>);

struct Inner {
    folder: tempfile::TempDir,
    binary: PathBuf,
    ports: Ports,
    authority: Authority,
    etcd: Mutex<Child>,
    server: Mutex<Option<Child>>,
}

struct Ports {
    server: u16,
    etcd: u16,
    etcd_peer: u16,
}

/// Why there is no control plane.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// This machine has none.
    Unable(String),
    /// It has one that does not work.
    Failed(String),
}

impl From<String> for Trouble {
    fn from(why: String) -> Self {
        Trouble::Failed(why)
    }
}

impl ControlPlane {
    /// Starts both and waits until the server is ready.
    ///
    /// # Errors
    /// Where the binaries are not there, or do not start.
    pub fn start() -> Result<Self, Trouble> {
        let etcd = find("etcd").map_err(Trouble::Unable)?;
        let binary = find("kube-apiserver").map_err(Trouble::Unable)?;
        let folder = tempfile::tempdir().map_err(|e| format!("make a folder: {e}"))?;
        let authority = Authority::new(folder.path()).map_err(|e| format!("make certificates: {e}"))?;
        audit::policy(folder.path()).map_err(|e| format!("write an audit policy: {e}"))?;
        let ports = Ports {
            server: free_port(),
            etcd: free_port(),
            etcd_peer: free_port(),
        };
        let etcd = start_etcd(&etcd, folder.path(), &ports)?;
        let control_plane = Self(Arc::new(Inner {
            folder,
            binary,
            ports,
            authority,
            etcd: Mutex::new(etcd),
            server: Mutex::new(None),
        }));
        control_plane.start_server()?;
        Ok(control_plane)
    }

    /// Where the server answers.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.0.ports.server).into()
    }

    /// A kubeconfig of an administrator that reaches the server at this address.
    ///
    /// # Panics
    /// Where no certificate can be written.
    #[must_use]
    pub fn kubeconfig(&self, address: SocketAddr) -> String {
        self.kubeconfig_of(ADMIN, address)
    }

    /// The same for a user of another name, by which [`requests`](Self::requests) are told apart.
    ///
    /// # Panics
    /// Where no certificate can be written.
    #[must_use]
    pub fn kubeconfig_of(&self, user: &str, address: SocketAddr) -> String {
        let credentials = self.certificate(user, MASTERS);
        self.kubeconfig_with(&credentials, address)
    }

    /// The same for whoever has these credentials: the `user` of a kubeconfig, as `{"token": ".."}`.
    #[must_use]
    pub fn kubeconfig_with(&self, credentials: &Value, address: SocketAddr) -> String {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "c", "cluster": {
                "server": format!("https://{address}"), "certificate-authority": self.authority(),
            }}],
            "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": credentials}],
        });
        config.to_string()
    }

    /// Credentials as the kubelet of a node has them: a certificate of the group `system:nodes`.
    ///
    /// # Panics
    /// Where no certificate can be written.
    #[must_use]
    pub fn kubelet(&self, node: &str) -> Value {
        self.certificate(&format!("system:node:{node}"), "system:nodes")
    }

    /// File of the certificate authority that proves the server.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.0.folder.path().join("ca.crt")
    }

    fn certificate(&self, user: &str, group: &str) -> Value {
        let (certificate, key) = self.0.authority.user(user, group).unwrap_or_else(|e| {
            panic!(
                "write a certificate for {user} in {}: {e}",
                self.0.folder.path().display()
            )
        });
        json!({"client-certificate": certificate, "client-key": key})
    }

    /// Every request that the server has finished, and every watch that it has begun, in order.
    ///
    /// # Errors
    /// Where its audit log cannot be read.
    pub fn requests(&self) -> std::io::Result<Vec<Request>> {
        audit::requests(self.0.folder.path())
    }

    /// Process ids of etcd and of the server; the latter is None while it is stopped.
    #[must_use]
    pub fn pids(&self) -> (u32, Option<u32>) {
        let lock = |child: &Mutex<Option<Child>>| {
            let child = child.lock().unwrap_or_else(PoisonError::into_inner);
            child.as_ref().map(Child::id)
        };
        let etcd = self.0.etcd.lock().unwrap_or_else(PoisonError::into_inner).id();
        (etcd, lock(&self.0.server))
    }

    /// Kills the server and starts it again: one that starts has no history before its start.
    ///
    /// # Panics
    /// Where it does not start.
    pub fn forget_history(&self) {
        self.stop_server();
        self.start_server().unwrap();
    }

    /// Kills the server.
    pub fn stop_server(&self) {
        self.0.stop_server();
    }

    /// Starts the server, and waits until it is ready.
    ///
    /// # Errors
    /// Where it does not start, or is not ready in time; with the end of its log.
    pub fn start_server(&self) -> Result<(), String> {
        let Inner {
            folder,
            binary,
            ports,
            ..
        } = &*self.0;
        let at = |name: &str| folder.path().join(name).display().to_string();
        let child = Command::new(binary)
            .arg(format!("--etcd-servers=http://127.0.0.1:{}", ports.etcd))
            .args([
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
                "--endpoint-reconciler-type=none",
            ])
            .arg(format!("--secure-port={}", ports.server))
            .arg(format!("--cert-dir={}", at("run")))
            .arg(format!("--tls-cert-file={}", at("server.crt")))
            .arg(format!("--tls-private-key-file={}", at("server.key")))
            .arg(format!("--client-ca-file={}", at("ca.crt")))
            .args([
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
            ])
            .args(audit::arguments(folder.path()))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-account-key-file={}", at("sa.pub")))
            .arg(format!("--service-account-signing-key-file={}", at("sa.key")))
            .args(["--service-cluster-ip-range=10.96.0.0/16", "--profiling=false"])
            // No controller makes the default service account that this plugin waits for.
            .arg("--disable-admission-plugins=ServiceAccount")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.log("kube-apiserver.log")?)
            .spawn()
            .map_err(|e| format!("start {}: {e}", binary.display()))?;
        *self.0.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        self.wait_ready()
    }

    fn log(&self, name: &str) -> Result<std::fs::File, String> {
        let path = self.0.folder.path().join(name);
        std::fs::File::create(&path).map_err(|e| format!("create {}: {e}", path.display()))
    }

    fn wait_ready(&self) -> Result<(), String> {
        let kubeconfig = self.0.folder.path().join("admin.kubeconfig");
        std::fs::write(&kubeconfig, self.kubeconfig(self.address()))
            .map_err(|e| format!("write a kubeconfig: {e}"))?;
        let begin = Instant::now();
        loop {
            let last = match readiness(kubeconfig.clone()) {
                Ok(text) if text == "ok" => return Ok(()),
                other => other,
            };
            if self.0.has_ended() || begin.elapsed() > READY {
                let seconds = begin.elapsed().as_secs();
                return Err(format!(
                    "kube-apiserver is not ready after {seconds} s: {last:?}; its log ends: {}",
                    self.0.log_end()
                ));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Asked by a thread of its own with a runtime of its own, because a trial's runtime may be around.
fn readiness(kubeconfig: PathBuf) -> Result<String, String> {
    let ask = async move {
        let file = Kubeconfig::read_from(kubeconfig).map_err(|e| e.to_string())?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
        let client = Client::try_from(config.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
        let request = http::Request::get("/readyz")
            .body(Vec::new())
            .map_err(|e| e.to_string())?;
        client.request_text(request).await.map_err(|e| e.to_string())
    };
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|e| e.to_string())?.block_on(ask)
    };
    let asked = std::thread::scope(|scope| scope.spawn(run).join());
    asked.unwrap_or_else(|_| Err("the thread that asked panicked".into()))
}

impl Inner {
    fn has_ended(&self) -> bool {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        server
            .as_mut()
            .is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    fn log_end(&self) -> String {
        let log = std::fs::read_to_string(self.folder.path().join("kube-apiserver.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    fn stop_server(&self) {
        if let Some(mut child) = self.server.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The server first: one whose etcd is gone takes long to end.
        self.stop_server();
        let mut etcd = self.etcd.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = etcd.kill();
        let _ = etcd.wait();
    }
}

fn start_etcd(binary: &Path, folder: &Path, ports: &Ports) -> Result<Child, String> {
    let client = format!("http://127.0.0.1:{}", ports.etcd);
    let peer = format!("http://127.0.0.1:{}", ports.etcd_peer);
    Command::new(binary)
        .arg("--data-dir")
        .arg(folder.join("etcd"))
        .args(["--unsafe-no-fsync", "--log-level", "error"])
        .args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .args(["--initial-cluster", &format!("default={peer}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("start {}: {e}", binary.display()))
}

/// In the folder that the environment names, or else in `PATH`.
fn find(name: &str) -> Result<PathBuf, String> {
    let folder = std::env::var_os("MESHD_KUBERNETES_BIN");
    let folders: Vec<PathBuf> = match &folder {
        Some(folder) => vec![folder.into()],
        None => std::env::var_os("PATH")
            .iter()
            .flat_map(std::env::split_paths)
            .collect(),
    };
    let found = folders.iter().map(|f| f.join(name)).find(|p| p.is_file());
    found.ok_or_else(|| match folder {
        Some(folder) => format!("no {name} in {} (MESHD_KUBERNETES_BIN)", folder.display()),
        None => format!("no {name} in PATH; MESHD_KUBERNETES_BIN may name its folder"),
    })
}

/// Free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}
