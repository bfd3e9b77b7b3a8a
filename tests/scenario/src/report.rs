//! What a run of a scenario has proved.

use meshd_model::NodeName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What came of one expectation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The step of the scenario it belongs to.
    pub step: String,
    /// What is claimed, in a sentence.
    pub name: String,
    /// Whether it is so. A proof whose control failed has not held.
    pub held: bool,
    /// What was counted.
    pub numbers: BTreeMap<String, u64>,
    /// What exactly was seen, where it is worth a line; why it does not hold, where it does not.
    pub detail: String,
}

/// Round trips of answered probes, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundTrips {
    /// How many.
    pub count: usize,
    /// The shortest.
    pub min_us: u64,
    /// The median.
    pub median_us: u64,
    /// The longest: it holds a handshake, where one was needed first.
    pub max_us: u64,
}

impl RoundTrips {
    /// Of these; none of none.
    #[must_use]
    pub fn of(mut micros: Vec<u64>) -> Option<RoundTrips> {
        micros.sort_unstable();
        let (min_us, max_us) = (*micros.first()?, *micros.last()?);
        Some(RoundTrips {
            count: micros.len(),
            min_us,
            median_us: micros[micros.len() / 2],
            max_us,
        })
    }
}

/// One node in the report's table, as it was before the pods were deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Its name.
    pub node: NodeName,
    /// Its own addresses on the underlay.
    pub addresses: Vec<IpAddr>,
    /// Pods attached.
    pub pods: usize,
    /// Peers known.
    pub peers: usize,
    /// Peers with which a handshake was completed.
    pub handshakes: usize,
    /// Bytes received through the tunnel.
    pub rx_bytes: u64,
    /// Bytes sent through the tunnel.
    pub tx_bytes: u64,
    /// Of probes that this node or its pods sent.
    pub round_trips: Option<RoundTrips>,
    /// Why some of it is unknown.
    pub problem: Option<String>,
}

/// All that a run has to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The scenario's name.
    pub scenario: String,
    /// The arm's name.
    pub arm: String,
    /// Whether every proof held and every step was run.
    pub held: bool,
    /// In the order of the steps.
    pub proofs: Vec<Proof>,
    /// Steps that were not run, because one before them could not be carried out.
    pub not_run: Vec<String>,
    /// One a node.
    pub nodes: Vec<NodeRow>,
    /// How long it took, in the arm's own time, in microseconds.
    pub duration_us: u64,
}

impl Report {
    /// Adds a proof that someone other than the engine made.
    pub fn push(&mut self, proof: Proof) {
        self.held &= proof.held;
        self.proofs.push(proof);
    }
}

/// What is going on, while it goes on.
#[derive(Clone, Debug)]
pub enum Progress<'a> {
    /// A step begins.
    Step {
        /// From 1.
        number: usize,
        /// Of how many.
        of: usize,
        /// Its name.
        name: &'a str,
    },
    /// What it does just now, and on which node.
    Doing(String),
    /// What came of an expectation.
    Proof(&'a Proof),
}
