//! One node: a network namespace on the underlay, a folder, and the two processes that are meshd.

use crate::Binaries;
use crate::netns::Netns;
use crate::plan::{DEVICE, Families, LISTEN_PORT, Plan, SECOND, UPLINK, of_families};
use crate::process::{self, Process};
use crate::state;
use crate::traffic::echo::Echo;
use anyhow::{Context, Result, bail};
use ipnetwork::IpNetwork;
use meshd_model::NodeName;
use meshd_scenario::BehindNat;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a program may take to come up, or to take its things down.
const PATIENCE: Duration = Duration::from_secs(10);

/// What carries a node's tunnel: `wireguard.mode` of its configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A `meshd-wg` process.
    #[default]
    Userspace,
    /// The kernel's WireGuard, which the machine must have.
    Kernel,
    /// What meshd chooses where no `meshd-wg` runs.
    Auto,
}

impl Mode {
    /// As the configuration spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mode::Userspace => "userspace",
            Mode::Kernel => "kernel",
            Mode::Auto => "auto",
        }
    }
}

/// What sets a node apart from others.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// What carries its tunnel.
    pub mode: Mode,
    /// The NAT that it is behind.
    pub nat: Option<BehindNat>,
    /// Whether it has a second interface, at whose addresses it is to be reached.
    pub second_interface: bool,
    /// Whether it claims blocks of the pod CIDRs for itself, and its Node is given none.
    pub pool: bool,
}

impl From<Mode> for Setup {
    fn from(mode: Mode) -> Self {
        Self {
            mode,
            ..Self::default()
        }
    }
}

impl Setup {
    /// As the configuration spells where it is to be reached.
    fn endpoints(&self) -> String {
        if self.second_interface {
            return format!("interface:{SECOND}");
        }
        "internal-ip".to_owned()
    }

    /// What its Node is given as pod CIDRs.
    pub(super) fn pod_cidrs(&self, families: &Families, number: usize) -> Vec<IpNetwork> {
        match self.pool {
            true => Vec::new(),
            false => of_families(families, Plan::pod_cidrs(number)),
        }
    }

    /// The node's first addresses.
    pub(super) fn addresses(&self, families: &Families, number: usize) -> Vec<IpAddr> {
        match self.nat {
            None => Plan::node_addresses(families, number, 0),
            Some(_) => Plan::addresses_behind_nat(families, number),
        }
    }
}

/// A node of the lab.
pub struct Node {
    /// Its name, at the API server and as a network namespace.
    pub name: NodeName,
    /// Its number, from 1.
    pub number: usize,
    /// On the underlay.
    pub addresses: Vec<IpAddr>,
    /// How often it was given others.
    pub moves: u8,
    /// Its network namespace.
    pub netns: Netns,
    /// Its echo servers.
    pub echo: Echo,
    paths: Paths,
    pub(super) setup: Setup,
    families: Families,
    binaries: Binaries,
    device: Option<Process>,
    agent: Option<Process>,
    /// What its kernel held before meshd came.
    before: BTreeSet<String>,
}

/// Where everything of a node is. On a real node these are the defaults; here a folder holds them.
#[derive(Clone, Debug)]
pub struct Paths {
    /// Its folder.
    pub folder: PathBuf,
    /// `meshd.toml`
    pub config: PathBuf,
    /// The daemon's socket.
    pub socket: PathBuf,
    /// `/var/lib/meshd`
    pub state: PathBuf,
    /// `/var/run/wireguard`
    pub wireguard: PathBuf,
    /// Where logs and recordings go.
    pub logs: PathBuf,
    /// The daemon's recording.
    pub recording: PathBuf,
}

impl Paths {
    /// Those of a node.
    #[must_use]
    pub fn of(name: &NodeName) -> Self {
        let folder = Path::new("/run/lab").join(&name.0);
        let logs = PathBuf::from(crate::sandbox::HOST);
        Self {
            config: folder.join("meshd.toml"),
            socket: folder.join("run/meshd.sock"),
            state: folder.join("state"),
            wireguard: folder.join("wireguard"),
            recording: logs.join(format!("{name}.recording")),
            folder,
            logs,
        }
    }
}

