//! Which addresses an ADD gets: those that were asked for, and any for the families that nobody asked about.

use crate::TimerKind;
use crate::action::Resource;
use crate::agent::NodeAgent;
use crate::attach::requests::{Stage, error};
use crate::event::{CniCall, RequestId};
use crate::pod_events::PodReason;
use meshd_ipam::{Exhausted, Refused};
use meshd_model::cni::{Add, CniError, code};
use meshd_model::net::Family;
use meshd_model::{AttachmentId, Boot, Now};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Why there are no addresses for an ADD.
pub(crate) enum NotGiven {
    /// They come free when this attachment is gone.
    Wait(AttachmentId),
    /// One that is named rests until then from a pod of another namespace.
    Rests(Boot),
    Exhausted(Exhausted),
    Refused(CniError),
}

impl NodeAgent {
    /// One address of each family, IPv4 first; all or none.
    pub(crate) fn choose_addresses(&mut self, now: Now, add: &Add) -> Result<Vec<IpAddr>, NotGiven> {
        let named = self.named_addresses(add).map_err(NotGiven::Refused)?;
        for address in &named {
            self.check_named(now, add, *address)?;
        }
        self.make_kept_room(now, add);
        let kept = self.kept_again(add, &named)?;
        let held_back = self.held_back(add).to_vec();
        let find = |family: Family| {
            let of = |a: &&IpAddr| Family::of(**a) == family;
            named.iter().find(of).or_else(|| kept.iter().find(of)).copied()
        };
        let families: Vec<_> = self.local.overlay.keys().copied().collect();
        let mut addresses = Vec::new();
        let mut chosen_here = Vec::new();
        for family in families {
            let address = match find(family) {
                Some(address) => address,
                None => match self.attachments.allocator.allocate(now.boot, family) {
                    Ok(address) => {
                        chosen_here.push(address);
                        address
                    }
                    Err(exhausted) => {
                        for address in chosen_here {
                            self.attachments.allocator.release(self.never_used(now), address);
                        }
                        return Err(NotGiven::Exhausted(exhausted));
                    }
                },
            };
            addresses.push(address);
        }
        for address in named.into_iter().filter(|a| !held_back.contains(a)) {
            let taken = self.attachments.allocator.allocate_exact(address);
            assert!(taken.is_ok(), "what was free a moment ago is not: {taken:?}");
        }
        Ok(addresses)
    }

    /// The addresses that the runtime or the pod's annotation names; they must not name different ones. What the
    /// annotation says is of the pod's first interface.
    pub(crate) fn named_addresses(&self, add: &Add) -> Result<BTreeSet<IpAddr>, CniError> {
        let asked: BTreeSet<IpAddr> = add.wants.ips.iter().copied().collect();
        let mut named = asked;
        if let Some(pod) = add.pod.as_ref().filter(|_| self.is_first(add)) {
            let (_, wants) = self.pods.wants(pod);
            if let Some(problem) = wants.problem {
                let what = format!("{pod} asks for an address that cannot be understood: {problem}");
                return Err(error(
                    code::CONFIG,
                    what,
                    "mend the annotation, or make the pod anew",
                ));
            }
            let annotated: BTreeSet<IpAddr> = wants.ips.into_iter().collect();
            if !named.is_empty() && !annotated.is_empty() && named != annotated {
                let what =
                    format!("the runtime asks for {named:?} and the annotation of {pod} for {annotated:?}");
                return Err(error(
                    code::CONFIG,
                    what,
                    "ask for the same in both, or in one of them",
                ));
            }
            named.extend(annotated);
        }
        let mut families = BTreeSet::new();
        for address in &named {
            if !families.insert(Family::of(*address)) {
                let what = format!(
                    "{} asks for {named:?}: an interface has one address of a family",
                    add.id
                );
                return Err(error(
                    code::CONFIG,
                    what,
                    "name one IPv4 and one IPv6 address at most",
                ));
            }
            if !self.local.overlay.contains_key(&Family::of(*address)) {
                let what = format!(
                    "{} asks for {address}: this node has no pod CIDR of its family",
                    add.id
                );
                return Err(error(
                    code::CONFIG,
                    what,
                    "name addresses of the node's own pod CIDRs",
                ));
            }
        }
        Ok(named)
    }

    /// Whether it is about the pod's first interface.
    pub(crate) fn is_first(&self, add: &Add) -> bool {
        !add.wants.secondary && !self.attachments.has_another(&add.id)
    }

    /// Whether a named address is free, and has rested where it must.
    fn check_named(&self, now: Now, add: &Add, address: IpAddr) -> Result<(), NotGiven> {
        let Err(refused) = self.attachments.allocator.check_exact(address) else {
            // A pod of the same namespace that is made again has its address at once; nobody gets what is sent to another's.
            let namespace = add.pod.as_ref().map_or("", |pod| &pod.namespace);
            let since = self.attachments.rests_from_another(now.boot, address, namespace);
            let until = since.map(|since| since + self.config.address_rest);
            return until.map_or(Ok(()), |until| Err(NotGiven::Rests(until)));
        };
        if self.held_back(add).contains(&address) {
            return Ok(());
        }
        // Whose it is concerns nobody who can make pods in another namespace: on the node, the status says so.
        if let (Refused::InUse(_), Some(holder)) = (refused, self.attachments.holder(address))
            && holder.state.is_deleting()
        {
            return Err(NotGiven::Wait(holder.lease.id.clone()));
        }
        let what = format!("{} asks for {address}: {refused}", add.id);
        let what_to_do = "name another address of this node's pod CIDRs, or none; a pod that names one has to be scheduled \
                          to the node that has it, whose `meshctl status` says whose it is";
        Err(NotGiven::Refused(error(code::CONFIG, what, what_to_do)))
    }

