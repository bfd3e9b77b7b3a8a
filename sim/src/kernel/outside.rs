//! The way between this node's pods and the world outside of the cluster, as the firewall's chains `forward`, `masquerade`
//! and `egress` have it.

use crate::kernel::{Kernel, fib};
use crate::packet;
use crate::path::Source;

/// How long conntrack remembers what was asked once, in nanoseconds (`nf_conntrack_udp_timeout`).
pub(super) const IDLE: u64 = 30_000_000_000;

impl Kernel {
    /// A packet as it leaves by the underlay's interface; none where it does not. `from` is where what is forwarded came
    /// from.
    pub(crate) fn leave(&mut self, now: u64, from: Option<&Source>, bytes: &[u8]) -> Option<Vec<u8>> {
        let (src, dst) = packet::addresses(bytes)?;
        let Some(firewall) = &self.firewall else {
            return Some(bytes.to_vec());
        };
        let is_refused = fib::any_holds(&firewall.outside.refused, dst);
        match from {
            // Nobody uses this node as a way to somewhere else: nothing comes by the tunnel that was translated here.
            Some(Source::Tunnel) => return None,
            Some(Source::Pod(_)) if is_refused => return None,
            Some(Source::Pod(_)) if firewall.outside.masquerade => {
                let is_pod = |address| fib::any_holds(&firewall.pod_cidrs, address);
                if is_pod(src) && !is_pod(dst) {
                    return self.masquerade.outward(now, bytes);
                }
            }
            _ => {}
        }
        self.underlay_allows(src, dst).then(|| bytes.to_vec())
    }

    /// A packet from the underlay with the pod's address that conntrack knows behind it; none where it knows none.
    pub(crate) fn untranslated(&self, now: u64, bytes: &[u8]) -> Option<Vec<u8>> {
        self.masquerade.inward(now, bytes)
    }
}
