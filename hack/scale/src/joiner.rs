//! The node that joins: a real daemon with a real userspace device.

use crate::cluster::{self, Cluster, POD_CIDRS};
use crate::process::{Process, Usage, ip};
use crate::proxy::{Proxy, Traffic};
use crate::recording::Recording;
use crate::report::{Report, kib, mib, ms};
use anyhow::{Context, bail};
use meshd::clock;
use meshd::socket::client;
use meshd_model::Boot;
use meshd_model::status::Status;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Its API server's name for it.
const USER: &str = "joiner";
/// How long all of a join may take.
const PATIENCE: Duration = Duration::from_secs(180);
/// So long without a new route it is taken to be at rest.
const QUIET: Duration = Duration::from_secs(2);

pub(crate) struct Joiner {
    bin: PathBuf,
    folder: PathBuf,
    proxy: Proxy,
    device: Process,
    daemon: Process,
    recording: Recording,
}

/// All that is counted, at one moment.
struct Count {
    at: Boot,
    daemon: Usage,
    device: Usage,
    server: Usage,
    traffic: Traffic,
    requests: usize,
}

impl Joiner {
    /// Starts device and daemon, waits until all peers are programmed, and tells what it took.
    pub(crate) async fn join(
        cluster: &Cluster,
        bin: &Path,
        folder: &Path,
        report: &mut Report,
    ) -> anyhow::Result<Self> {
        let number = cluster.nodes;
        underlay(number)?;
        cluster.create(number, None).await?;
        let proxy = Proxy::to(cluster.control_plane().address()).await?;
        configure(cluster, folder, number, &proxy)?;
        let device = start_device(bin, folder)?;
        wait("the device's socket", || folder.join("meshd0.sock").exists()).await?;
        let server = server_usage(cluster)?;
        let began = clock::now().boot;
        let mut joiner = Self {
            daemon: start_daemon(bin, folder)?,
            bin: bin.to_owned(),
            folder: folder.to_owned(),
            proxy,
            device,
            recording: Recording::of(&folder.join("state")),
        };
        joiner.rest(cluster.nodes).await?;
        joiner.tell_join(cluster, began, server, report)?;
        Ok(joiner)
    }

    fn tell_join(
        &self,
        cluster: &Cluster,
        began: Boot,
        server: Usage,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let after = self.count(cluster)?;
        let part = self.recording.since(began)?;
        let since = |at: Option<Boot>| at.map_or("never".to_owned(), |at| ms(at.since(began)));
        report.note("one node joins");
        report.line("from start until the Nodes are listed", since(part.synced()));
        let (first, last) = part.applied();
        report.line("from start until the first peer or route is there", since(first));
        report.line("from start until all peers and routes are there", since(last));
        if let (Some(synced), Some(last)) = (part.synced(), last) {
            report.line(
                "from the list until all peers and routes are there",
                ms(last.since(synced)),
            );
        }
        report.line("operations on the kernel", part.operations());
        report.line("of which failed", part.failures());
        report.line("observations of the kernel", part.observations());
        report.line("CPU of meshd", ms(after.daemon.cpu));
        report.line("CPU of meshd-wg", ms(after.device.cpu));
        report.line(
            "CPU of kube-apiserver meanwhile",
            ms(after.server.cpu.saturating_sub(server.cpu)),
        );
        report.line("bytes from the API server", kib(after.traffic.down));
        report.line("bytes to the API server", kib(after.traffic.up));
        report.line("connections to the API server", after.traffic.connections);
        for request in cluster.requests(USER)? {
            report.line(
                "  request",
                format_args!("{} {} {}", request.code, request.verb, request.uri),
            );
        }
        self.tell_memory(&after, report);
        report.line("recording on disk", kib(self.recording.bytes()));
        let status = self.status()?;
        let problems = status.problems.len();
        report.line(
            "peers, problems in its status",
            format_args!("{}, {problems}", status.peers.len()),
        );
        if status.peers.len() != cluster.nodes as usize || !status.ready || problems > 0 {
            bail!(
                "it has not joined: ready is {}, {:?}",
                status.ready,
                status.problems.first()
            );
        }
        Ok(())
    }

