//! The driver: one task that carries actions out in the order given, and looks again when something changed.

use crate::config::{DriverConfig, KeySource};
use crate::entrant::Entrant;
use crate::error::{Context, OpError, Result};
use crate::firewall::{self, Guards, PodEntries};
use crate::foreign::Foreign;
use crate::netlink::Socket;
use crate::pod::{Doomed, Hands, Outcome, Remover};
use crate::watch::Watcher;
use crate::{device, observe, pod, route, rule};
use meshd_core::{ActionId, KernelAction, KernelEvent, KernelOp};
use meshd_model::kernel::{ForwardChain, KernelState};
use nlink::{Connection, Nftables, Route};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Instant;
use tokio::sync::mpsc;

/// Actions that may wait; the sender waits when there are more.
const ACTIONS_MAX: usize = 1024;
/// Events that may wait for whoever drives the agent.
const EVENTS_MAX: usize = 1024;

/// Why the driver could not start.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DriverError(pub String);

/// The two ends that the daemon holds. The driver ends when `actions` is dropped and what was sent is done, or when
/// `events` is dropped.
pub struct KernelDriver {
    /// Actions in: carried out one after another, in order.
    pub actions: mpsc::Sender<KernelAction>,
    /// Events out. The driver waits while this is full, so it is read while actions are sent.
    pub events: mpsc::Receiver<KernelEvent>,
    /// Ends when the driver has ended.
    pub task: tokio::task::JoinHandle<()>,
}

impl KernelDriver {
    /// Opens the sockets to the kernel, in the network namespace of the calling thread, and starts the driver. It has
    /// a thread of its own, because the kernel does much of its work within the call that asks for it: to delete a
    /// veth pair takes 20 ms. Call it within a tokio runtime.
    pub fn start(config: DriverConfig, keys: Arc<dyn KeySource>) -> std::result::Result<Self, DriverError> {
        let (actions, requests) = mpsc::channel(ACTIONS_MAX);
        let (report, events) = mpsc::channel(EVENTS_MAX);
        let (started, outcome) = std::sync::mpsc::sync_channel(1);
        let task = tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let run = async |runs: &SyncSender<Result<()>>| {
                let driver = Driver::new(config, keys, report);
                let driver = driver.map_err(|e| runs.send(Err(e))).ok()?;
                runs.send(Ok(())).ok()?;
                driver.run(requests).await;
                Some(())
            };
            match runtime.doing(|| "start the driver's runtime") {
                Ok(runtime) => drop(runtime.block_on(run(&started))),
                Err(e) => drop(started.send(Err(e))),
            }
        });
        match outcome.recv() {
            Ok(Ok(())) => Ok(Self {
                actions,
                events,
                task,
            }),
            Ok(Err(e)) => Err(DriverError(e.message)),
            Err(_) => Err(DriverError("the driver's thread ended before it ran".to_owned())),
        }
    }
}

struct Driver {
    config: DriverConfig,
    keys: Arc<dyn KeySource>,
    conn: Connection<Route>,
    nft: Connection<Nftables>,
    /// For batches: pods' links.
    socket: Socket,
    entrant: Entrant,
    remover: Remover,
    /// Links that are gone.
    removed: mpsc::UnboundedReceiver<Outcome>,
    /// The entries against spoofing, as far as they are known.
    guards: Option<PodEntries>,
    watcher: Watcher,
    events: mpsc::Sender<KernelEvent>,
    /// What was reported last, for comparison; None when an action was carried out since.
    seen: Option<KernelState>,
    /// Whether there was a look at all.
    has_looked: bool,
    /// What the last look that could read them found of others' chains.
    forward_chains: BTreeSet<ForwardChain>,
    /// Between two looks.
    foreign: Foreign,
}

impl Driver {
    fn new(
        config: DriverConfig,
        keys: Arc<dyn KeySource>,
        events: mpsc::Sender<KernelEvent>,
    ) -> Result<Self> {
        let conn = Connection::<Route>::new().doing(|| "open a netlink socket")?;
        let nft = Connection::<Nftables>::new().doing(|| "open a netfilter socket")?;
        let socket = Socket::open()?;
        // Bounded by the agent, which asks once for each link.
        let (outcomes, removed) = mpsc::unbounded_channel();
        let remover = Remover::start(outcomes)?;
        let own = vec![conn.socket().pid(), socket.port()?, remover.port];
        let own = (own, nft.socket().pid());
        Ok(Self {
            watcher: Watcher::start(&config, own)?,
            config,
            keys,
            conn,
            nft,
            socket,
            entrant: Entrant::default(),
            remover,
            removed,
            guards: None,
            events,
            seen: None,
            has_looked: false,
            forward_chains: BTreeSet::new(),
            foreign: Foreign::default(),
        })
    }

