//! The control socket and the life of the process.

mod support;

use nix::mount::{MsFlags, mount};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::time::Duration;
use support::{IFNAME, Node, Process, isolated, keys, meshd_wg, meshd_wg_at, port, setup};

#[test]
fn what_is_set_is_got() {
    isolated("what_is_set_is_got", |lab| {
        let device = Process::start(&lab.a);
        let fresh = device.ask("get=1\n\n");
        assert!(
            fresh.starts_with("listen_port=") && fresh.ends_with("\nerrno=0\n\n"),
            "{fresh}"
        );
        let (private, _) = keys(1);
        let (_, peer) = keys(2);
        let psk = "7".repeat(64);
        device.set(&format!(
            "set=1\nprivate_key={private}\nlisten_port=51821\nfwmark=119\npublic_key={peer}\npreshared_key={psk}\n\
             endpoint=[2001:db8::2]:51822\npersistent_keepalive_interval=25\nallowed_ip=10.0.0.2/32\n\
             allowed_ip=fd00::/64\n\n"
        ));
        let got = device.ask("get=1\n\n");
        // The interface is down, but a handshake was begun: there is a keepalive to be sent.
        let expected = format!(
            "private_key={private}\nlisten_port=51821\nfwmark=119\npublic_key={peer}\npreshared_key={psk}\n\
             protocol_version=1\nendpoint=[2001:db8::2]:51822\nlast_handshake_time_sec=0\n\
             last_handshake_time_nsec=0\ntx_bytes=148\nrx_bytes=0\npersistent_keepalive_interval=25\n\
             allowed_ip=10.0.0.2/32\nallowed_ip=fd00::/64\nerrno=0\n\n"
        );
        assert_eq!(got, expected);

        device.set(&format!(
            "set=1\npublic_key={peer}\nupdate_only=true\nreplace_allowed_ips=true\n\n"
        ));
        assert_eq!(device.get("allowed_ip"), Vec::<String>::new());
        device.set(&format!("set=1\npublic_key={}\nupdate_only=true\n\n", keys(3).1));
        assert_eq!(device.get("public_key"), std::slice::from_ref(&peer));
        device.set(&format!("set=1\npublic_key={}\n\n", keys(1).1));
        assert_eq!(
            device.get("public_key"),
            std::slice::from_ref(&peer),
            "its own key makes no peer"
        );
        device.set(&format!("set=1\npublic_key={peer}\nremove=true\n\n"));
        assert_eq!(device.get("public_key"), Vec::<String>::new());
        device.set(&setup(&lab.a, true));
        device.set("set=1\nreplace_peers=true\nfwmark=0\n\n");
        assert_eq!(device.get("public_key").len() + device.get("fwmark").len(), 0);
        device.set(&format!("set=1\nprivate_key={}\n\n", "0".repeat(64)));
        assert_eq!(device.get("private_key").len(), 0);
    });
}

#[test]
fn a_bad_request_is_refused_whole() {
    isolated("a_bad_request_is_refused_whole", |lab| {
        let device = Process::start(&lab.a);
        let peer = keys(2).1;
        for bad in [
            "hello\n\n".to_owned(),
            "get=2\n\n".to_owned(),
            "set=1\nlisten_port=x\n\n".to_owned(),
            format!("set=1\nlisten_port=5000\npublic_key={peer}\nallowed_ip=10.0.0.0/40\n\n"),
        ] {
            assert_eq!(device.ask(&bad), "errno=-22\n\n", "{bad}");
        }
        assert_eq!(device.get("public_key").len(), 0);
        assert_ne!(device.get("listen_port"), ["5000"]);

        let taken = lab.a.run(|| std::net::UdpSocket::bind("0.0.0.0:5001").unwrap());
        let before = device.get("listen_port");
        let in_use = format!("set=1\nlisten_port=5001\npublic_key={peer}\n\n");
        let refusal = format!("errno=-{}\n\n", nix::errno::Errno::EADDRINUSE as i32);
        assert_eq!(device.ask(&in_use), refusal);
        assert_eq!(
            (device.get("listen_port"), device.get("public_key").len()),
            (before, 0)
        );
        drop(taken);
    });
}

