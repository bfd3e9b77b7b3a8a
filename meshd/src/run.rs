//! The event loop: the one task that owns the agent.
//!
//! Each turn takes one thing in (an event, or the alarm), hands it to the agent, polls the agent's actions until there
//! are none, records all of it, and hands the actions to the drivers. Nothing in a turn waits: a slow driver makes
//! actions wait in its [`Port`], and when too many do, nothing more is taken in from the API server and the local
//! socket until it has caught up.

use crate::clock::Clock;
use crate::cni_files::KeeperProblem;
use crate::drivers::{Closed, Port};
use crate::limit::RateLimit;
use crate::record::Recorder;
use crate::socket::{Reply, SocketMessage};
use meshd_core::{
    Action, CniAction, CniEvent, Event, KernelAction, KernelEvent, KubeAction, KubeEvent, NodeAgent, Numbers,
    RequestId, Resource, StoreAction, StoreEvent,
};
use meshd_model::cni::{CniError, code};
use meshd_model::status::{Problem, Status};
use meshd_model::{Boot, Now};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};

/// Shortest time between two alarms: an agent that wants to be woken in the past again and again does not spin.
const ALARM_MIN: Duration = Duration::from_millis(1);
/// Shortest time between two looks at the kernel that callers cause.
const LOOK_MIN: Duration = Duration::from_millis(200);

