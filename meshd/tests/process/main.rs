//! The daemon as a process, in a network namespace of its own, against the real kernel and the embedded API server.
//! It has no tunnel device here: the whole of a node is for the scenarios of `tests/arms`.

mod before_the_network;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "shared with the tests of the admission policy"
)]
#[path = "../../kube/tests/policy/chart.rs"]
mod chart;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "shared with the tests of the admission policy"
)]
#[path = "../../kube/tests/policy/cluster.rs"]
mod cluster;
mod metrics;
mod node;

use meshd_apiserver::{ApiServer, Config, Time};
use meshd_apiserver_http::{Running, Shared, serve};
use meshd_model::AttachmentId;
use meshd_model::cni::{Add, Call, Response, Wants, code};
use meshd_model::status::Status;
use node::{Daemon, holds, isolated};
use std::os::unix::fs::PermissionsExt;
use tokio::net::TcpListener;

const NODES: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Node
metadata:
  name: n2
  annotations:
    meshd.dev/public-key: AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=
    meshd.dev/listen-port: '51820'
    meshd.dev/endpoints: 192.0.2.2
    meshd.dev/node-addresses: 192.0.2.2
    meshd.dev/mtu: '1420'
    meshd.dev/pod-cidrs: 10.244.2.0/24
    meshd.dev/protocol-version: '1'
spec: {podCIDR: 10.244.2.0/24, podCIDRs: [10.244.2.0/24]}
";
const API: &str = "127.0.0.1:6443";

fn api_server() -> Shared {
    let mut server = ApiServer::new(Config::default(), Time::default());
    server.load_yaml(Time::default(), NODES).unwrap();
    Shared::new(server)
}

async fn serve_api(shared: &Shared) -> Running {
    serve(TcpListener::bind(API).await.unwrap(), shared.clone()).unwrap()
}

fn attachment() -> AttachmentId {
    AttachmentId {
        container_id: "c1".into(),
        ifname: "eth0".into(),
    }
}

#[test]
fn a_daemon_lives_is_killed_lives_again_and_leaves_nothing() {
    isolated("a daemon's life", || async {
        let api = api_server();
        let mut daemon = Daemon::new(&format!("http://{API}"));

        // The API server is absent at the start: the daemon says so, and answers.
        daemon.start();
        let away = |s: &Status| s.problems.iter().any(|p| p.subject == "api-server");
        let status = daemon.until("the API server's absence", away).await;
        assert!(!status.ready);
        let id = attachment();
        let add = Call::Add(Add {
            id: id.clone(),
            netns: "/run/netns/none".into(),
            pod: None,
            wants: Wants::default(),
            token: 0,
            network: String::new(),
        });
        let Response::Error(error) = daemon.ask(add).unwrap() else {
            panic!()
        };
        assert!(
            [code::TRY_AGAIN, code::NOT_AVAILABLE].contains(&error.code),
            "{error}"
        );
        assert_eq!(daemon.ask(Call::Del(id)).unwrap(), Response::Done);
        let ready = daemon.run(&["ready"]);
        let said = String::from_utf8_lossy(&ready.stderr).into_owned();
        assert!(
            ready.status.code() == Some(1) && said.contains("not ready: "),
            "{said}"
        );
        // A second daemon touches nothing; neither does a teardown.
        for verb in ["run", "teardown"] {
            let refused = daemon.run(&[verb]);
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(!refused.status.success() && said.contains("stop"), "{said}");
        }

        // It comes, and the node is known, and the peer.
        let running = serve_api(&api).await;
        let known = daemon
            .until("the peer", |s| !s.peers.is_empty() && !s.pod_cidrs.is_empty())
            .await;
        assert_eq!(known.peers[0].node.0, "n2");
        assert_eq!(known.public_key, status.public_key);

        // Killed, it comes back as the same node, also without the API server.
        running.stop().await;
        daemon.kill();
        assert!(daemon.ask(Call::Status).is_err());
        daemon.start();
        let again = daemon.until("the daemon's return", |_| true).await;
        assert_eq!(again.public_key, status.public_key);
        let _running = serve_api(&api).await;
        daemon.until("the peer again", |s| !s.peers.is_empty()).await;

        assert!(daemon.stop().success(), "{}", daemon.log());
        assert!(!daemon.socket().exists());
        check_recording(&daemon);

        // What it has set up stayed; now it goes.
        let done = daemon.run(&["teardown"]);
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(
            done.status.success() && said.contains("removed nftables table inet meshd"),
            "{said}"
        );
        let done = daemon.run(&["teardown"]);
        assert!(!String::from_utf8_lossy(&done.stdout).contains("removed"));
    });
}

/// Both lives replay, and nothing that was written holds the private key.
fn check_recording(daemon: &Daemon) {
    let recording = daemon.path("state/recording");
    let reports = meshd::record::replay_path(&recording).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(reports.len(), 2);
    assert!(
        reports
            .iter()
            .all(|report| report.events > 10 && report.lost_before == 0),
        "{reports:#?}"
    );
    let verb = daemon.run(&["replay", recording.to_str().unwrap()]);
    assert!(verb.status.success(), "{}", String::from_utf8_lossy(&verb.stderr));

    let key = meshd::key::load_or_generate(&daemon.path("state")).unwrap();
    let secret = key.secret().as_slice();
    let text = std::fs::read_to_string(daemon.path("state").join(meshd::key::FILE)).unwrap();
    let hex: String = secret.iter().map(|b| format!("{b:02x}")).collect();
    for place in [&recording, &daemon.path("log")] {
        for planted in [secret, text.trim().as_bytes(), hex.as_bytes()] {
            assert!(!holds(place, planted), "{}", place.display());
        }
        // The search would have found it: the public key is there.
        assert!(
            holds(place, key.public.to_string().as_bytes()),
            "{}",
            place.display()
        );
    }
}

