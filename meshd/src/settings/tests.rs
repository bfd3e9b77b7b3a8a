//! What a configuration may say, and what an operator is told of one that is wrong.

use super::file::{LoadError, Overrides, load, parse};
use super::keys::KEYS;
use super::show::show;
use super::value::WireguardMode;
use super::*;
use std::path::Path;

const MINIMAL: &str = "node_name = 'n1'\ncluster_pod_cidrs = ['10.244.0.0/16']\n";

fn parsed(text: &str) -> Result<Settings, LoadError> {
    parse(Path::new("meshd.toml"), text)
}

/// What validation says of the minimal configuration with this added.
fn problems(text: &str) -> Vec<String> {
    match parsed(text).unwrap().validate() {
        Ok(()) => Vec::new(),
        Err(problems) => problems.0,
    }
}

#[test]
fn an_unknown_key_is_named_with_its_file_and_the_nearest_known_one() {
    for (text, key, nearest) in [
        ("cluster_pod_cidr = []", "cluster_pod_cidr", "cluster_pod_cidrs"),
        (
            "[wireguard]\nlistenport = 1",
            "wireguard.listenport",
            "wireguard.listen_port",
        ),
        ("listen_port = 1", "listen_port", "wireguard.listen_port"),
        ("[wiregard]\nmtu = 1400", "wiregard", "wireguard.mtu"),
        ("[log]\nfromat = 'json'", "log.fromat", "log.format"),
    ] {
        let error = parsed(text).unwrap_err();
        let message = error.to_string();
        match error {
            LoadError::UnknownKey {
                key: found,
                nearest: suggested,
                ..
            } => {
                assert_eq!(found, key);
                if key != "wiregard" {
                    assert_eq!(suggested, nearest, "{text}");
                }
            }
            other => panic!("{text}: {other}"),
        }
        assert!(
            message.contains("meshd.toml") && message.contains(key),
            "{message}"
        );
    }
}

#[test]
fn a_value_of_the_wrong_type_is_named_with_its_line() {
    let message = parsed("socket = 7").unwrap_err().to_string();
    assert!(message.contains("socket = 7"), "{message}");
    let message = parsed("wireguard = 7").unwrap_err().to_string();
    assert!(message.contains("wireguard = 7"), "{message}");
    let message = parsed("[wireguard]\nendpoints = 'eth0'").unwrap_err().to_string();
    assert!(message.contains("interface:NAME"), "{message}");
    let message = parsed("[wireguard]\nmark = '1/2'").unwrap_err().to_string();
    assert!(message.contains("0x10000000/0x10000000"), "{message}");
    let message = parsed("cluster_pod_cidrs = ['10.244.0.0/33']")
        .unwrap_err()
        .to_string();
    assert!(message.contains("10.244.0.0/33"), "{message}");
}

#[test]
fn the_minimal_configuration_is_valid() {
    assert_eq!(problems(MINIMAL), Vec::<String>::new());
}

#[test]
fn each_value_that_does_not_fit_is_named() {
    for (text, expected) in [
        ("node_name = 'n1'", "cluster_pod_cidrs is mandatory"),
        ("cluster_pod_cidrs = ['10.244.0.0/16']", "node_name is not set"),
        (
            "node_name = 'N_1'\ncluster_pod_cidrs = ['10.244.0.0/16']",
            "cannot be a Node",
        ),
        (
            "node_name = 'n'\ncluster_pod_cidrs = ['10.244.1.0/16']",
            "write 10.244.0.0/16",
        ),
        (
            "node_name = 'n'\ncluster_pod_cidrs = ['0.0.0.0/0']",
            "nobody's to give",
        ),
        (
            "node_name = 'n'\ncluster_pod_cidrs = ['10.0.0.0/8', '10.1.0.0/16']",
            "overlap",
        ),
        (
            "node_name = 'n'\ncluster_pod_cidrs = ['10.0.0.0/8']\nservice_cidrs = ['10.96.0.0/12']",
            "a Service's",
        ),
    ] {
        let found = problems(text);
        assert!(found.iter().any(|p| p.contains(expected)), "{text}: {found:?}");
    }
    for (added, expected) in [
        ("state_dir = 'var'", "absolute"),
        ("resync_seconds = 1", "5 to 3600"),
        ("[wireguard]\ninterface = 'wireguard-mesh-0'", "1 to 15 bytes"),
        ("[wireguard]\ninterface = 'a b'", "interface name"),
        ("[wireguard]\ninterface = 'mshp0'", "may not begin"),
        ("[wireguard]\nlisten_port = 0", "fixed port"),
        ("[wireguard]\nmtu = 1279", "1280"),
        ("[wireguard]\nmark = '0x3/0x1'", "under its mask"),
        ("[wireguard]\nmark = '0x4000/0x4000'", "kube-proxy"),
        ("[wireguard]\nroute_table = 254", "system's own"),
        ("[wireguard]\nrule_priority = 32766", "32765"),
        ("[recording]\nsegment_mib = 8\ntotal_mib = 15", "two of"),
        ("[outside]\nexcept = ['10.244.7.0/24']", "not outside"),
        ("[outside]\nexcept = ['192.0.2.1/24']", "write 192.0.2.0/24"),
    ] {
        let found = problems(&format!("{MINIMAL}{added}"));
        assert!(found.iter().any(|p| p.contains(expected)), "{added}: {found:?}");
        assert_eq!(found.len(), 1, "{added}: {found:?}");
    }
    let long = format!("{MINIMAL}socket = '/{}'", "x".repeat(107));
    assert!(problems(&long)[0].contains("shorter path"));
}

