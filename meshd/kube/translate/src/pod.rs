//! What a pod asks for by its annotations, and what is told of it in Events. Parsing is strict, as that of Nodes' annotations is: what cannot be
//! understood is a problem that ADD reports, and never another address than was meant.

use crate::annotations::quoted;
use crate::object::{ObjectProblem, pod_ref};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use meshd_core::PodEvent;
use meshd_model::net::Family;
use meshd_model::{NodeName, PodMeta, PodWants, Wall};
use std::net::IpAddr;

/// The addresses that the pod shall have: one or two, of one family each, comma-separated, as the standard library writes
/// them.
pub const IPS: &str = "meshd.dev/ips";
/// `true` or `false`: whether a pod of the same name that follows on the node gets the same addresses.
pub const KEEP_ADDRESS: &str = "meshd.dev/keep-address";

/// A pod and what it asks for.
///
/// # Errors
/// Where the object has no name, namespace or UID. Annotations that are no use are not an error here: they are part of
/// what is known of the pod.
pub fn pod_meta(pod: &Pod) -> Result<PodMeta, ObjectProblem> {
    let annotation = |key| Some(pod.metadata.annotations.as_ref()?.get(key)?.as_str());
    let mut wants = PodWants::default();
    if let Some(text) = annotation(IPS) {
        match ips(text) {
            Ok(ips) => wants.ips = ips,
            Err(reason) => wants.problem = Some(problem(IPS, text, &reason)),
        }
    }
    match annotation(KEEP_ADDRESS) {
        None | Some("false") => {}
        Some("true") => wants.keep = true,
        Some(text) => {
            let reason = "it should have been \"true\" or \"false\"";
            wants.problem.get_or_insert(problem(KEEP_ADDRESS, text, reason));
        }
    }
    let of = pod_ref(pod)?;
    let object = pod.metadata.uid.clone().unwrap_or_default();
    let mirror = if object == of.uid { String::new() } else { object };
    Ok(PodMeta {
        pod: of,
        wants,
        mirror,
    })
}

fn problem(key: &str, text: &str, reason: &str) -> String {
    format!("annotation {key} is {:?}: {reason}", quoted(text))
}

fn ips(text: &str) -> Result<Vec<IpAddr>, String> {
    let mut ips: Vec<IpAddr> = Vec::new();
    for entry in text.split(',') {
        let parsed = entry.parse::<IpAddr>().ok().filter(|ip| ip.to_string() == entry);
        let Some(ip) = parsed else {
            return Err(
                "it should have been an IP address, or one of each family with one comma between".into(),
            );
        };
        if ips.iter().any(|other| Family::of(*other) == Family::of(ip)) {
            return Err("a pod has one address of a family".into());
        }
        ips.push(ip);
    }
    Ok(ips)
}

/// Longest note of an Event, in bytes (events.k8s.io/v1).
const NOTE_MAX: usize = 1024;
/// Longest part of an Event's name that is the pod's, in bytes; the whole may have 253.
const NAME_MAX: usize = 200;

/// The body of an Event (events.k8s.io/v1) on a pod, by the daemon on `node`. Its name is the pod's and the time, as
/// other reporters make it.
#[must_use]
pub fn pod_event_body(node: &NodeName, event: &PodEvent, at: Wall) -> serde_json::Value {
    let nanos = i128::from(at.0);
    let stamp = k8s_openapi::jiff::Timestamp::from_nanosecond(nanos)
        .map(MicroTime)
        .ok();
    let pod = &event.pod;
    serde_json::json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {
            "namespace": pod.namespace,
            "name": format!("{}.{:x}", cut(&pod.name, NAME_MAX).trim_end_matches(['-', '.']), at.0),
        },
        "eventTime": stamp,
        "type": "Warning",
        "reason": event.reason.as_str(),
        "action": "AttachPod",
        "note": cut(&event.note, NOTE_MAX),
        "reportingController": "meshd.dev/meshd",
        "reportingInstance": node,
        "regarding": {
            "apiVersion": "v1", "kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid,
        },
    })
}

fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}
