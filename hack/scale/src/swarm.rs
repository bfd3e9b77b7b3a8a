//! Many daemons' Kubernetes drivers that start at one moment, in this process, against the one API server.

use crate::cluster::{self, Cluster};
use crate::process::Usage;
use crate::proxy::Proxy;
use crate::report::{Report, kib, mib, ms};
use anyhow::{Context, bail};
use meshd_core::{ActionId, KubeAction, KubeEvent, Resource};
use meshd_kube::Access;
use meshd_model::NodeUid;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Name, at the API server, of the daemon that runs for a Node begins with it.
const USER: &str = "swarm-";
const PATIENCE: Duration = Duration::from_secs(300);

/// What one driver told.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    lists: u32,
    objects: u32,
    outages: u32,
    written: u32,
    refused: u32,
    /// When the first list was complete, since all were started.
    synced: Duration,
}

/// Starts them and waits until each has listed and published; then restarts the server under them.
pub(crate) async fn start(cluster: &Cluster, agents: u32, report: &mut Report) -> anyhow::Result<()> {
    let agents = agents.min(cluster.nodes);
    let proxy = Proxy::to(cluster.control_plane().address()).await?;
    let (_, server) = cluster.control_plane().pids();
    let before = Usage::of(server.context("the API server does not run")?)?;
    report.note(&format!(
        "{agents} daemons' drivers start at one moment, each with a new key to publish"
    ));
    let mut drivers = JoinSet::new();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let (told, mut tellings) = mpsc::channel(1024);
    let mut clients = Vec::new();
    for i in 0..agents {
        let kubeconfig = cluster.kubeconfig(&format!("{USER}{i}"), proxy.address())?;
        clients.push((
            i,
            meshd_kube::connect(&Access::Kubeconfig(kubeconfig)).await?,
            cluster.uid(i).await?,
        ));
    }
    let begun = Instant::now();
    for (i, client, uid) in clients {
        drivers.spawn(drive(i, client, uid, begun, told.clone(), stopped.clone()));
    }
    drop(told);
    let mut all: BTreeMap<u32, Told> = BTreeMap::new();
    let done = |all: &BTreeMap<u32, Told>| {
        all.len() == agents as usize && all.values().all(|t| t.lists > 0 && t.written + t.refused > 0)
    };
    while !done(&all) {
        let next = tokio::time::timeout(PATIENCE, tellings.recv()).await;
        let Ok(Some((i, telling))) = next else {
            bail!(
                "after {} s, {} of {agents} daemons have listed",
                PATIENCE.as_secs(),
                all.len()
            );
        };
        all.insert(i, telling);
    }
    let took = begun.elapsed();
    let after = Usage::of(server.unwrap_or_default())?;
    let traffic = proxy.traffic();
    let mut synced: Vec<Duration> = all.values().map(|t| t.synced).collect();
    synced.sort_unstable();
    report.line("until all have listed and published", ms(took));
    report.line("until the list was complete: first", ms(synced[0]));
    report.line("the same: median", ms(synced[synced.len() / 2]));
    report.line("the same: last", ms(synced[synced.len() - 1]));
    report.line(
        "CPU of kube-apiserver, each daemon",
        ms((after.cpu - before.cpu) / agents),
    );
    report.line(
        "kube-apiserver resident before, after, most ever",
        format_args!("{}, {}, {}", mib(before.rss), mib(after.rss), mib(after.peak)),
    );
    report.line(
        "bytes from the API server, each daemon",
        kib(traffic.down / u64::from(agents)),
    );
    report.line(
        "bytes to the API server, each daemon",
        kib(traffic.up / u64::from(agents)),
    );
    report.line("outages told", all.values().map(|t| t.outages).sum::<u32>());
    tell_requests(cluster, 0, report)?;

    report.note("the API server is killed and started again under them");
    let requests = cluster.requests(USER)?.len();
    let lists: u32 = all.values().map(|t| t.lists).sum();
    let traffic = proxy.traffic();
    let control_plane = cluster.control_plane().clone();
    let restarted = tokio::task::spawn_blocking(move || {
        control_plane.stop_server();
        control_plane.start_server()
    });
    tokio::pin!(restarted);
    let mut until = None;
    loop {
        tokio::select! {
            result = &mut restarted, if until.is_none() => {
                result?.map_err(anyhow::Error::msg)?;
                until = Some(tokio::time::Instant::now() + Duration::from_secs(60));
            }
            telling = tellings.recv() => {
                let (i, telling) = telling.context("the drivers have ended")?;
                all.insert(i, telling);
            }
            () = tokio::time::sleep_until(until.unwrap_or_else(tokio::time::Instant::now)), if until.is_some() => break,
        }
    }
    let (_, server) = cluster.control_plane().pids();
    let usage = Usage::of(server.unwrap_or_default())?;
    report.line(
        "lists of Nodes",
        all.values().map(|t| t.lists).sum::<u32>() - lists,
    );
    report.line(
        "bytes from the API server, each daemon",
        kib((proxy.traffic() - traffic).down / u64::from(agents)),
    );
    report.line("CPU of kube-apiserver, its start and a minute", ms(usage.cpu));
    tell_requests(cluster, requests, report)?;
    stop.send(true).ok();
    while drivers.join_next().await.is_some() {}
    Ok(())
}

/// How many requests of which sort there were.
fn tell_requests(cluster: &Cluster, skip: usize, report: &mut Report) -> anyhow::Result<()> {
    let mut sorts: BTreeMap<String, u32> = BTreeMap::new();
    for request in cluster.requests(USER)?.into_iter().skip(skip) {
        let path = request.uri.split('?').next().unwrap_or_default();
        let path = path.split("/node-").next().unwrap_or(path);
        let list = if request.is_list() && request.verb == "watch" {
            " (with a list)"
        } else {
            ""
        };
        *sorts
            .entry(format!("{} {} {path}{list}", request.code, request.verb))
            .or_default() += 1;
    }
    for (sort, count) in sorts {
        report.line("  requests", format_args!("{count:>6}  {sort}"));
    }
    Ok(())
}

/// One driver: publishes once, and counts what it is told.
async fn drive(
    i: u32,
    client: kube::Client,
    uid: NodeUid,
    begun: Instant,
    told: mpsc::Sender<(u32, Told)>,
    mut stopped: tokio::sync::watch::Receiver<bool>,
) {
    let (tx, mut events) = mpsc::channel(1024);
    let (actions, rx) = mpsc::channel(16);
    let driver = tokio::spawn(meshd_kube::run(client, Cluster::name(i), tx, rx));
    let mut known = Told::default();
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            _ = stopped.changed() => None,
        };
        let Some(event) = event else { break };
        match event {
            KubeEvent::NodeApplied(_) => {
                known.objects += 1;
                continue;
            }
            KubeEvent::NodesSynced => {
                known.lists += 1;
                if known.lists == 1 {
                    known.synced = begun.elapsed();
                    let id = ActionId {
                        resource: Resource::Annotations,
                        generation: 1,
                    };
                    let annotations = Cluster::annotations(i, cluster::key());
                    let action = KubeAction::Publish {
                        id,
                        uid: uid.clone(),
                        annotations,
                    };
                    let _ = actions.send(action).await;
                }
            }
            KubeEvent::Unreachable { .. } => known.outages += 1,
            KubeEvent::Applied(_) => known.written += 1,
            KubeEvent::Failed { .. } => known.refused += 1,
            _ => continue,
        }
        let _ = told.send((i, known)).await;
    }
    driver.abort();
}