    /// Since when an address counts as freed that no packet ever bore: it need not rest.
    pub(crate) fn never_used(&self, now: Now) -> Boot {
        now.boot - self.config.address_rest
    }

    /// Has the ADD wait for an address that comes free in time; refuses it otherwise.
    pub(crate) fn no_address(&mut self, now: Now, request: RequestId, why: NotGiven) {
        let exhausted = match why {
            // It is told when this attachment is gone, or at its deadline.
            NotGiven::Wait(_) => return self.wait_for(request, Stage::Address),
            NotGiven::Rests(until) => {
                self.timers.set_no_later(TimerKind::Rest, until);
                return self.wait_for(request, Stage::Address);
            }
            NotGiven::Refused(refused) => return self.refuse_address(now, request, refused),
            NotGiven::Exhausted(exhausted) => exhausted,
        };
        let rested = self.attachments.allocator.next_rested(exhausted.family);
        let answer_by = self.requests.get(&request).map(|p| p.answer_by);
        if let Some(at) = rested
            && exhausted.resting > 0
            && answer_by.is_some_and(|by| now.boot < at && at < by)
        {
            self.timers.set_no_later(TimerKind::Rest, at);
            return self.wait_for(request, Stage::Address);
        }
        if self.is_block_coming(exhausted.family) {
            return self.wait_for(request, Stage::Address);
        }
        // Each time there is a record less, so this comes to an end.
        if let Some(CniCall::Add(add)) = self.requests.get(&request).map(|p| p.call.clone())
            && self.free_kept(now, &add, exhausted.family)
        {
            return self.begin_add(now, request, add);
        }
        self.refuse_exhausted(now, request, exhausted);
    }

    /// Answers an ADD that no address is there for: counted, with the numbers, and told of on its pod.
    fn refuse_exhausted(&mut self, now: Now, request: RequestId, exhausted: Exhausted) {
        *self.counters.exhausted.entry(exhausted.family).or_default() += 1;
        let why = format!("{exhausted}{}", self.kept_told(exhausted.family));
        let full = self.exhausted(now, exhausted.family, &why);
        self.refuse_address(now, request, full);
    }

    /// Answers an ADD that gets no address, and tells of it on its pod, unless it is only to come again.
    fn refuse_address(&mut self, now: Now, request: RequestId, refused: CniError) {
        let reason = match refused.code {
            code::TRY_AGAIN => return self.reply(request, Err(refused)),
            code::EXHAUSTED => PodReason::AddressesExhausted,
            _ => PodReason::AddressRefused,
        };
        if let Some(CniCall::Add(add)) = self.requests.get(&request).map(|p| p.call.clone()) {
            self.tell_pod(now, add.pod.as_ref(), reason, &refused);
        }
        self.reply(request, Err(refused));
    }

    /// Answers an ADD for which no address came free in time.
    pub(crate) fn no_address_in_time(&mut self, now: Now, request: RequestId, add: &Add) {
        let named = self.named_addresses(add).unwrap_or_default();
        let again = |what: String| {
            error(
                code::TRY_AGAIN,
                what,
                "the runtime will try again; see `meshctl status`",
            )
        };
        if let Err(NotGiven::Wait(holder)) = self.kept_again(add, &named) {
            let told = error(
                code::TRY_AGAIN,
                format!("{} keeps addresses that {holder}, of the pod's name, has", add.id),
                "they are its own when that sandbox is gone; the runtime will try again",
            );
            return self.reply(request, Err(told));
        }
        let waited = named.iter().find_map(|a| match self.check_named(now, add, *a) {
            Err(NotGiven::Wait(_)) => Some((a, "it is in use, by what is still being taken down")),
            Err(NotGiven::Rests(..)) => Some((a, "it was another's a moment ago, and rests")),
            _ => None,
        });
        if let Some((address, why)) = waited {
            let told = format!("{} asks for {address}: {why}", add.id);
            return self.reply(request, Err(again(told)));
        }
        let mut families = self.local.overlay.keys().copied();
        let allocator = &self.attachments.allocator;
        let Some(family) = families.find(|f| allocator.available(now.boot, *f) == 0) else {
            let told = format!("{} waited for an address, and one is free only now", add.id);
            return self.reply(request, Err(again(told)));
        };
        let exhausted = allocator.exhausted(family);
        // One whose claim failed is not known to come.
        let fails = self.ops.is_in_trouble(&Resource::Claim(family));
        if !fails && self.is_block_coming(family) {
            let told = format!("{} waits for a further block of addresses: {exhausted}", add.id);
            return self.reply(request, Err(again(told)));
        }
        if self.free_kept(now, add, family) {
            let told = format!(
                "{} waited for an address, and one that was kept is free only now",
                add.id
            );
            return self.reply(request, Err(again(told)));
        }
        self.refuse_exhausted(now, request, exhausted);
    }
}