    fn tell_memory(&self, count: &Count, report: &mut Report) {
        for (name, usage) in [("meshd", count.daemon), ("meshd-wg", count.device)] {
            let (rss, anonymous, peak) = (mib(usage.rss), mib(usage.anonymous), mib(usage.peak));
            report.line(
                &format!("{name}: resident, of it not a file's, most ever"),
                format_args!("{rss}, {anonymous}, {peak}"),
            );
        }
    }

    /// Waits until routes to so many nodes are there and no more come.
    async fn rest(&mut self, nodes: u32) -> anyhow::Result<()> {
        let begun = Instant::now();
        let (mut routes, mut changed) = (0, Instant::now());
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if self.daemon.has_ended() {
                bail!("meshd has ended: see {}", self.folder.join("meshd.log").display());
            }
            let now = routes_of_pods()?;
            if now != routes {
                (routes, changed) = (now, Instant::now());
            }
            if routes >= nodes && changed.elapsed() > QUIET {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                bail!("{routes} routes of {nodes} after {} s", PATIENCE.as_secs());
            }
        }
    }

    fn count(&self, cluster: &Cluster) -> anyhow::Result<Count> {
        Ok(Count {
            at: clock::now().boot,
            daemon: self.daemon.usage()?,
            device: self.device.usage()?,
            server: server_usage(cluster)?,
            traffic: self.proxy.traffic(),
            requests: cluster.requests(USER)?.len(),
        })
    }

    fn status(&self) -> anyhow::Result<Status> {
        Ok(client::status(
            &self.folder.join("meshd.sock"),
            Duration::from_secs(10),
        )?)
    }

    /// Tells what `times` of something took, each.
    fn tell(&self, cluster: &Cluster, before: &Count, times: u32, report: &mut Report) -> anyhow::Result<()> {
        let after = self.count(cluster)?;
        let part = self.recording.since(before.at)?;
        let each = |time: Duration| ms(time / times.max(1));
        let traffic = after.traffic - before.traffic;
        let n = u64::from(times.max(1));
        report.line("  CPU of meshd, each", each(after.daemon.cpu - before.daemon.cpu));
        report.line(
            "  CPU of meshd-wg, each",
            each(after.device.cpu - before.device.cpu),
        );
        report.line("  bytes from the API server, each", kib(traffic.down / n));
        report.line("  bytes to the API server, all", kib(traffic.up));
        report.line(
            "  requests to the API server, all",
            after.requests - before.requests,
        );
        report.line("  operations on the kernel, all", part.operations());
        report.line("  observations of the kernel, all", part.observations());
        Ok(())
    }

    /// Other nodes change, one at a time.
    pub(crate) async fn changes(
        &mut self,
        cluster: &Cluster,
        times: u32,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let times = times.min(cluster.nodes);
        report.note(&format!(
            "{times} heartbeats of other nodes, which change nothing for this one"
        ));
        let before = self.count(cluster)?;
        for i in 0..times {
            cluster.heartbeat(i, i + 1).await?;
        }
        tokio::time::sleep(QUIET).await;
        self.tell(cluster, &before, times, report)?;

        report.note(&format!("{times} nodes change their key and port"));
        let (before, mut slowest, mut all) = (self.count(cluster)?, Duration::ZERO, Duration::ZERO);
        for i in 0..times {
            let (uid, key) = (cluster.uid(i).await?, cluster::key());
            let begun = clock::now().boot;
            cluster.publish(i, &uid, key, 51821).await?;
            let took = self.applied_since(begun).await?;
            (slowest, all) = (slowest.max(took), all + took);
        }
        report.line(
            "  from the request until it is in the device, mean",
            ms(all / times.max(1)),
        );
        report.line("  the same, slowest", ms(slowest));
        self.tell(cluster, &before, times, report)?;

        report.note(&format!("{times} nodes are deleted, and made anew"));
        let before = self.count(cluster)?;
        for i in 0..times {
            cluster.delete(i).await?;
            cluster.create(i, Some(cluster::key())).await?;
        }
        tokio::time::sleep(QUIET).await;
        self.tell(cluster, &before, times, report)
    }

    /// Waits for an operation on a peer or route, and says how long after `begun` the last was there.
    async fn applied_since(&self, begun: Boot) -> anyhow::Result<Duration> {
        let patience = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            if let (_, Some(last)) = self.recording.since(begun)?.applied() {
                return Ok(last.since(begun));
            }
            if patience.elapsed() > PATIENCE {
                bail!("a change of a Node has changed no peer");
            }
        }
    }

    /// Probes and operators ask.
    pub(crate) async fn asked(&mut self, times: u32, report: &mut Report) -> anyhow::Result<()> {
        report.note(&format!(
            "{times} times `meshd ready`, as a probe asks, then `meshctl status`"
        ));
        for (what, is_status) in [("probe", false), ("status", true)] {
            let (before, begun) = (self.daemon.usage()?, Instant::now());
            for _ in 0..times {
                if is_status {
                    self.status()?;
                } else {
                    self.probe()?;
                }
                // Looks at the kernel are no more often than this.
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            let after = self.daemon.usage()?;
            let took = begun.elapsed() / times - Duration::from_millis(250);
            report.line(&format!("  {what}: time, each"), ms(took));
            report.line(
                &format!("  {what}: CPU of meshd, each"),
                ms((after.cpu - before.cpu) / times),
            );
        }
        Ok(())
    }

    fn probe(&self) -> anyhow::Result<()> {
        let out = Command::new(self.bin.join("meshd"))
            .args(["ready", "--socket"])
            .arg(self.folder.join("meshd.sock"))
            .output()
            .context("run meshd ready")?;
        if !out.status.success() {
            bail!("not ready: {}", String::from_utf8_lossy(&out.stderr));
        }
        Ok(())
    }

    /// Nothing happens, for longer than a resync and than a bookmark.
    pub(crate) async fn idle(&mut self, cluster: &Cluster, report: &mut Report) -> anyhow::Result<()> {
        const MINUTE: Duration = Duration::from_secs(65);
        report.note("nothing happens for 65 s");
        let before = self.count(cluster)?;
        tokio::time::sleep(MINUTE).await;
        self.tell(cluster, &before, 1, report)?;
        self.tell_memory(&self.count(cluster)?, report);
        Ok(())
    }

    /// The daemon is killed and started again.
    pub(crate) async fn restart(&mut self, cluster: &Cluster, report: &mut Report) -> anyhow::Result<()> {
        report.note("the daemon is killed and started again");
        self.daemon.kill();
        let (requests, traffic) = (cluster.requests(USER)?.len(), self.proxy.traffic());
        let began = clock::now().boot;
        self.daemon = start_daemon(&self.bin, &self.folder)?;
        let begun = Instant::now();
        while self.probe().is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if begun.elapsed() > PATIENCE {
                bail!("it is not ready again");
            }
        }
        report.line("  from start until it is ready", ms(begun.elapsed()));
        tokio::time::sleep(QUIET).await;
        let part = self.recording.since(began)?;
        let usage = self.daemon.usage()?;
        let traffic = self.proxy.traffic() - traffic;
        report.line("  operations on the kernel", part.operations());
        report.line("  writes to the API server", part.publications());
        report.line(
            "  requests to the API server",
            cluster.requests(USER)?.len() - requests,
        );
        report.line("  bytes from the API server", kib(traffic.down));
        report.line("  CPU of meshd", ms(usage.cpu));
        self.tell_memory(&self.count(cluster)?, report);
        Ok(())
    }

    /// The API server is killed and started again.
    pub(crate) async fn server_restart(
        &mut self,
        cluster: &Cluster,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        report.note(
            "the API server is killed and started again; the node's connections are cut in between as well",
        );
        let requests = cluster.requests(USER)?.len();
        let (began, traffic) = (clock::now().boot, self.proxy.traffic());
        let control_plane = cluster.control_plane().clone();
        tokio::task::spawn_blocking(move || {
            control_plane.stop_server();
            control_plane.start_server()
        })
        .await?
        .map_err(anyhow::Error::msg)?;
        tokio::time::sleep(Duration::from_secs(20)).await;
        let part = self.recording.since(began)?;
        let traffic = self.proxy.traffic() - traffic;
        report.line("  lists of Nodes", part.lists());
        report.line("  operations on the kernel", part.operations());
        report.line("  writes to the API server", part.publications());
        report.line("  bytes from the API server", kib(traffic.down));
        for request in cluster.requests(USER)?.into_iter().skip(requests) {
            report.line(
                "  request",
                format_args!("{} {} {}", request.code, request.verb, request.uri),
            );
        }
        Ok(())
    }

    /// Runs a command beside the daemon.
    pub(crate) fn profile(&mut self, command: &str) -> anyhow::Result<()> {
        let mut child = Command::new("sh")
            .args(["-c", command])
            .env("MESHD_PID", self.daemon.id().to_string())
            .env("MESHD_WG_PID", self.device.id().to_string())
            .spawn()
            .with_context(|| format!("run {command}"))?;
        std::thread::spawn(move || child.wait());
        Ok(())
    }
}

