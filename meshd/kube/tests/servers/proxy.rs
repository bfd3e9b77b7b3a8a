//! A TCP proxy between a client and its server, so that the way between them can be cut.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinHandle};

pub(crate) struct Proxy {
    address: SocketAddr,
    server: SocketAddr,
    listening: Option<JoinHandle<()>>,
    connections: Connections,
}

/// Every connection there ever was.
type Connections = Arc<Mutex<Vec<AbortHandle>>>;

impl Proxy {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut proxy = Self {
            address: listener.local_addr().unwrap(),
            server,
            listening: None,
            connections: Connections::default(),
        };
        proxy.listen(listener);
        proxy
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.lock().unwrap().len()
    }

    /// Every connection is cut, and new ones are refused.
    pub(crate) async fn cut(&mut self) {
        self.refuse().await;
        self.connections
            .lock()
            .unwrap()
            .iter()
            .for_each(AbortHandle::abort);
    }

    /// New connections are refused.
    pub(crate) async fn refuse(&mut self) {
        if let Some(listening) = self.listening.take() {
            listening.abort();
            let _ = listening.await;
        }
    }

    /// One connection is cut.
    pub(crate) fn cut_one(&self, which: usize) {
        self.connections.lock().unwrap()[which].abort();
    }

    /// New connections are accepted again.
    pub(crate) async fn mend(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.listen(listener);
    }

    fn listen(&mut self, listener: TcpListener) {
        let (server, connections) = (self.server, self.connections.clone());
        self.listening = Some(tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let connection = tokio::spawn(forward(client, server));
                connections.lock().unwrap().push(connection.abort_handle());
            }
        }));
    }
}

async fn forward(mut client: TcpStream, server: SocketAddr) {
    if let Ok(mut server) = TcpStream::connect(server).await {
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    }
}
