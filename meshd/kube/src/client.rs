//! The connection to the API server.

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::path::PathBuf;
use std::time::Duration;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may be silent while an answer is due. A watch is sent a bookmark every minute.
const READ_TIMEOUT: Duration = Duration::from_secs(150);

/// How the API server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// With the current context of this kubeconfig.
    Kubeconfig(PathBuf),
    /// With the service account of the pod that this runs in.
    InCluster,
}

/// Why there is no client. Whether the API server answers is not known yet then.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig cannot be used.
    #[error("read kubeconfig {path}: {reason}; give --kubeconfig a file with a current context", path = path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no service account.
    #[error(
        "read the pod's service account: {0}; outside a pod give --kubeconfig, inside one set automountServiceAccountToken"
    )]
    InCluster(String),
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
    let mut config = match access {
        Access::Kubeconfig(path) => kubeconfig(path).await?,
        Access::InCluster => Config::incluster().map_err(|e| ClientError::InCluster(chain(&e)))?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
    // Who fails is told at once and decides; a client that tries again in silence hides an outage.
    config.default_retry = false;
    let url = config.cluster_url.to_string();
    Client::try_from(config).map_err(|e| ClientError::Client {
        url,
        reason: chain(&e),
    })
}

async fn kubeconfig(path: &PathBuf) -> Result<Config, ClientError> {
    let failed = |reason: String| ClientError::Kubeconfig {
        path: path.clone(),
        reason,
    };
    let file = Kubeconfig::read_from(path).map_err(|e| failed(chain(&e)))?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    config.map_err(|e| failed(chain(&e)))
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
