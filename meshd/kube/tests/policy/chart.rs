//! The objects of the chart's two templates of rights, rendered by substitution: they use three values and one
//! condition, so that helm is not needed here.

use serde_json::Value;

pub(crate) const NAMESPACE: &str = "kube-system";
pub(crate) const ACCOUNT: &str = "meshd";

pub(crate) fn rights() -> Vec<Value> {
    objects(include_str!("../../../../deploy/chart/templates/rbac.yaml"))
}

pub(crate) fn policies() -> Vec<Value> {
    objects(include_str!(
        "../../../../deploy/chart/templates/admission-policy.yaml"
    ))
}

fn objects(template: &str) -> Vec<Value> {
    let text: String = template
        .lines()
        .filter(|line| !line.starts_with("{{- "))
        .map(|line| {
            line.replace("{{ .Release.Namespace }}", NAMESPACE)
                .replace("{{ .Values.serviceAccount.name }}", ACCOUNT)
                + "\n"
        })
        .collect();
    assert!(!text.contains("{{"), "a template expression is left: {text}");
    serde_saphyr::from_multiple(&text).unwrap()
}
