//! What `deploy/` holds is read by the types of the Kubernetes API and by the daemon's own configuration, and the
//! rendered form is what the chart gives.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Container, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use meshd::settings::{Settings, file, keys::KEYS, show};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::PathBuf;

fn read(name: &str) -> (PathBuf, String) {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy")).join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (path, text)
}

fn documents(name: &str) -> Vec<Value> {
    let (path, text) = read(name);
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn of_kind(documents: &[Value], kind: &str) -> Vec<Value> {
    documents.iter().filter(|d| d["kind"] == kind).cloned().collect()
}

/// Reads a document as the API's type and writes it again: what the type does not know would be lost, so a
/// misspelled field shows.
fn typed<T: DeserializeOwned + Serialize>(document: &Value) -> T {
    let read: T =
        serde_json::from_value(document.clone()).unwrap_or_else(|error| panic!("{error}: {document:#}"));
    let written = serde_json::to_value(&read).unwrap();
    assert_eq!(
        &written, document,
        "a field that the API does not know, or a value in another form"
    );
    read
}

#[test]
fn the_example_configuration_is_valid_and_shows_every_key_at_its_default() {
    let (path, text) = read("meshd.toml");
    let mut settings = file::parse(&path, &text).unwrap();
    // After its heading it is what `--print-config` prints, documentation included.
    assert!(
        text.ends_with(&show::show(&settings)),
        "{}",
        show::show(&settings)
    );
    let defaults = Settings::default();
    assert_eq!(settings.wireguard, defaults.wireguard);
    assert_eq!(settings.pods, defaults.pods);
    assert_eq!(settings.ipam, defaults.ipam);
    assert_eq!(settings.recording, defaults.recording);
    assert_eq!(settings.log, defaults.log);
    settings.node_name = Some("node-1".into());
    settings.validate().unwrap();
}

#[test]
fn the_account_may_do_what_meshd_does_and_no_more() {
    let documents = documents("meshd.yaml");
    let role: ClusterRole = typed(&of_kind(&documents, "ClusterRole")[0]);
    let mut allowed = BTreeSet::new();
    for rule in role.rules.unwrap() {
        let events = rule.resources == Some(vec!["events".to_owned()]);
        let group = if events { "events.k8s.io" } else { "" };
        assert_eq!(rule.api_groups, Some(vec![group.to_owned()]));
        for resource in rule.resources.unwrap() {
            allowed.extend(rule.verbs.iter().map(|verb| format!("{verb} {resource}")));
        }
    }
    let expected = [
        "create events",
        "list nodes",
        "list pods",
        "patch nodes",
        "patch nodes/status",
        "watch nodes",
        "watch pods",
    ];
    assert_eq!(allowed, expected.map(str::to_owned).into());
    let account: ServiceAccount = typed(&of_kind(&documents, "ServiceAccount")[0]);
    let binding: ClusterRoleBinding = typed(&of_kind(&documents, "ClusterRoleBinding")[0]);
    let subject = &binding.subjects.unwrap()[0];
    assert_eq!(
        (Some(&subject.name), &subject.namespace),
        (account.metadata.name.as_ref(), &account.metadata.namespace)
    );
    assert_eq!(Some(binding.role_ref.name), role.metadata.name);
}

#[test]
fn the_manifests_hold_together() {
    let documents = documents("meshd.yaml");
    let sets: Vec<DaemonSet> = of_kind(&documents, "DaemonSet").iter().map(typed).collect();
    assert_eq!(sets.len(), 2);
    for set in &sets {
        let name = set.metadata.name.as_deref().unwrap();
        let spec = set.spec.as_ref().unwrap();
        let pod = spec.template.spec.as_ref().unwrap();
        assert_eq!(
            pod.priority_class_name.as_deref(),
            Some("system-node-critical"),
            "{name}"
        );
        assert_eq!(pod.host_network, Some(true), "{name}");
        assert_eq!(
            pod.tolerations.as_ref().unwrap()[0].operator.as_deref(),
            Some("Exists"),
            "{name}"
        );
        let volumes: BTreeSet<_> = pod.volumes.iter().flatten().map(|v| v.name.clone()).collect();
        let containers = pod.init_containers.iter().flatten().chain(&pod.containers);
        let mounts = containers.flat_map(|c| c.volume_mounts.iter().flatten());
        let mounted: BTreeSet<_> = mounts.map(|m| m.name.clone()).collect();
        assert_eq!(volumes, mounted, "{name}");
        let labels = spec.template.metadata.as_ref().unwrap().labels.clone().unwrap();
        let mut selected = spec.selector.match_labels.iter().flatten();
        assert!(
            selected.all(|(key, value)| labels.get(key) == Some(value)),
            "{name}"
        );
        for container in pod.init_containers.iter().flatten().chain(&pod.containers) {
            let security = container.security_context.as_ref().unwrap();
            assert_eq!(security.privileged, None, "{}", container.name);
        }
    }
    let account = sets[0]
        .spec
        .as_ref()
        .unwrap()
        .template
        .spec
        .as_ref()
        .unwrap()
        .service_account_name
        .as_deref();
    assert_eq!(account, Some("meshd"));
}

#[test]
fn the_daemons_arguments_and_configuration_are_ones_that_it_takes() {
    let documents = documents("meshd.yaml");
    let set = |name: &str| -> DaemonSet {
        let sets = of_kind(&documents, "DaemonSet");
        typed(sets.iter().find(|set| set["metadata"]["name"] == name).unwrap())
    };
    let config: ConfigMap = typed(&of_kind(&documents, "ConfigMap")[0]);
    let data = config.data.unwrap();
    let mut settings = file::parse("meshd.toml".as_ref(), &data["meshd.toml"]).unwrap();
    settings.node_name = Some("node-1".into());
    settings.validate().unwrap();
    let conflist: Value = serde_json::from_str(&data["10-meshd.conflist"]).unwrap();
    let plugins = conflist["plugins"].as_array().unwrap();
    let types: Vec<_> = plugins.iter().map(|p| p["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["meshd-cni", "portmap"]);
    assert_eq!(plugins[1]["capabilities"]["portMappings"], true);
    assert_eq!(
        plugins[0]["capabilities"],
        serde_json::json!({ "ips": true, "mac": true })
    );
    // STATUS and GC for runtimes that know them, and no refusal by those that do not.
    assert_eq!(conflist["cniVersion"], "1.0.0");
    assert_eq!(conflist["cniVersions"], serde_json::json!(["1.0.0", "1.1.0"]));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("meshd.toml");
    std::fs::write(&path, &data["meshd.toml"]).unwrap();
    let shown = std::process::Command::new(env!("CARGO_BIN_EXE_meshd"))
        .arg("--config")
        .arg(&path)
        .arg("--print-config")
        .env("NODE_NAME", "node-1")
        .output()
        .unwrap();
    assert!(
        shown.status.success(),
        "{}",
        String::from_utf8_lossy(&shown.stderr)
    );
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(
        shown.contains("node_name = \"node-1\"") && shown.contains("format = \"json\""),
        "{shown}"
    );
    // Each path that the agent is told is a mount of its container, and of the one that installs.
    let pod = set("meshd").spec.unwrap().template.spec.unwrap();
    let mounts = |container: &Container| -> Vec<String> {
        let mounts = container.volume_mounts.iter().flatten();
        mounts.map(|mount| mount.mount_path.clone()).collect()
    };
    let cni = &settings.cni;
    let folder = |path: &Option<PathBuf>| path.as_ref().unwrap().display().to_string();
    assert!(mounts(&pod.containers[0]).contains(&folder(&cni.conf_dir)));
    assert!(mounts(&pod.init_containers.unwrap()[0]).contains(&folder(&cni.bin_dir)));
    assert_eq!(
        cni.conflist.as_deref(),
        Some("/etc/meshd/10-meshd.conflist".as_ref())
    );
    assert!(mounts(&pod.containers[0]).contains(&settings.state_dir.display().to_string()));
    let socket_dir = settings.socket.parent().unwrap().display().to_string();
    assert!(mounts(&pod.containers[0]).contains(&socket_dir));
    // The device of the other set is the one that the agent looks for. In the image /var/run is /run.
    let device = set("meshd-wg");
    let args = device.spec.unwrap().template.spec.unwrap().containers[0]
        .args
        .clone()
        .unwrap();
    assert_eq!(args.last(), Some(&settings.wireguard.interface));
    let socket_dir = settings.wireguard.socket_dir.display().to_string();
    assert!(args.contains(&format!(
        "--socket-dir={}",
        socket_dir.strip_prefix("/var").unwrap()
    )));
}

/// Keys that are the chart's to set: paths of its mounts, and what differs from node to node.
const OF_THE_CHART: [&str; 12] = [
    "node_name",
    "kubeconfig",
    "api_server",
    "api_server_from",
    "service_account_dir",
    "state_dir",
    "socket",
    "wireguard.socket_dir",
    "cni.conflist",
    "cni.conf_dir",
    "cni.bin_dir",
    "recording.dir",
];

#[test]
fn the_charts_schema_knows_every_key_of_the_configuration_and_no_other() {
    let (_, text) = read("chart/values.schema.json");
    let schema: Value = serde_json::from_str(&text).unwrap();
    let config = &schema["properties"]["config"];
    let mut known = BTreeSet::new();
    for (name, key) in config["properties"].as_object().unwrap() {
        match key["properties"].as_object() {
            Some(inner) => known.extend(inner.keys().map(|key| format!("{name}.{key}"))),
            None => _ = known.insert(name.clone()),
        }
        assert!(
            key["type"] != "object" || key["additionalProperties"] == false,
            "{name}"
        );
    }
    assert_eq!(config["additionalProperties"], false);
    let keys = KEYS.iter().map(|key| key.path.to_owned());
    let wanted: BTreeSet<_> = keys.filter(|key| !OF_THE_CHART.contains(&key.as_str())).collect();
    assert_eq!(known, wanted);
}

/// `hack/manifests --print` with these values besides; none if there is no helm.
fn rendered(part: &str, values: &[&str]) -> Option<String> {
    let output = std::process::Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../hack/manifests"))
        .args(["--print", part])
        .args(values.iter().flat_map(|value| ["--set", *value]))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() && said.contains("no helm") {
        meshd_skip::skip_on("helm", "the rendered form is what the chart gives", said.trim());
        return None;
    }
    assert!(output.status.success(), "{said}");
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn the_rendered_form_is_what_the_chart_gives() {
    for part in ["meshd", "uninstall"] {
        let Some(rendered) = rendered(part, &[]) else {
            return;
        };
        let (path, text) = read(&format!("{part}.yaml"));
        assert!(
            rendered == text,
            "{} is not what the chart gives: run hack/manifests",
            path.display()
        );
    }
}

/// A change of the mode takes no device away: agents that are not replaced yet have their tunnels on it.
#[test]
fn the_device_is_there_in_every_mode() {
    for mode in ["auto", "kernel", "userspace"] {
        let value = format!("config.wireguard.mode={mode}");
        let Some(text) = rendered("meshd", &[&value]) else {
            return;
        };
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        let sets = of_kind(&documents, "DaemonSet");
        let device = sets.iter().find(|set| set["metadata"]["name"] == "meshd-wg");
        let device: DaemonSet =
            typed(device.unwrap_or_else(|| panic!("no meshd-wg where the mode is {mode}")));
        let container = &device.spec.unwrap().template.spec.unwrap().containers[0];
        let probe = container.readiness_probe.as_ref().unwrap().exec.clone().unwrap();
        let stands_by = "--unless-kernel".to_owned();
        for words in [container.args.as_ref().unwrap(), &probe.command.unwrap()] {
            assert_eq!(
                words.contains(&stands_by),
                mode != "userspace",
                "{mode}: {words:?}"
            );
        }
    }
}

/// Wherever something asks the API server, the kubelet's kubeconfig is there if it shall say where that is.
#[test]
fn the_kubelets_kubeconfig_is_mounted_for_all_who_are_told_of_it() {
    for (part, containers) in [("meshd", 2), ("uninstall", 3)] {
        let value = "apiServer.kubeconfig=/etc/kubernetes/kubelet.conf";
        let Some(text) = rendered(part, &[value]) else {
            return;
        };
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        let mut told = 0;
        for document in &documents {
            let pod = &document["spec"]["template"]["spec"];
            let lists = [&pod["initContainers"], &pod["containers"]];
            for container in lists.into_iter().filter_map(Value::as_array).flatten() {
                let variables = container["env"].as_array().into_iter().flatten();
                let mut paths = variables.filter(|v| v["name"] == "MESHD_API_SERVER_FROM");
                let Some(path) = paths.next() else { continue };
                told += 1;
                let mut mounts = container["volumeMounts"].as_array().unwrap().iter();
                let mount = mounts.find(|m| m["mountPath"] == path["value"]).unwrap();
                assert_eq!(mount["readOnly"], true);
                let mut volumes = pod["volumes"].as_array().unwrap().iter();
                let volume = volumes.find(|v| v["name"] == mount["name"]).unwrap();
                assert_eq!(volume["hostPath"]["path"], "/etc/kubernetes/kubelet.conf");
                assert_eq!(volume["hostPath"]["type"], "File");
            }
        }
        assert_eq!(told, containers, "{part}");
    }
}
