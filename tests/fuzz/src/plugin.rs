//! What a runtime gives the plugin, and what the daemon answers it.

use crate::check_error;
use meshd_cni::config::{self, Config, Purpose};
use meshd_cni::environment::{self, CONTAINER_ID_MAX, Invocation};
use meshd_cni::previous::Previous;
use meshd_cni::version::Version;
use meshd_cni::{client, previous, result};
use meshd_model::AttachmentId;
use meshd_model::cni::{Response, code};
use serde_json::json;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// The network configuration on stdin, for each thing that it is read for, and the `prevResult` in it.
pub fn stdin(bytes: &[u8]) {
    let attach = config::parse(bytes, Purpose::Attach);
    let detach = config::parse(bytes, Purpose::Detach);
    let collect = config::parse(bytes, Purpose::Collect);
    for error in [&attach, &detach, &collect]
        .into_iter()
        .filter_map(|read| read.as_ref().err())
    {
        check_error(
            error,
            &[code::VERSION, code::UNSUPPORTED, code::DECODE, code::CONFIG],
        );
    }
    if let Ok(attach) = &attach {
        let used = |config: &Config| (config.version, config.socket.clone(), config.timeout);
        assert_eq!(
            Ok(used(attach)),
            detach.as_ref().map(used),
            "what ADD takes, DEL must take alike, or it leaks"
        );
        assert_eq!(attach.version, config::version_or_newest(bytes));
    }
    if let Ok(config) = &detach {
        match config.prev_result.as_ref().map(previous::parse) {
            Some(Ok(previous)) => check_previous(&previous),
            Some(Err(error)) => check_error(&error, &[code::CONFIG]),
            None => {}
        }
    }
    if let Err(error) = config::version_asked_with(bytes) {
        check_error(&error, &[code::DECODE, code::CONFIG]);
    }
}

fn check_previous(previous: &Previous) {
    for ifname in ["eth0", "net1"] {
        let id = AttachmentId {
            container_id: "c".to_owned(),
            ifname: ifname.to_owned(),
        };
        match previous.check(id, "/run/netns/a".to_owned()) {
            Ok(check) => assert!(!check.addresses.is_empty()),
            Err(error) => check_error(&error, &[code::CONFIG]),
        }
        if let Err(error) = previous.check_free(ifname, "/run/netns/a") {
            check_error(&error, &[code::CONFIG]);
        }
    }
    for version in Version::ALL {
        for list in ["interfaces", "ips", "routes"] {
            let objects = previous.list(list, version);
            assert!(objects.iter().all(serde_json::Value::is_object), "{list}");
        }
    }
}

/// The environment: `NAME=VALUE`, with a NUL after each.
pub fn environment(bytes: &[u8]) {
    let variables: BTreeMap<&[u8], &[u8]> = bytes
        .split(|byte| *byte == 0)
        .filter_map(|variable| {
            let at = variable.iter().position(|byte| *byte == b'=')?;
            Some((&variable[..at], &variable[at + 1..]))
        })
        .collect();
    let lookup = |name: &str| {
        let value = variables.get(name.as_bytes())?;
        Some(OsString::from_vec(value.to_vec()))
    };
    match environment::parse(&lookup) {
        Ok(invocation) => check_invocation(&invocation),
        Err(error) => check_error(&error, &[code::ENVIRONMENT]),
    }
}

fn check_invocation(invocation: &Invocation) {
    match invocation {
        Invocation::Add { id, netns, args } => {
            check_id(id);
            check_netns(netns);
            let named = |text: &str| !text.is_empty() && !text.contains('/');
            let pod = args.pod.as_ref();
            assert!(
                pod.is_none_or(|pod| named(&pod.namespace) && named(&pod.name)),
                "{pod:?}"
            );
        }
        Invocation::Del(id) => check_id(id),
        Invocation::Check { id, netns } => {
            check_id(id);
            check_netns(netns);
        }
        Invocation::Gc | Invocation::Status | Invocation::Version => {}
    }
}

/// What becomes the name of a file and of an interface.
fn check_id(id: &AttachmentId) {
    let container = &id.container_id;
    assert!((1..=CONTAINER_ID_MAX).contains(&container.len()), "{container:?}");
    assert!(
        !container.contains(['/', '\0']) && !container.starts_with('.'),
        "{container:?}"
    );
    assert!(
        (1..=15).contains(&id.ifname.len()) && !id.ifname.contains(['/', '\0', ' ']),
        "{:?}",
        id.ifname
    );
}

fn check_netns(path: &str) {
    assert!(path.starts_with('/') && path.len() <= 4096, "{path:?}");
}

/// The daemon's answer, as the plugin reads it and renders it for the runtime, in each version.
pub fn response(bytes: &[u8]) {
    let response = match client::decode(bytes) {
        Ok(response) => response,
        Err(reason) => return assert!(reason.len() <= crate::ERROR_MAX, "{} bytes", reason.len()),
    };
    let line = serde_json::to_vec(&response).expect("what was read can be written");
    assert_eq!(
        client::decode(&line).as_ref(),
        Ok(&response),
        "it is read as it was written"
    );
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let version = Version::parse(version).expect("a version that is spoken");
        match &response {
            Response::Added(added) => {
                let asked = result::Asked {
                    version,
                    ifname: "eth0",
                    netns: "/run/netns/a",
                    dns: &json!({}),
                    previous: &Previous::default(),
                };
                let rendered = result::added(&asked, added);
                assert_eq!(rendered["ips"].as_array().map(Vec::len), Some(added.ips.len()));
            }
            Response::Error(error) => {
                let rendered = result::failed(version, error);
                assert_eq!(rendered["code"], error.code);
            }
            _ => {}
        }
    }
}