/// Why the loop ended without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// A driver has ended.
    #[error(transparent)]
    Driver(#[from] Closed),
    /// Nobody listens on the local socket any more.
    #[error("the local socket's task has ended; the daemon cannot go on without it")]
    Socket,
    /// No alarm can be set.
    #[error("the system's timer failed: {0}")]
    Timer(#[from] io::Error),
}

/// What the loop is connected to.
pub struct Ports {
    /// The API server.
    pub kube: Port<KubeEvent, KubeAction>,
    /// The node's kernel.
    pub kernel: Port<KernelEvent, KernelAction>,
    /// The lease store.
    pub store: Port<StoreEvent, StoreAction>,
    /// The local socket.
    pub socket: mpsc::Receiver<SocketMessage>,
}

/// The loop. See the module.
pub struct Loop<C> {
    agent: NodeAgent,
    clock: C,
    ports: Ports,
    recorder: Option<Recorder>,
    /// Callers that wait for an answer.
    callers: BTreeMap<RequestId, oneshot::Sender<Reply>>,
    last_alarm: Option<Boot>,
    last_look: Option<Boot>,
    /// Who waits until the kernel was looked at again.
    lookers: Vec<oneshot::Sender<()>>,
    /// The node's addresses at the last look, and who is told when one is gone.
    addresses: BTreeSet<IpAddr>,
    moved: Option<Arc<Notify>>,
    failures: RateLimit,
    /// As it was logged last.
    ready: bool,
    readiness: RateLimit,
    /// Who wants to know whether pods can be attached.
    tells: Option<watch::Sender<bool>>,
    /// Why no pod can be attached, whatever the agent knows.
    obstacle: Option<Problem>,
    /// The same, until what was deleted while no daemon ran is finished.
    unfinished: Option<Problem>,
    /// Why the CNI configuration is not in place, or not in use.
    conflist: Option<KeeperProblem>,
}

/// What a turn takes in.
enum Input {
    Alarm,
    Event(Event),
    Socket(SocketMessage),
}

impl<C: Clock> Loop<C> {
    /// A loop round this agent.
    pub fn new(agent: NodeAgent, clock: C, ports: Ports, recorder: Option<Recorder>) -> Self {
        Self {
            agent,
            clock,
            ports,
            recorder,
            callers: BTreeMap::new(),
            last_alarm: None,
            last_look: None,
            lookers: Vec::new(),
            addresses: BTreeSet::new(),
            moved: None,
            failures: RateLimit::new(Duration::from_secs(1)),
            ready: false,
            readiness: RateLimit::new(Duration::from_secs(1)),
            tells: None,
            obstacle: None,
            unfinished: None,
            conflist: None,
        }
    }

    /// Tells `ready` whenever it changes whether pods can be attached, and shows the problem in the status.
    #[must_use]
    pub fn telling(mut self, ready: watch::Sender<bool>, conflist: Option<KeeperProblem>) -> Self {
        self.tells = Some(ready);
        self.conflist = conflist;
        self
    }

    /// Is never ready, if there is something in the way of every pod that lasts as long as this process.
    #[must_use]
    pub fn hindered_by(mut self, obstacle: Option<Problem>) -> Self {
        self.obstacle = obstacle;
        self
    }

    /// Is not ready until the local socket says [`SocketMessage::Finished`], if deletions wait.
    #[must_use]
    pub fn after_deletions(mut self, wait: bool) -> Self {
        self.unfinished = wait.then(|| Problem {
            subject: "deletions".into(),
            message: "what was deleted while meshd was away is being finished".into(),
            remedy: "this passes by itself soon after the start; if not, see meshd's log".into(),
        });
        self
    }

    /// Has whoever holds connections told when the node has lost an address: a connection from it hangs.
    #[must_use]
    pub fn tell_moves(mut self, moved: Arc<Notify>) -> Self {
        self.moved = Some(moved);
        self
    }

    /// Runs until `stop` comes back or a part fails. Nothing of the node's data path is touched on the way out: a
    /// restart changes no packet's fate.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), LoopError> {
        tokio::pin!(stop);
        self.settle()?;
        loop {
            let input = tokio::select! {
                biased;
                () = &mut stop => return Ok(()),
                input = self.input() => input?,
            };
            self.turn(input)?;
            self.one_of_each()?;
        }
    }

    /// Waits for something to do. Outcomes come before requests, so that what was begun is finished first.
    async fn input(&mut self) -> Result<Input, LoopError> {
        let behind = self.ports.kernel.is_behind() || self.ports.store.is_behind();
        let Ports {
            kube,
            kernel,
            store,
            socket,
        } = &mut self.ports;
        tokio::select! {
            biased;
            rang = self.clock.alarm() => Ok(rang.map(|()| Input::Alarm)?),
            event = store.next() => Ok(Input::Event(Event::Store(event?))),
            event = kernel.next() => Ok(Input::Event(Event::Kernel(event?))),
            message = socket.recv(), if !behind => message.map(Input::Socket).ok_or(LoopError::Socket),
            event = kube.next(), if !behind => Ok(Input::Event(Event::Kube(event?))),
        }
    }

    /// Takes what is there from each source once: none is starved by those before it.
    fn one_of_each(&mut self) -> Result<(), LoopError> {
        if let Some(event) = self.ports.store.try_next() {
            self.turn(Input::Event(Event::Store(event)))?;
        }
        if let Some(event) = self.ports.kernel.try_next() {
            self.turn(Input::Event(Event::Kernel(event)))?;
        }
        if self.ports.kernel.is_behind() || self.ports.store.is_behind() {
            return Ok(());
        }
        if let Ok(message) = self.ports.socket.try_recv() {
            self.turn(Input::Socket(message))?;
        }
        if let Some(event) = self.ports.kube.try_next() {
            self.turn(Input::Event(Event::Kube(event)))?;
        }
        Ok(())
    }

    fn turn(&mut self, input: Input) -> Result<(), LoopError> {
        let now = self.clock.now();
        match input {
            Input::Alarm => {
                self.last_alarm = Some(now.boot);
                if let Some(recorder) = &mut self.recorder {
                    recorder.timeout(now);
                }
                self.agent.handle_timeout(now);
            }
            Input::Event(event) => self.event(now, event),
            Input::Socket(SocketMessage::Request {
                id,
                deadline,
                call,
                reply,
            }) => {
                self.callers.insert(id, reply);
                self.event(now, Event::Cni(CniEvent::Request { id, deadline, call }));
            }
            Input::Socket(SocketMessage::Gone(id)) => {
                // One that was answered meanwhile is no news to the agent.
                if self.callers.remove(&id).is_some() {
                    self.event(now, Event::Cni(CniEvent::Gone(id)));
                }
            }
            Input::Socket(SocketMessage::Look(done)) => self.look(now, done),
            Input::Socket(SocketMessage::Status(reply)) => {
                let _ = reply.send(self.status(now));
                return Ok(());
            }
            Input::Socket(SocketMessage::Numbers(reply)) => {
                let _ = reply.send(self.numbers(now));
                return Ok(());
            }
            Input::Socket(SocketMessage::Ready(reply)) => {
                let _ = reply.send(self.not_ready());
                return Ok(());
            }
            Input::Socket(SocketMessage::Finished) => self.unfinished = None,
            Input::Socket(SocketMessage::CniStatus(reply)) => {
                let _ = reply.send(self.cni_status());
                return Ok(());
            }
        }
        self.settle()
    }

    /// Has the agent observe the kernel, for whoever asks for the status.
    fn look(&mut self, now: Now, done: oneshot::Sender<()>) {
        if self.last_look.is_some_and(|last| now.boot.since(last) < LOOK_MIN) {
            return;
        }
        self.lookers.retain(|waiting| !waiting.is_closed());
        self.lookers.push(done);
        if self.lookers.len() == 1 {
            self.event(now, Event::Cni(CniEvent::Look));
        }
    }

    fn event(&mut self, now: Now, event: Event) {
        match &event {
            Event::Kernel(KernelEvent::Observed(state)) => {
                let there = state.underlay.iter().map(|u| u.address).collect();
                let before = std::mem::replace(&mut self.addresses, there);
                if let Some(moved) = self.moved.as_ref().filter(|_| !before.is_subset(&self.addresses)) {
                    tracing::info!("the node has lost an address: connecting anew");
                    moved.notify_one();
                }
                self.last_look = Some(now.boot);
                self.lookers.clear();
            }
            // Whoever waits is answered with what is known.
            Event::Kernel(KernelEvent::Failed { id, .. }) if id.resource == Resource::Kernel => {
                self.lookers.clear();
            }
            _ => {}
        }
        self.log_failure(now, &event);
        if let Some(recorder) = &mut self.recorder {
            recorder.event(now, &event);
        }
        self.agent.handle_event(now, event);
    }

    /// Polls the agent until it wants nothing more, and sets the alarm.
    fn settle(&mut self) -> Result<(), LoopError> {
        while let Some(action) = self.agent.poll_action() {
            if let Some(recorder) = &mut self.recorder {
                recorder.action(&action);
            }
            self.dispatch(action)?;
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.settle(&self.agent);
        }
        self.log_readiness();
        let earliest = self.last_alarm.map_or(Boot(0), |last| last + ALARM_MIN);
        let alarm = self.agent.poll_timeout().map(|(at, _)| at.max(earliest));
        Ok(self.clock.set_alarm(alarm)?)
    }

    fn dispatch(&mut self, action: Action) -> Result<(), Closed> {
        match action {
            Action::Kube(action) => self.ports.kube.send(action),
            Action::Kernel(action) => self.ports.kernel.send(action),
            Action::Store(action) => self.ports.store.send(action),
            Action::Cni(CniAction::Reply { id, result }) => {
                // A caller that went away has no place here any more.
                if let Some(caller) = self.callers.remove(&id) {
                    let _ = caller.send(result);
                }
                Ok(())
            }
        }
    }

    fn obstacle(&self) -> Option<&Problem> {
        self.obstacle.as_ref().or(self.unfinished.as_ref())
    }

    /// The first thing that ADD lacks.
    fn not_ready(&self) -> Option<String> {
        let obstacle = self.obstacle().map(|problem| problem.message.clone());
        obstacle.or_else(|| self.agent.not_ready())
    }

    fn cni_status(&self) -> Result<(), CniError> {
        match self.obstacle() {
            Some(problem) => Err(CniError {
                code: code::NOT_AVAILABLE,
                msg: problem.message.clone(),
                details: problem.remedy.clone(),
            }),
            None => self.agent.cni_status(),
        }
    }

    fn numbers(&self, now: Now) -> Numbers {
        let numbers = self.agent.numbers(now);
        Numbers {
            ready: self.not_ready().is_none(),
            problems: self.status(now).problems.len() as u64,
            ..numbers
        }
    }

    fn status(&self, now: Now) -> Status {
        let mut status = self.agent.status(now);
        if let Some(obstacle) = self.obstacle() {
            status.ready = false;
            status.problems.insert(0, obstacle.clone());
        }
        let lost = self.recorder.as_ref().map_or(0, Recorder::lost);
        if lost > 0 {
            status.problems.push(Problem {
                subject: "recording".into(),
                message: format!("{lost} records were lost since the daemon's start"),
                remedy: "see whether the recording's folder can be written and its disk keeps up".into(),
            });
        }
        status
            .problems
            .extend(self.conflist.as_ref().and_then(KeeperProblem::get));
        status
    }

    fn log_failure(&mut self, now: Now, event: &Event) {
        let (part, message) = match event {
            Event::Kube(KubeEvent::Failed { failure, .. }) => ("kube", &failure.message),
            Event::Kube(KubeEvent::Unreachable { message }) => ("kube", message),
            // The kernel's driver logs its own.
            Event::Store(StoreEvent::Failed { failure, .. }) => ("store", &failure.message),
            _ => return,
        };
        if let Some(more) = self.failures.allow(now.boot) {
            tracing::warn!(part, more, "{message}");
        }
    }

    /// A change that comes too soon after the last is told when it lasts.
    fn log_readiness(&mut self) {
        let ready = self.obstacle().is_none() && self.agent.is_ready();
        if let Some(tells) = &self.tells {
            tells.send_if_modified(|told| std::mem::replace(told, ready) != ready);
        }
        let now = self.clock.now();
        if ready == self.ready || self.readiness.allow(now.boot).is_none() {
            return;
        }
        self.ready = ready;
        if ready {
            tracing::info!("ready: pods can be attached");
            return;
        }
        let problems = self.agent.status(now).problems;
        let first = problems.first().map_or("", |problem| problem.message.as_str());
        tracing::warn!("not ready any more: {first}");
    }
}
