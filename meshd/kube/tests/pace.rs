//! A server that takes watches and ends them at once is not asked without end.

use meshd_kube::{Access, connect};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// Answers every list with an empty one, and every watch with 200 and nothing.
async fn serve(mut stream: TcpStream, watches: Arc<AtomicUsize>) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let request = String::from_utf8_lossy(&request);
    let line = request.lines().next().unwrap_or_default();
    let body = if line.contains("watch=true") {
        watches.fetch_add(1, Ordering::Relaxed);
        String::new()
    } else {
        let (version, kind) = match (line.contains("/pods"), request.contains("PartialObject")) {
            (true, _) => ("v1", "PodList"),
            (_, true) => ("meta.k8s.io/v1", "PartialObjectMetadataList"),
            _ => ("v1", "NodeList"),
        };
        format!(
            r#"{{"apiVersion":"{version}","kind":"{kind}","metadata":{{"resourceVersion":"1"}},"items":[]}}"#
        )
    };
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
    let answer = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(answer.as_bytes()).await
}

fn kubeconfig(path: &Path, server: &str) {
    let config = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        "users": [{"name": "c", "user": {}}],
    });
    std::fs::write(path, config.to_string()).unwrap();
}

#[tokio::test]
async fn watches_that_end_at_once_are_begun_with_pauses() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubeconfig");
    kubeconfig(&file, &format!("http://{}", listener.local_addr().unwrap()));
    let watches = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&watches);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&counted)));
        }
    });
    let client = connect(&Access::Kubeconfig(file)).await.unwrap();
    let (tx, mut events) = mpsc::channel(64);
    let (_actions, rx) = mpsc::channel(1);
    tokio::spawn(meshd_kube::run(client, "n".into(), tx, rx));
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    // Each of the three is begun, and begun again: the pauses are not for ever.
    let begin = tokio::time::Instant::now();
    while watches.load(Ordering::Relaxed) < 6 {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "the watches are not begun again"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    // The pauses double from a quarter of a second: not ten of them fit into this time, where without them hundreds
    // of watches do.
    let begun = watches.load(Ordering::Relaxed);
    assert!(begun <= 3 * 10, "{begun} watches begun");
}
