//! Deletions that the plugin noted while no daemon listened: finished at the start, before the node says it is ready.
//!
//! The daemon listens before it reads the notes, and the plugin looks for it once more after it has written one: a note
//! that was written too late to be read here is of a DEL that came over the socket. Who else answers about an
//! attachment takes its note away, so that none can meet a later attachment of the same name.

use super::SocketMessage;
use meshd_core::{CniCall, RequestId};
use meshd_model::AttachmentId;
use meshd_model::cni::{NOTE_MAX, NOTES_MAX, note_name, notes_folder};
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc::Sender, oneshot};
use tokio::task::JoinSet;

/// How long one deletion may take before it is tried again.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries of what failed.
const PAUSE: Duration = Duration::from_secs(10);
/// How many deletions are under way at a time.
const AT_ONCE: usize = 32;
/// A file that the plugin was writing so long ago was left by one that was killed.
const STALE: Duration = Duration::from_secs(60);
/// So long after the start the folder is looked at once more: whoever had found no daemon then has no deadline left, and
/// what it was writing is stale.
const AFTERMATH: Duration = Duration::from_secs(90);

/// The folder of the notes beside a socket.
#[derive(Clone, Debug)]
pub(super) struct Notes {
    folder: PathBuf,
}

impl Notes {
    pub(super) fn beside(socket: &Path) -> Self {
        Self {
            folder: notes_folder(socket),
        }
    }

    /// Takes the note of an attachment away, if there is one.
    pub(super) fn remove(&self, id: &AttachmentId) {
        let path = self.folder.join(note_name(id));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %path.display(), "cannot remove the note of a deletion");
            }
            _ => {}
        }
    }

    /// Whether the deletion is still to be done. A note that cannot be looked at counts: its deletion would be lost.
    fn holds(&self, id: &AttachmentId) -> bool {
        let found = fs::symlink_metadata(self.folder.join(note_name(id)));
        !found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// Whose deletions wait. What is no note is removed: nothing else belongs here.
    pub(super) fn read(&self) -> Vec<AttachmentId> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, path = %self.folder.display(), "cannot read the notes of deletions");
                }
                return Vec::new();
            }
        };
        let paths = entries.filter_map(Result::ok).take(2 * NOTES_MAX);
        paths.filter_map(|entry| note(&entry.path())).collect()
    }
}

fn note(path: &Path) -> Option<AttachmentId> {
    let name = path.file_name()?.to_str()?;
    if name.starts_with('.') {
        let written = fs::symlink_metadata(path).and_then(|file| file.modified());
        let age = written
            .ok()
            .and_then(|at| SystemTime::now().duration_since(at).ok());
        if age.is_some_and(|age| age > STALE) {
            let _ = fs::remove_file(path);
        }
        return None;
    }
    match parse(path) {
        Ok(id) if note_name(&id) == name => Some(id),
        found => {
            let reason = found
                .err()
                .map_or("it names another attachment".to_owned(), |e| e.to_string());
            tracing::warn!(reason, path = %path.display(), "removed what is no note of a deletion");
            let _ = fs::remove_file(path);
            None
        }
    }
}

fn parse(path: &Path) -> io::Result<AttachmentId> {
    // Neither a link nor a pipe: whatever is there, it is not waited for.
    let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)?;
    let mut text = Vec::new();
    file.take(NOTE_MAX as u64 + 1).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Has the deletions done, and says so after each has been tried once; goes on with those that failed. Later it does away
/// with what plugins have left that were killed beside their note.
pub(super) async fn finish(
    notes: Notes,
    left: Vec<AttachmentId>,
    events: Sender<SocketMessage>,
    ids: Arc<AtomicU64>,
) {
    if !left.is_empty() {
        tracing::info!(
            deletions = left.len(),
            "finishing what was deleted while no daemon ran"
        );
        let left = once(&notes, left, &events, &ids).await;
        if events.send(SocketMessage::Finished).await.is_err() {
            return;
        }
        try_on(&notes, left, &events, &ids).await;
    }
    tokio::select! {
        () = tokio::time::sleep(AFTERMATH) => {}
        () = events.closed() => return,
    }
    let late = notes.read();
    let late = once(&notes, late, &events, &ids).await;
    try_on(&notes, late, &events, &ids).await;
}

/// Until none is left, or the daemon ends.
async fn try_on(notes: &Notes, mut left: Vec<AttachmentId>, events: &Sender<SocketMessage>, ids: &AtomicU64) {
    while !left.is_empty() {
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = events.closed() => return,
        }
        left = once(notes, left, events, ids).await;
    }
}

