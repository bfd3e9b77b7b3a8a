//! IPAM's pool mode: blocks are claimed, published, handed out of, given back, and lost.

use crate::world::{World, add, config, pod};
use ipnetwork::IpNetwork;
use meshd_core::{BlockOp, CniCall, Config, Failure, Ipam, KubeAction, KubeEvent, Pool};
use meshd_model::block::Owner;
use meshd_model::cni::code;
use meshd_model::net::Family;
use meshd_model::{Block, NodeUid};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub(crate) const RETURN_AFTER: Duration = Duration::from_secs(600);
pub(crate) const REST: Duration = Duration::from_secs(60);

pub(crate) fn pool() -> Config {
    Config {
        cluster_pod_cidrs: vec![net("10.244.0.0/24"), net("fd00:244::/48")],
        ipam: Ipam {
            pool: Some(Pool {
                block_sizes: BTreeMap::from([(Family::V4, 28), (Family::V6, 122)]),
                return_after: RETURN_AFTER,
                rest: REST,
            }),
            ..Ipam::default()
        },
        ..config()
    }
}

pub(crate) fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn of(family: Family) -> impl Fn(&IpNetwork) -> bool {
    move |c| Family::of(c.network()) == family
}

impl World {
    /// A node of an otherwise empty cluster, whose Node has no pod CIDRs.
    pub(crate) fn pooled(config: Config) -> Self {
        let mut world = World::new(config);
        world.own.as_mut().unwrap().pod_cidrs.clear();
        world.sync(0);
        world
    }

    pub(crate) fn list_blocks(&mut self) {
        self.kube(KubeEvent::BlocksReset);
        for block in self.blocks.values().cloned().collect::<Vec<_>>() {
            self.kube(KubeEvent::BlockApplied(block));
        }
        self.kube(KubeEvent::BlocksSynced);
    }

    pub(crate) fn run_block(&mut self, action: KubeAction) {
        let KubeAction::Block { id, cidr, op } = action else {
            unreachable!("{action:?}")
        };
        let refused = |errno| {
            Err(Failure {
                errno,
                message: "refused".into(),
            })
        };
        let there = self.blocks.get(&cidr).map(|b| b.object.clone());
        let result = match &op {
            _ if self.kube_down => refused(None),
            BlockOp::Claim { .. } if there.is_some() => refused(Some(17)),
            BlockOp::Claim { uid } => {
                self.put_block(cidr, Some(uid.clone()));
                Ok(())
            }
            BlockOp::Release { object } if there.as_ref() == Some(object) => {
                self.blocks.get_mut(&cidr).unwrap().released = true;
                Ok(())
            }
            BlockOp::Delete { object } if there.as_ref() == Some(object) => {
                self.blocks.remove(&cidr);
                Ok(())
            }
            BlockOp::Release { .. } | BlockOp::Delete { .. } => refused(None),
        };
        let what = match op {
            BlockOp::Claim { .. } => "claim",
            BlockOp::Release { .. } => "release",
            BlockOp::Delete { .. } => "delete",
        };
        let succeeded = if result.is_ok() { "" } else { " failed" };
        self.done.push(format!("{what} {cidr}{succeeded}"));
        match result {
            Ok(()) => self.kube(KubeEvent::Applied(id)),
            Err(failure) => return self.kube(KubeEvent::Failed { id, failure }),
        }
        match self.blocks.get(&cidr).cloned() {
            Some(block) => self.kube(KubeEvent::BlockApplied(block)),
            None => self.kube(KubeEvent::BlockDeleted(cidr)),
        }
    }

    /// An object is made; the watch has not shown it.
    pub(crate) fn put_block(&mut self, cidr: IpNetwork, uid: Option<NodeUid>) {
        self.blocks_made += 1;
        let own = self.own.as_ref().map(|o| o.name.clone());
        let block = Block {
            cidr,
            object: format!("object-{}", self.blocks_made),
            created: 2000,
            owner: uid.map(|uid| Owner {
                node: own.unwrap(),
                uid,
            }),
            released: false,
        };
        self.blocks.insert(cidr, block);
    }