fn server_usage(cluster: &Cluster) -> anyhow::Result<Usage> {
    let (_, server) = cluster.control_plane().pids();
    Usage::of(server.context("the API server does not run")?)
}

/// The interface that the peers' endpoints are behind; nobody answers there.
fn underlay(number: u32) -> anyhow::Result<()> {
    let annotations = Cluster::annotations(number, cluster::key());
    ip(&["link", "add", "underlay", "type", "veth", "peer", "name", "far"])?;
    for (address, length) in annotations.node_addresses.iter().zip(["16", "64"]) {
        ip(&[
            "addr",
            "add",
            &format!("{address}/{length}"),
            "dev",
            "underlay",
            "nodad",
        ])
        .or_else(|_| ip(&["addr", "add", &format!("{address}/{length}"), "dev", "underlay"]))?;
    }
    ip(&["link", "set", "underlay", "up"])?;
    ip(&["link", "set", "far", "up"])
}

fn configure(cluster: &Cluster, folder: &Path, number: u32, proxy: &Proxy) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(folder.join("state"))
        .context("make the state folder")?;
    let kubeconfig = cluster.kubeconfig(USER, proxy.address())?;
    let (folder, [v4, v6]) = (folder.display(), POD_CIDRS);
    let text = format!(
        "node_name = \"{name}\"\nkubeconfig = \"{kubeconfig}\"\nstate_dir = \"{folder}/state\"\n\
         socket = \"{folder}/meshd.sock\"\ncluster_pod_cidrs = [\"{v4}\", \"{v6}\"]\n\
         [wireguard]\nmode = \"userspace\"\nsocket_dir = \"{folder}\"\n",
        name = Cluster::name(number),
        kubeconfig = kubeconfig.display(),
    );
    cluster::write(&Path::new(&folder.to_string()).join("meshd.toml"), &text)
}

fn start_device(bin: &Path, folder: &Path) -> anyhow::Result<Process> {
    let arguments = [
        "--foreground",
        "--socket-dir",
        &folder.display().to_string(),
        "meshd0",
    ];
    Process::start(
        &bin.join("meshd-wg"),
        &arguments.map(str::to_owned),
        &folder.join("meshd-wg.log"),
    )
}

fn start_daemon(bin: &Path, folder: &Path) -> anyhow::Result<Process> {
    let arguments = [
        "--config".to_owned(),
        folder.join("meshd.toml").display().to_string(),
    ];
    Process::start(&bin.join("meshd"), &arguments, &folder.join("meshd.log"))
}

async fn wait(what: &str, is_there: impl Fn() -> bool) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !is_there() {
        if begun.elapsed() > PATIENCE {
            bail!("waited in vain for {what}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// IPv4 routes through the device in the main table: one for each peer.
fn routes_of_pods() -> anyhow::Result<u32> {
    // Of this thread's namespace, not of the process's.
    let routes = std::fs::read_to_string("/proc/thread-self/net/route").context("read the routes")?;
    Ok(u32::try_from(routes.lines().filter(|l| l.starts_with("meshd0")).count()).unwrap_or(u32::MAX))
}
