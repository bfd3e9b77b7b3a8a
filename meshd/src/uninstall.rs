//! `meshd uninstall`: takes meshd off a node for good, and waits until that is done on all nodes.
//!
//! On each node: wait until agent and device are gone, tear down the data path, then the plugin and its configuration,
//! then key, leases and sockets, then what the API server has of the node. Everything is left out that is gone
//! already, so it can be run again after a failure at any step.

use crate::drivers::{STORE_FOLDER as FOLDER, access, driver_config};
use crate::settings::Settings;
use crate::{cni_files, key, record};
use anyhow::{Context, bail};
use meshd_kube::removal::{
    RemovalError, clear_annotations, has_daemon_set, pods_on, progress, unready_nodes,
};
use meshd_model::NodeName;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// The agents' DaemonSet: where it is, meshd is installed, and its pods may come back at any time.
const SET: &str = "meshd";
/// Nodes that a message names.
const NAMED: usize = 20;
/// The pods that must be gone first.
const PODS: &str = "app.kubernetes.io/name in (meshd, meshd-wg)";
/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// What to do.
pub struct Uninstall {
    /// Namespace of meshd's pods; none where it does not run as pods, so that nothing is asked of the API server.
    pub namespace: Option<String>,
    /// Stay until SIGTERM when all is done.
    pub stay: bool,
    /// Do nothing to this node, but wait until this DaemonSet is ready on all nodes.
    pub wait_for: Option<String>,
    /// Longest wait for others.
    pub timeout: Duration,
}

