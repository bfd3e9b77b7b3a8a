//! A scenario as text: what is written in YAML, and what is wrong with it.

use crate::time::Span;
use meshd_model::net::Family;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A cluster and what is to happen to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// What it shows, in a sentence.
    pub about: String,
    /// How many nodes it wants, where the arm makes its own.
    pub nodes: usize,
    /// Families of its nodes, pods and services, where the arm makes its own.
    pub families: BTreeSet<Family>,
    /// Nodes behind a NAT of their own, where the arm makes its own.
    pub behind_nat: Vec<BehindNat>,
    /// Whether each node has a second interface on the underlay, at whose addresses it is configured to be reached, where
    /// the arm makes its own.
    pub second_interface: bool,
    /// Kubernetes manifests to create before the first step (YAML).
    pub manifests: Option<String>,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// A node behind a NAT of its own: others reach it only as long as the NAT remembers what it has sent to them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BehindNat {
    /// Which node.
    pub node: usize,
    /// How long the NAT remembers.
    pub forgets: Span,
    /// Seconds between the node's keepalives, if it sends any.
    #[serde(default)]
    pub keepalive: Option<u16>,
}

/// Why a text is no scenario.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// It is not YAML, or not of a scenario's shape.
    #[error("not a scenario: {0}")]
    Shape(String),
    /// One of its steps is not.
    #[error("step {number}, {step}: {reason}")]
    Step {
        /// Counted from 1.
        number: usize,
        /// What it says after `do:`.
        step: String,
        /// What is wrong.
        reason: String,
    },
}

/// One step. Nodes are named by number, the first is 1, so that a scenario fits every arm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "do",
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case",
    deny_unknown_fields
)]
pub enum Step {
    /// Sends the marker in the clear on the underlay, so that the capture proves that it sees.
    ControlMarker {},
    /// Waits until every agent says that it is ready.
    WaitReady {
        /// How long at most, for all of them.
        #[serde(default = "within")]
        within: Span,
    },
    /// Adds pods with CNI ADD.
    AddPods {
        /// How many on each node.
        per_node: usize,
    },
    /// Every pod reaches every other pod in both families.
    EveryoneReachesEveryone {
        /// How long until all of them do.
        #[serde(default = "within")]
        within: Span,
        /// Bytes of the payload that goes there and back.
        #[serde(default = "payload")]
        payload: usize,
        /// With more pairs than this, as many of them are tried, each pod among them.
        #[serde(default = "at_most")]
        at_most: usize,
    },
    /// Every node reaches every pod, and every pod every node's own addresses.
    NodesAndPods {
        /// How long until all of them do.
        #[serde(default = "within")]
        within: Span,
        /// With more pairs than this, as many of them are tried.
        #[serde(default = "at_most")]
        at_most: usize,
    },
    /// kill -9 of an agent during a stream loses no packet, beside a stream between other nodes.
    KillAgentUnderStream {
        /// Whose agent.
        node: usize,
        /// Between two packets.
        #[serde(default = "interval")]
        interval: Span,
        /// How long the stream runs before.
        #[serde(default = "second")]
        before: Span,
        /// How long the agent stays away.
        #[serde(default = "second")]
        down: Span,
        /// How long the stream runs after the agent is ready again.
        #[serde(default = "second")]
        after: Span,
    },
    /// Kills an agent, if it runs, and overwrites one of its Node's annotations: the node becomes unreachable.
    DamageAnnotation {
        /// Whose.
        node: usize,
        /// Full key.
        annotation: String,
        /// The new text.
        value: String,
        /// How long until no one reaches the node's pods.
        #[serde(default = "within")]
        within: Span,
    },
    /// The same, but the annotation is removed.
    RemoveAnnotation {
        /// Whose.
        node: usize,
        /// Full key.
        annotation: String,
        /// How long until no one reaches the node's pods.
        #[serde(default = "within")]
        within: Span,
    },
    /// Starts a killed agent again: it mends its annotations, and its node's pods are reachable again.
    RestoreAgent {
        /// Whose.
        node: usize,
        /// How long until they are.
        #[serde(default = "within")]
        within: Span,
    },
    /// Deletes a Node and creates it again with a new UID; its pods are deleted and added again, and are reachable.
    RecreateNode {
        /// Which.
        node: usize,
        /// How long until they are.
        #[serde(default = "within")]
        within: Span,
    },
    /// kill -9 of a WireGuard device that is a process, and its start: what others send to its node arrives again soon,
    /// though they still hold sessions that it has lost.
    RestartDevice {
        /// Whose.
        node: usize,
        /// How long what is sent may be lost at most.
        #[serde(default = "soon")]
        within: Span,
        /// How long the stream runs after the restart.
        #[serde(default = "twenty_seconds")]
        after: Span,
    },
    /// A node is given other addresses on the underlay: they are published, and its pods are reached again.
    ChangeAddresses {
        /// Whose.
        node: usize,
        /// How long until they are published.
        #[serde(default = "soon")]
        published: Span,
        /// How long until its pods are reached.
        #[serde(default = "within")]
        within: Span,
    },
    /// Every pod reaches a machine outside of the cluster, which sees its node's address, and not the addresses of that
    /// machine that pods are refused.
    WorldOutside {
        /// How long until all of them do.
        #[serde(default = "within")]
        within: Span,
    },
    /// Every node is reached at the addresses of its second interface, which it publishes, and at no others.
    SecondInterface {
        /// How long until all of them are.
        #[serde(default = "within")]
        within: Span,
    },
    /// After a silence, a node behind a NAT that sends keepalives is reached, and one that sends none is not. Once the
    /// first one's NAT has forgotten everything, it is reached again.
    BehindNat {
        /// The one that sends them.
        node: usize,
        /// The one that sends none.
        control: usize,
        /// How long nothing is sent.
        silence: Span,
        /// How long until nodes are reached that are to be.
        #[serde(default = "within")]
        within: Span,
    },
    /// A neighbour on the underlay sends plaintext to each node's first pod: none arrives.
    NeighbourPlaintext {},
    /// The API server is away: streams lose nothing, DEL works, and an agent that starts meanwhile harms nothing.
    ApiServerAway {
        /// How long.
        r#for: Span,
        /// A node whose first pod is deleted meanwhile, and whose agent is killed and started.
        node: usize,
        /// How long until that agent is ready, once the API server is back.
        #[serde(default = "within")]
        within: Span,
    },
    /// Deletes every pod with CNI DEL.
    DeletePods {},
    /// The capture holds WireGuard, and no pod's address and no marker but those sent in clear on purpose.
    UnderlayIsEncrypted {},
    /// Nothing is left of pods on any node.
    NoResidue {},
    /// Lets time pass.
    Wait {
        /// How long.
        r#for: Span,
    },
}