#[test]
fn a_key_that_others_can_read_keeps_the_daemon_from_starting() {
    isolated("an open key", || async {
        let daemon = Daemon::new("http://127.0.0.1:1");
        meshd::key::load_or_generate(&daemon.path("state")).unwrap();
        let key = daemon.path("state").join(meshd::key::FILE);
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
        let done = daemon.run(&[]);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(
            !done.status.success() && said.contains("0644") && said.contains("chmod 0600"),
            "{said}"
        );
        assert!(!daemon.socket().exists());
    });
}

#[test]
fn a_log_that_nobody_reads_does_not_end_the_daemon() {
    isolated("a log that nobody reads", || async {
        let mut daemon = Daemon::new("http://127.0.0.1:1");
        daemon.start_unheard();
        daemon
            .until("the API server's absence", |s| !s.problems.is_empty())
            .await;
        assert!(daemon.stop().success());
    });
}

#[test]
fn a_state_folder_that_cannot_be_written_shows_in_the_status() {
    isolated("a read-only state folder", || async {
        let mut daemon = Daemon::new("http://127.0.0.1:1");
        let state = daemon.path("state");
        meshd::key::load_or_generate(&state).unwrap();
        // In this test's own mount namespace.
        let none = None::<&str>;
        let bind = nix::mount::MsFlags::MS_BIND;
        let read_only = bind | nix::mount::MsFlags::MS_REMOUNT | nix::mount::MsFlags::MS_RDONLY;
        nix::mount::mount(Some(&state), &state, none, bind, none).unwrap();
        nix::mount::mount(none, &state, none, read_only, none).unwrap();
        daemon.start();
        let status = daemon
            .until("the store's problem", |s| {
                s.problems.iter().any(|p| p.subject == "store")
            })
            .await;
        let problem = status.problems.iter().find(|p| p.subject == "store").unwrap();
        assert!(problem.message.contains("state"), "{problem:?}");
        assert!(!status.ready);
        assert!(daemon.stop().success());
        nix::mount::umount(&state).unwrap();
    });
}

#[test]
fn pod_cidrs_that_hold_the_nodes_own_address_are_refused_before_anything_is_touched() {
    isolated("pod CIDRs too wide", || async {
        let mut daemon = Daemon::new("http://192.0.2.9:1");
        let config = daemon.path("meshd.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        let wide = text.replace("10.244.0.0/16", "192.0.0.0/8");
        std::fs::write(&config, wide).unwrap();
        for verb in ["install", "run"] {
            let refused = daemon.run(&[verb]);
            let said = String::from_utf8(refused.stderr).unwrap();
            assert!(!refused.status.success(), "{verb}: {said}");
            for word in [
                "cluster_pod_cidrs has 192.0.0.0/8",
                "own address 192.0.2.1 ",
                "--cluster-cidr",
            ] {
                assert!(said.contains(word), "{verb}: {word:?} is not in: {said}");
            }
        }
        assert!(!daemon.path("state").exists(), "the key was made");
        // The control: what it would be with CIDRs of the pods alone.
        std::fs::write(&config, text).unwrap();
        daemon.start();
        daemon
            .until("the API server's absence", |s| !s.problems.is_empty())
            .await;
        assert!(daemon.stop().success());
    });
}

#[test]
fn a_read_only_proc_sys_keeps_the_daemon_from_being_ready_and_says_what_to_do() {
    isolated("a read-only /proc/sys", || async {
        let none = None::<&str>;
        let bind = nix::mount::MsFlags::MS_BIND;
        let read_only = bind | nix::mount::MsFlags::MS_REMOUNT | nix::mount::MsFlags::MS_RDONLY;
        let sys = "/proc/sys";
        let mut daemon = Daemon::new("http://127.0.0.1:1");
        for is_read_only in [false, true] {
            if is_read_only {
                nix::mount::mount(Some(sys), sys, none, bind, none).unwrap();
                nix::mount::mount(none, sys, none, read_only, none).unwrap();
            }
            daemon.start();
            let status = daemon
                .until("the API server's absence", |s| {
                    s.problems.iter().any(|p| p.subject == "api-server")
                })
                .await;
            let problem = status.problems.iter().find(|p| p.subject == "sysctl");
            assert_eq!(problem.is_some(), is_read_only, "{status:#?}");
            let ready = String::from_utf8(daemon.run(&["ready"]).stderr).unwrap();
            assert_eq!(ready.contains("cannot set sysctls"), is_read_only, "{ready}");
            if let Some(problem) = problem {
                assert!(problem.remedy.contains("agent.privileged"), "{problem:?}");
            }
            assert!(daemon.stop().success());
        }
        nix::mount::umount(sys).unwrap();
    });
}
