//! The objects of the chart's templates of rights, rendered by substitution, so that helm is not needed here; those of the
//! uninstallation are taken as rendered.

use serde_json::Value;

pub(crate) const NAMESPACE: &str = "kube-system";
pub(crate) const ACCOUNT: &str = "meshd";
/// Account, role and policy of what takes meshd off the nodes.
pub(crate) const UNINSTALL: &str = "meshd-uninstall";

pub(crate) fn rights() -> Vec<Value> {
    let agent = objects(include_str!("../../../../deploy/chart/templates/rbac.yaml"));
    let kinds = [
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
    ];
    agent.into_iter().chain(uninstall(&kinds)).collect()
}

pub(crate) fn policies() -> Vec<Value> {
    let templates = [
        include_str!("../../../../deploy/chart/templates/admission-policy.yaml"),
        include_str!("../../../../deploy/chart/templates/_account-policy.tpl"),
    ];
    let kinds = ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"];
    let agent = templates.into_iter().flat_map(objects);
    agent.chain(uninstall(&kinds)).collect()
}

fn uninstall(kinds: &[&str]) -> Vec<Value> {
    let text = include_str!("../../../../deploy/uninstall.yaml");
    let mut objects: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    objects.retain(|object| kinds.iter().any(|kind| object["kind"] == *kind));
    assert_eq!(objects.len(), kinds.len(), "one of each of {kinds:?}");
    objects
}

/// The agents' DaemonSet.
pub(crate) fn daemon_set() -> Value {
    let text = include_str!("../../../../deploy/meshd.yaml");
    let objects: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
    let mut sets = objects.into_iter().filter(|object| object["kind"] == "DaemonSet");
    sets.find(|set| set["metadata"]["name"] == "meshd").unwrap()
}

fn objects(template: &str) -> Vec<Value> {
    // A heading's comment goes with its end.
    let template = template.split_once("*/ -}}").map_or(template, |(_, rest)| rest);
    let text: String = template
        .lines()
        .filter(|line| !line.trim_start().starts_with("{{- "))
        .map(|line| {
            line.replace("{{ .Release.Namespace }}", NAMESPACE)
                .replace("{{ .Values.serviceAccount.name }}", ACCOUNT)
                .replace("{{ .namespace }}", NAMESPACE)
                .replace("{{ .account }}", ACCOUNT)
                .replace("{{ .name }}", "meshd-account")
                + "\n"
        })
        .collect();
    assert!(!text.contains("{{"), "a template expression is left: {text}");
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    // Of only comments.
    objects.into_iter().filter(|object| !object.is_null()).collect()
}
