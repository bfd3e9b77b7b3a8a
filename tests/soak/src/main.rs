//! Adds and deletes pods while processes are killed, and looks for what is left.
//!
//! ```text
//! place     one node in namespaces of this process's own: API server, device, daemon
//! sandbox   a pod's network namespace
//! plugin    meshd-cni as a runtime calls it, killed on the way if asked to
//! remains   what of pods the kernel and the store hold
//! live      which address belongs to whom, checked at each answer
//! cni       many at once, with kill -9 and namespaces that vanish
//! crash     one at a time, killed at each system call in turn
//! store     the lease store alone
//! trace     the tracer that counts system calls and kills
//! ```
//!
//! CONTRIBUTING.md has the commands.

mod cni;
mod crash;
mod live;
mod ping;
mod place;
mod plugin;
mod random;
mod remains;
mod sandbox;
mod store;
mod trace;

use anyhow::Context;
use clap::{Parser, Subcommand};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::path::PathBuf;
use std::process::ExitCode;

/// Adds and deletes pods while processes are killed, and looks for what is left.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// ADD and DEL, several at once, while the daemon, the plugin and the pods' namespaces are taken away at random.
    Cni(cni::Options),
    /// One ADD or DEL at a time, with the daemon or the plugin killed at each of its system calls in turn.
    Crash(crash::Options),
    /// Counts a process's system calls and kills it at one of them.
    #[command(hide = true)]
    Trace(trace::Options),
    /// Changes a lease store, to be killed meanwhile.
    #[command(hide = true)]
    Store(store::Options),
}

/// What all need.
#[derive(clap::Args, Clone)]
pub(crate) struct Common {
    /// Folder of meshd, meshd-wg and meshd-cni [default: that of this program].
    #[arg(long)]
    bin: Option<PathBuf>,
    /// What the random choices follow from [default: drawn, and printed].
    #[arg(long)]
    seed: Option<u64>,
    /// Prints the figures as JSON.
    #[arg(long)]
    json: bool,
    /// Keeps the working folder (logs, leases), and says where it is.
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    match begin() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("meshd-soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn begin() -> anyhow::Result<()> {
    match Args::parse().what {
        What::Trace(options) => trace::run(&options),
        What::Store(options) => store::change(&options),
        What::Cni(options) => {
            isolate()?;
            cni::run(&options)
        }
        What::Crash(options) => {
            isolate()?;
            crash::run(&options)
        }
    }
}

/// While this process has one thread: namespaces belong to a thread, and later ones inherit them.
fn isolate() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .context("make namespaces: this needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN)")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("make mounts private")
}