#[test]
fn a_request_without_end_and_silent_clients_harm_nobody() {
    isolated("a_request_without_end_and_silent_clients_harm_nobody", |lab| {
        let device = Process::start(&lab.a);
        let silent: Vec<UnixStream> = (0..40)
            .map(|_| UnixStream::connect(&device.socket).unwrap())
            .collect();
        let mut endless = UnixStream::connect(&device.socket).unwrap();
        endless.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        let chunk = vec![b'a'; 1 << 20];
        let accepted = (0..64).take_while(|_| endless.write_all(&chunk).is_ok()).count();
        assert!(accepted < 16, "{accepted} MiB of one request were taken");
        assert!(device.ask("get=1\n\n").ends_with("errno=0\n\n"));
        drop(silent);

        // Two requests on one connection, in pieces.
        let mut stream = UnixStream::connect(&device.socket).unwrap();
        for piece in ["get=1", "\n", "\nget", "=1\n\n"] {
            stream.write_all(piece.as_bytes()).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let answers = BufReader::new(stream).lines().map(Result::unwrap);
        assert_eq!(answers.filter(|line| line == "errno=0").take(2).count(), 2);
    });
}

/// Runs to its end; what it said.
fn fails(node: &Node, mut command: Command) -> String {
    let output = node.run(move || command.output()).unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn one_process_a_device_and_a_clean_end() {
    isolated("one_process_a_device_and_a_clean_end", |lab| {
        let device = Process::start(&lab.a);
        let mode = std::fs::metadata(&device.socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let said = fails(&lab.a, meshd_wg(&lab.a, &["--foreground"]));
        assert!(said.contains("another process has it open"), "{said}");
        let said = fails(&lab.b, meshd_wg_at(&lab.a.sockets, &["--foreground"]));
        assert!(said.contains("another meshd-wg runs with this socket"), "{said}");
        let said = fails(&lab.a, meshd_wg(&lab.a, &["--delete"]));
        assert!(said.contains("end the other meshd-wg first"), "{said}");

        device.kill();
        assert!(lab.a.socket().exists(), "a killed process leaves its socket");
        let device = Process::start(&lab.a);
        assert!(device.terminate());
        assert_eq!(std::fs::read_dir(&lab.a.sockets).unwrap().count(), 0);
        assert_eq!(lab.a.tun_addresses(), Some(0), "the interface stays");
        let mut delete = meshd_wg(&lab.a, &["--delete"]);
        assert!(lab.a.run(move || delete.status()).unwrap().success());
        assert_eq!(lab.a.tun_addresses(), None);
        let said = fails(&lab.a, meshd_wg(&lab.a, &["--delete"]));
        assert!(said.contains("no interface"), "{said}");
    });
}

#[test]
fn a_device_that_answers_is_not_replaced() {
    isolated("a_device_that_answers_is_not_replaced", |lab| {
        std::fs::create_dir_all(&lab.a.sockets).unwrap();
        let path = lab.a.socket();
        let _other = UnixListener::bind(&path).unwrap();
        let said = fails(&lab.a, meshd_wg(&lab.a, &["--foreground"]));
        assert!(said.contains("already answers"), "{said}");
        assert!(path.exists());
    });
}

#[test]
fn it_ends_when_its_interface_is_deleted() {
    isolated("it_ends_when_its_interface_is_deleted", |lab| {
        let mut device = Process::start(&lab.a);
        lab.a
            .netlink(|conn| async move { conn.del_link(IFNAME).await.unwrap() });
        assert!(device.wait());
        assert!(!device.socket.exists());
    });
}

#[test]
fn it_goes_to_the_background_when_it_answers() {
    isolated("it_goes_to_the_background_when_it_answers", |lab| {
        let mut command = meshd_wg(&lab.a, &[]);
        let output = lab.a.run(move || command.output()).unwrap();
        assert!(output.status.success());
        let socket = lab.a.socket();
        UnixStream::connect(&socket).unwrap();
        // Nobody's child: it ends with its interface.
        lab.a
            .netlink(|conn| async move { conn.del_link(IFNAME).await.unwrap() });
        let gone = (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            !socket.exists()
        });
        assert!(gone);
    });
}

#[test]
fn without_a_private_key_packets_are_dropped() {
    isolated("without_a_private_key_packets_are_dropped", |lab| {
        let device = Process::start(&lab.a);
        let private = format!("private_key={}\n", keys(1).0);
        device.set(&setup(&lab.a, false).replace(&private, ""));
        lab.a.overlay();
        lab.a.run(|| {
            let socket = std::net::UdpSocket::bind("10.0.0.1:0").unwrap();
            socket.send_to(b"anyone?", "10.0.0.2:9").unwrap();
        });
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(device.get("tx_bytes"), ["0"]);
        assert_eq!(device.get("listen_port"), [port(1).to_string()]);
    });
}

#[test]
fn where_tun_is_refused_it_says_how_to_allow_it() {
    isolated("where_tun_is_refused_it_says_how_to_allow_it", |lab| {
        // Device nodes on this file system cannot be opened, by root neither.
        mount(
            Some("tmpfs"),
            "/dev/net",
            Some("tmpfs"),
            MsFlags::MS_NODEV,
            None::<&str>,
        )
        .unwrap();
        let said = fails(&lab.a, meshd_wg(&lab.a, &["--foreground"]));
        assert!(said.contains("open the TUN interface mesh0"), "{said}");
        assert!(said.contains("chmod 0666 /dev/net/tun"), "{said}");
        assert!(!lab.a.socket().exists());
    });
}
