//! What a kubelet and its container runtime do with the CNI plugin: call it, wait, and come again.

use crate::arm::{SimArm, error, netns};
use crate::node::CniResult;
use meshd_core::CniCall;
use meshd_model::cni::{Add, Added, Wants, code};
use meshd_model::{AttachmentId, PodRef};
use meshd_scenario::ArmError;
use std::time::Duration;

/// How long the plugin waits for the daemon.
const CNI_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a kubelet tries to start or stop a pod, here.
const KUBELET_PATIENCE: Duration = Duration::from_secs(120);
/// Between two of its tries.
const KUBELET_PAUSE: Duration = Duration::from_millis(500);

impl SimArm {
    /// Calls the plugin and waits for what it says; None where no daemon answered.
    fn call(&mut self, node: usize, call: &CniCall) -> Result<Option<CniResult>, ArmError> {
        let Some(id) = self.sim.cni(node, call.clone(), CNI_TIMEOUT) else {
            return Ok(None);
        };
        let epoch = self.sim.nodes[node].epoch;
        self.sim.run_until(CNI_TIMEOUT, |sim| {
            sim.nodes[node].epoch != epoch || sim.has_reply(node, id)
        })?;
        Ok(self.sim.reply(node, id))
    }

    pub(crate) fn add(
        &mut self,
        node: usize,
        name: &str,
        pod: &PodRef,
    ) -> Result<(AttachmentId, Added), ArmError> {
        let begin = self.sim.elapsed();
        loop {
            self.tries += 1;
            let id = AttachmentId {
                container_id: format!("{name}-{}", self.tries),
                ifname: "eth0".to_owned(),
            };
            let add = Add {
                id: id.clone(),
                netns: netns(name),
                pod: Some(pod.clone()),
                wants: Wants::default(),
                token: 0,
                network: String::new(),
            };
            let answer = self.call(node, &CniCall::Add(add))?;
            if let Some(Ok(Some(added))) = answer {
                return Ok((id, added));
            }
            let late = self.sim.elapsed().saturating_sub(begin) >= KUBELET_PATIENCE;
            match answer {
                Some(Ok(None)) => return Err(error(format!("ADD of {name}: no result"))),
                Some(Err(e)) if late || !is_passing(e.code) => {
                    return Err(error(format!("ADD of {name}: {e}")));
                }
                None if late => return Err(error(format!("ADD of {name}: no daemon answers"))),
                _ => {}
            }
            // A runtime takes down what it could not set up, and comes again with a sandbox of another name.
            self.del(node, &id)?;
            self.sim.run_for(KUBELET_PAUSE)?;
        }
    }

    pub(crate) fn del(&mut self, node: usize, id: &AttachmentId) -> Result<(), ArmError> {
        let begin = self.sim.elapsed();
        loop {
            let answer = self.call(node, &CniCall::Del(id.clone()))?;
            if matches!(answer, Some(Ok(_))) {
                return Ok(());
            }
            if self.sim.elapsed().saturating_sub(begin) >= KUBELET_PATIENCE {
                return Err(error(format!("DEL of {id}: {answer:?}")));
            }
            self.sim.run_for(KUBELET_PAUSE)?;
        }
    }
}

fn is_passing(error: u32) -> bool {
    matches!(
        error,
        code::TRY_AGAIN | code::NOT_AVAILABLE | code::IO | code::KERNEL
    )
}