fn within() -> Span {
    Span::seconds(30)
}

fn soon() -> Span {
    Span::seconds(5)
}

fn twenty_seconds() -> Span {
    Span::seconds(20)
}

fn second() -> Span {
    Span::seconds(1)
}

fn interval() -> Span {
    Span::millis(5)
}

fn payload() -> usize {
    512
}

fn at_most() -> usize {
    1000
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: String,
    #[serde(default)]
    about: String,
    #[serde(default = "three")]
    nodes: usize,
    #[serde(default = "both")]
    families: Vec<RawFamily>,
    #[serde(default, rename = "behind-nat")]
    behind_nat: Vec<BehindNat>,
    #[serde(default, rename = "second-interface")]
    second_interface: bool,
    #[serde(default)]
    manifests: Option<String>,
    steps: Vec<serde_json::Value>,
}

fn three() -> usize {
    3
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawFamily {
    Ipv4,
    Ipv6,
}

fn both() -> Vec<RawFamily> {
    vec![RawFamily::Ipv4, RawFamily::Ipv6]
}

impl From<RawFamily> for Family {
    fn from(family: RawFamily) -> Family {
        match family {
            RawFamily::Ipv4 => Family::V4,
            RawFamily::Ipv6 => Family::V6,
        }
    }
}

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    /// Names the step and the key that it does not know or miss.
    pub fn parse(text: &str) -> Result<Scenario, ScenarioError> {
        let raw: Raw = serde_saphyr::from_str(text).map_err(|e| ScenarioError::Shape(e.to_string()))?;
        if raw.nodes == 0 {
            return Err(ScenarioError::Shape("nodes: at least 1 is needed".to_owned()));
        }
        if raw.families.is_empty() {
            return Err(ScenarioError::Shape(
                "families: name ipv4, ipv6 or both".to_owned(),
            ));
        }
        let steps = raw.steps.into_iter().enumerate();
        let steps = steps
            .map(|(index, step)| read_step(index + 1, step))
            .collect::<Result<Vec<_>, _>>()?;
        for (index, step) in steps.iter().enumerate() {
            check_node(index + 1, step, raw.nodes)?;
        }
        if let Some(nat) = raw.behind_nat.iter().find(|n| n.node == 0 || n.node > raw.nodes) {
            let reason = format!("behind-nat: there is no node {}", nat.node);
            return Err(ScenarioError::Shape(reason));
        }
        Ok(Scenario {
            name: raw.name,
            about: raw.about,
            nodes: raw.nodes,
            families: raw.families.into_iter().map(Family::from).collect(),
            behind_nat: raw.behind_nat,
            second_interface: raw.second_interface,
            manifests: raw.manifests,
            steps,
        })
    }

    /// The text of [`first_light`](Self::first_light).
    pub const FIRST_LIGHT: &str = include_str!("../scenarios/first-light.yaml");

    /// What `cargo demo` and `meshctl sim` run.
    #[must_use]
    pub fn first_light() -> Scenario {
        Self::parse(Self::FIRST_LIGHT).expect("a test reads this scenario")
    }
}

