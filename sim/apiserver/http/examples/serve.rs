//! Serves an embedded API server on loopback, with the objects of the manifests that are named.
//!
//! `cargo run -p meshd-apiserver-http --example serve -- nodes.yaml`, then `kubectl -s http://127.0.0.1:8001 get nodes`.

use meshd_apiserver::{Config, NodeCidrs, NodeIpam};
use meshd_apiserver_http::{Shared, serve};
use std::error::Error;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let cidrs = |network: &str, prefix, node_prefix| -> Result<NodeCidrs, Box<dyn Error>> {
        Ok(NodeCidrs {
            network: network.parse()?,
            prefix,
            node_prefix,
        })
    };
    let config = Config {
        node_ipam: Some(NodeIpam {
            cluster_cidrs: vec![cidrs("10.244.0.0", 16, 24)?, cidrs("fd00:244::", 48, 64)?],
        }),
        ..Config::default()
    };
    let shared = Shared::start(config);
    for path in std::env::args().skip(1) {
        let text = std::fs::read_to_string(&path)?;
        let count = shared.with(|server, now| server.load_yaml(now, &text))?;
        println!("{path}: {count} objects");
    }
    let running = serve(TcpListener::bind("127.0.0.1:8001").await?, shared)?;
    println!("serving on {}", running.url());
    tokio::signal::ctrl_c().await?;
    running.stop().await;
    Ok(())
}
