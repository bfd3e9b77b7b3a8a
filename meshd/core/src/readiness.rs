//! Whether ADD can succeed, and what is missing if not.

use crate::agent::NodeAgent;

impl NodeAgent {
    /// The first thing that ADD lacks. The API server does not count once it has been heard of everything.
    pub(crate) fn why_not_ready(&self) -> Option<String> {
        let cidrs = &self.local.cidrs;
        let missing = [
            (self.attachments.is_loaded(), "the leases are not loaded"),
            (self.observed.seen, "the kernel has not been observed"),
            (self.is_fail_closed(), "the fail-closed rules are not in force"),
            (
                self.own.node.is_some(),
                "the own Node has not been seen at the API server",
            ),
            (!self.own.deleted, "the own Node is gone from the API server"),
            (!cidrs.is_empty(), "the own Node has no pod CIDR that can be used"),
            (
                self.own.is_current(),
                "the own Node no longer has the pod CIDRs it had",
            ),
            (self.nodes.is_synced(), "the Nodes have not been listed"),
            (self.pods.is_synced(), "this node's pods have not been listed"),
            (
                self.is_device_settled(),
                "the WireGuard device is not up as configured",
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
}
