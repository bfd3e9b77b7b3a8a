//! The lease store: a thread that carries the agent's store actions out, in order, and another one for kept addresses, whose
//! records are flushed to the disk: no other pod's ADD waits for that.

use super::Port;
use meshd_core::{ActionId, Failure, StoreAction, StoreEvent};
use meshd_ipam_store::{Damaged, FileStore, KeptStore, LeaseStore, Loaded, StoreError};
use std::io;
use std::path::{Path, PathBuf};
use tokio::sync::mpsc::{self, Receiver, Sender};

/// The store's folder under the state folder.
pub const FOLDER: &str = "store";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Actions and events that may be under way.
const QUEUE: usize = 1024;

/// Starts the thread. The store is opened by the first `Load`, and again by the next one where that failed: a
/// state folder that is full or read-only is an outcome that the agent tries again and shows in its status.
pub fn start_store(state_dir: &Path) -> io::Result<Port<StoreEvent, StoreAction>> {
    let (actions, requests) = mpsc::channel(QUEUE);
    let (outcomes, events) = mpsc::channel(QUEUE);
    let driver = Driver {
        path: state_dir.join(FOLDER),
        store: None,
        keeper: None,
        outcomes: outcomes.clone(),
    };
    std::thread::Builder::new()
        .name("store".into())
        .spawn(move || driver.run(requests, &outcomes))?;
    Ok(Port::new("store", events, actions))
}

struct Driver {
    path: PathBuf,
    store: Option<FileStore>,
    /// The thread for kept addresses, once the store was loaded.
    keeper: Option<Sender<StoreAction>>,
    outcomes: Sender<StoreEvent>,
}

impl Driver {
    fn run(mut self, mut requests: Receiver<StoreAction>, outcomes: &Sender<StoreEvent>) {
        while let Some(action) = requests.blocking_recv() {
            let Some(outcome) = self.carry_out(action) else {
                continue;
            };
            if outcomes.blocking_send(outcome).is_err() {
                return;
            }
        }
    }

    /// None where another thread tells the outcome.
    fn carry_out(&mut self, action: StoreAction) -> Option<StoreEvent> {
        let (id, done) = match action {
            StoreAction::Load { id } => match self.load() {
                Ok(loaded) => {
                    return Some(StoreEvent::Loaded {
                        damaged: lines(&loaded.damaged),
                        damaged_kept: lines(&loaded.damaged_kept),
                        leases: loaded.leases,
                        kept: loaded.kept,
                    });
                }
                Err(failure) => (id, Err(failure)),
            },
            StoreAction::Put { id, lease } => (id, self.with(|store| store.put(&lease))),
            StoreAction::Remove { id, attachment } => (id, self.with(|store| store.remove(&attachment))),
            StoreAction::Keep { ref id, .. } | StoreAction::Unkeep { ref id, .. } => {
                let id = id.clone();
                (id, Err(self.hand_over(action)?))
            }
        };
        Some(outcome(id, done))
    }

    /// Gives an action to the thread for kept addresses; why not, if that is not there.
    fn hand_over(&self, action: StoreAction) -> Option<Failure> {
        let handed = self
            .keeper
            .as_ref()
            .is_some_and(|keeper| keeper.blocking_send(action).is_ok());
        (!handed).then(|| self.not_loaded())
    }

    fn start_keeper(&self, store: &FileStore) -> Result<Sender<StoreAction>, Failure> {
        let (actions, mut requests) = mpsc::channel(QUEUE);
        let (mut kept, outcomes) = (store.kept(), self.outcomes.clone());
        let run = move || {
            while let Some(action) = requests.blocking_recv() {
                let Some(outcome) = carry_out_kept(&mut kept, action) else {
                    continue;
                };
                if outcomes.blocking_send(outcome).is_err() {
                    return;
                }
            }
        };
        let started = std::thread::Builder::new().name("store-kept".into()).spawn(run);
        started.map(|_| actions).map_err(|error| Failure {
            errno: error.raw_os_error(),
            message: format!("cannot start a thread for kept addresses: {error}"),
        })
    }

    fn load(&mut self) -> Result<Loaded, Failure> {
        if self.store.is_none() {
            let store = self.open()?;
            self.keeper = Some(self.start_keeper(&store)?);
            self.store = Some(store);
        }
        self.with(LeaseStore::load)
    }

    fn open(&self) -> Result<FileStore, Failure> {
        let boot_id = std::fs::read_to_string(BOOT_ID).map_err(|error| Failure {
            errno: error.raw_os_error(),
            message: format!("cannot read {BOOT_ID}: {error}"),
        })?;
        let store = FileStore::open(&self.path, &boot_id).map_err(failure)?;
        if let Some(previous) = store.previous() {
            tracing::info!(
                path = %previous.display(),
                "the node was rebooted: the leases of the boot before are set aside"
            );
        }
        Ok(store)
    }

