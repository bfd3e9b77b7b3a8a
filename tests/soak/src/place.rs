//! One node in the namespaces of this process: an embedded API server, a userspace device, and the daemon that is killed.

use crate::Common;
use crate::remains;
use anyhow::{Context, Result, bail};
use meshd_apiserver::{Body, Config, NodeCidrs, NodeIpam, Request as ApiRequest};
use meshd_apiserver_http::{Running, Shared, serve};
use meshd_lab::Binaries;
use meshd_lab::netns::Netns;
use meshd_model::cni::{Call, Request, Response};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// How long the daemon may take to be ready, and what is left of pods to go.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(5);
/// What is not the daemon's doing.
const NODE: &str = "
apiVersion: v1
kind: Node
metadata: {name: soak}
status: {addresses: [{type: InternalIP, address: 10.99.0.1}]}
";

/// Everything goes with this value.
pub(crate) struct Place {
    folder: PathBuf,
    binaries: Binaries,
    own: Netns,
    api: Shared,
    daemon: Mutex<Option<Child>>,
    device: Child,
    runtime: Runtime,
    _running: Running,
    _folder: Option<TempDir>,
}

impl Place {
    /// Makes it; the daemon is started and ready.
    pub(crate) fn make(common: &Common, rest_seconds: u32) -> Result<Self> {
        let binaries = match &common.bin {
            Some(folder) => Binaries::in_folder(folder)?,
            None => Binaries::find()?,
        };
        let temporary = tempfile::Builder::new()
            .prefix("meshd-soak-")
            .tempdir()
            .context("make a folder")?;
        let folder = temporary.path().to_owned();
        let temporary = if common.keep {
            eprintln!("working folder: {}", temporary.keep().display());
            None
        } else {
            Some(temporary)
        };
        underlay()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("start a runtime")?;
        let api = Shared::start(api_config()?);
        api.with(|server, now| server.load_yaml(now, NODE))
            .context("load the Node")?;
        let running = runtime
            .block_on(async { anyhow::Ok(serve(TcpListener::bind("127.0.0.1:0").await?, api.clone())?) })?;
        configure(&folder, &running.url(), rest_seconds)?;
        let device = Command::new(&binaries.meshd_wg)
            .args(["--foreground", "--socket-dir"])
            .arg(&folder)
            .arg("meshd0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log(&folder, "device.log")?)
            .spawn()
            .context("start meshd-wg")?;
        let place = Self {
            own: Netns::open("soak", Path::new("/proc/self/ns/net"))?,
            folder,
            binaries,
            api,
            daemon: Mutex::new(None),
            device,
            runtime,
            _running: running,
            _folder: temporary,
        };
        place.wait("the device's socket", || Ok(place.path("meshd0.sock").exists()))?;
        place.start()?;
        place.until_ready()?;
        Ok(place)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("meshd.sock")
    }

    pub(crate) fn plugin(&self) -> &Path {
        &self.binaries.meshd_cni
    }

    pub(crate) fn netns(&self) -> &Netns {
        &self.own
    }

    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub(crate) fn start(&self) -> Result<()> {
        let child = Command::new(&self.binaries.meshd)
            .arg("--config")
            .arg(self.path("meshd.toml"))
            .env_remove("NODE_NAME")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log(&self.folder, "meshd.log")?)
            .spawn()
            .context("start meshd")?;
        *self.daemon.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        Ok(())
    }

    /// After the killer has ended, at whatever moment.
    pub(crate) fn start_if_down(&self) -> Result<()> {
        match self.pid() {
            Some(_) => Ok(()),
            None => self.start(),
        }
    }

