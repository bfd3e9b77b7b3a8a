//! Each verb as a runtime calls it, with a daemon that does its part.

mod common;

use common::{CONTAINER, Daemon, NETNS, environment, id, run, run_with, with};
use meshd_model::attachment::MacAddr;
use meshd_model::cni::{Add, Added, Call, Check, CniError, Gc, Response, Wants};
use meshd_model::{AttachmentId, PodRef};
use serde_json::{Value, json};

fn added() -> Added {
    Added {
        host_ifname: "mshp3f2a8c0d".to_owned(),
        host_mac: MacAddr([0xea, 0, 0, 0, 0, 1]),
        mac: MacAddr([0xea, 0, 0, 0, 0, 2]),
        ips: vec![
            ("10.244.1.2/32".parse().unwrap(), "169.254.1.1".parse().unwrap()),
            ("fd00:244:0:1::2/128".parse().unwrap(), "fe80::1".parse().unwrap()),
        ],
        mtu: 1420,
        secondary: false,
    }
}

/// ADD's result in CNI 1.0.0, as text that an operator could compare.
fn result() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            { "name": "mshp3f2a8c0d", "mac": "ea:00:00:00:00:01" },
            { "name": "eth0", "mac": "ea:00:00:00:00:02", "sandbox": NETNS },
        ],
        "ips": [
            { "address": "10.244.1.2/32", "gateway": "169.254.1.1", "interface": 1 },
            { "address": "fd00:244:0:1::2/128", "gateway": "fe80::1", "interface": 1 },
        ],
        "routes": [
            { "dst": "0.0.0.0/0", "gw": "169.254.1.1" },
            { "dst": "::/0", "gw": "fe80::1" },
        ],
        "dns": {},
    })
}

#[test]
fn add() {
    let daemon = Daemon::answering(&Response::Added(added()));
    assert_eq!(run("ADD", &daemon.config()).succeeded(), result());
    let request = daemon.request();
    let pod = PodRef {
        namespace: "default".to_owned(),
        name: "web-0".to_owned(),
        uid: "0b1c".to_owned(),
    };
    let call = Add {
        id: id(),
        netns: NETNS.to_owned(),
        pod: Some(pod),
        wants: Wants::default(),
        token: 0,
        network: "meshd".to_owned(),
    };
    let Call::Add(mut sent) = request.call else {
        panic!("no ADD")
    };
    assert_ne!(std::mem::take(&mut sent.token), 0, "drawn for this call");
    assert_eq!(sent, call);
    assert!(
        (5_000..=10_000).contains(&request.deadline_ms),
        "{}",
        request.deadline_ms
    );
}

#[test]
fn the_result_is_of_the_version_asked_for() {
    let daemon = Daemon::answering(&Response::Added(added()));
    let of =
        |version: &str| run("ADD", &with(daemon.config(), &json!({ "cniVersion": version }))).succeeded();

    let mut newest = result();
    newest["cniVersion"] = json!("1.1.0");
    newest["interfaces"][0]["mtu"] = json!(1420);
    newest["interfaces"][1]["mtu"] = json!(1420);
    assert_eq!(of("1.1.0"), newest);

    for version in ["0.3.0", "0.3.1", "0.4.0"] {
        let mut older = result();
        older["cniVersion"] = json!(version);
        older["ips"][0]["version"] = json!("4");
        older["ips"][1]["version"] = json!("6");
        assert_eq!(of(version), older);
    }
}

#[test]
fn dns_is_passed_through_and_the_runtimes_keys_are_tolerated() {
    let daemon = Daemon::answering(&Response::Added(added()));
    let dns =
        json!({ "nameservers": ["10.96.0.10"], "domain": "a.b", "search": ["c.d"], "options": ["ndots:5"] });
    let config = with(
        daemon.config(),
        &json!({
            "dns": dns,
            "runtimeConfig": { "portMappings": [] },
            "capabilities": { "portMappings": true },
            "args": { "cni": {} },
            "ipMasq": false,
            "ipam": {},
            "prevResult": null,
            "disableCheck": true,
            "cni.dev/attachments": [],
        }),
    );
    assert_eq!(run("ADD", &config).succeeded()["dns"], dns);
}

#[test]
fn one_family_gives_one_address_and_one_route() {
    let mut only_v6 = added();
    only_v6.ips.remove(0);
    let daemon = Daemon::answering(&Response::Added(only_v6));
    let result = run("ADD", &daemon.config()).succeeded();
    assert_eq!(result["routes"], json!([{ "dst": "::/0", "gw": "fe80::1" }]));
    assert_eq!(result["ips"].as_array().unwrap().len(), 1);
}

#[test]
fn add_of_a_container_without_a_pod() {
    let daemon = Daemon::answering(&Response::Added(added()));
    let mut environment = environment("ADD");
    environment.retain(|(name, _)| *name != "CNI_ARGS");
    run_with(&environment, daemon.config().to_string().as_bytes()).succeeded();
    let Call::Add(add) = daemon.request().call else {
        panic!("no ADD");
    };
    assert_eq!(add.pod, None);
}