    fn with<T>(&mut self, call: impl FnOnce(&mut FileStore) -> Result<T, StoreError>) -> Result<T, Failure> {
        match &mut self.store {
            Some(store) => call(store).map_err(failure),
            None => Err(self.not_loaded()),
        }
    }

    fn not_loaded(&self) -> Failure {
        Failure {
            errno: None,
            message: format!(
                "the lease store {} is not open: it was not loaded yet",
                self.path.display()
            ),
        }
    }
}

fn carry_out_kept(store: &mut KeptStore, action: StoreAction) -> Option<StoreEvent> {
    let (id, done) = match action {
        StoreAction::Keep { id, kept } => (id, store.put(&kept)),
        StoreAction::Unkeep { id, key } => (id, store.remove(&key)),
        // Those are the other thread's.
        StoreAction::Load { .. } | StoreAction::Put { .. } | StoreAction::Remove { .. } => return None,
    };
    Some(outcome(id, done.map_err(failure)))
}

fn lines(damaged: &[Damaged]) -> Vec<String> {
    damaged.iter().map(ToString::to_string).collect()
}

fn failure(error: StoreError) -> Failure {
    Failure {
        errno: error.errno(),
        message: error.to_string(),
    }
}

fn outcome(id: ActionId, done: Result<(), Failure>) -> StoreEvent {
    match done {
        Ok(()) => StoreEvent::Applied(id),
        Err(failure) => StoreEvent::Failed { id, failure },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshd_core::Resource;
    use meshd_model::attachment::MacAddr;
    use meshd_model::{AttachmentId, Kept, KeptKey, Lease, LeasePhase};

    fn id(generation: u64) -> ActionId {
        ActionId {
            resource: Resource::Store,
            generation,
        }
    }

    fn lease() -> Lease {
        Lease {
            id: AttachmentId {
                container_id: "c1".into(),
                ifname: "eth0".into(),
            },
            phase: LeasePhase::Adding,
            pod: None,
            netns: "/run/netns/c1".into(),
            host_ifname: "mshp1".into(),
            host_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            mac: MacAddr([2, 0, 0, 0, 0, 2]),
            addresses: vec!["10.244.1.2".parse().unwrap()],
            token: 0,
            secondary: false,
            network: "meshd".into(),
        }
    }

    #[tokio::test]
    async fn actions_are_carried_out_in_order_and_survive_the_thread() {
        let state = tempfile::tempdir().unwrap();
        let mut port = start_store(state.path()).unwrap();
        port.send(StoreAction::Put {
            id: id(1),
            lease: lease(),
        })
        .unwrap();
        let StoreEvent::Failed { failure, .. } = port.next().await.unwrap() else {
            panic!()
        };
        assert!(failure.message.contains("not loaded"), "{}", failure.message);
        port.send(StoreAction::Load { id: id(2) }).unwrap();
        port.send(StoreAction::Put {
            id: id(3),
            lease: lease(),
        })
        .unwrap();
        assert!(matches!(port.next().await.unwrap(), StoreEvent::Loaded { leases, .. } if leases.is_empty()));
        assert_eq!(port.next().await.unwrap(), StoreEvent::Applied(id(3)));
        // A second daemon on the same folder is told, and gets it once the first is gone.
        let mut second = start_store(state.path()).unwrap();
        second.send(StoreAction::Load { id: id(1) }).unwrap();
        assert!(matches!(second.next().await.unwrap(), StoreEvent::Failed { .. }));
        drop(port);
        loop {
            second.send(StoreAction::Load { id: id(2) }).unwrap();
            match second.next().await.unwrap() {
                StoreEvent::Loaded { leases, .. } => break assert_eq!(leases, [lease()]),
                _ => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
            }
        }
    }

    #[tokio::test]
    async fn what_is_kept_is_written_by_a_thread_of_its_own_and_loaded_again() {
        let record = Kept {
            key: KeptKey {
                namespace: "default".into(),
                pod: "web-0".into(),
                ifname: "eth0".into(),
            },
            addresses: vec!["10.244.1.2".parse().unwrap()],
            unused_since: None,
        };
        let keep = |generation| StoreAction::Keep {
            id: id(generation),
            kept: record.clone(),
        };
        let state = tempfile::tempdir().unwrap();
        let mut port = start_store(state.path()).unwrap();
        port.send(keep(1)).unwrap();
        assert!(matches!(port.next().await.unwrap(), StoreEvent::Failed { .. }));
        port.send(StoreAction::Load { id: id(2) }).unwrap();
        port.next().await.unwrap();
        port.send(keep(3)).unwrap();
        assert_eq!(port.next().await.unwrap(), StoreEvent::Applied(id(3)));
        port.send(StoreAction::Load { id: id(4) }).unwrap();
        let loaded = port.next().await.unwrap();
        assert!(matches!(loaded, StoreEvent::Loaded { kept, .. } if kept == [record.clone()]));
        let key = record.key.clone();
        port.send(StoreAction::Unkeep { id: id(5), key }).unwrap();
        assert_eq!(port.next().await.unwrap(), StoreEvent::Applied(id(5)));
    }
}
