//! Measures what a large cluster costs: one node's daemon that joins it, and many daemons' watches at once.
//!
//! ```text
//! etcd, kube-apiserver        real; 1,000 Node objects with annotations and real keys
//!   ▲ counting proxy          every byte of the joining daemon
//! meshd, meshd-wg             the image's programs, one node, everything in a network namespace of this process's own
//!   └─ recording              when the daemon was told what, and what it did: nothing is polled while it works
//! ```
//!
//! BENCHMARKS.md has the command. Root only; iproute2 is needed.

mod cluster;
mod joiner;
mod process;
mod proxy;
mod recording;
mod report;
mod swarm;

use anyhow::{Context, bail};
use clap::Parser;
use cluster::Cluster;
use joiner::Joiner;
use nix::sched::{CloneFlags, unshare};
use report::Report;
use std::path::PathBuf;

/// Measures one node's daemon, and many daemons' watches, in a cluster of a thousand Nodes.
#[derive(Parser)]
struct Args {
    /// Node objects in the cluster, beside the one that joins.
    #[arg(long, default_value_t = 1000)]
    nodes: u32,
    /// Daemons' Kubernetes drivers that start at one moment, after the rest; 0 leaves that part out.
    #[arg(long, default_value_t = 100)]
    agents: u32,
    /// Changes of one Node to measure, of each sort.
    #[arg(long, default_value_t = 20)]
    changes: u32,
    /// Folder of meshd and meshd-wg [default: that of this program].
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Runs a command with the daemon's process id in MESHD_PID after it has joined: `perf record -p`, for example.
    #[arg(long)]
    profile: Option<String>,
    /// Keeps the working folder (logs, recording) and says where it is.
    #[arg(long)]
    keep: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if args.nodes == 0 || args.nodes > cluster::NODES_MAX {
        bail!("--nodes goes from 1 to {}", cluster::NODES_MAX);
    }
    let bin = match &args.bin {
        Some(bin) => bin.clone(),
        None => own_folder()?,
    };
    for name in ["meshd", "meshd-wg"] {
        if !bin.join(name).is_file() {
            bail!(
                "there is no {name} in {}: build it, or name its folder with --bin",
                bin.display()
            );
        }
    }
    // While this process has one thread: a namespace belongs to a thread, and later ones inherit it.
    unshare(CloneFlags::CLONE_NEWNET)
        .context("make a network namespace: this needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN)")?;
    process::ip(&["link", "set", "lo", "up"])?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start a runtime")?;
    runtime.block_on(async {
        tokio::select! {
            done = measure(&args, &bin) => done,
            // What was begun is dropped, and with it every process and folder.
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        }
    })
}

fn own_folder() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("find this program's folder")?;
    Ok(own.parent().unwrap_or(&own).to_owned())
}

async fn measure(args: &Args, bin: &std::path::Path) -> anyhow::Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("meshd-scale-")
        .tempdir()
        .context("make a folder")?;
    let path = folder.path().to_owned();
    if args.keep {
        println!("working folder: {}", folder.keep().display());
    }
    let mut report = Report::new();
    let cluster = Cluster::start(args.nodes).await?;
    report.note(&cluster.describe());
    let mut joiner = Joiner::join(&cluster, bin, &path, &mut report).await?;
    if let Some(command) = &args.profile {
        joiner.profile(command)?;
    }
    joiner.changes(&cluster, args.changes, &mut report).await?;
    joiner.asked(args.changes, &mut report).await?;
    joiner.idle(&cluster, &mut report).await?;
    joiner.restart(&cluster, &mut report).await?;
    joiner.server_restart(&cluster, &mut report).await?;
    drop(joiner);
    if args.agents > 0 {
        swarm::start(&cluster, args.agents, &mut report).await?;
    }
    Ok(())
}
