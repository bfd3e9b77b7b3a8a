//! Starts the parts in their order, and ends them in theirs.

use crate::clock::{self, SystemClock};
use crate::cni_files::Keeper;
use crate::drivers::{HANDLE, start_kernel, start_kube, start_store};
use crate::key;
use crate::metrics::{self, Calls};
use crate::own_address;
use crate::record::{Options, Recorder};
use crate::run::{Loop, Ports};
use crate::settings::Settings;
use crate::socket::{Listener, SocketMessage};
use anyhow::Context;
use meshd_core::{Config, Identity, NodeAgent};
use meshd_model::status::Problem;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

/// Requests of the local socket that may wait for the loop.
const REQUESTS: usize = 256;
/// How long parts that are asked to end may take.
const END: Duration = Duration::from_secs(3);

/// Runs the daemon until SIGTERM, SIGINT, or a failure.
pub fn run(settings: &Settings) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        let stop = stop_signal()?;
        serve(settings, stop).await
    });
    runtime.shutdown_timeout(END);
    result
}

/// The daemon's life, within a runtime.
pub async fn serve(settings: &Settings, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    own_address::check(settings).await?;
    let key = Arc::new(key::load_or_generate(&settings.state_dir)?);
    let identity = Identity {
        handle: HANDLE,
        public_key: key.public,
    };
    let config = settings.agent_config(identity);
    // The socket first: where another daemon is alive, nothing of the node is touched.
    let calls = Calls::default();
    let listener = Listener::bind(&settings.socket)?
        .looking(|check| Box::pin(async move { meshd_kernel::differences(&check).await }))
        .counting(calls.clone());
    let (kernel, kernel_task) = start_kernel(settings, key).context("cannot reach the node's kernel")?;
    let store = start_store(&settings.state_dir).context("cannot start the store's thread")?;
    let moved = Arc::new(Notify::new());
    let kube = start_kube(settings, moved.clone()).await?;
    let (requests, socket) = mpsc::channel::<SocketMessage>(REQUESTS);
    let has_noted = listener.has_noted();
    if let Some(address) = settings.metrics_listen {
        tokio::spawn(metrics::run(address, calls, requests.clone()));
    }
    let listener_task = tokio::spawn(listener.run(requests));
    let ports = Ports {
        kube,
        kernel,
        store,
        socket,
    };

    let now = clock::now();
    let agent = NodeAgent::new(config.clone(), seed()?, now);
    let recorder = recorder(settings, config, &agent)?;
    let (ready, readiness) = watch::channel(false);
    let keeper = Keeper::new(&settings.cni);
    let conflist = keeper.as_ref().map(Keeper::problem);
    let keeper_task = keeper.map(|keeper| tokio::spawn(keeper.run(readiness)));
    let clock = SystemClock::new().context("cannot make a timer")?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = settings.node_name,
        public_key = %identity.public_key,
        socket = %settings.socket.display(),
        "meshd runs"
    );
    let looped = Loop::new(agent, clock, ports, recorder)
        .telling(ready, conflist)
        .hindered_by(obstacle())
        .after_deletions(has_noted)
        .tell_moves(moved);
    let result = looped.run(stop).await;
    tracing::info!("meshd ends; what it has set up stays in force");
    end("local socket", listener_task).await;
    end("kernel", kernel_task).await;
    if let Some(task) = keeper_task {
        end("CNI configuration", task).await;
    }
    Ok(result?)
}

/// Where sysctls cannot be written no pod can be attached, and nothing else would show it before the first one. A mount
/// stays what it is as long as the process lives, so once is enough.
fn obstacle() -> Option<Problem> {
    let message = meshd_kernel::obstacle()?;
    let problem = Problem {
        subject: "sysctl".into(),
        message,
        remedy:
            "mount the host's /proc/sys/net at /host/proc/sys/net, as the chart of this version does, or set \
                 agent.privileged"
                .into(),
    };
    tracing::error!("{}: {}", problem.message, problem.remedy);
    Some(problem)
}

/// Jitter and tie-breaks come from it; keys do not.
fn seed() -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| anyhow::anyhow!("the system gives no randomness: {error}"))?;
    Ok(u64::from_le_bytes(bytes))
}

fn recorder(settings: &Settings, config: Config, agent: &NodeAgent) -> anyhow::Result<Option<Recorder>> {
    let Some(dir) = settings.recording_dir() else {
        return Ok(None);
    };
    let options = Options {
        segment_bytes: settings.recording.segment_mib << 20,
        total_bytes: settings.recording.total_mib << 20,
        ..Options::new(dir)
    };
    let recorder = Recorder::start(options, config, agent, clock::now());
    recorder.map(Some).context("cannot start the recording's thread")
}

async fn end(part: &str, task: JoinHandle<()>) {
    if tokio::time::timeout(END, task).await.is_err() {
        tracing::warn!(part, "did not end within {} s and is left behind", END.as_secs());
    }
}

fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
