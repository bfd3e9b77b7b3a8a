//! Two devices in two network namespaces, and packets between them.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::traffic::{echo, overlay, passes, passes_with_a_zero, stream};
use support::{IFNAME, Lab, Node, Process, isolated, meshd_wg, meshd_wg_at, setup};

/// Both families, small and large, TCP both ways.
fn exchange(lab: &Lab) {
    for family in [0, 1] {
        let (a, b) = (overlay(1)[family], overlay(2)[family]);
        assert!(passes(&lab.a, a, echo(&lab.b, b)), "{a} to {b}");
        assert!(passes(&lab.b, b, echo(&lab.a, a)), "{b} to {a}");
        stream(&lab.a, &lab.b, b, 3_000_000);
        stream(&lab.b, &lab.a, a, 3_000_000);
    }
}

fn carries_both_families(over_v6: bool, args: &'static [&'static str]) -> impl FnOnce(Lab) {
    move |lab| {
        let start = |node: &Node| Process::spawn(node, meshd_wg(node, args), node.socket());
        let devices = [start(&lab.a), start(&lab.b)];
        for (device, node) in devices.iter().zip([&lab.a, &lab.b]) {
            device.set(&setup(node, over_v6));
            node.overlay();
        }
        exchange(&lab);
        for device in &devices {
            let bytes = |key| device.get(key)[0].parse::<u64>().unwrap();
            assert!(bytes("rx_bytes") > 6_000_000 && bytes("tx_bytes") > 6_000_000);
            assert!(bytes("last_handshake_time_sec") > 1_700_000_000);
        }
    }
}

#[test]
fn both_families_pass_over_ipv4() {
    isolated(
        "both_families_pass_over_ipv4",
        carries_both_families(false, &["--foreground"]),
    );
}

#[test]
fn both_families_pass_over_ipv6() {
    isolated(
        "both_families_pass_over_ipv6",
        carries_both_families(true, &["--foreground"]),
    );
}

#[test]
fn both_families_pass_without_offload() {
    let args = &["--foreground", "--no-offload"];
    isolated(
        "both_families_pass_without_offload",
        carries_both_families(false, args),
    );
}

/// A node with several addresses answers from the one that it was sent to: otherwise its peer would follow it to one that
/// nobody published, or that a firewall on the way does not know.
#[test]
fn answers_leave_from_the_address_that_was_sent_to() {
    isolated("answers_leave_from_the_address", |lab| {
        let devices = [Process::start(&lab.a), Process::start(&lab.b)];
        lab.b.up("eth0", &["192.0.2.77/24", "2001:db8::77/64"]);
        for second in [
            format!("192.0.2.77:{}", support::port(2)),
            format!("[2001:db8::77]:{}", support::port(2)),
        ] {
            let of_a = setup(&lab.a, false).replace(&format!("192.0.2.2:{}", support::port(2)), &second);
            assert!(of_a.contains(&second));
            devices[0].set(&of_a);
            devices[1].set(&setup(&lab.b, false));
            for node in [&lab.a, &lab.b] {
                if node.tun_addresses() == Some(0) {
                    node.overlay();
                }
            }
            // A begins; handshake and data come back from there.
            assert!(passes(&lab.a, overlay(1)[0], echo(&lab.b, overlay(2)[0])));
            assert_eq!(devices[0].get("endpoint"), std::slice::from_ref(&second));
            // So does what B begins, once it has heard from A.
            assert!(passes(&lab.b, overlay(2)[0], echo(&lab.a, overlay(1)[0])));
            assert_eq!(devices[0].get("endpoint"), [second]);
        }
        // The address goes: what is left is used, at once, and A follows.
        let gone: std::net::IpAddr = "2001:db8::77".parse().unwrap();
        lab.b
            .netlink(move |conn| async move { conn.del_address("eth0", gone, 64).await.unwrap() });
        assert!(passes(&lab.b, overlay(2)[0], echo(&lab.a, overlay(1)[0])));
        assert_eq!(
            devices[0].get("endpoint"),
            [format!("[2001:db8::2]:{}", support::port(2))]
        );
    });
}

/// A peer whose endpoint lay in the tunnel would have every packet to it encrypted again and again.
#[test]
fn a_peer_that_sends_through_the_tunnel_does_not_move_into_it() {
    isolated("a_peer_that_sends_through_the_tunnel", |lab| {
        let devices = [Process::start(&lab.a), Process::start(&lab.b)];
        for (device, node) in devices.iter().zip([&lab.a, &lab.b]) {
            device.set(&setup(node, false));
            node.overlay();
        }
        exchange(&lab);
        let before = devices[0].get("endpoint");
        let sockets = lab.path().join("evil");
        let mut evil = meshd_wg_at(&sockets, &["--foreground"]);
        // The last argument is the interface: another one, with the peer's own key.
        evil = {
            let mut other = Command::new(evil.get_program());
            let args: Vec<_> = evil.get_args().collect();
            other
                .args(&args[..args.len() - 1])
                .arg("evil0")
                .stdin(Stdio::null());
            other
        };
        let evil = Process::spawn(&lab.b, evil, sockets.join("evil0.sock"));
        // Initiations of one peer count only where they are not close together.
        std::thread::sleep(Duration::from_millis(100));
        for endpoint in overlay(1).map(|address| std::net::SocketAddr::new(address, support::port(1))) {
            evil.set(&format!(
                "set=1\nprivate_key={}\nlisten_port=6666\nreplace_peers=true\npublic_key={}\nendpoint={endpoint}\n\
                 persistent_keepalive_interval=1\n\n",
                support::keys(2).0,
                support::keys(1).1,
            ));
            std::thread::sleep(Duration::from_millis(300));
            assert_eq!(evil.get("tx_bytes"), ["148"], "it did try {endpoint}");
            assert_eq!(devices[0].get("endpoint"), before, "{endpoint}");
        }
        let sent = || devices[0].get("tx_bytes")[0].parse::<u64>().unwrap();
        let then = sent();
        std::thread::sleep(Duration::from_millis(200));
        assert!(sent() < then + 10_000, "it sends to itself");
        exchange(&lab);
    });
}

