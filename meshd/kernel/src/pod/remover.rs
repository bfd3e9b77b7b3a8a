//! Deletes pods' links in the background: within a deletion the kernel waits for what every CPU does meanwhile, 15 to 20 ms,
//! and for many links that go together hardly longer than for one.

use crate::error::{OpError, Result, is_gone};
use crate::netlink::message::{self, Link};
use crate::netlink::{Batch, Socket};
use meshd_core::ActionId;
use meshd_model::kernel::POD_IFNAME_PREFIX;
use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;

/// The group (`IFLA_GROUP`) of links that are about to be deleted: "mshd". No other interface is in it.
const GROUP: u32 = 0x6d73_6864;
/// Links that go together at most. While they do, nobody else can change a link: 0.5 ms for each.
const TOGETHER: usize = 128;
/// More are waited for until none has come for so long, since each of few costs an ADD beside them as much as many do,
const QUIET: Duration = Duration::from_millis(100);
/// and no longer than this.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// What is to be deleted, and who asked. How many there are the agent bounds, which asks once for each link.
pub(crate) struct Doomed {
    pub(crate) id: ActionId,
    pub(crate) ifname: String,
}

/// What came of it.
pub(crate) type Outcome = (ActionId, Result<()>);

/// The thread that deletes.
pub(crate) struct Remover {
    queue: Sender<Doomed>,
    /// By what the kernel names its socket.
    pub(crate) port: u32,
}

impl Remover {
    /// Starts it in the network namespace of the calling thread; it ends when this is dropped and all is done.
    pub(crate) fn start(outcomes: UnboundedSender<Outcome>) -> Result<Self> {
        use crate::error::Context;
        let socket = Socket::open()?;
        let port = socket.port()?;
        let (queue, doomed) = channel();
        std::thread::Builder::new()
            .name("meshd-remove".to_owned())
            .spawn(move || serve(&socket, &doomed, &outcomes))
            .doing(|| "start the thread that deletes links")?;
        Ok(Self { queue, port })
    }

    /// Has the link deleted. Its outcome comes when it is gone, also where it was not there.
    pub(crate) fn remove(&self, doomed: Doomed) -> Result<()> {
        let ended = |_| OpError::plain("the thread that deletes links has ended");
        self.queue.send(doomed).map_err(ended)
    }
}

fn serve(socket: &Socket, queue: &Receiver<Doomed>, outcomes: &UnboundedSender<Outcome>) {
    while let Ok(first) = queue.recv() {
        let doomed = gather(first, queue);
        let names: Vec<_> = doomed.iter().map(|d| d.ifname.as_str()).collect();
        let results = delete(socket, &names);
        for (doomed, result) in doomed.into_iter().zip(results) {
            let _ = outcomes.send((doomed.id, result));
        }
    }
}

/// What comes soon after the first.
fn gather(first: Doomed, queue: &Receiver<Doomed>) -> Vec<Doomed> {
    let begun = Instant::now();
    let mut doomed = vec![first];
    while doomed.len() < TOGETHER {
        let wait = QUIET.min(WAIT_MAX.saturating_sub(begun.elapsed()));
        match queue.recv_timeout(wait) {
            Ok(next) => doomed.push(next),
            Err(_) => break,
        }
    }
    doomed
}

/// Deletes these links; a result for each. What cannot be deleted together is deleted one by one.
fn delete(socket: &Socket, names: &[&str]) -> Vec<Result<()>> {
    if names.len() > 1
        && let Err(e) = together(socket, names)
    {
        tracing::warn!("cannot delete {} links together: {e}", names.len());
    }
    names.iter().map(|name| one(socket, name)).collect()
}

/// Deletes the link; that it is gone already is success.
fn one(socket: &Socket, name: &str) -> Result<()> {
    let mut batch = Batch::default();
    batch.push(message::delete(name), format!("delete interface {name}"));
    match socket.execute(&batch)?.all() {
        Err(e) if is_gone(e.errno) => Ok(()),
        other => other,
    }
}

/// Deletes those of these links that are there, if nothing else is in the group.
fn together(socket: &Socket, names: &[&str]) -> Result<()> {
    let mut batch = Batch::default();
    for name in names {
        batch.push(
            message::set_group(name, GROUP),
            format!("set the group of {name}"),
        );
    }
    // One that is gone is in no group.
    socket.execute(&batch)?;
    let mut others = BTreeSet::new();
    let mut count = 0;
    socket.dump(message::dump_links(), "list interfaces", |body| {
        let Some(link) = Link::read(body).filter(|l| l.group == GROUP) else {
            return;
        };
        count += 1;
        if !names.contains(&link.name.as_str()) || !link.name.starts_with(POD_IFNAME_PREFIX) {
            others.insert(link.name);
        }
    })?;
    if !others.is_empty() {
        let message = format!("{others:?} are in group {GROUP:#x}, which is meshd's: take them out");
        return Err(OpError::new(libc::EBUSY, message));
    }
    if count == 0 {
        return Ok(());
    }
    let mut batch = Batch::default();
    batch.push(message::delete_group(GROUP), format!("delete {count} interfaces"));
    socket.execute(&batch)?.all()
}