#[test]
fn flags_win_over_the_file_and_a_missing_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("meshd.toml");
    std::fs::write(&path, MINIMAL).unwrap();
    let overrides = Overrides {
        node_name: Some("n2".into()),
        wireguard: Some(WireguardMode::Userspace),
        recording_dir: Some("/r".into()),
        ..Overrides::default()
    };
    let settings = load(&path, overrides).unwrap();
    assert_eq!(settings.node_name.as_deref(), Some("n2"));
    assert_eq!(settings.wireguard.mode, WireguardMode::Userspace);
    assert_eq!(settings.recording_dir(), Some("/r".into()));
    let message = load(&folder.path().join("none"), Overrides::default())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("none") && message.contains("--config"),
        "{message}"
    );
}

#[test]
fn what_is_printed_reads_back_the_same_and_documents_every_key() {
    let mut settings = parsed(MINIMAL).unwrap();
    assert_eq!(parsed(&show(&settings)).unwrap(), settings);
    settings.kubeconfig = Some("/k".into());
    settings.api_server = Some("api:6443".into());
    settings.api_server_from = Some("/f".into());
    settings.metrics_listen = Some("[::1]:9490".parse().unwrap());
    settings.node_cidr_mask_size_ipv4 = Some(24);
    settings.node_cidr_mask_size_ipv6 = Some(64);
    settings.wireguard.mtu = Some(1400);
    settings.recording.dir = Some("/r".into());
    settings.cni = Cni {
        conflist: Some("/c/10-meshd.conflist".into()),
        conf_dir: Some("/n".into()),
        bin_dir: Some("/b".into()),
    };
    let text = show(&settings);
    assert_eq!(parsed(&text).unwrap(), settings);
    // Every field that serialises is a documented key, and the other way round.
    let table = toml::Table::try_from(&settings).unwrap();
    let mut paths: Vec<String> = Vec::new();
    for (name, value) in &table {
        match value {
            toml::Value::Table(inner) => paths.extend(inner.keys().map(|key| format!("{name}.{key}"))),
            _ => paths.push(name.clone()),
        }
    }
    let mut known: Vec<_> = KEYS.iter().map(|key| key.path.to_owned()).collect();
    paths.sort();
    known.sort();
    assert_eq!(paths, known);
}

#[test]
fn the_api_server_is_said_once_and_well() {
    for good in [
        "api_server = 'https://10.0.0.1:6443'",
        "api_server = 'api.example.org:6443'",
        "api_server = '[fd00::1]:6443'",
        "api_server_from = '/etc/kubernetes/kubelet.conf'",
    ] {
        assert_eq!(problems(&format!("{good}\n{MINIMAL}")), [""; 0], "{good}");
    }
    for (bad, said) in [
        (
            "api_server = '10.0.0.1'",
            "must be https://HOST:PORT or HOST:PORT",
        ),
        (
            "api_server = 'https://:6443'",
            "must be https://HOST:PORT or HOST:PORT",
        ),
        ("api_server = 'a:99999'", "must be https://HOST:PORT or HOST:PORT"),
        ("service_account_dir = 'sa'", "must be an absolute path"),
        (
            "kubeconfig = '/k'\napi_server = 'a:1'",
            "kubeconfig and api_server each say where the API server is",
        ),
        (
            "api_server = 'a:1'\napi_server_from = '/k'",
            "api_server and api_server_from each say where the API server is",
        ),
    ] {
        let found = problems(&format!("{bad}\n{MINIMAL}"));
        assert!(found.len() == 1 && found[0].contains(said), "{bad}: {found:?}");
    }
}

#[test]
fn addresses_are_managed_within_bounds() {
    let good = "[ipam]\nreserved = ['10.244.0.0/28']\ncollect_after_seconds = 0";
    assert_eq!(problems(&format!("{MINIMAL}\n{good}")), [""; 0]);
    let pool = "mode = 'pool'\nblock_size_ipv4 = 30\nblock_size_ipv6 = 64\nreturn_after_seconds = 10\nblock_rest_seconds = 1";
    assert_eq!(problems(&format!("{MINIMAL}\n[ipam]\n{pool}")), [""; 0]);
    for (bad, said) in [
        ("block_size_ipv4 = 31", "16 to 30"),
        ("block_size_ipv6 = 63", "64 to 126"),
        ("return_after_seconds = 9", "10 to 86400"),
        ("block_rest_seconds = 0", "1 to 86400"),
        ("reserved = ['192.0.2.0/28']", "lies in none of cluster_pod_cidrs"),
        ("reserved = ['10.244.0.1/28']", "has host bits set"),
        ("collect_after_seconds = 9", "10 to 86400, or 0 for never"),
        ("collect_after_seconds = 86401", "10 to 86400, or 0 for never"),
        ("keep_seconds = 59", "60 to 2592000"),
        ("keep_seconds = 2592001", "60 to 2592000"),
    ] {
        let found = problems(&format!("{MINIMAL}\n[ipam]\n{bad}"));
        assert!(found.len() == 1 && found[0].contains(said), "{bad}: {found:?}");
    }
}

#[test]
fn what_peers_may_claim_is_bounded() {
    let good = "node_cidr_mask_size_ipv4 = 24\nnode_cidr_mask_size_ipv6 = 64\nnode_cidrs = ['10.0.0.0/8']";
    assert_eq!(problems(&format!("{good}\n{MINIMAL}")), [""; 0]);
    for bad in [
        "node_cidr_mask_size_ipv4 = 33",
        "node_cidr_mask_size_ipv4 = 7",
        "node_cidr_mask_size_ipv6 = 129",
        "node_cidrs = ['10.0.0.1/8']",
    ] {
        assert_eq!(problems(&format!("{bad}\n{MINIMAL}")).len(), 1, "{bad}");
    }
}
