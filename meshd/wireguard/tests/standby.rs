//! Standing by where the kernel has WireGuard, and the probe.

mod support;

use nlink::netlink::link::{BridgeLink, WireguardLink};
use std::io::{BufRead, BufReader};
use support::{IFNAME, Node, Process, isolated, meshd_wg};

/// Whether the probe is content, and what it said.
fn probe(node: &Node, args: &[&str]) -> (bool, String) {
    let mut command = meshd_wg(node, &[&["--answers"], args].concat());
    let output = node.run(move || command.output()).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), said)
}

/// Makes an interface of the kernel's own WireGuard; false if this kernel has none.
fn add_wireguard(node: &Node) -> bool {
    let (tell, told) = std::sync::mpsc::channel();
    node.netlink(move |conn| async move {
        let added = conn.add_link(WireguardLink::new(IFNAME)).await;
        tell.send(added.is_ok()).unwrap();
    });
    told.recv().unwrap()
}

/// Starts it, waits until it has decided, asks the probe, ends it by a signal. Gives what it decided.
fn decision(node: &Node) -> String {
    let mut command = meshd_wg(node, &["--foreground", "--unless-kernel"]);
    let mut child = node.run(move || command.spawn()).unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let decided = |line: &String| line.contains("standing by") || line.contains("ready");
    let said = lines
        .map(Result::unwrap)
        .find(decided)
        .expect("it says what it does");
    assert_eq!(probe(node, &["--unless-kernel"]), (true, String::new()), "{said}");
    assert_eq!(child.try_wait().unwrap(), None, "it waits");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
    said
}

#[test]
fn the_probe_tells_whether_a_device_answers() {
    isolated("the_probe_tells_whether_a_device_answers", |lab| {
        let (ok, said) = probe(&lab.a, &[]);
        assert!(!ok && said.contains("no device answers"), "{said}");
        let device = Process::start(&lab.a);
        assert_eq!(probe(&lab.a, &[]), (true, String::new()));
        device.kill();
        assert!(!probe(&lab.a, &[]).0, "its socket is there still");
    });
}

#[test]
fn it_serves_where_the_kernel_has_no_wireguard_and_stands_by_where_it_has() {
    isolated(
        "it_serves_where_the_kernel_has_no_wireguard_and_stands_by_where_it_has",
        |lab| {
            let has = add_wireguard(&lab.b);
            if has {
                // By the interface that is there, then by what the kernel can.
                let said = decision(&lab.b);
                assert!(said.contains("standing by: the interface is"), "{said}");
                let said = decision(&lab.a);
                assert!(said.contains("standing by: the kernel has"), "{said}");
                assert!(!lab.a.socket().exists());
                return;
            }
            let said = decision(&lab.a);
            assert!(said.contains("ready"), "{said}");
        },
    );
}

#[test]
fn a_tun_interface_that_is_there_is_served_whatever_the_kernel_has() {
    isolated(
        "a_tun_interface_that_is_there_is_served_whatever_the_kernel_has",
        |lab| {
            // One that an earlier device left.
            assert!(Process::start(&lab.a).terminate());
            let said = decision(&lab.a);
            assert!(said.contains("ready"), "{said}");
        },
    );
}

#[test]
fn an_interface_of_another_kind_is_an_error_and_no_reason_to_stand_by() {
    isolated(
        "an_interface_of_another_kind_is_an_error_and_no_reason_to_stand_by",
        |lab| {
            lab.a.netlink(|conn| async move {
                conn.add_link(BridgeLink::new(IFNAME)).await.unwrap();
            });
            let mut command = meshd_wg(&lab.a, &["--foreground", "--unless-kernel"]);
            let output = lab.a.run(move || command.output()).unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(
                !output.status.success() && said.contains("another name"),
                "{said}"
            );
            assert!(!probe(&lab.a, &["--unless-kernel"]).0);
        },
    );
}
