//! A scenario as text: what is written in YAML, and what is wrong with it.

use crate::step::Step;
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
    /// Whether the nodes claim blocks of the pod CIDRs for themselves (IPAM's pool mode), where the arm makes its own.
    pub pool: bool,
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
    pool: bool,
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
        let numbers: BTreeSet<usize> = raw.behind_nat.iter().map(|nat| nat.node).collect();
        if numbers.len() < raw.behind_nat.len() {
            let reason = "behind-nat: a node has one NAT: name each once".to_owned();
            return Err(ScenarioError::Shape(reason));
        }
        Ok(Scenario {
            name: raw.name,
            about: raw.about,
            nodes: raw.nodes,
            families: raw.families.into_iter().map(Family::from).collect(),
            behind_nat: raw.behind_nat,
            second_interface: raw.second_interface,
            pool: raw.pool,
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
    let named = [step.node(), step.control()].into_iter().flatten();
    match named.into_iter().find(|node| *node == 0 || *node > nodes) {
        Some(node) => Err(ScenarioError::Step {
            number,
            step: step.name(),
            reason: format!("there is no node {node}: the scenario has nodes 1 to {nodes}"),
        }),
        None => Ok(()),
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
        refused(
            "name: t\nbehind-nat:\n- node: 1\n  forgets: 1s\n- node: 1\n  forgets: 2s\nsteps: []\n",
            "name each once",
        );
        refused(
            "name: t\nsteps:\n- do: behind-nat\n  node: 1\n  control: 4\n  silence: 1s\n  within: 1s\n",
            "there is no node 4",
        );
    }
}
