//! The wire between the nodes: its capture, a machine on it that belongs to nobody, and one outside of the cluster.

use crate::lab::{Family, Lab};
use anyhow::{Context, Result};
use ipnetwork::IpNetwork;
use meshd_lab::capture::Capture;
use meshd_lab::netns::Netns;
use meshd_lab::plan::Plan;
use meshd_lab::traffic::echo::Echo;
use meshd_lab::traffic::neighbour::Neighbour;
use meshd_lab::underlay::Underlay;
use std::net::IpAddr;
use tokio::runtime::Runtime;

/// `hack/kubernetes` has its API server and its bridge there.
const PART: &str = "ul";
const BRIDGE: &str = "wire";
/// The cluster's pod CIDRs.
const POD_CIDRS: [&str; 2] = ["10.244.0.0/14", "fd00:244::/48"];

/// The wire.
pub(crate) struct Wire {
    pub(crate) capture: Capture,
    pub(crate) neighbour: Neighbour,
    /// The neighbour's own.
    pub(crate) addresses: Vec<IpAddr>,
    /// Its echo servers answer as long as it is there.
    _outside: (Netns, Echo),
}

impl Wire {
    pub(crate) fn tap(lab: &Lab, runtime: &Runtime) -> Result<Self> {
        let netns = Netns::open(PART, &lab.netns(PART))?;
        let cidrs: Vec<IpNetwork> = pod_cidrs(lab.family());
        // For the sockets of netlink.
        let _entered = runtime.enter();
        let underlay = Underlay::existing(&netns, BRIDGE)?;
        let bridge = runtime.block_on(underlay.bridge_index())?;
        let capture = netns
            .run(move || Capture::start(bridge, &cidrs))?
            .context("capture on the wire")?;
        let machine = Netns::unmounted("neighbour")?;
        let (v4, v6) = Plan::neighbour();
        let all = [IpAddr::from(v4), IpAddr::from(v6)].into_iter();
        let addresses: Vec<_> = all.filter(|a| lab.family().has(*a)).collect();
        runtime.block_on(underlay.plug(&machine, v4, &addresses))?;
        let outside = runtime.block_on(underlay.plug_outside(Netns::unmounted("outside")?))?;
        Ok(Self {
            capture,
            neighbour: Neighbour::new(machine),
            addresses,
            _outside: outside,
        })
    }
}

/// The cluster's pod CIDRs.
pub(crate) fn pod_cidrs(family: Family) -> Vec<IpNetwork> {
    let all = POD_CIDRS.iter().map(|c| c.parse().expect("a prefix"));
    all.filter(|c: &IpNetwork| family.has(c.network())).collect()
}
