//! The event loop with a real agent and a real clock; the test holds the drivers' ends.

#[path = "recording/script.rs"]
mod script;

use meshd::clock::SystemClock;
use meshd::drivers::{Closed, Port};
use meshd::run::{Loop, LoopError, Ports};
use meshd::socket::{Reply, SocketMessage};
use meshd_core::{
    CniCall, Config, KernelAction, KernelEvent, KernelOp, KubeAction, KubeEvent, NodeAgent, Outside,
    RequestId, StoreAction, StoreEvent,
};
use meshd_model::cni::{Add, Wants, code};
use meshd_model::kernel::{KernelState, UnderlayAddress};
use meshd_model::{AttachmentId, PublicKey};
use std::future::Future;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// The other ends.
struct Drivers {
    kube: (mpsc::Sender<KubeEvent>, mpsc::Receiver<KubeAction>),
    kernel: (mpsc::Sender<KernelEvent>, mpsc::Receiver<KernelAction>),
    store: (mpsc::Sender<StoreEvent>, mpsc::Receiver<StoreAction>),
    socket: mpsc::Sender<SocketMessage>,
}

fn config() -> Config {
    Config {
        service_cidrs: Vec::new(),
        node_mask_sizes: std::collections::BTreeMap::new(),
        node_cidrs: Vec::new(),
        resync: Duration::from_millis(100),
        outside: Outside::default(),
        allow_unnamed_pods: true,
        ipam: meshd_core::Ipam::default(),
        ..script::config(PublicKey([255; 32]))
    }
}

fn start(stop: impl Future<Output = ()> + Send + 'static) -> (Drivers, JoinHandle<Result<(), LoopError>>) {
    fn port<E, A>(name: &'static str) -> (Port<E, A>, (mpsc::Sender<E>, mpsc::Receiver<A>)) {
        let (events, from_driver) = mpsc::channel(16);
        let (to_driver, actions) = mpsc::channel(16);
        (Port::new(name, from_driver, to_driver), (events, actions))
    }
    let (kube, kube_end) = port("kube");
    let (kernel, kernel_end) = port("kernel");
    let (store, store_end) = port("store");
    let (socket_end, socket) = mpsc::channel(16);
    let ports = Ports {
        kube,
        kernel,
        store,
        socket,
    };
    let clock = SystemClock::new().unwrap();
    let agent = NodeAgent::new(config(), 1, meshd::clock::now());
    let task = tokio::spawn(Loop::new(agent, clock, ports, None).run(stop));
    let drivers = Drivers {
        kube: kube_end,
        kernel: kernel_end,
        store: store_end,
        socket: socket_end,
    };
    (drivers, task)
}

/// The node of the script whose address is the own one's.
const OWN: u8 = 100;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future)
        .await
        .expect("it comes within 10 s")
}

async fn ended(task: JoinHandle<Result<(), LoopError>>) -> Result<(), LoopError> {
    soon(task).await.unwrap()
}

#[tokio::test]
async fn a_driver_that_dies_ends_the_loop_with_an_error() {
    let forever = std::future::pending::<()>;
    let (drivers, task) = start(forever());
    drop(drivers.kernel);
    assert!(matches!(
        ended(task).await,
        Err(LoopError::Driver(Closed("kernel")))
    ));
    let (drivers, task) = start(forever());
    drop(drivers.store);
    assert!(matches!(
        ended(task).await,
        Err(LoopError::Driver(Closed("store")))
    ));
    let (drivers, task) = start(forever());
    drop(drivers.kube);
    assert!(matches!(
        ended(task).await,
        Err(LoopError::Driver(Closed("kube")))
    ));
    let (drivers, task) = start(forever());
    drop(drivers.socket);
    assert!(matches!(ended(task).await, Err(LoopError::Socket)));
}

#[tokio::test]
async fn stopping_sends_no_driver_anything_more() {
    let (stop, stopped) = oneshot::channel::<()>();
    let (mut drivers, task) = start(async move {
        let _ = stopped.await;
    });
    let first = soon(drivers.kernel.1.recv()).await.unwrap();
    assert_eq!(first.op, KernelOp::Observe);
    stop.send(()).unwrap();
    ended(task).await.unwrap();
    assert_eq!(drivers.kernel.1.recv().await, None);
}

