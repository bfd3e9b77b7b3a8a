//! What is derived for this node, derived again when one of its inputs has changed: the own Node, the underlay, or
//! the other nodes' claims and endpoints.

use crate::agent::NodeAgent;
use crate::attach::requests::Stage;
use crate::own::Local;
use meshd_model::Now;
use std::collections::BTreeSet;
use std::net::IpAddr;

impl NodeAgent {
    /// Derives it again, and marks what follows from a change. Costs as much as this node has prefixes and
    /// addresses, unless they change.
    pub(crate) fn refresh_local(&mut self, now: Now) {
        let any_v6 = self.nodes.any_v6_endpoint();
        let underlay = &self.observed.underlay;
        let local = Local::new(&self.config, &self.own, &self.bounds, underlay, any_v6);
        let own_addresses = self.own_addresses(&local);
        if self.bounds.set_own(own_addresses, &local.cidrs) {
            self.nodes.revalidate(&self.bounds);
            self.mark_all();
        }
        if let Some(claimant) = self.own.claimant() {
            let touched = self.nodes.set_own(claimant, local.claims());
            self.touched(touched);
        }
        if local != self.local {
            // What was desired before has to go, what is desired now has to come.
            self.mark_all();
            self.families = local.families();
            self.local = local;
            self.mark_all();
        }
        self.note_introduced();
        self.refresh_ranges(now);
        self.review_kept(now);
    }

    /// Addresses that no other node may claim. Those that no node could claim, like the service addresses that some
    /// proxies put on an interface, are left out: their comings and goings concern nobody.
    fn own_addresses(&self, local: &Local) -> BTreeSet<IpAddr> {
        let underlay = self.observed.underlay.iter().map(|u| u.address);
        let claimable = underlay.filter(|a| self.bounds.node_address(*a).is_ok());
        claimable.chain(local.node_addresses.iter().copied()).collect()
    }

    /// Addresses are handed out of the own pod CIDRs but those that a senior node has a part of: a pod with such an
    /// address would not get its answers.
    pub(crate) fn refresh_ranges(&mut self, now: Now) {
        let own = self.local.cidrs.iter().copied();
        let usable: Vec<_> = own
            .filter(|c| self.nodes.senior_to_own(*c).is_none() && self.may_hand_out(*c))
            .collect();
        if usable != self.attachments.allocator.ranges() {
            self.attachments.allocator.set_ranges(&usable);
            self.ranges_changed();
            self.resume(now, Stage::Address);
        }
    }
}
