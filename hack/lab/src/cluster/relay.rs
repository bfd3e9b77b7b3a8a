//! Leads the nodes to an API server outside: the sandbox has no way out but a Unix socket in the caller's folder.
//!
//! ```text
//! node --TCP--> bridge:6443 (Relay, inside) --HOST/relay.sock--> Outside --TCP--> the API server
//! ```

use anyhow::{Context, Result};
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Name of the socket in the caller's folder.
pub const SOCKET: &str = "relay.sock";
/// Most connections at a time.
const CONNECTIONS_MAX: usize = 1024;

/// The inner end. It ends when it is dropped.
pub struct Relay {
    task: JoinHandle<()>,
}

impl Relay {
    /// Listens on the underlay.
    pub async fn start(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("listen on {address} for the API server"))?;
        let path = Path::new(crate::sandbox::HOST).join(SOCKET);
        let task = tokio::spawn(async move {
            relay(
                || async { Ok(listener.accept().await?.0) },
                || UnixStream::connect(&path),
            )
            .await;
        });
        Ok(Self { task })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The outer end: leads what comes to the socket in `folder` to the API server. Ends only when it is dropped.
pub async fn outside(folder: &Path, host: &str, port: u16) -> Result<()> {
    let path = folder.join(SOCKET);
    let listener = UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
    relay(
        || async { Ok(listener.accept().await?.0) },
        || TcpStream::connect((host, port)),
    )
    .await;
    Ok(())
}

async fn relay<A, C, FA, FC>(accept: impl Fn() -> FA, connect: impl Fn() -> FC)
where
    FA: Future<Output = std::io::Result<A>>,
    FC: Future<Output = std::io::Result<C>>,
    A: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let Ok(mut from) = accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        // Nobody there: the connection is closed, and the client tries again.
        let Ok(mut to) = connect().await else { continue };
        connections.spawn(async move {
            let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            drop(place);
        });
    }
}
