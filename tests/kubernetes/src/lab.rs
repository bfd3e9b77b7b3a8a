//! A cluster of `hack/kubernetes`: brought up, talked to, and taken down however this process ends.

use crate::command;
use anyhow::{Context, Result, anyhow, bail};
use meshd_model::NodeName;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a cluster may take to come up, on a machine that does much else.
const UP: Duration = Duration::from_secs(300);
/// How long any other verb may take.
const VERB: Duration = Duration::from_secs(180);
/// Between two looks at what is to come.
const PAUSE: Duration = Duration::from_millis(100);

/// Which addresses the cluster has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Both families.
    Dual,
    /// IPv6 alone.
    Ipv6,
}

impl Family {
    /// Whether the cluster has such addresses.
    #[must_use]
    pub fn has(self, address: IpAddr) -> bool {
        self == Family::Dual || address.is_ipv6()
    }

    /// As `hack/kubernetes` names it.
    fn name(self) -> &'static str {
        match self {
            Family::Dual => "dual",
            Family::Ipv6 => "ipv6",
        }
    }
}

/// What a cluster is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// How many nodes.
    pub nodes: usize,
    /// Of nodes, pods and services.
    pub family: Family,
    /// Whether each node has `eth1` beside `eth0`, on a wire of its own.
    pub second_nic: bool,
}

/// Why there is no cluster.
pub enum StartError {
    /// This machine cannot have one: it is not root, or nothing is built.
    Unable(String),
    /// It can, and yet it did not come up.
    Failed(anyhow::Error),
}

/// A cluster that runs. Dropping it takes it down, if it was brought up here.
pub struct Lab {
    name: String,
    nodes: Vec<NodeName>,
    shape: Shape,
    reaper: Option<Reaper>,
    /// Held as long as the cluster is up, if it was brought up here.
    _lock: Option<Flock<File>>,
}