#[test]
fn a_killed_device_leaves_its_interface_and_the_next_takes_over() {
    isolated(
        "a_killed_device_leaves_its_interface_and_the_next_takes_over",
        |lab| {
            let devices = [Process::start(&lab.a), Process::start(&lab.b)];
            for (device, node) in devices.iter().zip([&lab.a, &lab.b]) {
                device.set(&setup(node, false));
                node.overlay();
            }
            let [a, b] = devices;
            assert!(passes(&lab.a, overlay(1)[0], echo(&lab.b, overlay(2)[0])));
            assert_eq!(lab.a.tun_addresses(), Some(2));
            a.kill();
            assert_eq!(lab.a.tun_addresses(), Some(2), "addresses outlive the process");
            let again = Process::start(&lab.a);
            again.set(&setup(&lab.a, false));
            assert_eq!(lab.a.tun_addresses(), Some(2));
            exchange(&lab);
            drop(b);
        },
    );
}

#[test]
fn segments_of_a_stream_are_written_together() {
    isolated("segments_of_a_stream_are_written_together", |lab| {
        let devices = [Process::start(&lab.a), Process::start(&lab.b)];
        for (device, node) in devices.iter().zip([&lab.a, &lab.b]) {
            device.set(&setup(node, false));
            node.overlay();
        }
        stream(&lab.a, &lab.b, overlay(2)[0], 10_000_000);
        let (bytes, packets) = lab.b.tun_received();
        assert!(
            bytes > 10_000_000 && bytes / packets > 3000,
            "{bytes} bytes in {packets} packets"
        );
    });
}

/// A UDP checksum that comes out as zero is sent as 0xFFFF: over IPv6 the receiver drops a zero (RFC 8200, section 8.1).
#[test]
fn a_checksum_that_comes_out_as_zero_passes() {
    isolated("a_checksum_that_comes_out_as_zero_passes", |lab| {
        let devices = [Process::start(&lab.a), Process::start(&lab.b)];
        for (device, node) in devices.iter().zip([&lab.a, &lab.b]) {
            device.set(&setup(node, false));
            node.overlay();
        }
        let from = overlay(1)[1];
        let to = echo(&lab.b, overlay(2)[1]);
        assert!(passes(&lab.a, from, to), "others pass");
        assert!(passes_with_a_zero(&lab.a, from, to));
    });
}

/// The program, or why the test cannot run.
fn boringtun() -> Result<PathBuf, String> {
    let advice = "install it with `cargo install boringtun-cli`, or name it in MESHD_BORINGTUN";
    if let Some(path) = std::env::var_os("MESHD_BORINGTUN") {
        let path = PathBuf::from(path);
        return if path.exists() {
            Ok(path)
        } else {
            Err(format!(
                "MESHD_BORINGTUN names {}, which is not there: {advice}",
                path.display()
            ))
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join("boringtun-cli"))
        .find(|program| program.is_file())
        .ok_or_else(|| format!("boringtun-cli is not in PATH: {advice}"))
}

fn start_boringtun(node: &Node, program: &Path) -> Process {
    std::fs::create_dir_all("/run/wireguard").unwrap();
    let mut command = Command::new(program);
    command
        .args([
            "--foreground",
            "--disable-drop-privileges",
            "--threads",
            "1",
            IFNAME,
        ])
        .env("WG_SUDO", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    // Its place is fixed; /run is the test's own.
    Process::spawn(
        node,
        command,
        PathBuf::from(format!("/var/run/wireguard/{IFNAME}.sock")),
    )
}

#[test]
fn boringtun_cli_understands_us() {
    const NAME: &str = "boringtun_cli_understands_us";
    let program = match boringtun() {
        Ok(program) => program,
        Err(reason) => return meshd_skip::skip_on("boringtun", NAME, reason),
    };
    isolated(NAME, move |lab| {
        let ours = Process::start(&lab.a);
        let theirs = start_boringtun(&lab.b, &program);
        ours.set(&setup(&lab.a, false));
        theirs.set(&setup(&lab.b, false));
        lab.a.overlay();
        lab.b.overlay();
        exchange(&lab);
        // A new session, begun by the other side.
        drop(theirs);
        let theirs = start_boringtun(&lab.b, &program);
        theirs.set(&setup(&lab.b, false));
        lab.b.overlay();
        let to = echo(&lab.a, overlay(1)[0]);
        let end = Instant::now() + Duration::from_secs(10);
        while !passes(&lab.b, overlay(2)[0], to) {
            assert!(Instant::now() < end, "boringtun cannot begin a session");
        }
        exchange(&lab);
    });
}
