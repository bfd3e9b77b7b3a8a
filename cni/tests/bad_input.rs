//! What a runtime, an administrator or an attacker may get wrong. No daemon is there: each is refused before one is
//! asked, or else the error would be another.

mod common;

use common::{config, environment, run, run_with, with};
use meshd_cni::plugin;
use serde_json::{Value, json};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

fn absent() -> Value {
    config(Path::new("/nonexistent/meshd.sock"))
}

/// The verb's variables with one replaced, or taken away.
fn replaced(verb: &str, name: &'static str, value: Option<&OsStr>) -> Vec<(&'static str, OsString)> {
    let others = environment(verb).into_iter().filter(|(other, _)| *other != name);
    let mut variables: Vec<_> = others
        .map(|(name, value)| (name, OsString::from(value)))
        .collect();
    variables.extend(value.map(|value| (name, value.to_owned())));
    variables
}

#[test]
fn missing_variables_are_named_all_at_once() {
    let stdin = absent().to_string();
    let needs = [
        ("ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"][..]),
        ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"]),
        ("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
    ];
    for (verb, names) in needs {
        let all = run_with(&[("CNI_COMMAND", verb)], stdin.as_bytes()).failed(4);
        for name in names {
            let missing = format!("{name} is missing");
            assert!(all["msg"].as_str().unwrap().contains(&missing), "{all}");
            for value in [None, Some(OsStr::new(""))] {
                let one = run_with(&replaced(verb, name, value), stdin.as_bytes()).failed(4);
                assert!(
                    one["msg"].as_str().unwrap().ends_with(&format!(": {missing}")),
                    "{one}"
                );
            }
        }
    }
    let none: [(&str, &str); 0] = [];
    let error = run_with(&none, stdin.as_bytes()).failed(4);
    assert!(
        error["msg"].as_str().unwrap().contains("CNI_COMMAND is missing"),
        "{error}"
    );
}

#[test]
fn invalid_variables_are_refused() {
    let long_id = "a".repeat(201);
    let long_args = format!("K8S_POD_NAMESPACE=a;K8S_POD_NAME={}", "b".repeat(254));
    let invalid: [(&str, &[&[u8]]); 5] = [
        (
            "CNI_COMMAND",
            &[b"add", b"REMOVE", b"STATE", b"ADD ", b"\xff", b"\n"],
        ),
        (
            "CNI_CONTAINERID",
            &[
                b"../x",
                b".hidden",
                b"-x",
                b"a/b",
                b"a b",
                b"a\xff",
                "é".as_bytes(),
                long_id.as_bytes(),
            ],
        ),
        (
            "CNI_IFNAME",
            &[
                b".",
                b"..",
                b"a/b",
                b"a:b",
                b"a b",
                b"a\tb",
                b"a\x01",
                b"sixteen-bytes-xx",
                b"\xc3\x28",
            ],
        ),
        ("CNI_NETNS", &[b"relative/path", b"host", b"/run/\xff"]),
        (
            "CNI_ARGS",
            &[
                b"novalue",
                b"K8S_POD_NAME=only",
                b"K8S_POD_NAMESPACE=only",
                b"K8S_POD_NAMESPACE=a;K8S_POD_NAME=../b",
                b"K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_UID=x/y",
                b"\xff",
                long_args.as_bytes(),
            ],
        ),
    ];
    for (name, values) in invalid {
        for value in values {
            let variables = replaced("ADD", name, Some(OsStr::from_bytes(value)));
            let error = run_with(&variables, absent().to_string().as_bytes()).failed(4);
            let msg = error["msg"].as_str().unwrap();
            assert!(msg.contains(name) && msg.len() < 600, "{value:?}: {error}");
        }
    }
}

#[test]
fn longest_valid_variables_reach_the_daemon() {
    let values = [
        ("CNI_CONTAINERID", "a".repeat(200)),
        ("CNI_IFNAME", "fifteen-bytes-x".to_owned()),
        ("CNI_ARGS", ";;IgnoreUnknown=1;;X=;Y=a=b;".to_owned()),
        ("CNI_NETNS", format!("/{}", "n".repeat(4095))),
    ];
    for (name, value) in values {
        let variables = replaced("ADD", name, Some(OsStr::new(&value)));
        run_with(&variables, absent().to_string().as_bytes()).failed(11);
    }
}

#[test]
fn what_is_no_json_cannot_be_decoded() {
    let deep = "[".repeat(100_000);
    let inputs: [&[u8]; 7] = [
        b"",
        b"{",
        b"rubbish",
        b"{\"cniVersion\":\"1.0.0\"} trailing",
        b"{\"name\":\"\xff\xfe\"}",
        b"\xef\xbb\xbf{}",
        deep.as_bytes(),
    ];
    for input in inputs {
        for verb in ["ADD", "DEL", "CHECK"] {
            run_with(&environment(verb), input).failed(6);
        }
    }
}