/// Does it.
pub fn run(settings: &Settings, options: &Uninstall) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        match (&options.wait_for, &options.namespace) {
            (Some(set), Some(namespace)) => wait_for(settings, namespace, set, options.timeout).await,
            (Some(_), None) => bail!("--wait-for needs --namespace"),
            (None, _) => node(settings, options).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn node(settings: &Settings, options: &Uninstall) -> anyhow::Result<()> {
    // Before anything is said to be done: who is told to end meanwhile shall end.
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    tokio::select! {
        done = clean(settings, options) => done?,
        _ = terminate.recv() => bail!("ended before all was done"),
    }
    println!("nothing of meshd is on this node any more");
    if options.stay {
        terminate.recv().await;
    }
    Ok(())
}

async fn clean(settings: &Settings, options: &Uninstall) -> anyhow::Result<()> {
    let node = NodeName(settings.node_name.clone().unwrap_or_default());
    let end = Instant::now() + options.timeout;
    let client = match &options.namespace {
        Some(namespace) => {
            let client = meshd_kube::connect(&access(settings)).await?;
            until(end, "meshd is still on this node", async || {
                // Asked before and after: what is left of an earlier removal must do nothing to a later installation.
                let installed = || format!("the DaemonSet {namespace}/{SET} is there; delete it first");
                if has_daemon_set(&client, namespace, SET).await? {
                    return Ok(Err(installed()));
                }
                let pods = pods_on(&client, namespace, PODS, &node).await?;
                if has_daemon_set(&client, namespace, SET).await? {
                    return Ok(Err(installed()));
                }
                Ok(pods.is_empty().then_some(()).ok_or_else(|| pods.join(", ")))
            })
            .await?;
            Some(client)
        }
        None => None,
    };
    if std::os::unix::net::UnixStream::connect(&settings.socket).is_ok() {
        bail!(
            "a daemon listens on {} and would set up again what is removed; stop it first",
            settings.socket.display()
        );
    }
    let report = meshd_kernel::teardown(&driver_config(settings), true).await;
    report.removed.iter().for_each(|line| println!("removed {line}"));
    if !report.failed.is_empty() {
        bail!("{}", report.failed.join("; "));
    }
    let (removed, failed) = cni_files::remove(&settings.cni);
    removed
        .iter()
        .for_each(|path| println!("removed {}", path.display()));
    if let Some(error) = failed.into_iter().next() {
        return Err(error.into());
    }
    for path in remove_state(settings)? {
        println!("removed {}", path.display());
    }
    if let Some(client) = client {
        // A policy that has just been deleted is in force for a second or two.
        until(end, "the Node keeps meshd's annotations", async || {
            Ok(clear_annotations(&client, &node).await.map_err(|e| e.to_string()))
        })
        .await?
        .iter()
        .for_each(|key| println!("removed annotation {key}"));
    }
    Ok(())
}

/// Key, leases and recording, and the sockets; folders that hold something of others stay.
fn remove_state(settings: &Settings) -> anyhow::Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    let mut note = |path: &Path, done: io::Result<()>| match done {
        Ok(()) => {
            removed.push(path.to_owned());
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("remove {}", path.display())),
    };
    let state = |name: &str| settings.state_dir.join(name);
    note(&state(FOLDER), std::fs::remove_dir_all(state(FOLDER)))?;
    for path in [state(key::FILE), state(key::TEMPORARY)] {
        note(&path, std::fs::remove_file(&path))?;
    }
    let recording = settings.recording_dir();
    if let Some(dir) = &recording {
        for (_, path) in record::segments(dir).unwrap_or_default() {
            std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    let wireguard = &settings.wireguard;
    let device = |ending| {
        wireguard
            .socket_dir
            .join(format!("{}.{ending}", wireguard.interface))
    };
    for path in [settings.socket.clone(), device("sock"), device("lock")] {
        note(&path, std::fs::remove_file(&path))?;
    }
    let folders = [
        recording.as_deref(),
        Some(settings.state_dir.as_path()),
        settings.socket.parent(),
        Some(wireguard.socket_dir.as_path()),
    ];
    for folder in folders.into_iter().flatten() {
        match std::fs::remove_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            done => note(folder, done)?,
        }
    }
    Ok(removed)
}

/// Waits until the DaemonSet's pods are ready on all nodes, which they are when they have cleaned theirs.
async fn wait_for(settings: &Settings, namespace: &str, set: &str, timeout: Duration) -> anyhow::Result<()> {
    let client = meshd_kube::connect(&access(settings)).await?;
    let end = Instant::now() + timeout;
    until(end, "not all nodes are clean", async || {
        let progress = progress(&client, namespace, set).await?;
        if progress.is_done() {
            return Ok(Ok(()));
        }
        let so_far = format!("{} of {} are", progress.ready, progress.wanted);
        // Who is missing is told at the end alone: in a large cluster that is a long list.
        if Instant::now() < end {
            return Ok(Err(so_far));
        }
        let selector = format!("app.kubernetes.io/name={set}");
        let nodes = unready_nodes(&client, namespace, &selector).await?;
        Ok(Err(format!("{so_far}; {}", missing(&nodes))))
    })
    .await?;
    println!("all nodes are clean");
    Ok(())
}

/// Says which nodes are not clean, and what to do.
fn missing(nodes: &[String]) -> String {
    let named = nodes.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    let who = match nodes.len() {
        0 => "which are missing, the API server does not say".to_owned(),
        1..=NAMED => format!("missing: {named}"),
        more => format!("missing: {named}, and {} more", more - NAMED),
    };
    format!("{who}. Once they are back, apply deploy/uninstall.yaml, which cleans them")
}

/// Asks until it is so. What the API server refuses or does not answer is asked again too.
async fn until<T>(
    end: Instant,
    otherwise: &str,
    mut ask: impl AsyncFnMut() -> Result<Result<T, String>, RemovalError>,
) -> anyhow::Result<T> {
    loop {
        let not_yet = match ask().await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(not_yet)) => not_yet,
            Err(error) => error.to_string(),
        };
        if Instant::now() >= end {
            bail!("{otherwise}: {not_yet}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_are_missing_are_named_and_a_long_list_is_cut() {
        let nodes: Vec<_> = (1..=NAMED + 2).map(|n| format!("n{n}")).collect();
        assert!(missing(&nodes[..2]).starts_with("missing: n1, n2. Once"));
        let all = missing(&nodes);
        assert!(all.contains("n20, and 2 more.") && !all.contains("n21"), "{all}");
        assert!(missing(&[]).contains("deploy/uninstall.yaml"));
    }
}