impl Lab {
    /// Brings a cluster up that has no network yet. What an earlier process has left under its name is removed first.
    pub fn up(name: &str, shape: Shape) -> Result<Self, StartError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(StartError::Unable("it needs root".to_owned()));
        }
        if let Err(error) = verb(name, &["bin"], "", VERB) {
            return Err(StartError::Unable(format!("{error:#}")));
        }
        Self::start(name, shape).map_err(StartError::Failed)
    }

    /// A cluster that is up already, and stays up.
    pub fn attach(name: &str) -> Result<Self> {
        let file = state(name).join("cluster");
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let value = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
        let nodes = value("COUNT").and_then(|count| count.parse().ok());
        let shape = Shape {
            nodes: nodes.with_context(|| format!("{} has no count of nodes", file.display()))?,
            family: if value("FAMILY") == Some(Family::Ipv6.name()) {
                Family::Ipv6
            } else {
                Family::Dual
            },
            second_nic: value("SECOND_NIC") == Some("1"),
        };
        Ok(Self::of(name, shape, None, None))
    }

    fn of(name: &str, shape: Shape, reaper: Option<Reaper>, lock: Option<Flock<File>>) -> Self {
        Self {
            name: name.to_owned(),
            nodes: (1..=shape.nodes).map(|n| NodeName(format!("n{n}"))).collect(),
            shape,
            reaper,
            _lock: lock,
        }
    }

    fn start(name: &str, shape: Shape) -> Result<Self> {
        let lock = lock(name)?;
        verb(name, &["down"], "", VERB)?;
        // From before there is anything to be left.
        let reaper = Reaper::start(name)?;
        let (count, family) = (shape.nodes.to_string(), shape.family.name());
        let mut arguments = vec!["up", "--nodes", &count, "--family", family, "--cni", "none"];
        if shape.second_nic {
            arguments.push("--second-nic");
        }
        verb(name, &arguments, "", UP)?;
        Ok(Self::of(name, shape, Some(reaper), Some(lock)))
    }

    /// Takes the cluster down. An error names what is left.
    pub fn down(mut self) -> Result<()> {
        let Some(reaper) = self.reaper.take() else {
            return Ok(());
        };
        let down = verb(&self.name, &["down"], "", VERB).map(drop);
        if down.is_ok() {
            reaper.dismiss();
        }
        down
    }

    /// Keeps the logs of every part, and what there is to see at the API server, in a folder.
    pub fn keep_logs(&self, folder: &Path) -> Result<()> {
        let state = self.state().join("logs");
        let arguments = ["-r", &state.to_string_lossy(), &folder.to_string_lossy()];
        command::run(Path::new("cp"), &arguments, "", VERB)?;
        let shown = verb(&self.name, &["status"], "", VERB)?;
        let events = self.kubectl(&["get", "events", "-A", "--sort-by=.lastTimestamp"])?;
        fs::write(folder.join("status"), shown + "\n" + &events).context("write the cluster's status")
    }

    /// Its nodes, in order.
    #[must_use]
    pub fn nodes(&self) -> &[NodeName] {
        &self.nodes
    }

    /// What it is made of.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Its addresses' families.
    #[must_use]
    pub fn family(&self) -> Family {
        self.shape.family
    }

    /// Runs a verb of `hack/kubernetes`.
    pub fn verb(&self, arguments: &[&str]) -> Result<String> {
        verb(&self.name, arguments, "", VERB)
    }

    /// kubectl as the administrator.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_input(arguments, "")
    }

    /// The same, with something on its standard input.
    pub fn kubectl_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        verb(&self.name, &[&["kubectl"], arguments].concat(), input, VERB)
    }

    /// Creates or changes objects as their manifests say.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        self.kubectl_input(&["apply", "-f", "-"], manifests).map(drop)
    }

    /// What `kubectl get ... -o json` gives.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).context("kubectl gave no JSON")
    }

    /// A field of an object, as text; empty where it is not there.
    pub fn field(&self, object: &[&str], path: &str) -> Result<String> {
        let output = format!("jsonpath={{{path}}}");
        self.kubectl(&[&["get", "-o", &output], object].concat())
    }

    /// Runs a command in a node's namespaces.
    pub fn node(&self, node: &NodeName, command: &[&str]) -> Result<String> {
        self.verb(&[&["node", &node.0], command].concat())
    }

    /// Starts, stops, kills or restarts a part of a node.
    pub fn service(&self, node: &NodeName, service: &str, what: &str) -> Result<()> {
        self.verb(&["service", &node.0, service, what]).map(drop)
    }

    /// Where the root of a node's file system is seen from here.
    pub fn root(&self, node: &NodeName) -> Result<PathBuf> {
        let file = self.state().join("nodes").join(&node.0).join("run/init.pid");
        let pid = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        Ok(format!("/proc/{}/root", pid.trim()).into())
    }

    /// Where the network namespace of a node is, or of the underlay (`ul`).
    #[must_use]
    pub fn netns(&self, part: &str) -> PathBuf {
        Path::new(meshd_lab::netns::FOLDER).join(format!("{}-{part}", self.name))
    }

    /// State and logs of the cluster.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        state(&self.name)
    }

    /// A file for whoever works with this cluster; it is gone with it.
    pub fn file(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.state().join(name);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

/// Waits until `look` gives something; its last error, or `what`, if that takes too long.
pub fn wait_for<T>(what: &str, within: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        let seen = look();
        if let Ok(Some(found)) = seen {
            return Ok(found);
        }
        if Instant::now() > deadline {
            let waited = format!("waited {within:?} in vain for {what}");
            return match seen {
                Err(error) => Err(error.context(waited)),
                Ok(_) => bail!(waited),
            };
        }
        std::thread::sleep(PAUSE);
    }
}

fn state(name: &str) -> PathBuf {
    let folder = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
    folder.join(format!("meshd-kubernetes-{name}"))
}

/// Keeps another run from taking this one's cluster for one that was left behind.
fn lock(name: &str) -> Result<Flock<File>> {
    let path = state(name).with_extension("lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => anyhow!("another run has the cluster {name}: wait for its end"),
        other => anyhow!("lock {}: {other}", path.display()),
    })
}

/// The repository's root.
pub(crate) fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn verb(name: &str, arguments: &[&str], input: &str, within: Duration) -> Result<String> {
    let script = repository().join("hack/kubernetes");
    command::run(&script, &[&["--name", name], arguments].concat(), input, within)
}

/// A process that waits for the end of this one, whatever ends it, and takes the cluster down then.
struct Reaper(Child);

impl Reaper {
    fn start(name: &str) -> Result<Self> {
        let script = repository().join("hack/kubernetes");
        let child = Command::new("sh")
            // Its standard input ends with this process; a line before that dismisses it.
            .args(["-c", r#"read -r line || exec "$0" --name "$1" down"#])
            .arg(script)
            .arg(name)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C is sent to the whole group of the terminal.
            .process_group(0)
            .spawn()
            .context("start the process that takes the cluster down")?;
        Ok(Self(child))
    }

    fn dismiss(mut self) {
        let told = self.0.stdin.take().map(|mut pipe| pipe.write_all(b"dismissed\n"));
        let _ = told;
        let _ = self.0.wait();
    }
}
