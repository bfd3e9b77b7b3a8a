//! The last words of a daemon that panics.

use meshd::record::{Options, Record, Recorder, read_segment, segments};
use meshd::settings::value::LogFormat;
use meshd_core::{Config, Endpoints, Event, Identity, KubeEvent, NodeAgent, Outside};
use meshd_model::kernel::Mark;
use meshd_model::{KeyHandle, PublicKey};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::Duration;

const FOLDER: &str = "MESHD_TEST_PANIC_FOLDER";

/// Runs as a process of its own, started by the test below.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else {
        return;
    };
    meshd::log::init("info", LogFormat::Json).unwrap();
    meshd::log::abort_on_panic();
    let config = Config {
        node: "node-0".into(),
        identity: Identity {
            handle: KeyHandle(1),
            public_key: PublicKey([9; 32]),
        },
        cluster_pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        service_cidrs: Vec::new(),
        node_mask_sizes: std::collections::BTreeMap::new(),
        node_cidrs: Vec::new(),
        device: "meshd0".into(),
        listen_port: 51820,
        endpoints: Endpoints::InternalIp,
        keepalive: None,
        mark: Mark { value: 1, mask: 1 },
        route_table: 1090,
        rule_priority: 1090,
        mtu: None,
        resync: Duration::from_secs(60),
        address_rest: Duration::from_secs(60),
        outside: Outside::default(),
        allow_unnamed_pods: false,
        ipam: meshd_core::Ipam::default(),
    };
    let now = meshd::clock::now();
    let agent = NodeAgent::new(config.clone(), 1, now);
    let mut recorder = Recorder::start(Options::new(folder), config, &agent, now).unwrap();
    recorder.event(now, &Event::Kube(KubeEvent::NodesReset));
    panic!("on purpose");
}

#[test]
fn a_panic_is_logged_the_recording_written_and_the_process_ended() {
    let folder = tempfile::tempdir().unwrap();
    let done = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(FOLDER, folder.path())
        .env_remove("MESHD_LOG")
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.signal(), Some(6), "{log}");
    assert!(
        log.contains("on purpose") && log.contains("tests/panic.rs"),
        "{log}"
    );
    let (_, path) = segments(folder.path()).unwrap().pop().unwrap();
    let records = read_segment(&path).unwrap().records;
    assert!(matches!(
        records.as_slice(),
        [Record::Event {
            event: Event::Kube(KubeEvent::NodesReset),
            ..
        }]
    ));
}