    /// The API server shows itself, but for these blocks of another node, of which the watch has not heard.
    fn sync_unseen(&mut self, cidrs: &[&str]) {
        self.tell_own();
        self.kube(KubeEvent::NodesSynced);
        self.kube(KubeEvent::PodsSynced);
        self.list_blocks();
        for cidr in cidrs {
            self.put_block(net(cidr), Some("uid-other".into()));
        }
        self.run();
    }

    pub(crate) fn take_block(&mut self, cidr: &str, uid: &str) {
        self.put_block(net(cidr), Some(uid.into()));
        let block = self.blocks[&net(cidr)].clone();
        self.kube(KubeEvent::BlockApplied(block));
    }

    pub(crate) fn own_blocks(&self, family: Family) -> Vec<IpNetwork> {
        let own = &self.own.as_ref().unwrap().uid;
        let mine = self
            .blocks
            .values()
            .filter(|b| b.owner.as_ref().is_some_and(|o| o.uid == *own));
        mine.map(|b| b.cidr).filter(of(family)).collect()
    }

    pub(crate) fn pod_cidrs(&self) -> Vec<IpNetwork> {
        self.agent.status(self.now).pod_cidrs
    }

    pub(crate) fn published(&self) -> Vec<IpNetwork> {
        let own = self.own.as_ref().unwrap();
        own.published
            .as_ref()
            .map(|p| p.pod_cidrs.clone())
            .unwrap_or_default()
    }

    pub(crate) fn did(&self, what: &str) -> Vec<String> {
        self.done
            .iter()
            .filter(|d| d.starts_with(what))
            .cloned()
            .collect()
    }
}

#[test]
fn a_node_claims_a_block_of_each_family_publishes_them_and_hands_out_of_them() {
    let mut world = World::pooled(pool());
    assert!(world.agent.is_ready(), "{:#?}", world.problems());
    let cidrs = world.pod_cidrs();
    assert_eq!(cidrs.len(), 2);
    assert_eq!(world.published(), cidrs);
    assert!(cidrs.iter().all(|c| world.blocks.contains_key(c)));
    let added = world.add("a").unwrap();
    assert_eq!(added.ips.len(), 2);
    for (address, _) in &added.ips {
        assert!(
            cidrs.iter().any(|c| c.contains(address.ip())),
            "{address} in {cidrs:?}"
        );
    }
    let overlay = world.agent.status(world.now).overlay_addresses;
    assert!(overlay.iter().all(|a| {
        cidrs
            .iter()
            .any(|c| meshd_model::net::overlay_address(*c) == Some(*a))
    }));
    assert_eq!(world.did("claim").len(), 2);
    world.assert_quiescent();
}

#[test]
fn single_stack_clusters_claim_of_their_family_alone() {
    for (family, kept) in [(Family::V4, 0), (Family::V6, 1)] {
        let mut config = pool();
        let cidr = config.cluster_pod_cidrs[kept];
        config.cluster_pod_cidrs = vec![cidr];
        config
            .ipam
            .pool
            .as_mut()
            .unwrap()
            .block_sizes
            .retain(|f, _| *f == family);
        let mut world = World::pooled(config);
        assert!(world.agent.is_ready(), "{:#?}", world.problems());
        assert_eq!(world.own_blocks(family).len(), 1);
        assert_eq!(world.add("a").unwrap().ips.len(), 1);
    }
}

#[test]
fn where_somebody_was_first_another_block_is_tried() {
    let mut config = pool();
    config.cluster_pod_cidrs[0] = net("10.244.0.0/26");
    let mut world = World::new(config);
    world.own.as_mut().unwrap().pod_cidrs.clear();
    world.sync_unseen(&["10.244.0.0/28", "10.244.0.16/28", "10.244.0.48/28"]);
    world.wait(Duration::from_secs(5));
    assert!(world.agent.is_ready(), "{:#?}", world.problems());
    assert_eq!(world.own_blocks(Family::V4), [net("10.244.0.32/28")]);
    assert!(
        world.problems().iter().all(|p| !p.subject.starts_with("blocks")),
        "{:#?}",
        world.problems()
    );
}

