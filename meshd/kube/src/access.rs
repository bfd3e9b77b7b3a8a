//! Where the API server is and what proves who asks: from files, which change while the daemon runs.

use crate::client::{ClientError, chain};
use kube::Config;
use kube::config::{
    AuthInfo, Cluster, Context, KubeConfigOptions, Kubeconfig, NamedAuthInfo, NamedCluster, NamedContext,
};
use std::path::{Path, PathBuf};

/// Where a pod finds its service account.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How the API server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// With the current context of this kubeconfig.
    Kubeconfig(PathBuf),
    /// With a service account's token. It is what binds meshd to its node in the eyes of the admission policies,
    /// wherever the server's address comes from.
    ServiceAccount {
        /// Holds `token` and `ca.crt`: [`SERVICE_ACCOUNT`] in a pod.
        folder: PathBuf,
        /// Where the server is.
        server: Server,
    },
}

/// Where the API server of a service account is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// At `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`: a service address, which needs a proxy on the node.
    Environment,
    /// There: `https://HOST:PORT`, or `HOST:PORT`.
    At(String),
    /// Where this kubeconfig has it, proved by what it has as well; its credentials are not used. The kubelet's own
    /// names a server that is reached before anything of the pod network is there.
    Of(PathBuf),
}

/// A configuration, and every file that it comes from.
pub(crate) struct Read {
    pub(crate) config: Config,
    pub(crate) files: Vec<PathBuf>,
}

impl Access {
    /// The API server's host, without an IPv6 address's brackets, and its port.
    pub async fn server(&self) -> Result<(String, u16), ClientError> {
        let url = self.read().await?.config.cluster_url;
        let host = url.host().unwrap_or_default();
        let port = match url.scheme_str() {
            Some("http") => 80,
            _ => 443,
        };
        let host = host.trim_matches(['[', ']']).to_owned();
        Ok((host, url.port_u16().unwrap_or(port)))
    }

    pub(crate) async fn read(&self) -> Result<Read, ClientError> {
        match self {
            Access::Kubeconfig(path) => {
                let file = kubeconfig(path)?;
                let mut files = vec![path.clone()];
                for cluster in file.clusters.iter().filter_map(|c| c.cluster.as_ref()) {
                    files.extend(cluster.certificate_authority.clone().map(PathBuf::from));
                }
                for user in file.auth_infos.iter().filter_map(|u| u.auth_info.as_ref()) {
                    let named = [&user.client_certificate, &user.client_key, &user.token_file];
                    files.extend(named.into_iter().flatten().map(PathBuf::from));
                }
                let config = make(file).await.map_err(|e| unusable(path, e))?;
                Ok(Read { config, files })
            }
            Access::ServiceAccount { folder, server } => account(folder, server).await,
        }
    }
}

async fn account(folder: &Path, server: &Server) -> Result<Read, ClientError> {
    let token = folder.join("token");
    let authority = folder.join("ca.crt");
    std::fs::metadata(&token)
        .map_err(|e| ClientError::ServiceAccount(format!("read {}: {e}", token.display())))?;
    let at = |server: String| Cluster {
        server: Some(server),
        certificate_authority: Some(authority.display().to_string()),
        ..Cluster::default()
    };
    let mut files = vec![token.clone()];
    let cluster = match server {
        Server::Environment => at(of_environment()?),
        Server::At(text) if text.contains("://") => at(text.clone()),
        Server::At(text) => at(format!("https://{text}")),
        Server::Of(path) => {
            files.push(path.clone());
            current_cluster(kubeconfig(path)?).ok_or_else(|| unusable(path, "it names no server".into()))?
        }
    };
    files.extend(cluster.certificate_authority.clone().map(PathBuf::from));
    let made = make(with_token(cluster, &token)).await;
    let config = made.map_err(|reason| match server {
        Server::Of(path) => unusable(path, reason),
        Server::At(_) | Server::Environment => ClientError::ServiceAccount(reason),
    })?;
    Ok(Read { config, files })
}

/// What the kubelet tells every container.
fn of_environment() -> Result<String, ClientError> {
    let variable = |name: &str| {
        std::env::var(name)
            .map_err(|_| ClientError::ServiceAccount(format!("the variable {name} is not set")))
    };
    let host = variable("KUBERNETES_SERVICE_HOST")?;
    let port = variable("KUBERNETES_SERVICE_PORT")?;
    Ok(match host.parse() {
        Ok(std::net::Ipv6Addr { .. }) => format!("https://[{host}]:{port}"),
        Err(_) => format!("https://{host}:{port}"),
    })
}

fn kubeconfig(path: &Path) -> Result<Kubeconfig, ClientError> {
    Kubeconfig::read_from(path).map_err(|e| unusable(path, chain(&e)))
}

async fn make(file: Kubeconfig) -> Result<Config, String> {
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    config.map_err(|e| chain(&e))
}

/// The cluster of the current context, or the only one.
fn current_cluster(file: Kubeconfig) -> Option<Cluster> {
    let current = file.current_context.as_deref();
    let context = file.contexts.iter().find(|c| Some(c.name.as_str()) == current);
    let name = context
        .and_then(|c| c.context.as_ref())
        .map(|c| c.cluster.clone());
    let only = file.clusters.len() == 1;
    let mut clusters = file.clusters.into_iter();
    let found = clusters.find(|c| name.as_ref().map_or(only, |name| c.name == *name));
    found?.cluster.filter(|c| c.server.is_some())
}

fn with_token(cluster: Cluster, token: &Path) -> Kubeconfig {
    const NAME: &str = "meshd";
    Kubeconfig {
        clusters: vec![NamedCluster {
            name: NAME.into(),
            cluster: Some(cluster),
            ..NamedCluster::default()
        }],
        auth_infos: vec![NamedAuthInfo {
            name: NAME.into(),
            auth_info: Some(AuthInfo {
                token_file: Some(token.display().to_string()),
                ..AuthInfo::default()
            }),
            ..NamedAuthInfo::default()
        }],
        contexts: vec![NamedContext {
            name: NAME.into(),
            context: Some(Context {
                cluster: NAME.into(),
                user: Some(NAME.into()),
                ..Context::default()
            }),
            ..NamedContext::default()
        }],
        current_context: Some(NAME.into()),
        ..Kubeconfig::default()
    }
}

fn unusable(path: &Path, reason: String) -> ClientError {
    ClientError::Kubeconfig {
        path: path.to_owned(),
        reason,
    }
}