impl Node {
    /// Makes the node's parts that are not meshd: its namespace must be on the underlay already.
    pub async fn create(
        number: usize,
        setup: Setup,
        netns: Netns,
        families: &Families,
        binaries: &Binaries,
        kubeconfig: &str,
    ) -> Result<Self> {
        let name = Plan::node_name(number);
        let paths = Paths::of(&name);
        for folder in [
            &paths.folder,
            &paths.folder.join("run"),
            &paths.state,
            &paths.wireguard,
        ] {
            fs::DirBuilder::new()
                .mode(0o700)
                .create(folder)
                .with_context(|| format!("make {}", folder.display()))?;
        }
        let kubeconfig_path = paths.folder.join("kubeconfig");
        fs::write(&kubeconfig_path, kubeconfig)
            .with_context(|| format!("write {}", kubeconfig_path.display()))?;
        let node = Self {
            families: families.clone(),
            echo: Echo::start(&netns)?,
            before: state::lines(&netns).await?,
            name,
            number,
            addresses: setup.addresses(families, number),
            moves: 0,
            netns,
            paths,
            setup,
            binaries: binaries.clone(),
            device: None,
            agent: None,
        };
        node.write_configuration()?;
        Ok(node)
    }

    fn write_configuration(&self) -> Result<()> {
        let kubeconfig = self.paths.folder.join("kubeconfig");
        let config = configuration(&self.name, &self.setup, &self.families, &self.paths, &kubeconfig)?;
        fs::write(&self.paths.config, config)
            .with_context(|| format!("write {}", self.paths.config.display()))
    }

    /// Whether it has a second interface.
    #[must_use]
    pub fn has_second_interface(&self) -> bool {
        self.setup.second_interface
    }

    /// Whether it is behind a NAT.
    #[must_use]
    pub fn is_behind_nat(&self) -> bool {
        self.setup.nat.is_some()
    }

    /// What carries its tunnel, as its configuration says.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.setup.mode
    }

    /// Changes the configuration; a daemon reads it when it starts.
    pub fn set_mode(&mut self, mode: Mode) -> Result<()> {
        self.setup.mode = mode;
        self.write_configuration()
    }

    /// Where its things are.
    #[must_use]
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Starts the device, and waits until it can be configured.
    pub fn start_device(&mut self) -> Result<()> {
        let mut command = Command::new(&self.binaries.meshd_wg);
        command
            .args(["--foreground", "--socket-dir"])
            .arg(&self.paths.wireguard)
            .arg(DEVICE);
        let name = format!("{}.meshd-wg", self.name);
        let mut device = Process::start(&self.netns, &name, command, &self.paths.logs)?;
        let socket = self.paths.wireguard.join(format!("{DEVICE}.sock"));
        let deadline = Instant::now() + PATIENCE;
        // A device that was killed has left its socket behind: only an answer counts.
        while UnixStream::connect(&socket).is_err() {
            device.check()?;
            if Instant::now() > deadline {
                bail!(
                    "{name} does not answer at {} within {PATIENCE:?}",
                    socket.display()
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.device = Some(device);
        Ok(())
    }

    /// Starts the daemon.
    pub fn start_agent(&mut self) -> Result<()> {
        if self.agent.is_some() {
            bail!("meshd of {} runs already", self.name);
        }
        let command = self.meshd(&[]);
        let name = format!("{}.meshd", self.name);
        self.agent = Some(Process::start(&self.netns, &name, command, &self.paths.logs)?);
        Ok(())
    }

    /// The daemon's program with this node's configuration, which nothing of our own environment overrides.
    fn meshd(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binaries.meshd);
        command.args(arguments).arg("--config").arg(&self.paths.config);
        command.env_remove("NODE_NAME").env_remove("KUBECONFIG");
        command
    }

    /// Pid of the daemon, inside the sandbox.
    pub fn agent_pid(&self) -> Result<i32> {
        let agent = self.agent.as_ref();
        let pid = agent
            .with_context(|| format!("meshd of {} does not run", self.name))?
            .pid();
        Ok(i32::try_from(pid)?)
    }

    /// kill -9 of the daemon.
    pub fn kill_agent(&mut self) -> Result<()> {
        let agent = self.agent.take();
        agent
            .with_context(|| format!("meshd of {} does not run", self.name))?
            .kill()
    }

    /// kill -9 of the device's process; its interface stays.
    pub fn kill_device(&mut self) -> Result<()> {
        let device = self.device.take();
        device
            .with_context(|| format!("meshd-wg of {} does not run", self.name))?
            .kill()
    }

    /// Runs a verb of the daemon's program to its end.
    pub fn run_meshd(&self, arguments: &[&str]) -> Result<process::Finished> {
        process::run(&self.netns, self.meshd(arguments), "", PATIENCE)
    }

    /// An error if the daemon or the device has ended by itself.
    pub fn check(&mut self) -> Result<()> {
        self.agent.as_mut().map_or(Ok(()), Process::check)?;
        self.device.as_mut().map_or(Ok(()), Process::check)
    }

    /// Stops both processes and lets meshd take down what it put on the node.
    pub fn shut_down(&mut self) -> Result<()> {
        if let Some(mut agent) = self.agent.take() {
            agent.terminate()?;
        }
        // First: a device's interface can be removed only when no process holds it.
        if let Some(mut device) = self.device.take() {
            device.terminate()?;
        }
        let done = self.run_meshd(&["teardown"])?;
        if !done.status.success() {
            bail!("meshd teardown on {}: {}{}", self.name, done.stdout, done.stderr);
        }
        Ok(())
    }

    /// The lab itself changed its uplink, so that its kernel held `before` and then `after`.
    pub(super) fn uplink_changed(&mut self, before: &BTreeSet<String>, after: &BTreeSet<String>) {
        let of_uplink = |line: &&String| line.contains(&format!(" dev {UPLINK}"));
        for gone in before.difference(after).filter(of_uplink) {
            self.before.remove(gone);
        }
        self.before
            .extend(after.difference(before).filter(of_uplink).cloned());
    }

    /// What its kernel and its store hold beyond what they held before meshd came.
    pub async fn remains(&self) -> Result<Vec<String>> {
        let now = state::lines(&self.netns).await?;
        let mut found: Vec<String> = now
            .difference(&self.before)
            .map(|l| format!("{}: {l}", self.name))
            .collect();
        found.extend(self.leases()?);
        Ok(found)
    }

    /// Leases in its store.
    pub fn leases(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut folders = vec![self.paths.state.clone()];
        while let Some(folder) = folders.pop() {
            let entries = match fs::read_dir(&folder) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                entries => entries.with_context(|| format!("list {}", folder.display()))?,
            };
            for entry in entries.flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|e| e == "lease") {
                    found.push(format!(
                        "{}: lease {}",
                        self.name,
                        entry.file_name().to_string_lossy()
                    ));
                }
            }
        }
        Ok(found)
    }
}