#[test]
fn del() {
    let daemon = Daemon::answering(&Response::Done);
    let config = with(daemon.config(), &json!({ "prevResult": result() }));
    assert_eq!(run("DEL", &config).succeeded(), Value::Null);
    assert_eq!(daemon.request().call, Call::Del(id()));
}

/// What DEL does not need may be missing or wrong: a lease must not leak for it.
#[test]
fn del_needs_little() {
    let environment = [
        ("CNI_COMMAND", "DEL"),
        ("CNI_CONTAINERID", CONTAINER),
        ("CNI_IFNAME", "eth0"),
    ];
    let odd = json!({ "name": 7, "unheard-of": 1, "dns": "x", "ipam": { "type": "host-local" }, "prevResult": "x" });
    let daemon = Daemon::answering(&Response::Done);
    let config = with(daemon.config(), &odd);
    let run = run_with(&environment, config.to_string().as_bytes());
    assert_eq!(run.succeeded(), Value::Null);
    assert_eq!(daemon.request().call, Call::Del(id()));
}

#[test]
fn check() {
    let daemon = Daemon::answering(&Response::Done);
    let mut previous = result();
    // Another plugin of the list has added an interface of its own.
    previous["interfaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "name": "net1", "sandbox": NETNS }));
    previous["ips"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "address": "192.0.2.9/24", "interface": 2 }));
    let config = with(daemon.config(), &json!({ "prevResult": previous }));
    assert_eq!(run("CHECK", &config).succeeded(), Value::Null);
    let call = Check {
        id: id(),
        netns: NETNS.to_owned(),
        addresses: vec![
            "10.244.1.2/32".parse().unwrap(),
            "fd00:244:0:1::2/128".parse().unwrap(),
        ],
        mac: Some(MacAddr([0xea, 0, 0, 0, 0, 2])),
        mtu: None,
        routes: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
        // The host's end is found by its name, which is not the one of this result.
        host: None,
    };
    assert_eq!(daemon.request().call, Call::Check(call));
}

#[test]
fn gc() {
    let daemon = Daemon::answering(&Response::Done);
    let keys = json!({
        "cniVersion": "1.1.0",
        "cni.dev/valid-attachments": [
            { "containerID": CONTAINER, "ifname": "eth0" },
            { "containerID": "other", "ifname": "net1" },
        ],
        "unheard-of": 1,
    });
    let config = with(daemon.config(), &keys);
    let variables = [("CNI_COMMAND", "GC"), ("CNI_PATH", "/opt/cni/bin")];
    let run = run_with(&variables, config.to_string().as_bytes());
    assert_eq!(run.succeeded(), Value::Null);
    let other = AttachmentId {
        container_id: "other".to_owned(),
        ifname: "net1".to_owned(),
    };
    let call = Gc {
        network: "meshd".to_owned(),
        valid: vec![id(), other],
    };
    assert_eq!(daemon.request().call, Call::Gc(call));
    // The reference library writes null where no attachment is valid, and cnitool nothing at all.
    for keys in [json!({ "cni.dev/valid-attachments": null }), json!({})] {
        let daemon = Daemon::answering(&Response::Done);
        let config = with(with(daemon.config(), &json!({ "cniVersion": "1.1.0" })), &keys);
        run_with(&variables, config.to_string().as_bytes()).succeeded();
        assert!(matches!(daemon.request().call, Call::Gc(gc) if gc.valid.is_empty()));
    }
}

#[test]
fn status() {
    let daemon = Daemon::answering(&Response::Done);
    let config = with(daemon.config(), &json!({ "cniVersion": "1.1.0" }));
    let variables = [("CNI_COMMAND", "STATUS"), ("CNI_PATH", "/opt/cni/bin")];
    let run = run_with(&variables, config.to_string().as_bytes());
    assert_eq!(run.succeeded(), Value::Null);
    assert_eq!(daemon.request().call, Call::CniStatus);
    for code in [50, 51] {
        let daemon = Daemon::answering(&Response::Error(CniError {
            code,
            msg: "the WireGuard device is not up".to_owned(),
            details: "see meshctl status".to_owned(),
        }));
        let keys = json!({ "cniVersion": "1.1.0", "timeoutSeconds": 0.3 });
        let config = with(daemon.config(), &keys);
        let error = run_with(&variables, config.to_string().as_bytes()).failed(code);
        assert_eq!(error["msg"], "the WireGuard device is not up");
    }
}