#[test]
fn oversized_input_is_refused_soon() {
    let name = "x".repeat(8 << 20);
    for verb in ["ADD", "DEL", "CHECK", "VERSION"] {
        let run = run_with(
            &environment(verb),
            with(absent(), &json!({ "name": name })).to_string().as_bytes(),
        );
        let error = run.failed(6);
        assert!(
            error["details"].as_str().unwrap().contains("1048576 bytes"),
            "{error}"
        );
        assert!(run.took < Duration::from_secs(5), "{run:?}");
    }
}

#[test]
fn invalid_configurations_say_which_key() {
    let long_path = format!("/{}", "x".repeat(107));
    let invalid = [
        ("name", json!({ "name": "" })),
        ("name", json!({ "name": "../x" })),
        ("name", json!({ "name": 1 })),
        ("cniVersion", json!({ "cniVersion": 1 })),
        ("socket", json!({ "socket": "relative" })),
        ("socket", json!({ "socket": null })),
        ("socket", json!({ "socket": long_path })),
        ("timeoutSeconds", json!({ "timeoutSeconds": 0 })),
        ("timeoutSeconds", json!({ "timeoutSeconds": -1 })),
        ("timeoutSeconds", json!({ "timeoutSeconds": 1e300 })),
        ("timeoutSeconds", json!({ "timeoutSeconds": "10" })),
        ("dns", json!({ "dns": [] })),
        ("dns", json!({ "dns": { "nameservers": "10.0.0.1" } })),
        ("dns", json!({ "dns": { "domain": ["a"] } })),
        ("dns", json!({ "dns": { "other": 1 } })),
    ];
    for (key, keys) in invalid {
        let error = run("ADD", &with(absent(), &keys)).failed(7);
        assert!(
            error["details"].as_str().unwrap().contains(key),
            "{keys}: {error}"
        );
        assert_eq!(
            error["cniVersion"],
            if key == "cniVersion" { "1.1.0" } else { "1.0.0" }
        );
    }
    let mut nameless = absent();
    nameless.as_object_mut().unwrap().remove("name");
    run("ADD", &nameless).failed(7);
    run("ADD", &json!([])).failed(7);
    run("ADD", &json!("text")).failed(7);
}

#[test]
fn keys_that_would_be_ignored_are_refused_by_name_and_value() {
    let unsupported = [
        ("timeout", json!({ "timeout": 5 })),
        ("Socket", json!({ "Socket": "/x" })),
        ("plugins", json!({ "plugins": [] })),
        ("ipam", json!({ "ipam": { "type": "host-local" } })),
        ("cgroupPath", json!({ "runtimeConfig": { "cgroupPath": "/a" } })),
    ];
    for (key, keys) in unsupported {
        let error = run("ADD", &with(absent(), &keys)).failed(2);
        assert!(
            error["msg"].as_str().unwrap().contains(&format!("{key:?}")),
            "{error}"
        );
    }
}

#[test]
fn versions_that_are_not_spoken_are_refused() {
    for version in [
        "",
        "0.1.0",
        "0.2.0",
        "1.0",
        "1.0.1",
        "2.0.0",
        "1.0.0\u{0}",
        "latest",
    ] {
        for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
            let error = run(verb, &with(absent(), &json!({ "cniVersion": version }))).failed(1);
            assert_eq!(error["cniVersion"], "1.1.0");
            assert!(
                error["details"].as_str().unwrap().contains("1.0.0, 1.1.0"),
                "{error}"
            );
        }
    }
    let mut unversioned = absent();
    unversioned.as_object_mut().unwrap().remove("cniVersion");
    run("ADD", &unversioned).failed(1);
    let old = with(absent(), &json!({ "cniVersion": "0.3.1", "prevResult": {} }));
    run("CHECK", &old).failed(1);
    for verb in ["GC", "STATUS"] {
        let error = run(verb, &with(absent(), &json!({ "cniVersion": "1.0.0" }))).failed(1);
        assert!(error["msg"].as_str().unwrap().contains(verb), "{error}");
    }
}

/// What asks for an address or a MAC and is none is refused by its place; never is another given in its stead.
#[test]
fn requests_that_make_no_sense_are_refused() {
    let wrong = [
        (
            "runtimeConfig.ips",
            json!({ "runtimeConfig": { "ips": "10.244.1.7" } }),
        ),
        (
            "runtimeConfig.ips",
            json!({ "runtimeConfig": { "ips": ["10.244.1.300"] } }),
        ),
        ("runtimeConfig.ips", json!({ "runtimeConfig": { "ips": [7] } })),
        ("args.cni.ips", json!({ "args": { "cni": { "ips": ["x"] } } })),
        (
            "runtimeConfig.mac",
            json!({ "runtimeConfig": { "mac": "02:00:00:00:00" } }),
        ),
        ("runtimeConfig.mac", json!({ "runtimeConfig": { "mac": 5 } })),
        (
            "args.cni.mac",
            json!({ "args": { "cni": { "mac": "0200.0000.0001" } } }),
        ),
        (
            "one address of each family",
            json!({ "runtimeConfig": { "ips": ["10.244.1.7", "10.244.1.8/24"] } }),
        ),
    ];
    for (place, keys) in wrong {
        let error = run("ADD", &with(absent(), &keys)).failed(7);
        assert!(error["details"].as_str().unwrap().contains(place), "{error}");
    }
    for args in [
        "IP=10.0.0",
        "MAC=1",
        "Foo=1",
        "IgnoreUnknown=0;Foo=1",
        "IgnoreUnknown=yes",
    ] {
        let variables = replaced("ADD", "CNI_ARGS", Some(OsStr::new(args)));
        let error = run_with(&variables, absent().to_string().as_bytes()).failed(4);
        assert!(error["msg"].as_str().unwrap().contains("CNI_ARGS"), "{error}");
    }
}