/// Tries each once that still has its note; gives those that failed. Where the note is gone, somebody else was answered
/// since: another DEL, or an ADD, whose attachment would be deleted.
async fn once(
    notes: &Notes,
    all: Vec<AttachmentId>,
    events: &Sender<SocketMessage>,
    ids: &AtomicU64,
) -> Vec<AttachmentId> {
    let mut failed = Vec::new();
    let mut under_way = JoinSet::new();
    for id in all {
        if !notes.holds(&id) {
            continue;
        }
        if under_way.len() >= AT_ONCE {
            failed.extend(under_way.join_next().await.and_then(|done| done.ok().flatten()));
        }
        let request = RequestId(ids.fetch_add(1, Ordering::Relaxed));
        under_way.spawn(delete(notes.clone(), id, events.clone(), request));
    }
    while let Some(done) = under_way.join_next().await {
        failed.extend(done.ok().flatten());
    }
    failed
}

/// Deletes one; gives it back if that failed.
async fn delete(
    notes: Notes,
    id: AttachmentId,
    events: Sender<SocketMessage>,
    request: RequestId,
) -> Option<AttachmentId> {
    let (reply, replied) = oneshot::channel();
    let message = SocketMessage::Request {
        id: request,
        deadline: crate::clock::now().boot + PATIENCE,
        call: Box::new(CniCall::Del(id.clone())),
        reply,
    };
    if events.send(message).await.is_err() {
        return Some(id);
    }
    match tokio::time::timeout(PATIENCE, replied).await {
        Ok(Ok(Ok(_))) => {
            notes.remove(&id);
            None
        }
        Ok(Ok(Err(error))) => {
            tracing::warn!(%error, %id, "a deletion that was noted has failed, and is tried again");
            Some(id)
        }
        _ => Some(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshd_model::cni::{CniError, code};
    use tokio::sync::mpsc;

    fn noted(notes: &Notes, container_id: &str) -> AttachmentId {
        let id = AttachmentId {
            container_id: container_id.into(),
            ifname: "eth0".into(),
        };
        fs::create_dir_all(&notes.folder).unwrap();
        fs::write(
            notes.folder.join(note_name(&id)),
            serde_json::to_vec(&id).unwrap(),
        )
        .unwrap();
        id
    }

    /// Answers every deletion with an error, and gives whose it was.
    async fn refuse(mut messages: mpsc::Receiver<SocketMessage>) -> Vec<AttachmentId> {
        let mut asked = Vec::new();
        while let Some(message) = messages.recv().await {
            let SocketMessage::Request { call, reply, .. } = message else {
                panic!("not a request");
            };
            let CniCall::Del(id) = *call else {
                panic!("not a deletion");
            };
            asked.push(id);
            let busy = CniError {
                code: code::TRY_AGAIN,
                msg: "busy".into(),
                details: String::new(),
            };
            let _ = reply.send(Err(busy));
        }
        asked
    }

    /// One try of these, which the daemon refuses: what it was asked for, and what is left.
    async fn tried(notes: &Notes, all: &[AttachmentId]) -> (Vec<AttachmentId>, Vec<AttachmentId>) {
        let (events, messages) = mpsc::channel(16);
        let ids = AtomicU64::new(0);
        let work = async {
            let left = once(notes, all.to_vec(), &events, &ids).await;
            drop(events);
            left
        };
        tokio::join!(refuse(messages), work)
    }

    #[tokio::test]
    async fn a_deletion_whose_note_somebody_took_is_not_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let notes = Notes::beside(&folder.path().join("meshd.sock"));
        let (added, gone) = (noted(&notes, "added-again"), noted(&notes, "gone"));
        let both = [added.clone(), gone.clone()];
        let (asked, left) = tried(&notes, &both).await;
        assert_eq!(asked.len(), 2);
        assert_eq!(left.len(), 2, "what failed is tried again");

        // As a session does that has answered an ADD.
        notes.remove(&added);
        let (asked, left) = tried(&notes, &left).await;
        assert_eq!((asked, left), (vec![gone.clone()], vec![gone]));
    }

    /// The plugin was killed while it wrote, or between its note and its second look for the daemon, which had read the
    /// notes by then.
    #[tokio::test(start_paused = true)]
    async fn what_a_killed_plugin_left_after_the_start_goes_too() {
        let folder = tempfile::tempdir().unwrap();
        let notes = Notes::beside(&folder.path().join("meshd.sock"));
        let (events, messages) = mpsc::channel(16);
        let ended = Arc::new(AtomicU64::new(0));
        let finishing = tokio::spawn(finish(notes.clone(), Vec::new(), events, ended));
        let id = noted(&notes, "late");
        let half = notes.folder.join(".half.4711");
        let writing = notes.folder.join(".writing.4712");
        for file in [&half, &writing] {
            fs::write(file, "{").unwrap();
        }
        let before = SystemTime::now() - STALE - Duration::from_secs(1);
        let file = OpenOptions::new().write(true).open(&half).unwrap();
        file.set_modified(before).unwrap();
        let asked = tokio::time::timeout(AFTERMATH + PAUSE, refuse(messages));
        assert!(asked.await.is_err(), "what fails is tried again");
        assert!(notes.holds(&id));
        assert!(!half.exists(), "it is nobody's");
        assert!(writing.exists(), "somebody may be writing it");
        finishing.abort();
    }
}
