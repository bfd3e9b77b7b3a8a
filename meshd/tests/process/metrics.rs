//! What a Prometheus server reads of the daemon.

use crate::node::{Daemon, isolated, kubeconfig};
use crate::{API, api_server, attachment, serve_api};
use meshd_model::cni::{Call, Response};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LISTEN: &str = "127.0.0.1:9490";

/// The answer to a request, head and body.
async fn ask(request: &str) -> String {
    let mut stream = TcpStream::connect(LISTEN).await.unwrap();
    let text = format!("{request} HTTP/1.1\r\nHost: n1\r\nConnection: close\r\n\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = tokio::time::timeout(Duration::from_secs(30), stream.read_to_string(&mut answer));
    read.await.expect("an answer").unwrap();
    answer
}

#[test]
fn metrics_are_served_where_that_is_configured() {
    isolated("metrics", || async {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kubeconfig");
        kubeconfig(&file, &format!("http://{API}"));
        let access = format!("kubeconfig = '{}'\nmetrics_listen = '{LISTEN}'", file.display());
        let mut daemon = Daemon::with_access(folder, "n1", &access);
        let _running = serve_api(&api_server()).await;
        daemon.start();
        daemon
            .until("the peer", |s| !s.peers.is_empty() && !s.pod_cidrs.is_empty())
            .await;
        assert_eq!(daemon.ask(Call::Del(attachment())).unwrap(), Response::Done);
        assert!(matches!(daemon.ask(Call::CniStatus).unwrap(), Response::Error(_)));

        let answer = ask("GET /metrics").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0"));
        for line in [
            "meshd_ready 0",
            "meshd_api_server_reachable 1",
            "meshd_attachments{phase=\"ready\"} 0",
            "meshd_ipam_addresses_capacity{family=\"ipv4\"} 253",
            "meshd_ipam_addresses_in_use{family=\"ipv4\"} 0",
            "meshd_ipam_exhausted_total{family=\"ipv4\"} 0",
            "meshd_attachments_collected_total{reason=\"namespace\"} 0",
            "meshd_cni_calls_total{verb=\"del\",code=\"0\"} 1",
            "meshd_cni_calls_total{verb=\"status\",code=\"50\"} 1",
            "meshd_cni_call_duration_seconds_count{verb=\"del\"} 1",
            "# EOF",
        ] {
            assert!(answer.lines().any(|l| l == line), "{line} is missing in {answer}");
        }
        assert!(!answer.contains(&daemon.until("its key", |_| true).await.public_key.to_string()));
        assert!(ask("GET /").await.starts_with("HTTP/1.1 404"));
        assert!(ask("POST /metrics").await.starts_with("HTTP/1.1 405"));

        // Connections that say nothing take every place, and lose it again.
        let mut silent = Vec::new();
        for _ in 0..16 {
            silent.push(TcpStream::connect(LISTEN).await.unwrap());
        }
        assert!(ask("GET /metrics").await.starts_with("HTTP/1.1 200"));
        assert!(daemon.stop().success(), "{}", daemon.log());
    });
}