#[test]
fn a_further_block_is_claimed_before_the_last_address_is_gone_and_used_once_it_is_published() {
    let mut world = World::pooled(pool());
    let mut held = BTreeSet::new();
    // A /28 has 13 addresses for pods.
    for n in 0..30 {
        let added = world.add(&format!("p{n}")).unwrap();
        let v4 = added.ips[0].0.ip();
        assert!(held.insert(v4), "{v4} is held twice");
        let within = world.published().iter().any(|c| c.contains(v4));
        assert!(within, "{v4} was handed out before its block was published");
    }
    assert_eq!(world.own_blocks(Family::V4).len(), 3);
    assert_eq!(world.own_blocks(Family::V6).len(), 1);
    world.assert_quiescent();
}

#[test]
fn an_add_waits_for_a_block_that_is_on_its_way() {
    let mut world = World::pooled(pool());
    world.kube_down = true;
    for n in 0..13 {
        world.add(&format!("p{n}")).unwrap();
    }
    assert!(
        !world.did("claim").iter().all(|d| !d.contains("failed")),
        "{:?}",
        world.done
    );
    world.kube(KubeEvent::PodApplied(pod("late").into()));
    let request = world.ask(CniCall::Add(add("late")));
    world.run();
    assert!(!world.replies.contains_key(&request));
    world.kube_down = false;
    world.wait(Duration::from_secs(5));
    let added = world.replies[&request].clone().unwrap().unwrap();
    let v4 = added.ips[0].0.ip();
    assert!(world.published().iter().any(|c| c.contains(v4)));
    // And where it does not come in time, it is told why.
    for n in 13..25 {
        world.add(&format!("p{n}")).unwrap();
    }
    world.kube_down = true;
    world.blocks.clear();
    let mut refused = None;
    for n in 25..60 {
        world.kube(KubeEvent::PodApplied(pod(&format!("p{n}")).into()));
        let request = world.ask(CniCall::Add(add(&format!("p{n}"))));
        world.run();
        world.wait(Duration::from_secs(11));
        if let Err(error) = world.replies[&request].clone() {
            refused = Some(error);
            break;
        }
    }
    let refused = refused.expect("the addresses have an end");
    assert_eq!(refused.code, code::EXHAUSTED);
    assert!(
        refused.msg.contains("16 IPv4 blocks") && refused.msg.contains("the last claim failed"),
        "{refused:?}"
    );
    let counted = world.agent.numbers(world.now).counters.exhausted;
    assert_eq!(counted.values().sum::<u64>(), 1, "as one that is refused at once");
}

/// The API server is slow: nothing says that there is no block.
#[test]
fn an_add_whose_block_does_not_come_in_time_is_to_come_again() {
    let mut world = World::new(pool());
    world.own.as_mut().unwrap().pod_cidrs.clear();
    world.sync(0);
    let mut n = 0;
    let request = loop {
        world.kube(KubeEvent::PodApplied(pod(&format!("p{n}")).into()));
        let request = world.ask(CniCall::Add(add(&format!("p{n}"))));
        while world.run_kernel() || world.run_store() {}
        n += 1;
        if !world.replies.contains_key(&request) {
            break request;
        }
    };
    let (at, _) = world.agent.poll_timeout().unwrap();
    assert!(at.since(world.now.boot) < Duration::from_secs(10));
    world.now = world.now + Duration::from_secs(10);
    world.timeout();
    let late = world.replies[&request].clone().unwrap_err();
    assert_eq!(late.code, code::TRY_AGAIN, "{late}");
    assert!(
        late.msg.contains("further block") && late.msg.contains("hold "),
        "{late}"
    );
    assert_eq!(world.events, []);
}