/// Addresses from all places count, the same one twice is one; of MACs runtimeConfig's goes before the others.
#[test]
fn addresses_and_a_mac_may_be_asked_for() {
    let wants = |args: &str, keys: &Value| {
        let daemon = Daemon::answering(&Response::Added(added()));
        let mut variables = environment("ADD");
        variables.retain(|(name, _)| *name != "CNI_ARGS");
        variables.push(("CNI_ARGS", args.to_owned()));
        run_with(&variables, with(daemon.config(), keys).to_string().as_bytes()).succeeded();
        let Call::Add(add) = daemon.request().call else {
            panic!("no ADD")
        };
        add.wants
    };
    let asked = |ips: &[&str], mac: Option<&str>| Wants {
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        mac: mac.map(|mac| mac.parse().unwrap()),
        secondary: false,
    };
    let of_runtime = json!({ "runtimeConfig": { "ips": ["10.244.1.7/24", "fd00::7"], "mac": "02:00:00:00:00:07",
        "portMappings": [], "bandwidth": {} } });
    let both = asked(&["10.244.1.7", "fd00::7"], Some("02:00:00:00:00:07"));
    assert_eq!(
        wants("IgnoreUnknown=1;IP=10.244.1.7;MAC=02:00:00:00:00:01", &of_runtime),
        both
    );
    let of_args =
        json!({ "args": { "cni": { "ips": ["10.244.1.8"], "mac": "02:00:00:00:00:08", "labels": [] } } });
    assert_eq!(
        wants("", &of_args),
        asked(&["10.244.1.8"], Some("02:00:00:00:00:08"))
    );
    assert_eq!(
        wants("IP=10.244.1.9,fd00::9;MAC=02:00:00:00:00:09", &json!({})),
        asked(&["10.244.1.9", "fd00::9"], Some("02:00:00:00:00:09"))
    );
    assert_eq!(
        wants("IP=;MAC=;K8S_POD_INFRA_CONTAINER_ID=x", &json!({})),
        Wants::default()
    );
}

/// What came before stays, in the shape of the version that is spoken; indices are of the whole list.
#[test]
fn a_result_before_ours_is_kept() {
    let previous = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{ "name": "dummy0", "sandbox": NETNS, "mtu": 1500, "mac": "02:00:00:00:00:05" }],
        "ips": [{ "address": "192.0.2.9/24", "interface": 0, "version": "4" }],
        "routes": [{ "dst": "198.51.100.0/24", "gw": "192.0.2.1", "priority": 5 }],
        "dns": { "nameservers": ["192.0.2.53"] },
    });
    let of = |version: &str| {
        let daemon = Daemon::answering(&Response::Added(added()));
        let keys = json!({ "cniVersion": version, "prevResult": previous });
        let result = run("ADD", &with(daemon.config(), &keys)).succeeded();
        let Call::Add(add) = daemon.request().call else {
            panic!("no ADD")
        };
        assert!(!add.wants.secondary);
        result
    };
    let newest = of("1.1.0");
    assert_eq!(newest["interfaces"][0], previous["interfaces"][0]);
    assert_eq!(newest["interfaces"][2]["name"], "eth0");
    assert_eq!(
        newest["ips"][0],
        json!({ "address": "192.0.2.9/24", "interface": 0 })
    );
    assert_eq!(newest["ips"][1]["interface"], 2);
    assert_eq!(newest["routes"][0], previous["routes"][0]);
    assert_eq!(newest["routes"].as_array().unwrap().len(), 3);
    assert_eq!(newest["dns"], previous["dns"]);
    let older = of("0.4.0");
    assert_eq!(older["interfaces"][0].get("mtu"), None);
    assert_eq!(older["ips"][0]["version"], "4");
    assert_eq!(older["routes"][0].get("priority"), None);
}

#[test]
fn a_default_route_before_ours_is_left_alone() {
    let daemon = Daemon::answering(&Response::Added(Added {
        secondary: true,
        ..added()
    }));
    let previous = json!({ "routes": [{ "dst": "0.0.0.0/0", "gw": "192.0.2.1" }] });
    let result = run("ADD", &with(daemon.config(), &json!({ "prevResult": previous }))).succeeded();
    assert_eq!(result["routes"], previous["routes"]);
    let Call::Add(add) = daemon.request().call else {
        panic!("no ADD")
    };
    assert!(add.wants.secondary);
}

#[test]
fn version() {
    let supported = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    let asked_and_spoken: [(&[u8], &str); 5] = [
        (br#"{"cniVersion":"1.0.0"}"#, "1.0.0"),
        (br#"{"cniVersion":"0.4.0","name":"x"}"#, "0.4.0"),
        (br#"{"cniVersion":"9.9.9"}"#, "1.1.0"),
        (b"{}", "1.1.0"),
        (b"", "1.1.0"),
    ];
    for (asked, spoken) in asked_and_spoken {
        let answer = run_with(&[("CNI_COMMAND", "VERSION")], asked).succeeded();
        assert_eq!(
            answer,
            json!({ "cniVersion": spoken, "supportedVersions": supported })
        );
    }
    run_with(&[("CNI_COMMAND", "VERSION")], b"rubbish").failed(6);
}

#[test]
fn the_daemons_error_is_passed_on() {
    let error = CniError {
        code: 101,
        msg: "no IPv4 address is free".to_owned(),
        details: "253 are in use".to_owned(),
    };
    let daemon = Daemon::answering(&Response::Error(error));
    let config = with(daemon.config(), &json!({ "prevResult": result() }));
    let expected = json!({
        "cniVersion": "1.0.0",
        "code": 101,
        "msg": "no IPv4 address is free",
        "details": "253 are in use",
    });
    assert_eq!(run("ADD", &daemon.config()).failed(101), expected);
    assert_eq!(run("DEL", &config).failed(101), expected);
    assert_eq!(run("CHECK", &config).failed(101), expected);
}
