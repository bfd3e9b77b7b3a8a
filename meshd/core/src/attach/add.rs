//! CNI ADD.

use crate::action::Resource;
use crate::agent::NodeAgent;
use crate::attach::link::macs;
use crate::attach::requests::{Stage, error};
use crate::attach::table::{AddStep, Attachment, DelStep, State};
use crate::event::{CniCall, RequestId};
use crate::reconcile::orphan_id;
use ipnetwork::IpNetwork;
use meshd_model::cni::{Add, Added, CniError, code};
use meshd_model::kernel::{IFNAME_MAX, POD_GATEWAY_V4, POD_GATEWAY_V6};
use meshd_model::net::{Family, contains, host};
use meshd_model::{AttachmentId, Lease, LeasePhase, Now};
use std::net::IpAddr;

/// Longest container id that is taken; runtimes use 64 characters.
const CONTAINER_ID_MAX: usize = 256;
/// Longest path (PATH_MAX, less its terminator).
const PATH_MAX: usize = 4095;

impl NodeAgent {
    pub(crate) fn add(&mut self, now: Now, request: RequestId, add: Add) {
        if let Err(refused) = validate(&add).and_then(|()| self.may_add(request, &add)) {
            return self.reply(request, Err(refused));
        }
        if self.is_in_the_way(&add) {
            return self.wait_for(request, Stage::Deletion);
        }
        if !add.pod.as_ref().is_none_or(|pod| self.pods.has(pod)) {
            return self.wait_for(request, Stage::Pod);
        }
        match self.attachments.get(&add.id) {
            Some(there) if is_repetition(there, &add) => {
                let added = self.added(&there.lease);
                self.reply(request, Ok(Some(added)));
            }
            Some(_) => self.finish_half_done(now, request, add),
            None => self.begin_add(now, request, add),
        }
    }

    /// Everything that speaks against this ADD before it begins.
    fn may_add(&self, request: RequestId, add: &Add) -> Result<(), CniError> {
        let id = &add.id;
        let again = |msg: String| Err(error(code::TRY_AGAIN, msg, "the runtime will try again"));
        match self.attachments.get(id).map(|a| &a.state) {
            // Its caller is told the MTU, so that has to be known again, and the link to have been looked at.
            Some(State::Ready) if self.attachments.get(id).is_some_and(|a| is_repetition(a, add)) => {}
            Some(State::Ready) => {
                return Err(error(
                    code::EXISTS,
                    format!("{id} is attached already"),
                    "the runtime must DEL it before it adds it again; nothing was changed",
                ));
            }
            Some(State::Adding { .. }) => return again(format!("an ADD of {id} is under way")),
            Some(State::Deleting { .. }) if self.ops.is_in_trouble(&Resource::Attachment(id.clone())) => {
                return again(format!("{id} is still being taken down"));
            }
            Some(State::Deleting { .. } | State::HalfDone) | None => {}
        }
        let rival = |(other, p): (&RequestId, &crate::attach::requests::Pending)| {
            *other != request && matches!(&p.call, CniCall::Add(a) if a.id == *id)
        };
        if self.requests.iter().any(rival) {
            return again(format!("an ADD of {id} is under way"));
        }
        let no_mtu = || {
            self.local
                .mtu
                .is_none()
                .then(|| "the overlay's MTU is not known".to_owned())
        };
        if let Some(why) = self.why_not_ready().or_else(no_mtu) {
            return Err(error(
                code::TRY_AGAIN,
                format!("meshd cannot add pods yet: {why}"),
                "see `meshctl status`",
            ));
        }
        if add.pod.is_none() && !self.config.allow_unnamed_pods {
            return Err(error(
                code::ENVIRONMENT,
                format!("ADD of {id} names no pod"),
                "set K8S_POD_NAMESPACE and K8S_POD_NAME in CNI_ARGS, or allow_unnamed_pods in meshd's configuration",
            ));
        }
        Ok(())
    }

    /// Whether a link is still to be deleted that has the same id, the same name in the same namespace, or the same name
    /// on the host: its deletion may be under way, and would hit the new one.
    fn is_in_the_way(&self, add: &Add) -> bool {
        let host_ifname = add.id.host_ifname();
        let orphan = Resource::Attachment(orphan_id(&host_ifname));
        let mut deleting = self.attachments.iter().filter(|(_, a)| a.state.is_deleting());
        self.ops.is_outstanding(&orphan)
            || deleting.any(|(id, a)| {
                *id == add.id
                    || (id.ifname == add.id.ifname && a.lease.netns == add.netns)
                    || a.lease.host_ifname == host_ifname
            })
    }

    pub(crate) fn begin_add(&mut self, now: Now, request: RequestId, add: Add) {
        let ifname = add.id.host_ifname();
        if self.attachments.by_ifname(&ifname).is_some() {
            let clash = error(
                code::CONFIG,
                format!("interface {ifname} for {} is another container's", add.id),
                "two container ids hash alike: let the runtime make the sandbox again",
            );
            return self.reply(request, Err(clash));
        }
        self.note_successor(now, &add);
        let addresses = match self.choose_addresses(now, &add) {
            Ok(addresses) => addresses,
            Err(why) => return self.no_address(now, request, why),
        };
        let (host_mac, own_mac) = macs(&add.id);
        let mac = add.wants.mac.unwrap_or(own_mac);
        let secondary = add.wants.secondary || self.attachments.has_another(&add.id);
        self.attachments.hold(&add.id, &addresses);
        self.note_allocated(&addresses);
        self.keep(now, &add, &addresses);
        let lease = Lease {
            id: add.id.clone(),
            phase: LeasePhase::Adding,
            pod: add.pod,
            netns: add.netns,
            host_ifname: ifname,
            host_mac,
            mac,
            addresses,
            token: add.token,
            secondary,
            network: add.network,
        };
        self.attachments.insert(
            lease,
            State::Adding {
                step: AddStep::Record,
                request: Some(request),
            },
            false,
        );
        self.mark(Resource::Attachment(add.id));
    }

