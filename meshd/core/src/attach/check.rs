//! CNI CHECK.

use crate::agent::NodeAgent;
use crate::attach::link::{difference, link};
use crate::attach::requests::error;
use crate::attach::table::State;
use crate::event::RequestId;
use meshd_model::cni::{Check, CniError, code};
use std::collections::BTreeSet;

impl NodeAgent {
    pub(crate) fn check(&mut self, request: RequestId, check: &Check) {
        let result = self.compare(check).map(|()| None);
        self.reply(request, result);
    }

    /// The lease, the link and prevResult must say the same.
    fn compare(&self, check: &Check) -> Result<(), CniError> {
        let id = &check.id;
        if !self.attachments.is_loaded() || !self.observed.seen {
            let msg = "meshd has only just started and does not know the node yet";
            return Err(error(code::TRY_AGAIN, msg, "the runtime will try again"));
        }
        let Some(attachment) = self
            .attachments
            .get(id)
            .filter(|a| matches!(a.state, State::Ready))
        else {
            return Err(error(
                code::UNKNOWN_CONTAINER,
                format!("{id} is not attached"),
                "the runtime must ADD it before it checks it",
            ));
        };
        let lease = &attachment.lease;
        let differs = |what: String| {
            Err(error(
                code::DIFFERS,
                format!("{id} is not as ADD left it: {what}"),
                "DEL and ADD mend it",
            ))
        };
        if attachment.netns_gone {
            return differs(format!("namespace {} is gone", lease.netns));
        }
        if lease.netns != check.netns {
            return differs(format!(
                "it was added in namespace {}, not {}",
                lease.netns, check.netns
            ));
        }
        let expected: BTreeSet<_> = check.addresses.iter().map(|a| a.ip()).collect();
        let held: BTreeSet<_> = lease.addresses.iter().copied().collect();
        if expected != held {
            return differs(format!("prevResult names {expected:?}, its lease {held:?}"));
        }
        if let Some(mac) = check.mac.filter(|mac| *mac != lease.mac) {
            return differs(format!(
                "prevResult gives {} the MAC {mac}, its lease {}",
                id.ifname, lease.mac
            ));
        }
        if let Some((name, mac)) = &check.host
            && (*name != lease.host_ifname || mac.is_some_and(|mac| mac != lease.host_mac))
        {
            return differs(format!(
                "prevResult names {name} {mac:?} on the host, its lease {}",
                lease.host_ifname
            ));
        }
        let there = self.observed.links.get(&lease.host_ifname);
        let mtu = self.local.mtu.or(there.map(|l| l.mtu));
        match difference(&link(lease, Vec::new(), mtu), there) {
            Some(what) => differs(what),
            None => Ok(()),
        }
    }
}