#[tokio::test]
async fn a_caller_is_answered_by_the_agent_and_the_alarm_rings() {
    let (mut drivers, _task) = start(std::future::pending());
    assert!(matches!(
        soon(drivers.store.1.recv()).await,
        Some(StoreAction::Load { .. })
    ));
    let loaded = StoreEvent::Loaded {
        leases: Vec::new(),
        damaged: Vec::new(),
        kept: Vec::new(),
        damaged_kept: Vec::new(),
    };
    drivers.store.0.send(loaded).await.unwrap();
    // Nobody has told the agent its pod CIDRs: it answers before the deadline, which only its alarm can tell it.
    let (reply, answer) = oneshot::channel::<Reply>();
    let request = SocketMessage::Request {
        id: RequestId(1),
        deadline: meshd::clock::now().boot + Duration::from_millis(300),
        call: Box::new(CniCall::Add(Add {
            id: AttachmentId {
                container_id: "c".into(),
                ifname: "eth0".into(),
            },
            netns: "/run/netns/c".into(),
            pod: None,
            wants: Wants::default(),
            token: 0,
            network: String::new(),
        })),
        reply,
    };
    drivers.socket.send(request).await.unwrap();
    let error = soon(answer).await.unwrap().unwrap_err();
    assert_eq!(error.code, code::TRY_AGAIN, "{error}");
    // What the kernel answers brings the next action, and the resync's alarm a further observation.
    let mut observations = 0;
    while observations < 3 {
        let action = soon(drivers.kernel.1.recv()).await.unwrap();
        let event = match action.op {
            KernelOp::Observe => {
                observations += 1;
                KernelEvent::Observed(Box::default())
            }
            _ => KernelEvent::Applied(action.id),
        };
        drivers.kernel.0.send(event).await.unwrap();
    }
    let (reply, status) = oneshot::channel();
    drivers.socket.send(SocketMessage::Status(reply)).await.unwrap();
    assert_eq!(soon(status).await.unwrap().node.0, "node-0");
}

/// Every channel holds 16, the kernel is slow, and 199 nodes come at once: actions wait for the kernel, whose outcomes
/// wait for the loop. Nobody waits for ever, and the status is answered meanwhile.
#[tokio::test]
async fn many_nodes_and_a_slow_kernel_do_not_lock_each_other() {
    let (drivers, _task) = start(std::future::pending());
    let (kernel_events, mut kernel_actions) = drivers.kernel;
    let (kube_events, mut kube_actions) = drivers.kube;
    let (store_events, mut store_actions) = drivers.store;
    let (told, holds) = tokio::sync::watch::channel((0, 0));
    tokio::spawn(async move {
        let mut kernel = KernelState {
            underlay: vec![UnderlayAddress {
                address: "192.0.2.100".parse().unwrap(),
                ifname: "eth0".into(),
                mtu: 1500,
                default_route: true,
                passing: false,
            }],
            ..KernelState::default()
        };
        while let Some(KernelAction { id, op }) = kernel_actions.recv().await {
            let event = match op {
                KernelOp::Observe => KernelEvent::Observed(Box::new(kernel.clone())),
                op => {
                    script::carry_out(&mut kernel, op);
                    let _ = told.send((kernel.peers.len(), kernel.routes.len()));
                    KernelEvent::Applied(id)
                }
            };
            if kernel.routes.len().is_multiple_of(4) {
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
            kernel_events.send(event).await.unwrap();
        }
    });
    tokio::spawn(async move {
        while let Some(action) = store_actions.recv().await {
            let event = match action {
                StoreAction::Load { .. } => StoreEvent::Loaded {
                    leases: Vec::new(),
                    damaged: Vec::new(),
                    kept: Vec::new(),
                    damaged_kept: Vec::new(),
                },
                StoreAction::Put { id, .. }
                | StoreAction::Remove { id, .. }
                | StoreAction::Keep { id, .. }
                | StoreAction::Unkeep { id, .. } => StoreEvent::Applied(id),
            };
            store_events.send(event).await.unwrap();
        }
    });
    let kube = kube_events.clone();
    tokio::spawn(async move {
        while let Some(action) = kube_actions.recv().await {
            kube.send(KubeEvent::Applied(action.id().clone())).await.unwrap();
        }
    });
    tokio::spawn(async move {
        let nodes = (1..=200)
            .filter(|n| *n != OWN)
            .map(|n| KubeEvent::NodeApplied(script::node(n)));
        let first = [KubeEvent::OwnNode(script::own_node()), KubeEvent::NodesReset];
        let last = [
            KubeEvent::NodesSynced,
            KubeEvent::PodsReset,
            KubeEvent::PodsSynced,
        ];
        for event in first.into_iter().chain(nodes).chain(last) {
            kube_events.send(event).await.unwrap();
        }
        // The driver lives on.
        std::future::pending::<()>().await;
    });
    let mut last = None;
    let whole = async {
        loop {
            let (reply, status) = oneshot::channel();
            drivers.socket.send(SocketMessage::Status(reply)).await.unwrap();
            let status = status.await.unwrap();
            // For each peer a route to its pods, one to its own address and an unreachable one behind that, and one for the
            // cluster's pod CIDR.
            if status.ready && status.problems.is_empty() && *holds.borrow() == (199, 3 * 199 + 1) {
                return;
            }
            last = Some((*holds.borrow(), status.problems));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(30), whole).await;
    assert!(done.is_ok(), "199 peers do not come: {last:#?}");
}
