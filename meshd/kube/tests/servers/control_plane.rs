//! etcd and kube-apiserver on loopback, with certificates made for the occasion.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the API server may take to be ready.
const READY: Duration = Duration::from_secs(60);

/// A control plane; clones are the same one. Its processes end with the last.
#[derive(Clone)]
pub(crate) struct ControlPlane(Arc<Inner>);

struct Inner {
    folder: tempfile::TempDir,
    binary: PathBuf,
    ports: Ports,
    admin: Admin,
    etcd: Mutex<Child>,
    server: Mutex<Option<Child>>,
}

struct Ports {
    server: u16,
    etcd: u16,
    etcd_peer: u16,
}

/// What a kubeconfig carries.
struct Admin {
    authority: String,
    certificate: String,
    key: String,
}

/// Why there is no control plane.
pub(crate) enum Trouble {
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
    pub(crate) fn start() -> Result<Self, Trouble> {
        let etcd = find("etcd").map_err(Trouble::Unable)?;
        let binary = find("kube-apiserver").map_err(Trouble::Unable)?;
        let folder = tempfile::tempdir().map_err(|e| format!("make a folder: {e}"))?;
        let admin = certificates(folder.path()).map_err(|e| format!("make certificates: {e}"))?;
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
            admin,
            etcd: Mutex::new(etcd),
            server: Mutex::new(None),
        }));
        control_plane.start_server()?;
        Ok(control_plane)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.0.ports.server).into()
    }

    pub(crate) fn kubeconfig(&self, address: SocketAddr) -> String {
        let Admin {
            authority,
            certificate,
            key,
        } = &self.0.admin;
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "c", "cluster": {"server": format!("https://{address}"), "certificate-authority": authority}}],
            "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {"client-certificate": certificate, "client-key": key}}],
        });
        config.to_string()
    }

    /// A server that starts has no history before its start.
    pub(crate) fn forget_history(&self) {
        self.0.stop_server();
        self.start_server().unwrap();
    }

    fn start_server(&self) -> Result<(), String> {
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
            .arg("--authorization-mode=RBAC")
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
        let access = meshd_kube::Access::Kubeconfig(kubeconfig);
        let client = meshd_kube::connect(&access).await.map_err(|e| e.to_string())?;
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

/// Writes `ca.crt`, `server.{crt,key}`, `admin.{crt,key}` and `sa.{key,pub}`.
fn certificates(folder: &Path) -> Result<Admin, Box<dyn std::error::Error>> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.distinguished_name.push(DnType::CommonName, "test CA");
    let key = KeyPair::generate()?;
    let authority = params.self_signed(&key)?;
    std::fs::write(folder.join("ca.crt"), authority.pem())?;
    let issuer = Issuer::new(params, key);

    let issue = |name: &str, mut params: CertificateParams| -> Result<(), Box<dyn std::error::Error>> {
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        std::fs::write(
            folder.join(format!("{name}.crt")),
            params.signed_by(&key, &issuer)?.pem(),
        )?;
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
        Ok(())
    };
    let mut server = CertificateParams::new(vec!["localhost".into()])?;
    server
        .subject_alt_names
        .push(rcgen::SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    issue("server", server)?;
    let mut admin = CertificateParams::default();
    admin.distinguished_name.push(DnType::CommonName, "admin");
    admin
        .distinguished_name
        .push(DnType::OrganizationName, "system:masters");
    issue("admin", admin)?;
    let accounts = KeyPair::generate()?;
    std::fs::write(folder.join("sa.key"), accounts.serialize_pem())?;
    std::fs::write(folder.join("sa.pub"), accounts.public_key_pem())?;

    let path = |name: &str| folder.join(name).display().to_string();
    Ok(Admin {
        authority: path("ca.crt"),
        certificate: path("admin.crt"),
        key: path("admin.key"),
    })
}
