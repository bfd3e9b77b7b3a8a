//! Whether ADD can succeed, and what is missing if not.

use crate::agent::NodeAgent;
use crate::attach::requests::error;
use crate::attach::table::State;
use meshd_model::cni::{CniError, code};

impl NodeAgent {
    /// CNI STATUS: error code 50 while ADD cannot succeed, 51 where what is missing may cut off pods that run, too.
    pub fn cni_status(&self) -> Result<(), CniError> {
        let Some(why) = self.why_not_ready() else {
            return Ok(());
        };
        let code = if self.may_hurt_pods() {
            code::HURT
        } else {
            code::NOT_AVAILABLE
        };
        Err(error(code, why, "`meshctl status` says what to do"))
    }

    /// Whether pods run here, as far as is known, without what carries their packets or keeps them closed. What that is a
    /// daemon that has just started does not know before it has seen its Node: the one before it has left all in place.
    fn may_hurt_pods(&self) -> bool {
        let runs = |a: &crate::attach::table::Attachment| matches!(a.state, State::Ready);
        let in_force = self.is_fail_closed() && self.is_device_settled() && self.has_rules();
        let knows = self.observed.seen && self.own.node.is_some();
        knows && !in_force && self.attachments.iter().any(|(_, a)| runs(a))
    }

    /// The first thing that ADD lacks. The API server does not count once it has been heard of everything.
    pub(crate) fn why_not_ready(&self) -> Option<String> {
        let cidrs = &self.local.cidrs;
        let no_cidr = match &self.config.ipam.pool {
            None => "the own Node has no pod CIDR that can be used",
            Some(_) => "the node has claimed no block of addresses yet",
        };
        let missing = [
            (self.attachments.is_loaded(), "the leases are not loaded"),
            (self.observed.seen, "the kernel has not been observed"),
            (self.is_fail_closed(), "the fail-closed rules are not in force"),
            (
                self.own.node.is_some(),
                "the own Node has not been seen at the API server",
            ),
            (!self.own.deleted, "the own Node is gone from the API server"),
            (
                self.config.ipam.pool.is_none() || self.blocks.is_synced(),
                "the blocks of the cluster have not been listed",
            ),
            (self.has_all_families(), no_cidr),
            (
                self.own.is_current(self.config.ipam.pool.is_some()),
                "the own Node no longer has the pod CIDRs it had",
            ),
            (self.nodes.is_synced(), "the Nodes have not been listed"),
            (self.pods.is_synced(), "this node's pods have not been listed"),
            (
                self.is_device_settled(),
                "the WireGuard device is not up as configured",
            ),
            (
                self.has_rules(),
                "the policy rules are not in force that lead pods' packets for other nodes' own addresses into the device",
            ),
            (
                self.is_introduced(),
                "the node's key has not been published: no other node could reach its pods",
            ),
            (
                self.config.ipam.pool.is_none() || cidrs.iter().any(|c| self.is_published(*c)),
                "the node's blocks have not been published",
            ),
        ];
        if let Some((_, what)) = missing.iter().find(|(there, _)| !there) {
            return Some((*what).to_owned());
        }
        let lost = cidrs
            .iter()
            .find_map(|c| self.nodes.senior_to_own(*c).map(|n| (c, n)));
        lost.map(|(cidr, senior)| format!("the older node {senior} claims the own pod CIDR {cidr}"))
    }

    /// Whether there are the policy rules of all that addresses are handed out of.
    fn has_rules(&self) -> bool {
        let mut cidrs = self.local.cidrs.iter().filter(|c| self.may_hand_out(**c));
        cidrs.all(|c| self.has_rule(*c))
    }

    /// Whether there is a pod CIDR; of each family, where the node claims them itself.
    fn has_all_families(&self) -> bool {
        let overlay = &self.local.overlay;
        match &self.config.ipam.pool {
            None => !overlay.is_empty(),
            Some(pool) => pool.block_sizes.keys().all(|f| overlay.contains_key(f)),
        }
    }
}
