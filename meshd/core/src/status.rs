//! What `meshctl status` shows.

use crate::agent::NodeAgent;
use crate::attach::table::Attachment;
use crate::numbers::phase;
use meshd_model::status::{AttachmentStatus, PeerStatus, Status};
use meshd_model::{AttachmentId, NodeName, Now, PublicKey};

impl NodeAgent {
    /// What `meshctl status` shows: as of the last observation, where the kernel is concerned.
    #[must_use]
    pub fn status(&self, now: Now) -> Status {
        let device = self
            .observed
            .device
            .as_ref()
            .filter(|_| self.observed.device_fresh);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.config.node.clone(),
            ready: self.is_ready(),
            public_key: self.config.identity.public_key,
            device: device.map(|d| d.kind),
            listen_port: self.config.listen_port,
            mtu: self.local.mtu,
            pod_cidrs: self.local.cidrs.clone(),
            overlay_addresses: self.local.overlay_addresses(),
            peers: self
                .nodes
                .iter()
                .filter_map(|(name, node)| {
                    let key = node.annotations.as_ref().ok()?.public_key;
                    let (winner, _) = self.nodes.by_key(&key)?;
                    (winner == name).then(|| self.peer_status(name, &key))?
                })
                .collect(),
            attachments: self
                .attachments
                .iter()
                // A DEL that was answered has nothing for anybody to look after.
                .filter(|(id, _)| !self.is_cut_off(id))
                .map(|(id, a)| attachment_status(id, a))
                .collect(),
            problems: self.problems(now),
        }
    }

    fn peer_status(&self, name: &NodeName, key: &PublicKey) -> Option<PeerStatus> {
        let desired = self.desired_peer(key)?;
        let observed = self.observed.peers.get(key);
        Some(PeerStatus {
            node: name.clone(),
            public_key: *key,
            endpoint: observed.and_then(|p| p.endpoint).or(desired.endpoint),
            last_handshake: observed.and_then(|p| p.last_handshake),
            rx_bytes: observed.map_or(0, |p| p.rx_bytes),
            tx_bytes: observed.map_or(0, |p| p.tx_bytes),
            allowed_ips: desired.allowed_ips.into_iter().collect(),
        })
    }
}

fn attachment_status(id: &AttachmentId, attachment: &Attachment) -> AttachmentStatus {
    AttachmentStatus {
        container_id: id.container_id.clone(),
        ifname: id.ifname.clone(),
        pod: attachment.lease.pod.as_ref().map(ToString::to_string),
        addresses: attachment.lease.addresses.clone(),
        phase: phase(&attachment.state),
    }
}