#[test]
fn a_cluster_without_a_free_block_says_so_with_the_numbers() {
    let mut config = pool();
    config.cluster_pod_cidrs[0] = net("10.244.0.0/27");
    let mut world = World::new(config);
    world.own.as_mut().unwrap().pod_cidrs.clear();
    world.put_block(net("10.244.0.16/28"), Some("uid-other".into()));
    world.sync(0);
    assert_eq!(world.own_blocks(Family::V4), [net("10.244.0.0/28")]);
    for n in 0..13 {
        world.add(&format!("p{n}")).unwrap();
    }
    let refused = world.add("one-more").unwrap_err();
    assert_eq!(refused.code, code::EXHAUSTED);
    assert!(
        refused
            .msg
            .contains("hold 2 IPv4 blocks: 2 are taken (1 of them by this node), 0 were freed"),
        "{refused:?}"
    );
    assert!(
        world.complains("node/node-0", "2 IPv4 blocks"),
        "{:#?}",
        world.problems()
    );
    // The other's goes: it rests, then it is claimed.
    world.blocks.remove(&net("10.244.0.16/28"));
    world.kube(KubeEvent::BlockDeleted(net("10.244.0.16/28")));
    world.wait(REST - Duration::from_secs(2));
    assert_eq!(world.own_blocks(Family::V4).len(), 1);
    assert!(world.add("still-not").unwrap_err().msg.contains("1 were freed"));
    world.wait(Duration::from_secs(4));
    assert_eq!(world.own_blocks(Family::V4).len(), 2);
    world.add("now").unwrap();
    assert!(
        !world.complains("node/node-0", "IPv4 blocks"),
        "{:#?}",
        world.problems()
    );
}

#[test]
fn an_empty_block_is_given_back_after_a_time_and_its_rest_but_never_the_first() {
    let mut world = World::pooled(pool());
    let first = world.pod_cidrs();
    for n in 0..30 {
        world.add(&format!("p{n}")).unwrap();
    }
    for n in 0..30 {
        world.del(&format!("p{n}")).unwrap();
    }
    assert_eq!(world.own_blocks(Family::V4).len(), 3);
    world.wait(RETURN_AFTER - Duration::from_secs(1));
    assert_eq!(world.did("release"), [""; 0]);
    world.wait(RETURN_AFTER);
    let released = world.did("release");
    assert!(!released.is_empty());
    // It is out of what is published, and its object stays while it rests.
    let given: Vec<_> = world
        .blocks
        .values()
        .filter(|b| b.released)
        .map(|b| b.cidr)
        .collect();
    assert!(given.iter().all(|c| !world.published().contains(c)), "{given:?}");
    world.wait(4 * RETURN_AFTER);
    assert_eq!(world.pod_cidrs(), first);
    assert_eq!(world.published(), first);
    assert_eq!(world.own_blocks(Family::V4).len(), 1);
    let (release, delete) = (world.did("release"), world.did("delete"));
    assert_eq!((release.len(), delete.len()), (2, 2), "{:?}", world.done);
    let place = |what: &str| world.done.iter().position(|d| d.starts_with(what)).unwrap();
    assert!(place("release") < place("delete"));
    world.assert_quiescent();
}

#[test]
fn a_released_block_is_not_deleted_before_its_rest_nor_by_a_restarted_agent() {
    let mut world = World::pooled(pool());
    for n in 0..20 {
        world.add(&format!("p{n}")).unwrap();
    }
    for n in 0..20 {
        world.del(&format!("p{n}")).unwrap();
    }
    while world.did("release").is_empty() {
        world.wait(Duration::from_secs(1));
    }
    world.restart();
    world.run();
    world.sync(0);
    assert!(world.agent.is_ready(), "{:#?}", world.problems());
    world.wait(REST - Duration::from_secs(2));
    assert_eq!(world.did("delete"), [""; 0]);
    assert!(world.blocks.values().any(|b| b.released));
    world.wait(Duration::from_secs(4));
    assert_eq!(world.did("delete").len(), 1);
    assert!(world.blocks.values().all(|b| !b.released));
}

