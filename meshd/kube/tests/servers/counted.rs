//! A client that keeps what it asks.

use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use std::sync::{Arc, Mutex};
use tower::service_fn;

/// Method and URI of each request, in order.
#[derive(Clone, Default)]
pub(crate) struct Asked(Arc<Mutex<Vec<(String, String)>>>);

/// A client that asks as this one does, and what it has asked.
pub(crate) fn counted(client: Client) -> (Client, Asked) {
    let asked = Asked::default();
    let log = asked.clone();
    let service = service_fn(move |request: Request<Body>| {
        log.0
            .lock()
            .unwrap()
            .push((request.method().to_string(), request.uri().to_string()));
        let client = client.clone();
        async move { client.send(request).await as Result<Response<Body>, kube::Error> }
    });
    (Client::new(service, "default"), asked)
}

impl Asked {
    fn count(&self, is: impl Fn(&str, &str) -> bool) -> usize {
        let all = self.0.lock().unwrap();
        all.iter().filter(|(method, uri)| is(method, uri)).count()
    }

    /// Requests for every Node that there is, of which the answer is as large as the cluster.
    pub(crate) fn lists_of_nodes(&self) -> usize {
        self.count(|method, uri| {
            let is_list = !uri.contains("watch=true") || uri.contains("sendInitialEvents=true");
            method == "GET" && uri.starts_with("/api/v1/nodes?") && !uri.contains("fieldSelector") && is_list
        })
    }

    /// Watches of all Nodes that go on where another has ended.
    pub(crate) fn resumed_watches_of_nodes(&self) -> usize {
        self.count(|_, uri| {
            uri.starts_with("/api/v1/nodes?")
                && !uri.contains("fieldSelector")
                && uri.contains("watch=true")
                && !uri.contains("sendInitialEvents=true")
        })
    }

    pub(crate) fn writes(&self) -> usize {
        self.count(|method, _| method != "GET")
    }

    pub(crate) fn all(&self) -> Vec<(String, String)> {
        self.0.lock().unwrap().clone()
    }
}