    /// The daemon's process, as long as it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        let daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        daemon.as_ref().map(Child::id)
    }

    /// Whether the daemon was killed by somebody else.
    pub(crate) fn has_ended(&self) -> Result<bool> {
        let mut daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        match daemon.as_mut() {
            Some(daemon) => Ok(daemon.try_wait().context("look at meshd")?.is_some()),
            None => Ok(true),
        }
    }

    /// `kill -9`, also of one that was killed before; an error where it has ended by itself.
    pub(crate) fn kill(&self) -> Result<()> {
        let daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut daemon) = daemon else { return Ok(()) };
        let ended = daemon.try_wait().context("look at meshd")?;
        if let Some(status) = ended.filter(|status| status.code().is_some()) {
            bail!("meshd has ended by itself, {status}: {}", self.last_words());
        }
        let _ = daemon.kill();
        daemon.wait().context("wait for meshd's end")?;
        Ok(())
    }

    /// The end of the daemon's log.
    pub(crate) fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.path("meshd.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(30).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn until_ready(&self) -> Result<Duration> {
        let begun = Instant::now();
        self.wait("a ready daemon", || {
            Ok(matches!(self.ask(Call::Ready), Ok(Response::Done)))
        })
        .with_context(|| self.last_words())?;
        Ok(begun.elapsed())
    }

    fn ask(&self, call: Call) -> Result<Response> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut line = serde_json::to_vec(&Request {
            deadline_ms: 4000,
            call,
        })?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        Ok(serde_json::from_str(&answer)?)
    }

    /// Waits until what is left is what was there before; says what differs if it does not come to that.
    pub(crate) fn until_clean(&self, before: &BTreeSet<String>, patience: Duration) -> Result<Vec<String>> {
        let end = Instant::now() + patience;
        loop {
            let now = remains::lines(self)?;
            if now == *before {
                return Ok(Vec::new());
            }
            if Instant::now() > end {
                let more = now.difference(before).map(|line| format!("left: {line}"));
                let less = before.difference(&now).map(|line| format!("missing: {line}"));
                return Ok(more.chain(less).collect());
            }
            std::thread::sleep(PAUSE * 4);
        }
    }

    fn wait(&self, what: &str, mut there: impl FnMut() -> Result<bool>) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if there()? {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
        bail!("{what} does not come within {} s", PATIENCE.as_secs())
    }

    /// A Pod object that is bound to the node; its UID.
    pub(crate) fn create_pod(&self, name: &str) -> Result<String> {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
            "spec": {"nodeName": "soak", "containers": [{"name": "a", "image": "a"}]},
        });
        let made = self
            .api
            .request(ApiRequest::create("/api/v1/namespaces/default/pods", &pod));
        match &made.body {
            Body::Object(pod) => pod["metadata"]["uid"].as_str().map(str::to_owned),
            _ => None,
        }
        .with_context(|| format!("create pod {name}: {made:?}"))
    }

    pub(crate) fn delete_pod(&self, name: &str) {
        let path = format!("/api/v1/namespaces/default/pods/{name}");
        self.api.request(ApiRequest::delete(path));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.kill();
        let _ = self.device.kill();
        let _ = self.device.wait();
    }
}

fn log(folder: &Path, name: &str) -> Result<File> {
    let path = folder.join(name);
    File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))
}

fn api_config() -> Result<Config> {
    let cidrs = |network: &str, prefix, node_prefix| {
        anyhow::Ok(NodeCidrs {
            network: network.parse()?,
            prefix,
            node_prefix,
        })
    };
    Ok(Config {
        node_ipam: Some(NodeIpam {
            cluster_cidrs: vec![cidrs("10.244.0.0", 16, 22)?, cidrs("fd00:244::", 48, 64)?],
        }),
        ..Config::default()
    })
}

fn underlay() -> Result<()> {
    for line in [
        "link set lo up",
        "link add underlay type veth peer name far",
        "addr add 10.99.0.1/24 dev underlay",
        "link set underlay up",
        "link set far up",
    ] {
        let out = Command::new("ip")
            .args(line.split(' '))
            .output()
            .context("run ip; install iproute2")?;
        if !out.status.success() {
            bail!("ip {line}: {}", String::from_utf8_lossy(&out.stderr));
        }
    }
    Ok(())
}

fn configure(folder: &Path, api: &str, rest_seconds: u32) -> Result<()> {
    let make = |name: &str| {
        let path = folder.join(name);
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("make {}", path.display()))
    };
    make("state")?;
    make("netns")?;
    let at = folder.display();
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: c, cluster: {{server: \"{api}\"}}}}]\n\
         users: [{{name: u, user: {{}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
    );
    let configuration = format!(
        "node_name = 'soak'\nkubeconfig = '{at}/kubeconfig'\nstate_dir = '{at}/state'\nsocket = '{at}/meshd.sock'\n\
         cluster_pod_cidrs = ['10.244.0.0/16', 'fd00:244::/48']\n\
         [wireguard]\nmode = 'userspace'\nsocket_dir = '{at}'\n\
         [pods]\nallow_unnamed = true\naddress_rest_seconds = {rest_seconds}\n\
         [log]\nfilter = 'warn,nlink=error'\n"
    );
    for (name, text) in [("kubeconfig", kubeconfig), ("meshd.toml", configuration)] {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