#[test]
fn a_restarted_agent_takes_its_blocks_over_in_their_order() {
    let mut world = World::pooled(pool());
    for n in 0..30 {
        world.add(&format!("p{n}")).unwrap();
    }
    let (cidrs, overlay) = (world.pod_cidrs(), world.agent.status(world.now).overlay_addresses);
    world.forget_done();
    world.restart();
    world.run();
    world.sync(0);
    assert_eq!(world.pod_cidrs(), cidrs);
    assert_eq!(world.agent.status(world.now).overlay_addresses, overlay);
    assert_eq!((world.did("claim"), world.did("publish")), (vec![], vec![]));
    world.assert_quiescent();
}

#[test]
fn a_node_made_again_under_its_name_has_no_blocks_but_claims_what_its_pods_have() {
    let mut world = World::pooled(pool());
    world.add("a").unwrap();
    let before = world.pod_cidrs();
    let mut own = world.own.take().unwrap();
    world.kube(KubeEvent::OwnNodeDeleted);
    world.run();
    assert_eq!(world.pod_cidrs(), before, "what runs keeps its routes");
    assert!(!world.agent.is_ready());
    own.uid = "uid-again".into();
    own.published = Err(meshd_model::AnnotationProblem::Absent);
    world.own = Some(own);
    world.tell_own();
    world.run();
    let now = world.pod_cidrs();
    assert!(now.iter().all(|c| !before.contains(c)), "{now:?} {before:?}");
    assert!(
        world.complains("attachment/a/eth0", "other nodes do not reach it"),
        "{:#?}",
        world.problems()
    );
    // The former Node's are collected: what pods have addresses of is claimed at once.
    for cidr in &before {
        world.blocks.remove(cidr);
        world.kube(KubeEvent::BlockDeleted(*cidr));
    }
    world.run();
    let now: BTreeSet<_> = world.pod_cidrs().into_iter().collect();
    assert!(before.iter().all(|c| now.contains(c)), "{now:?} {before:?}");
    assert!(
        !world.complains("attachment/a/eth0", ""),
        "{:#?}",
        world.problems()
    );
    world.assert_quiescent();
}

#[test]
fn a_block_in_use_that_is_deleted_by_another_hand_stays_in_force_and_is_claimed_again() {
    let mut world = World::pooled(pool());
    world.add("a").unwrap();
    let before = world.pod_cidrs();
    let v4 = before[0];
    world.blocks.remove(&v4);
    world.kube_down = true;
    world.kube(KubeEvent::BlockDeleted(v4));
    world.run();
    assert_eq!(world.pod_cidrs(), before);
    world.kube_down = false;
    world.wait(Duration::from_secs(3));
    assert!(world.blocks.contains_key(&v4));
    assert_eq!(world.pod_cidrs(), before);
    assert_eq!(world.published(), before);
    // Somebody else is faster: it is no longer this node's, and that is told.
    world.blocks.remove(&v4);
    world.kube_down = true;
    world.kube(KubeEvent::BlockDeleted(v4));
    world.run();
    world.take_block(&v4.to_string(), "uid-other");
    world.kube_down = false;
    world.run();
    world.wait(Duration::from_secs(5));
    assert!(!world.pod_cidrs().contains(&v4) && !world.published().contains(&v4));
    assert!(
        world.complains("attachment/a/eth0", "in no pod CIDR of this node"),
        "{:#?}",
        world.problems()
    );
}

#[test]
fn no_peer_claims_more_than_a_block() {
    let mut world = World::pooled(pool());
    let mut peer = crate::world::node(1);
    peer.annotations.as_mut().unwrap().pod_cidrs = vec![net("10.244.0.0/27"), net("10.244.0.64/28")];
    world.kube(KubeEvent::NodeApplied(peer));
    world.run();
    assert!(
        world.complains("node/node-1", "wider than a node's pod CIDR, which is a /28"),
        "{:#?}",
        world.problems()
    );
}
