//! What is different between two observations of the kernel. An observation of a node with a thousand peers takes half
//! a megabyte and comes every minute, mostly with nothing new: written whole, it would leave a recording no room for
//! anything else.

use meshd_model::PublicKey;
use meshd_model::kernel::{KernelState, PeerState, PodLinkState, Route};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Leads from one observation to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelDelta {
    /// The parts that are small on any node: all of them, where one is different. What is large is empty here.
    small: Option<Box<KernelState>>,
    /// Those that are new or different; none of what is gone.
    peers: BTreeMap<PublicKey, Option<PeerState>>,
    pod_links: BTreeMap<String, Option<PodLinkState>>,
    new_routes: BTreeSet<Route>,
    gone_routes: BTreeSet<Route>,
}

impl KernelDelta {
    /// What leads from `before` to `after`.
    #[must_use]
    pub fn between(before: &KernelState, after: &KernelState) -> Self {
        let (old, new) = (small(before), small(after));
        Self {
            small: (old != new).then(|| Box::new(new)),
            peers: differing(&before.peers, &after.peers),
            pod_links: differing(&before.pod_links, &after.pod_links),
            new_routes: after.routes.difference(&before.routes).cloned().collect(),
            gone_routes: before.routes.difference(&after.routes).cloned().collect(),
        }
    }

    /// Makes of the observation before the one after.
    pub fn apply(&self, to: &mut KernelState) {
        if let Some(small) = &self.small {
            let large = std::mem::replace(to, (**small).clone());
            to.peers = large.peers;
            to.pod_links = large.pod_links;
            to.routes = large.routes;
        }
        change(&self.peers, &mut to.peers);
        change(&self.pod_links, &mut to.pod_links);
        to.routes.retain(|route| !self.gone_routes.contains(route));
        to.routes.extend(self.new_routes.iter().cloned());
    }
}

/// Without what grows with the cluster or the pods. All fields are named, so that a new one is not forgotten.
fn small(state: &KernelState) -> KernelState {
    KernelState {
        firewall: state.firewall.clone(),
        forward_chains: state.forward_chains.clone(),
        device: state.device.clone(),
        rules: state.rules.clone(),
        underlay: state.underlay.clone(),
        peers: BTreeMap::new(),
        pod_links: BTreeMap::new(),
        routes: BTreeSet::new(),
    }
}

fn differing<K: Ord + Clone, V: PartialEq + Clone>(
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
) -> BTreeMap<K, Option<V>> {
    let gone = before.keys().filter(|k| !after.contains_key(k));
    let new = after.iter().filter(|(k, v)| before.get(k) != Some(v));
    gone.map(|k| (k.clone(), None))
        .chain(new.map(|(k, v)| (k.clone(), Some(v.clone()))))
        .collect()
}

fn change<K: Ord + Clone, V: Clone>(changes: &BTreeMap<K, Option<V>>, to: &mut BTreeMap<K, V>) {
    for (key, value) in changes {
        match value {
            Some(value) => to.insert(key.clone(), value.clone()),
            None => to.remove(key),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshd_model::kernel::{RouteTarget, TABLE_MAIN, UnderlayAddress};

    fn state(peers: std::ops::Range<u8>) -> KernelState {
        let peer = |k: u8| PeerState {
            endpoint: Some(([192, 0, 2, k], 51820).into()),
            allowed_ips: BTreeSet::from([format!("10.244.{k}.0/24").parse().unwrap()]),
            keepalive: None,
            last_handshake: None,
            rx_bytes: u64::from(k),
            tx_bytes: 0,
        };
        let route = |k: u8| Route {
            dst: format!("10.244.{k}.0/24").parse().unwrap(),
            table: TABLE_MAIN,
            metric: 50,
            target: RouteTarget::Unreachable,
        };
        KernelState {
            peers: peers.clone().map(|k| (PublicKey([k; 32]), peer(k))).collect(),
            routes: peers.map(route).collect(),
            ..KernelState::default()
        }
    }

    #[test]
    fn a_delta_leads_from_one_observation_to_the_next_and_is_small_where_they_are_alike() {
        let mut other = state(20..90);
        other.peers.get_mut(&PublicKey([50; 32])).unwrap().rx_bytes += 1;
        other.underlay.push(UnderlayAddress {
            address: [192, 0, 2, 1].into(),
            ifname: "eth0".into(),
            mtu: 1500,
            default_route: false,
            passing: false,
        });
        let states = [
            KernelState::default(),
            state(1..90),
            other,
            state(1..90),
            KernelState::default(),
        ];
        for pair in states.windows(2) {
            let delta = KernelDelta::between(&pair[0], &pair[1]);
            let mut bytes = Vec::new();
            ciborium::into_writer(&delta, &mut bytes).unwrap();
            let read: KernelDelta = ciborium::from_reader(bytes.as_slice()).unwrap();
            let mut at = pair[0].clone();
            read.apply(&mut at);
            assert_eq!(at, pair[1]);
        }
        assert_eq!(
            KernelDelta::between(&state(1..9), &state(1..9)),
            KernelDelta::default()
        );
        let one = KernelDelta::between(&states[1], &states[2]);
        assert_eq!(
            (one.peers.len(), one.gone_routes.len(), one.new_routes.len()),
            (20, 19, 0)
        );
    }
}
