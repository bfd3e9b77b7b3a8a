//! The client against servers that misbehave.

use super::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

/// A client of a server that answers every connection with this and hangs up.
async fn answered(answer: Vec<u8>) -> Result<Tunnel> {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("wg0.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 7]).unwrap();
        // The client may hang up first: that is what some of the tests are about.
        let _ = stream.write_all(&answer);
    });
    let tunnel = Client { socket }.get().await;
    server.join().unwrap();
    tunnel
}

#[tokio::test]
async fn answers_that_are_no_answers_are_errors() {
    for (answer, errno) in [
        ("", libc::EPROTO),
        ("\n", libc::EPROTO),
        ("listen_port=51820\n", libc::EPROTO),
        ("listen_port=70000\nerrno=0\n\n", libc::EPROTO),
        ("no equals sign\nerrno=0\n\n", libc::EPROTO),
        ("private_key=1234\nerrno=0\n\n", libc::EPROTO),
        ("public_key=zz\nerrno=0\n\n", libc::EPROTO),
        ("errno=none\n\n", libc::EPROTO),
        ("errno=-1\n\n", libc::EPERM),
        ("errno=22\n\n", libc::EINVAL),
    ] {
        let failure = answered(answer.into()).await.unwrap_err();
        assert_eq!(failure.errno, Some(errno), "{answer:?}: {}", failure.message);
    }
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    let long_line = answered(vec![b'a'; 1 << 20]).await.unwrap_err();
    assert!(long_line.message.contains("too long"), "{}", long_line.message);
    let many_lines = "rx_bytes=1\n".repeat(REPLY_MAX / 10).into_bytes();
    let many_lines = answered(many_lines).await.unwrap_err();
    assert!(many_lines.message.contains("too long"), "{}", many_lines.message);
}

#[tokio::test]
async fn a_private_key_is_read_as_its_public_half_and_shows_nowhere() {
    let key = "ab".repeat(32);
    let tunnel = answered(format!("private_key={key}\nfwmark=0x500\nerrno=0\n\n").into())
        .await
        .unwrap();
    let secret = x25519_dalek::StaticSecret::from([0xab; 32]);
    let public = PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes());
    assert_eq!((tunnel.public_key, tunnel.fwmark), (Some(public), 0x500));

    let none = format!("private_key={}\nerrno=0\n\n", "0".repeat(64));
    assert_eq!(answered(none.into()).await.unwrap().public_key, None);

    let failure = answered(format!("private_key={key}ab\nerrno=0\n\n").into())
        .await
        .unwrap_err();
    assert!(!failure.message.contains("abab"), "{}", failure.message);
}
