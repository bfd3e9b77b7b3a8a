//! Makes the socket, and takes connections from those who may.

use super::notes::{self, Notes};
use super::session::{Asked, refuse, serve};
use super::{Look, SocketMessage};
use crate::limit::RateLimit;
use crate::metrics::Calls;
use meshd_model::AttachmentId;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc::Sender};

/// Most connections at a time; more wait in the socket's backlog.
const CONNECTIONS_MAX: u32 = 512;
/// Most refusals under way at a time; more are closed without a word.
const REFUSALS_MAX: usize = 16;
/// How long to wait when the system has no descriptor for another connection.
const PAUSE: Duration = Duration::from_millis(100);
/// How long callers may take to hear that the daemon stops.
const FAREWELL: Duration = Duration::from_secs(1);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers on it.
    #[error(
        "another daemon listens on {0}; stop it first, or give this one its own --socket and --state-dir"
    )]
    Live(PathBuf),
    /// Something is there that nobody may lose.
    #[error("{0} is there and is no socket; remove it, or name another path with --socket")]
    Taken(PathBuf),
    /// The system refused.
    #[error("cannot {what} {path}: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What came of it.
        error: io::Error,
    },
}

/// The socket, listening; its file goes when this is dropped.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    connections: u32,
    calls: Calls,
    notes: Notes,
    noted: Vec<AttachmentId>,
    look: Look,
}

impl Listener {
    /// Listens on `path`, 0600, in a folder that is made 0755 if need be. The file of a daemon that was killed is
    /// replaced in one step; a live daemon is left alone.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |error| SocketError::Io { what, path, error }
        };
        check_free(path)?;
        if let Some(folder) = path.parent() {
            let made = std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(folder);
            made.map_err(io("make the folder", folder))?;
        }
        // Under its final name it is never there with another mode.
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io("remove", &fresh)(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&fresh).map_err(io("listen on", &fresh))?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))
            .and_then(|()| std::fs::rename(&fresh, path))
            .map_err(io("put in place the socket", path))?;
        // Not before it listens.
        let notes = Notes::beside(path);
        Ok(Self {
            listener,
            noted: notes.read(),
            notes,
            look: |_| Box::pin(async { Ok(Vec::new()) }),
            path: path.to_owned(),
            connections: CONNECTIONS_MAX,
            calls: Calls::default(),
        })
    }

    /// Serves no more than so many connections at a time; 512 unless told.
    #[must_use]
    pub fn with_connections(mut self, most: u32) -> Self {
        self.connections = most;
        self
    }

    /// Counts and times the runtime's calls there.
    #[must_use]
    pub fn counting(mut self, calls: Calls) -> Self {
        self.calls = calls;
        self
    }

    /// Has CHECK look at the pods in this way, too; not at all unless told.
    #[must_use]
    pub fn looking(mut self, look: Look) -> Self {
        self.look = look;
        self
    }

    /// Whether deletions wait that were noted while no daemon listened; [`SocketMessage::Finished`] tells the end.
    #[must_use]
    pub fn has_noted(&self) -> bool {
        !self.noted.is_empty()
    }

    /// Takes connections until the event loop is gone.
    pub async fn run(mut self, events: Sender<SocketMessage>) {
        let own = nix::unistd::geteuid().as_raw();
        let places = Arc::new(Semaphore::new(self.connections as usize));
        let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
        let ids = Arc::new(AtomicU64::new(1));
        let noted = std::mem::take(&mut self.noted);
        tokio::spawn(notes::finish(
            self.notes.clone(),
            noted,
            events.clone(),
            Arc::clone(&ids),
        ));
        let asked = Asked {
            events: events.clone(),
            ids,
            notes: self.notes.clone(),
            look: self.look,
            calls: self.calls.clone(),
        };
        let mut limit = RateLimit::new(Duration::from_secs(10));
        loop {
            let place = Arc::clone(&places).acquire_owned().await;
            let place = place.expect("the semaphore is never closed");
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = events.closed() => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    if let Some(more) = limit.allow(crate::clock::now().boot) {
                        tracing::warn!(%error, more, path = %self.path.display(), "cannot take a connection");
                    }
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            match peer(&stream) {
                Ok(uid) if uid == 0 || uid == own => {
                    let session = serve(stream, asked.clone());
                    tokio::spawn(async move {
                        session.await;
                        drop(place);
                    });
                }
                denied => {
                    if let Some(more) = limit.allow(crate::clock::now().boot) {
                        tracing::warn!(?denied, more, path = %self.path.display(), "refused a peer that is not permitted");
                    }
                    if let Ok(refusal) = Arc::clone(&refusals).try_acquire_owned() {
                        tokio::spawn(async move {
                            refuse(stream, denied).await;
                            drop(refusal);
                        });
                    }
                }
            }
        }
        // Those who wait are hung up on, which says that the daemon stops; then they go.
        let _ = tokio::time::timeout(FAREWELL, places.acquire_many(self.connections)).await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Who connected (SO_PEERCRED).
fn peer(stream: &UnixStream) -> Result<u32, String> {
    match stream.peer_cred() {
        Ok(credentials) => Ok(credentials.uid()),
        Err(error) => Err(error.to_string()),
    }
}

fn check_free(path: &Path) -> Result<(), SocketError> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(SocketError::Io {
                what: "look at",
                path: path.to_owned(),
                error,
            });
        }
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(SocketError::Taken(path.to_owned())),
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        // Also when its backlog is full: somebody is there.
        _ => Err(SocketError::Live(path.to_owned())),
    }
}