fn configuration(
    name: &NodeName,
    setup: &Setup,
    families: &Families,
    paths: &Paths,
    kubeconfig: &Path,
) -> Result<String> {
    let text = |path: &Path| {
        path.to_str()
            .map(str::to_owned)
            .with_context(|| format!("{} is not UTF-8", path.display()))
    };
    // JSON strings are TOML strings.
    let quoted = |path: &Path| Ok::<_, anyhow::Error>(serde_json::to_string(&text(path)?)?);
    let list = |prefixes| serde_json::to_string(&of_families(families, prefixes));
    Ok(format!(
        "node_name = \"{name}\"\n\
         kubeconfig = {}\n\
         state_dir = {}\n\
         socket = {}\n\
         cluster_pod_cidrs = {}\n\
         service_cidrs = {}\n\
         \n\
         [wireguard]\n\
         mode = \"{}\"\n\
         interface = \"{DEVICE}\"\n\
         listen_port = {LISTEN_PORT}\n\
         keepalive_seconds = {}\n\
         endpoints = \"{}\"\n\
         socket_dir = {}\n\
         \n\
         [ipam]\n\
         mode = \"{}\"\n\
         \n\
         [outside]\n\
         except = {}\n\
         \n\
         [recording]\n\
         dir = {}\n",
        quoted(kubeconfig)?,
        quoted(&paths.state)?,
        quoted(&paths.socket)?,
        list(Plan::cluster_pod_cidrs())?,
        list(Plan::service_cidrs())?,
        setup.mode.name(),
        setup.nat.as_ref().and_then(|n| n.keepalive).unwrap_or(0),
        setup.endpoints(),
        quoted(&paths.wireguard)?,
        if setup.pool { "pool" } else { "kubernetes" },
        list(Plan::excepted().map(IpNetwork::from))?,
        quoted(&paths.recording)?,
    ))
}