    /// A former process died during this ADD: its lease is used, where its addresses still are the node's.
    fn finish_half_done(&mut self, now: Now, request: RequestId, add: Add) {
        let named = match self.named_addresses(&add) {
            Ok(named) => named,
            Err(refused) => return self.reply(request, Err(refused)),
        };
        self.make_kept_room(now, &add);
        let may_keep = self.may_keep(&add);
        let secondary = add.wants.secondary || self.attachments.has_another(&add.id);
        let (cidrs, families) = (&self.local.cidrs, self.local.overlay.len());
        let Some(attachment) = self.attachments.get_mut(&add.id) else {
            return;
        };
        let is_ours = |a: &IpAddr| cidrs.iter().any(|c| contains(*c, host(*a)));
        let has = &attachment.lease.addresses;
        if has.len() == families
            && has.iter().all(is_ours)
            && named.iter().all(|a| has.contains(a))
            && may_keep
        {
            let has = has.clone();
            attachment.lease.netns.clone_from(&add.netns);
            attachment.lease.pod.clone_from(&add.pod);
            attachment.lease.token = add.token;
            attachment.lease.secondary = secondary;
            attachment.lease.network.clone_from(&add.network);
            attachment.lease.mac = add.wants.mac.unwrap_or(macs(&add.id).1);
            attachment.state = State::Adding {
                step: AddStep::Record,
                request: Some(request),
            };
            self.keep(now, &add, &has);
        } else {
            let msg = format!(
                "the half-done ADD of {} has addresses that the node no longer has, or others than are asked for",
                add.id
            );
            let stale = error(code::TRY_AGAIN, msg, "it was undone: the runtime will try again");
            let failed_add = Some((request, stale));
            attachment.state = State::deleting(DelStep::Mark, failed_add);
        }
        self.mark(Resource::Attachment(add.id));
    }

    /// What ADD answers.
    pub(crate) fn added(&self, lease: &Lease) -> Added {
        let gateway = |a: IpAddr| match Family::of(a) {
            Family::V4 => IpAddr::V4(POD_GATEWAY_V4),
            Family::V6 => IpAddr::V6(POD_GATEWAY_V6),
        };
        Added {
            host_ifname: lease.host_ifname.clone(),
            host_mac: lease.host_mac,
            mac: lease.mac,
            ips: lease
                .addresses
                .iter()
                .map(|a| (IpNetwork::from(*a), gateway(*a)))
                .collect(),
            mtu: self.local.mtu.unwrap_or_default(),
            secondary: lease.secondary,
        }
    }

    /// The answer to an ADD whose pod did not show up.
    pub(crate) fn pod_not_seen(&self, add: &Add) -> CniError {
        let pod = add.pod.as_ref().map(ToString::to_string).unwrap_or_default();
        let details = match &self.api_away {
            Some(message) => {
                format!("the API server cannot be reached: {message}; the runtime will try again")
            }
            None => {
                "the API server has not shown it to be bound to this node; the runtime will try again".into()
            }
        };
        error(
            code::TRY_AGAIN,
            format!("pod {pod} of {} has not been seen yet", add.id),
            details,
        )
    }
}

/// Whether this ADD is the one that made the attachment: its caller was cut off from a daemon before it heard so.
fn is_repetition(there: &Attachment, add: &Add) -> bool {
    let Attachment { lease, state, .. } = there;
    matches!(state, State::Ready) && add.token != 0 && lease.token == add.token && lease.netns == add.netns
}

fn validate(add: &Add) -> Result<(), CniError> {
    let AttachmentId { container_id, ifname } = &add.id;
    if !is_container_id(container_id) {
        return Err(error(
            code::ENVIRONMENT,
            format!("CNI_CONTAINERID {:?} is not a container id", cut(container_id)),
            "it begins with a letter or a digit, then letters, digits, '_', '.' or '-', 256 at most",
        ));
    }
    if !is_ifname(ifname) {
        return Err(error(
            code::ENVIRONMENT,
            format!("CNI_IFNAME {:?} cannot name an interface of a pod", cut(ifname)),
            "1 to 15 printable characters, no '/', ':' or space, and not \"lo\", \".\" or \"..\"",
        ));
    }
    if !add.netns.starts_with('/') || add.netns.len() > PATH_MAX || add.netns.contains('\0') {
        return Err(error(
            code::ENVIRONMENT,
            format!("CNI_NETNS {:?} is not a path", cut(&add.netns)),
            "the runtime must give the absolute path of the pod's network namespace",
        ));
    }
    if let Some(mac) = add.wants.mac
        && (!mac.is_unicast() || mac == macs(&add.id).0)
    {
        return Err(error(
            code::CONFIG,
            format!("{mac} cannot be the MAC of an interface"),
            "give one that is unicast, not zero, and not the one of the host's end",
        ));
    }
    Ok(())
}

/// CNI specification 1.1.0, section 2: parameters.
fn is_container_id(text: &str) -> bool {
    text.len() <= CONTAINER_ID_MAX
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

fn is_ifname(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':';
    (1..=IFNAME_MAX).contains(&text.len()) && text.bytes().all(allowed) && !["lo", ".", ".."].contains(&text)
}

fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}
