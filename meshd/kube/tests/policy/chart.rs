//! The objects of the chart's templates of rights, rendered by substitution, so that helm is not needed here; those of the
//! uninstallation are taken as rendered.

use serde_json::Value;

pub(crate) const NAMESPACE: &str = "kube-system";
pub(crate) const ACCOUNT: &str = "meshd";
const POLICY: &str = include_str!("../../../../deploy/chart/templates/admission-policy.yaml");
const ACCOUNT_POLICY: &str = include_str!("../../../../deploy/chart/templates/_account-policy.tpl");
const BLOCKS: &str = include_str!("../../../../deploy/chart/templates/ipblocks.yaml");
/// Account, role and policy of what takes meshd off the nodes.
pub(crate) const UNINSTALL: &str = "meshd-uninstall";

pub(crate) fn rights() -> Vec<Value> {
    let agent = objects(
        include_str!("../../../../deploy/chart/templates/rbac.yaml"),
        Ipam::Pool,
    );
    let kinds = [
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
    ];
    agent.into_iter().chain(uninstall(&kinds)).collect()
}

/// Where nodes' pod CIDRs come from, as the chart is told.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ipam {
    Kubernetes,
    Pool,
}

const POLICY_KINDS: [&str; 2] = ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"];

pub(crate) fn policies(ipam: Ipam) -> Vec<Value> {
    let templates: &[&str] = match ipam {
        Ipam::Kubernetes => &[POLICY, ACCOUNT_POLICY],
        Ipam::Pool => &[POLICY, ACCOUNT_POLICY, BLOCKS],
    };
    let mut agent: Vec<Value> = templates.iter().flat_map(|text| objects(text, ipam)).collect();
    agent.retain(|object| POLICY_KINDS.iter().any(|kind| object["kind"] == *kind));
    agent.into_iter().chain(uninstall(&POLICY_KINDS)).collect()
}

/// The kind of blocks' objects.
pub(crate) fn custom_resource() -> Value {
    let mut objects = objects(BLOCKS, Ipam::Pool).into_iter();
    objects
        .find(|object| object["kind"] == "CustomResourceDefinition")
        .unwrap()
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

fn objects(template: &str, ipam: Ipam) -> Vec<Value> {
    let mode = match ipam {
        Ipam::Kubernetes => "kubernetes",
        Ipam::Pool => "pool",
    };
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
                .replace("{{ .Values.config.ipam.mode }}", mode)
                .replace("{{ .Values.config.ipam.block_size_ipv4 }}", "26")
                .replace("{{ .Values.config.ipam.block_size_ipv6 }}", "122")
                .replace(
                    "{{ toJson .Values.config.cluster_pod_cidrs }}",
                    r#"["10.244.0.0/16","fd00:244::/48"]"#,
                )
                + "\n"
        })
        .collect();
    assert!(!text.contains("{{"), "a template expression is left: {text}");
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    // Of only comments.
    objects.into_iter().filter(|object| !object.is_null()).collect()
}
