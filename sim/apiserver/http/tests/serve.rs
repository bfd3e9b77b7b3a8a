//! The server over real TCP, spoken to in plain HTTP.

use meshd_apiserver::{ApiServer, Config, Request, Time};
use meshd_apiserver_http::{Running, Shared, serve};
use serde_json::json;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn start(shared: &Shared, address: &str) -> Running {
    let listener = TcpListener::bind(address).await.unwrap();
    serve(listener, shared.clone()).unwrap()
}

fn shared() -> Shared {
    Shared::new(ApiServer::new(Config::default(), Time(0)))
}

fn create(shared: &Shared, name: &str) {
    let node = json!({"metadata": {"name": name}});
    assert!(
        shared
            .request(Request::create("/api/v1/nodes", &node))
            .is_success()
    );
}

async fn send(running: &Running, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(running.address()).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Reads until the text is there; gives up after five seconds.
async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut seen = String::new();
    let read = async {
        while !seen.contains(text) {
            let mut buffer = [0; 4096];
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(n) => seen += &String::from_utf8_lossy(&buffer[..n]),
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(5), read).await;
    assert!(seen.contains(text), "{text:?} did not come; {seen:?} did");
    seen
}

async fn watches(shared: &Shared, want: usize) {
    for _ in 0..500 {
        if shared.with(|server, _| server.watch_count()) == want {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!(
        "{} watches, not {want}",
        shared.with(|server, _| server.watch_count())
    );
}

const WATCH: &str = "GET /api/v1/nodes?watch=true HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test]
async fn a_watch_streams_and_ends_with_its_connection() {
    let shared = shared();
    let running = start(&shared, "127.0.0.1:0").await;
    let mut stream = send(&running, WATCH).await;
    read_until(&mut stream, "200 OK").await;
    create(&shared, "a");
    read_until(&mut stream, "\"ADDED\"").await;
    watches(&shared, 1).await;
    drop(stream);
    watches(&shared, 0).await;
}

#[tokio::test]
async fn a_server_that_stops_cuts_its_watches_and_keeps_its_objects() {
    let shared = shared();
    let running = start(&shared, "127.0.0.1:0").await;
    let address = running.address();
    let mut stream = send(&running, WATCH).await;
    read_until(&mut stream, "200 OK").await;
    running.stop().await;
    let mut rest = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
    end.expect("the connection was not cut").ok();
    assert!(TcpStream::connect(address).await.is_err());
    watches(&shared, 0).await;

    create(&shared, "a");
    let running = start(&shared, &address.to_string()).await;
    let mut stream = send(&running, "GET /api/v1/nodes/a HTTP/1.1\r\nHost: x\r\n\r\n").await;
    read_until(&mut stream, "\"name\":\"a\"").await;
}

#[tokio::test]
async fn watches_end_in_their_time() {
    let shared = shared();
    let running = start(&shared, "127.0.0.1:0").await;
    let request = WATCH.replace("watch=true", "watch=true&timeoutSeconds=1");
    let mut stream = send(&running, &request).await;
    read_until(&mut stream, "0\r\n\r\n").await;
    watches(&shared, 0).await;
}

#[tokio::test]
async fn bad_requests_are_answered_and_long_ones_are_not_read() {
    let running = start(&shared(), "127.0.0.1:0").await;
    let length = 64 << 20;
    for (request, status) in [
        ("GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "404"),
        ("BREW /api HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "405"),
        (
            "GET /api/v1/nodes?x=%zz HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
            "400",
        ),
        (
            format!("POST /api/v1/nodes HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"),
            "413",
        ),
        ("nonsense\r\n\r\n".to_owned(), "400"),
    ] {
        let mut stream = send(&running, &request).await;
        read_until(&mut stream, status).await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_ended_and_holds_nobody_up() {
    let config = Config {
        watch_queue: 50,
        ..Config::default()
    };
    let shared = Shared::new(ApiServer::new(config, Time(0)));
    let running = start(&shared, "127.0.0.1:0").await;
    let _idle = send(&running, WATCH).await;
    watches(&shared, 1).await;
    let note = "x".repeat(100_000);
    for i in 0..150 {
        let node = json!({"metadata": {"name": format!("n{i}"), "annotations": {"note": note}}});
        assert!(
            shared
                .request(Request::create("/api/v1/nodes", &node))
                .is_success()
        );
        tokio::task::yield_now().await;
    }
    let mut quick = send(&running, WATCH).await;
    read_until(&mut quick, "\"name\":\"n0\"").await;
}