#[test]
fn an_interface_of_its_name_before_it_is_refused() {
    let previous = json!({ "interfaces": [{ "name": "eth0", "sandbox": "/run/netns/pod" }] });
    let error = run("ADD", &with(absent(), &json!({ "prevResult": previous }))).failed(7);
    assert!(error["details"].as_str().unwrap().contains("eth0"), "{error}");
    for none in [
        json!("text"),
        json!({ "interfaces": {} }),
        json!({ "ips": [{ "address": "x" }] }),
    ] {
        let error = run("ADD", &with(absent(), &json!({ "prevResult": none }))).failed(7);
        assert!(
            error["details"].as_str().unwrap().contains("prevResult"),
            "{error}"
        );
    }
}

#[test]
fn gc_needs_to_understand_what_stays() {
    let newest = with(absent(), &json!({ "cniVersion": "1.1.0" }));
    for list in [
        json!("x"),
        json!([{}]),
        json!([{ "containerID": "c" }]),
        json!([7]),
    ] {
        let config = with(newest.clone(), &json!({ "cni.dev/valid-attachments": list }));
        let error = run("GC", &config).failed(7);
        assert!(
            error["details"]
                .as_str()
                .unwrap()
                .contains("cni.dev/valid-attachments"),
            "{error}"
        );
    }
    let mut nameless = newest;
    nameless.as_object_mut().unwrap().remove("name");
    run("GC", &nameless).failed(7);
}

#[test]
fn check_needs_a_result_that_names_the_interface() {
    let pod_end = json!({ "name": "eth0", "sandbox": "/run/netns/pod" });
    let results = [
        json!(null),
        json!("text"),
        json!({}),
        json!({ "interfaces": null, "ips": null }),
        json!({ "interfaces": [pod_end] }),
        json!({ "interfaces": [pod_end], "ips": [{ "address": "10.0.0.2/32" }] }),
        json!({ "interfaces": [pod_end], "ips": [{ "address": "10.0.0.2/32", "interface": 5 }] }),
        json!({ "interfaces": [pod_end], "ips": [{ "address": "10.0.0.2/32", "interface": -1 }] }),
        json!({ "interfaces": [pod_end], "ips": [{ "address": "10.0.0.2/33", "interface": 0 }] }),
        json!({ "interfaces": [{ "name": "eth0" }], "ips": [{ "address": "10.0.0.2/32", "interface": 0 }] }),
        json!({ "interfaces": [{ "name": "net1", "sandbox": "/x" }], "ips": [{ "address": "10.0.0.2/32", "interface": 0 }] }),
    ];
    for result in results {
        let error = run("CHECK", &with(absent(), &json!({ "prevResult": result }))).failed(7);
        assert!(
            error["details"].as_str().unwrap().contains("prevResult"),
            "{error}"
        );
    }
}

/// What is wrong may be long; what is said of it is not.
#[test]
fn errors_are_short() {
    let long = "x".repeat(1 << 19);
    let previous = |value: Value| with(absent(), &json!({ "prevResult": value }));
    let runs = [
        run("ADD", &with(absent(), &json!({ "cniVersion": [long] }))),
        run("ADD", &with(absent(), &json!({ "cniVersion": long }))),
        run("ADD", &with(absent(), &json!({ &long: 1 }))),
        run("ADD", &with(absent(), &json!({ "other": long }))),
        run("CHECK", &previous(json!(long))),
        run("CHECK", &previous(json!({ "ips": [{ "address": long }] }))),
    ];
    for run in runs {
        assert!(
            run.status == Some(1) && run.stdout.len() < 1500,
            "{} bytes",
            run.stdout.len()
        );
    }
}

/// A runtime that never ends its input is waited for as long as for all else, and no longer.
#[test]
fn endless_input_ends_at_the_deadline() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let variables = environment("ADD");
    let lookup = |name: &str| {
        let found = variables.iter().find(|(other, _)| *other == name)?;
        Some(OsString::from(&found.1))
    };
    let started = Instant::now().checked_sub(Duration::from_millis(9_700)).unwrap();
    let outcome = plugin::run(started, &lookup, Some(theirs));
    assert!(!outcome.success && started.elapsed() < Duration::from_secs(12));
    let error = outcome.output.unwrap();
    assert_eq!(error["code"], 5);
    assert!(error["details"].as_str().unwrap().contains("10 s"), "{error}");
    drop(ours);
}
