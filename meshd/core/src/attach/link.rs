//! MACs and the desired link of an attachment, and how it differs from what is there.

use meshd_model::attachment::MacAddr;
use meshd_model::kernel::{PodLink, PodLinkState};
use meshd_model::{AttachmentId, Lease, LeasePhase};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// An MTU that every link takes, for links that are only to be taken down.
const MTU_ANY: u16 = 1280;

/// MACs of the host's and the pod's end: locally administered unicast, equal but for the last bit.
pub(crate) fn macs(id: &AttachmentId) -> (MacAddr, MacAddr) {
    let [a, b, c, d, e, f, ..] = id.stable_hash().to_be_bytes();
    let mac = |last| MacAddr([(a & 0xfc) | 0x02, b, c, d, e, last]);
    (mac(f & 0xfe), mac(f | 1))
}

/// The link of a lease.
pub(crate) fn link(lease: &Lease, host_addresses: Vec<IpAddr>, mtu: Option<u16>) -> PodLink {
    PodLink {
        id: lease.id.clone(),
        netns: lease.netns.clone(),
        host_ifname: lease.host_ifname.clone(),
        host_mac: lease.host_mac,
        mac: lease.mac,
        addresses: lease.addresses.clone(),
        host_addresses,
        mtu: mtu.unwrap_or(MTU_ANY),
        secondary: lease.secondary,
    }
}

/// The link of an interface that no lease explains: as much as it takes to remove it.
pub(crate) fn unexplained(id: &AttachmentId, ifname: &str, state: &PodLinkState) -> PodLink {
    PodLink {
        id: id.clone(),
        netns: String::new(),
        host_ifname: ifname.to_owned(),
        host_mac: state.host_mac,
        mac: macs(id).1,
        addresses: state.addresses.iter().copied().collect(),
        host_addresses: Vec::new(),
        mtu: state.mtu,
        secondary: false,
    }
}

/// The lease that a link would have had which no lease explains: for its deletion.
pub(crate) fn adopted(link: PodLink, network: String) -> Lease {
    Lease {
        id: link.id,
        phase: LeasePhase::Deleting,
        pod: None,
        netns: link.netns,
        host_ifname: link.host_ifname,
        host_mac: link.host_mac,
        mac: link.mac,
        addresses: link.addresses,
        token: 0,
        secondary: false,
        network,
    }
}

/// What differs between the desired link and what is there; None if nothing does.
pub(crate) fn difference(desired: &PodLink, there: Option<&PodLinkState>) -> Option<String> {
    let name = &desired.host_ifname;
    let Some(there) = there else {
        return Some(format!("interface {name} is not there"));
    };
    let addresses: BTreeSet<_> = desired.addresses.iter().copied().collect();
    if there.host_mac != desired.host_mac {
        return Some(format!(
            "interface {name} has MAC {}, not {}",
            there.host_mac, desired.host_mac
        ));
    }
    if there.addresses != addresses {
        return Some(format!(
            "interface {name} is routed {:?}, not {addresses:?}",
            there.addresses
        ));
    }
    if there.mtu != desired.mtu {
        return Some(format!(
            "interface {name} has MTU {}, not {}",
            there.mtu, desired.mtu
        ));
    }
    if !there.up {
        return Some(format!("interface {name} is down, or its other end is"));
    }
    (!there.guarded).then(|| format!("the rules against spoofing do not know interface {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshd_model::kernel::{IFNAME_MAX, POD_IFNAME_PREFIX};

    #[test]
    fn names_and_macs_are_stable_and_differ() {
        let id = |c: &str| AttachmentId {
            container_id: c.into(),
            ifname: "eth0".into(),
        };
        let mut names = BTreeSet::new();
        for i in 0..10_000 {
            let id = id(&format!("{i:x}"));
            let name = id.host_ifname();
            assert!(
                name.len() == IFNAME_MAX && name.starts_with(POD_IFNAME_PREFIX),
                "{name}"
            );
            assert!(names.insert(name));
            let (host, pod) = macs(&id);
            assert_ne!(host, pod);
            assert_eq!(host.0[0] & 3, 2, "locally administered unicast");
        }
        // A change of these would orphan every interface of an older version.
        assert_eq!(id("c1").host_ifname(), HOST_IFNAME_C1);
        assert_eq!(macs(&id("c1")).1.to_string(), MAC_C1);
    }

    const HOST_IFNAME_C1: &str = "mshph4hiccq4x6r";
    const MAC_C1: &str = "2a:c7:d7:e4:04:25";
}
