//! The embedded API server on loopback.

use meshd_apiserver::{ApiServer, Config, Request, Resource, Time};
use meshd_apiserver_http::{Running, Shared, serve};
use meshd_translate::blocks::{GROUP, KIND, PLURAL, VERSION};
use serde_json::json;
use std::net::SocketAddr;
use tokio::net::TcpListener;

pub(crate) struct Embedded {
    shared: Shared,
    running: Running,
}

impl Embedded {
    pub(crate) async fn start() -> Self {
        let mut server = ApiServer::new(Config::default(), Time(0));
        server.register(Resource::new(GROUP, VERSION, PLURAL, KIND));
        let shared = Shared::new(server);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let running = serve(listener, shared.clone()).unwrap();
        Self { shared, running }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.running.address()
    }

    pub(crate) fn kubeconfig(&self, address: SocketAddr) -> String {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
            "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {}}],
        });
        config.to_string()
    }

    /// Forgets the history, behind a change that nobody saw.
    pub(crate) fn forget_history(&self) {
        let map = json!({"metadata": {"generateName": "unseen-", "namespace": "default"}});
        self.shared
            .request(Request::create("/api/v1/namespaces/default/configmaps", &map));
        self.shared.with(|server, _| server.compact());
    }
}
