//! The annotation codec against arbitrary nodes and arbitrary texts.

use ipnetwork::IpNetwork;
use meshd_model::net::canonical;
use meshd_model::node::PROTOCOL_VERSION;
use meshd_model::{AnnotationProblem, NodeAnnotations, PublicKey};
use meshd_translate::annotations::{ALL, ENTRIES_MAX, MTU_MIN};
use meshd_translate::{decode, encode};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(IpAddr::from)
    ]
}

fn prefix() -> impl Strategy<Value = IpNetwork> {
    (address(), any::<u8>()).prop_map(|(address, length)| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        canonical(IpNetwork::new(address, length % (most + 1)).unwrap())
    })
}

fn several<T: Ord + std::fmt::Debug>(
    one: impl Strategy<Value = T>,
    least: usize,
) -> impl Strategy<Value = Vec<T>> {
    prop::collection::btree_set(one, least..=ENTRIES_MAX)
        .prop_map(|set: BTreeSet<T>| set.into_iter().collect())
}

prop_compose! {
    fn node()(
        key in any::<[u8; 32]>().prop_filter("all zero", |k| *k != [0; 32]),
        listen_port in 1..=u16::MAX,
        endpoints in several(address(), 1),
        node_addresses in several(address(), 0),
        mtu in MTU_MIN..=u16::MAX,
        pod_cidrs in several(prefix(), 0),
    ) -> NodeAnnotations {
        NodeAnnotations {
            public_key: PublicKey(key), listen_port, endpoints, node_addresses, mtu, pod_cidrs,
            protocol_version: PROTOCOL_VERSION,
        }
    }
}

/// A text that is nearly right more often than noise is.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[0-9a-f:.,/ +-]{0,80}",
        "([0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}(/[0-9]{1,3})?,?){0,70}",
        "[A-Za-z0-9+/]{43}=",
        "[0-9]{1,6}",
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(node in node()) {
        let written = encode(&node);
        prop_assert_eq!(decode(&written), Ok(node));
    }

    #[test]
    fn any_text_is_read_or_refused_in_few_words(
        node in node(),
        changes in prop::collection::btree_map(prop::sample::select(&ALL[..]), prop::option::of(text()), 0..4),
        others in prop::collection::btree_map(any::<String>(), any::<String>(), 0..4),
    ) {
        let mut annotations: BTreeMap<String, String> = encode(&node);
        annotations.extend(others);
        for (key, change) in changes {
            match change {
                Some(text) => drop(annotations.insert(key.to_owned(), text)),
                None => drop(annotations.remove(key)),
            }
        }
        match decode(&annotations) {
            Ok(read) => for (key, value) in encode(&read) {
                prop_assert_eq!(Some(&value), annotations.get(&key), "two texts mean the same");
            },
            Err(problem) => {
                let text = problem.to_string();
                prop_assert!(text.len() < 1000 && !text.contains(char::is_control), "{:?}", text);
                prop_assert_ne!(problem, AnnotationProblem::Absent);
            }
        }
    }
}