    async fn run(mut self, mut requests: mpsc::Receiver<KernelAction>) {
        if self.config.hold_table
            && let Err(e) = firewall::claim(&self.nft).await
        {
            tracing::warn!("{e}");
        }
        loop {
            // Actions come first: what they change is what a look would find.
            let event = tokio::select! {
                biased;
                request = requests.recv() => match request {
                    Some(action) => self.carry_out(action).await,
                    None => return,
                },
                Some((id, done)) = self.removed.recv() => Some(self.done(id, done)),
                () = self.watcher.changed() => self.look_again().await,
            };
            if let Some(event) = event
                && self.events.send(event).await.is_err()
            {
                return;
            }
        }
    }

    /// None where the outcome comes later.
    async fn carry_out(&mut self, action: KernelAction) -> Option<KernelEvent> {
        let KernelAction { id, op } = action;
        tracing::debug!(?id, "kernel action");
        if let KernelOp::Observe = op {
            return Some(match self.observe().await {
                Ok(state) => KernelEvent::Observed(Box::new(state)),
                Err(e) => failed(id, e),
            });
        }
        // What was told last is no longer what the agent takes to be there.
        self.seen = None;
        let doomed = match &op {
            KernelOp::RemovePodLink(link) => Some(link.host_ifname.clone()),
            _ => None,
        };
        let mut done = self.apply(op).await;
        if let (Ok(()), Some(ifname)) = (&done, doomed) {
            let id = id.clone();
            done = self.remover.remove(Doomed { id, ifname });
            if done.is_ok() {
                return None;
            }
        }
        Some(self.done(id, done))
    }

    fn done(&mut self, id: ActionId, done: Result<()>) -> KernelEvent {
        self.seen = None;
        match done {
            Ok(()) => KernelEvent::Applied(id),
            Err(e) => failed(id, e),
        }
    }

    async fn apply(&mut self, op: KernelOp) -> Result<()> {
        let (conn, nft, config, foreign) = (&self.conn, &self.nft, &self.config, &mut self.foreign);
        match op {
            KernelOp::Observe => Ok(()),
            KernelOp::SetFirewall(wanted) => {
                self.guards = None;
                firewall::set(nft, &wanted, config.hold_table).await
            }
            KernelOp::PassForward { device } => firewall::forward::pass(nft, &device).await,
            KernelOp::SetDevice(wanted) => device::set(conn, config, &*self.keys, &wanted).await,
            KernelOp::SetPeer(peer) => device::set_peer(conn, config, &peer).await,
            KernelOp::Greet { peer, keepalive } => device::greet(conn, config, peer, keepalive).await,
            KernelOp::RemovePeer(peer) => device::remove_peer(conn, config, peer).await,
            KernelOp::SetRoute(wanted) => route::set(conn, foreign, &wanted).await,
            KernelOp::RemoveRoute(unwanted) => route::remove(conn, &unwanted).await,
            KernelOp::SetRule(wanted) => rule::set(conn, &wanted).await,
            KernelOp::RemoveRule(unwanted) => rule::remove(conn, &unwanted).await,
            KernelOp::AttachPod(link) => pod::attach(&mut self.hands(), &link).await,
            KernelOp::DetachPod(link) => pod::detach(&mut self.hands(), &link).await,
            KernelOp::RemovePodLink(link) => pod::forget(&mut self.hands().guards, &link).await,
        }
    }

    fn hands(&mut self) -> Hands<'_> {
        Hands {
            conn: &self.conn,
            socket: &self.socket,
            entrant: &mut self.entrant,
            guards: Guards {
                nft: &self.nft,
                known: &mut self.guards,
            },
        }
    }

    async fn observe(&mut self) -> Result<KernelState> {
        self.foreign = Foreign::default();
        let first = !self.has_looked;
        let known = &self.forward_chains;
        let (state, guards) = observe::observe(&self.conn, &self.nft, &self.config, first, known).await?;
        self.guards = guards;
        self.forward_chains.clone_from(&state.forward_chains);
        self.has_looked = true;
        self.seen = Some(steady(&state));
        Ok(state)
    }

    /// Something changed, perhaps by our own hand: tells what is there if it is not what was told last.
    async fn look_again(&mut self) -> Option<KernelEvent> {
        let (before, began) = (self.seen.clone(), Instant::now());
        let observed = self.observe().await;
        self.watcher.looked(began.elapsed());
        match observed {
            Ok(_) if before.is_some() && self.seen == before => None,
            Ok(state) => Some(KernelEvent::Observed(Box::new(state))),
            Err(e) => {
                tracing::warn!("cannot observe the kernel after a change, and will look again: {e}");
                self.watcher.again();
                None
            }
        }
    }
}

fn failed(id: ActionId, e: OpError) -> KernelEvent {
    tracing::warn!(?id, errno = e.errno, "{e}");
    KernelEvent::Failed {
        id,
        failure: e.into(),
    }
}

/// The state without what changes by itself: counters, handshakes, endpoints that roam.
fn steady(state: &KernelState) -> KernelState {
    let mut state = state.clone();
    for peer in state.peers.values_mut() {
        (peer.rx_bytes, peer.tx_bytes) = (0, 0);
        (peer.last_handshake, peer.endpoint) = (None, None);
    }
    state
}
