//! The connection to the API server. Files that it is made of are followed: tokens, certificates and addresses are
//! replaced while the daemon runs, and a request that comes after it is made with what is there then.

use crate::access::{Access, Read};
use crate::pace::Pace;
use kube::Client;
use kube::client::Body;
use std::fs::Metadata;
use std::future::Future;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Mutex;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may be silent while an answer is due. A watch is sent a bookmark every minute.
const READ_TIMEOUT: Duration = Duration::from_secs(150);

/// Why there is no client. Whether the API server answers is not known yet then.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig cannot be used.
    #[error("read kubeconfig {path}: {reason}; give a file with a current context, whose own files can be read too", path = path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no service account, or no server for it.
    #[error(
        "use the pod's service account: {0}; outside a pod give --kubeconfig, inside one set automountServiceAccountToken, and --api-server where the variables are not set"
    )]
    ServiceAccount(String),
    /// What was read makes no client.
    #[error("make a client for {url}: {reason}")]
    Client {
        /// The API server.
        url: String,
        /// Why not.
        reason: String,
    },
}

/// Makes a client; connects when it is first used.
///
/// # Errors
/// Where the kubeconfig or the service account cannot be used.
pub async fn connect(access: &Access) -> Result<Client, ClientError> {
    let made = Made::new(access).await?;
    let following = Following(Arc::new(Shared {
        access: access.clone(),
        made: Mutex::new(made),
        pace: Pace::default(),
    }));
    Ok(Client::new(following, "default"))
}

/// Hands requests to the client that was made of the files as they are.
#[derive(Clone)]
struct Following(Arc<Shared>);

struct Shared {
    access: Access,
    made: Mutex<Made>,
    pace: Pace,
}

/// A client, and what it was made of.
struct Made {
    client: Client,
    files: Vec<PathBuf>,
    stamps: Vec<Option<Stamp>>,
}

/// Tells a file from the one that had its name before: what the kubelet replaces is another file by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Made {
    async fn new(access: &Access) -> Result<Self, ClientError> {
        let Read { mut config, files } = access.read().await?;
        // Before the client reads them: what is replaced meanwhile is seen as a change the next time.
        let stamps = stamps(&files);
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(READ_TIMEOUT);
        config.reset_reader_on_write = true;
        // Who fails is told at once and decides; a client that tries again in silence hides an outage.
        config.default_retry = false;
        let url = config.cluster_url.to_string();
        let client = Client::try_from(config).map_err(|e| ClientError::Client {
            url,
            reason: chain(&e),
        })?;
        Ok(Self {
            client,
            files,
            stamps,
        })
    }
}

impl Shared {
    /// The client of now. One that cannot be made of new files leaves the old one in use: the files may be half
    /// replaced, and then they change again.
    async fn client(&self) -> Client {
        let mut made = self.made.lock().await;
        let now = stamps(&made.files);
        if now != made.stamps {
            match Made::new(&self.access).await {
                Ok(new) => {
                    tracing::info!("the credentials for the API server have changed and are read again");
                    *made = new;
                }
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "the new credentials for the API server are no use; the old ones stay");
                    made.stamps = now;
                }
            }
        }
        made.client.clone()
    }

    async fn send(&self, request: http::Request<Body>) -> kube::Result<http::Response<Body>> {
        let watch = self.pace.wait(request.uri()).await;
        let response = self.client().await.send(request).await?;
        self.pace.answered(watch, response.status());
        Ok(response)
    }
}

impl tower_service::Service<http::Request<Body>> for Following {
    type Response = http::Response<Body>;
    type Error = kube::Error;
    type Future = Pin<Box<dyn Future<Output = kube::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<kube::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move { shared.send(request).await })
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    let stamp = |file: Metadata| Stamp {
        inode: file.ino(),
        length: file.len(),
        modified: (file.mtime(), file.mtime_nsec()),
    };
    files
        .iter()
        .map(|path| std::fs::metadata(path).ok().map(stamp))
        .collect()
}

/// An error with its causes, each said once, on one line of bounded length.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    const LONGEST: usize = 500;
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(LONGEST).collect()
}
