//! The client in use. A connection is bound to an own address for as long as it lives: when the node loses that address,
//! nothing passes any more, and nothing says so for minutes. Then everything begins again with a new client.

use kube::Client;
use tokio::sync::watch;

/// The client, and the news of another one.
#[derive(Clone)]
pub(crate) struct Clients(watch::Receiver<Client>);

impl Clients {
    pub(crate) fn new(clients: watch::Receiver<Client>) -> Self {
        Self(clients)
    }

    /// The one in use.
    pub(crate) fn current(&self) -> Client {
        self.0.borrow().clone()
    }

    /// Waits until there is another one; may be cancelled.
    pub(crate) async fn renewed(&mut self) {
        if self.0.changed().await.is_err() {
            // Whoever made them makes no more.
            std::future::pending::<()>().await;
        }
    }
}