fn read_step(number: usize, step: serde_json::Value) -> Result<Step, ScenarioError> {
    let name = step
        .get("do")
        .and_then(|v| v.as_str())
        .unwrap_or("without `do:`")
        .to_owned();
    serde_json::from_value(step).map_err(|e| ScenarioError::Step {
        number,
        step: name,
        reason: e.to_string(),
    })
}

fn check_node(number: usize, step: &Step, nodes: usize) -> Result<(), ScenarioError> {
    match step.node() {
        Some(node) if node == 0 || node > nodes => Err(ScenarioError::Step {
            number,
            step: step.name(),
            reason: format!("there is no node {node}: the scenario has nodes 1 to {nodes}"),
        }),
        _ => Ok(()),
    }
}

impl Step {
    /// What it says after `do:`.
    #[must_use]
    pub fn name(&self) -> String {
        let value = serde_json::to_value(self).unwrap_or_default();
        value
            .get("do")
            .and_then(|v| v.as_str())
            .unwrap_or_default()
            .to_owned()
    }

    /// The node it is about, where it is about one.
    #[must_use]
    pub fn node(&self) -> Option<usize> {
        match *self {
            Step::KillAgentUnderStream { node, .. }
            | Step::DamageAnnotation { node, .. }
            | Step::RemoveAnnotation { node, .. }
            | Step::RestoreAgent { node, .. }
            | Step::RecreateNode { node, .. }
            | Step::RestartDevice { node, .. }
            | Step::ChangeAddresses { node, .. }
            | Step::BehindNat { node, .. }
            | Step::ApiServerAway { node, .. } => Some(node),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_scenario_reads() {
        let scenario = Scenario::first_light();
        assert_eq!(scenario.name, "first-light");
        assert_eq!(scenario.nodes, 3);
        assert!(matches!(scenario.steps[0], Step::ControlMarker {}));
    }

    #[test]
    fn defaults_and_durations_read() {
        let text =
            "name: t\nsteps:\n- do: add-pods\n  per-node: 2\n- do: wait\n  for: 250ms\n- do: wait-ready\n";
        let scenario = Scenario::parse(text).unwrap();
        assert_eq!(scenario.steps[0], Step::AddPods { per_node: 2 });
        assert_eq!(
            scenario.steps[1],
            Step::Wait {
                r#for: Span::millis(250)
            }
        );
        assert_eq!(
            scenario.steps[2],
            Step::WaitReady {
                within: Span::seconds(30)
            }
        );
    }

    #[test]
    fn families_are_both_or_one() {
        let of = |line: &str| {
            Scenario::parse(&format!("name: t\n{line}steps: []\n"))
                .unwrap()
                .families
        };
        assert_eq!(of(""), BTreeSet::from([Family::V4, Family::V6]));
        assert_eq!(of("families: [ipv6]\n"), BTreeSet::from([Family::V6]));
        refused("name: t\nfamilies: []\nsteps: []\n", "ipv4, ipv6 or both");
        refused("name: t\nfamilies: [ipv5]\nsteps: []\n", "ipv5");
    }

    #[track_caller]
    fn refused(text: &str, wanted: &str) {
        let message = Scenario::parse(text).unwrap_err().to_string();
        assert!(message.contains(wanted), "{message}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        refused("name: t\nstep: []\nsteps: []\n", "step");
        refused("name: t\nnodes: 0\nsteps: []\n", "at least 1");
        refused(
            "name: t\nsteps:\n- do: wait\n  for: 1s\n- do: dance\n",
            "step 2, dance: unknown variant",
        );
        refused(
            "name: t\nsteps:\n- do: add-pods\n  per_node: 2\n",
            "unknown field `per_node`, expected `per-node`",
        );
        refused(
            "name: t\nsteps:\n- do: no-residue\n  of: 2\n",
            "step 1, no-residue: unknown field `of`",
        );
        refused("name: t\nsteps:\n- do: wait\n  for: 3\n", "step 1, wait");
        refused("name: t\nsteps:\n- do: wait\n  for: 3 weeks\n", "3 weeks");
        refused("name: t\nsteps:\n- do: add-pods\n", "missing field `per-node`");
        refused("name: t\nsteps:\n- for: 3s\n", "missing field `do`");
        refused(
            "name: t\nsteps:\n- do: recreate-node\n  node: 4\n",
            "there is no node 4",
        );
        refused(
            "name: t\nbehind-nat:\n- node: 4\n  forgets: 1s\nsteps: []\n",
            "behind-nat: there is no node 4",
        );
    }
}
