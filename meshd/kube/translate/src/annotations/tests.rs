use super::*;
use meshd_model::PublicKey;

fn sample() -> NodeAnnotations {
    NodeAnnotations {
        public_key: PublicKey([7; 32]),
        listen_port: 51820,
        endpoints: vec!["192.168.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        node_addresses: vec!["192.168.0.1".parse().unwrap()],
        mtu: 1420,
        pod_cidrs: vec![
            "10.244.1.0/24".parse().unwrap(),
            "fd00:244:0:1::/64".parse().unwrap(),
        ],
        protocol_version: PROTOCOL_VERSION,
    }
}

fn with(key: &str, value: &str) -> Result<NodeAnnotations, AnnotationProblem> {
    let mut annotations = encode(&sample());
    annotations.insert(key.into(), value.into());
    decode(&annotations)
}

#[test]
fn what_is_written_is_read_back_beside_annotations_of_others() {
    let mut annotations = encode(&sample());
    assert_eq!(annotations.len(), ALL.len());
    annotations.insert("a.example/x".into(), "y".repeat(1 << 20));
    annotations.insert("meshd.dev/of-a-later-version".into(), "?".into());
    assert_eq!(decode(&annotations), Ok(sample()));
}

#[test]
fn nothing_and_too_little_are_told_apart() {
    let other = BTreeMap::from([("example.org/a".to_owned(), "b".to_owned())]);
    assert_eq!(decode(&other), Err(AnnotationProblem::Absent));
    for key in ALL {
        let mut annotations = encode(&sample());
        annotations.remove(key);
        assert_eq!(
            decode(&annotations),
            Err(AnnotationProblem::Missing { key: key.into() })
        );
    }
}

#[test]
fn another_version_is_reported_before_anything_else() {
    assert_eq!(with(PROTOCOL, "2"), Err(AnnotationProblem::Version { found: 2 }));
}

#[test]
fn what_merely_looks_right_is_refused() {
    for (key, value) in [
        (PUBLIC_KEY, ""),
        (PUBLIC_KEY, "AAAA"),
        (PUBLIC_KEY, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        (LISTEN_PORT, "0"),
        (LISTEN_PORT, "65536"),
        (LISTEN_PORT, "+1"),
        (LISTEN_PORT, "01"),
        (LISTEN_PORT, " 1"),
        (LISTEN_PORT, "٣"),
        (ENDPOINTS, ""),
        (ENDPOINTS, ","),
        (ENDPOINTS, "1.2.3.4,"),
        (ENDPOINTS, "1.2.3.4, 1.2.3.5"),
        (ENDPOINTS, "1.2.3.4,1.2.3.4"),
        (ENDPOINTS, "01.2.3.4"),
        (ENDPOINTS, "FD00::1"),
        (ENDPOINTS, "fd00:0::1"),
        (ENDPOINTS, "host.example"),
        (NODE_ADDRESSES, "1.2.3.4:51820"),
        (MTU, "67"),
        (MTU, "1420 "),
        (POD_CIDRS, "10.244.1.7/24"),
        (POD_CIDRS, "10.244.1.0"),
        (POD_CIDRS, "10.244.1.0/33"),
        (POD_CIDRS, "10.244.1.0/024"),
        (POD_CIDRS, "10.244.0.0/255.255.0.0"),
        (PROTOCOL, "one"),
    ] {
        let problem = with(key, value).expect_err(value);
        assert!(
            matches!(&problem, AnnotationProblem::Malformed { key: k, .. } if k == key),
            "{value}: {problem}"
        );
    }
}

#[test]
fn the_reason_says_what_it_should_have_been() {
    let text = with(POD_CIDRS, "10.244.1.7/24").unwrap_err().to_string();
    assert!(text.contains("10.244.1.0/24"), "{text}");
}

#[test]
fn lists_totals_and_quotes_are_bounded() {
    let many: Vec<String> = (0..=ENTRIES_MAX).map(|i| format!("10.0.0.{i}")).collect();
    assert!(with(ENDPOINTS, &many[1..].join(",")).is_ok());
    assert!(
        with(ENDPOINTS, &many.join(","))
            .unwrap_err()
            .to_string()
            .contains("more than 64")
    );
    let text = with("meshd.dev/zz", &"x".repeat(TOTAL_MAX))
        .unwrap_err()
        .to_string();
    assert!(text.contains("16384 bytes") && text.len() < 300, "{text}");
    let text = with(ENDPOINTS, "\u{1b}[2J\u{202e}\n").unwrap_err().to_string();
    assert!(!text.contains(['\u{1b}', '\n', '\u{202e}']), "{text:?}");
}
