//! Runs a scenario in a sandbox: the caller starts it and hears what it does, the entry runs inside.

use crate::cluster::Cluster;
use crate::cluster::api::Api;
use crate::cluster::node::{Mode, Setup};
use crate::plan::Families;
use crate::sandbox::{Entry, Inside, Reporter, Sandbox, StartError};
use crate::{Binaries, NetnsArm};
use anyhow::{Context, Result};
use meshd_scenario::{Progress, Proof, Report, Scenario};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// To be among the entries of a program that calls [`run`].
pub const ENTRY: Entry = Entry {
    name: "scenario",
    run: inside,
};

/// What the caller wants to be run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// The scenario's text.
    pub scenario: String,
    /// How many nodes, if not as many as the scenario says.
    pub nodes: Option<usize>,
    /// The programs to run.
    pub binaries: Binaries,
    /// What carries the nodes' tunnels.
    #[serde(default)]
    pub mode: Mode,
}

/// What is going on.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A step begins.
    Step {
        /// From 1.
        number: usize,
        /// Of how many.
        of: usize,
        /// Its name.
        name: String,
    },
    /// What is being done just now.
    Doing(String),
    /// What came of an expectation.
    Proof(Proof),
    /// All of it.
    Report(Report),
}

impl From<Progress<'_>> for Event {
    fn from(progress: Progress<'_>) -> Self {
        match progress {
            Progress::Step { number, of, name } => Event::Step {
                number,
                of,
                name: name.to_owned(),
            },
            Progress::Doing(what) => Event::Doing(what),
            Progress::Proof(proof) => Event::Proof(proof.clone()),
        }
    }
}

/// What a run that did not come to its end has left on the machine, one line each: the context of its error.
#[derive(Debug)]
pub struct Left(pub Vec<String>);

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "left on the machine: {}", self.0.join("; "))
    }
}

/// Runs the scenario in a new sandbox, whose logs go to `folder`, and looks afterwards for what is left on the
/// machine: that is the report's last proof.
pub fn run(order: &Order, folder: &Path, tell: &mut dyn FnMut(Event)) -> Result<Report, StartError> {
    let mut sandbox = Sandbox::start(ENTRY.name, order, folder)?;
    let mut report = None;
    while let Some(message) = sandbox.message() {
        match serde_json::from_value(message) {
            Ok(Event::Report(whole)) => report = Some(whole),
            Ok(event) => tell(event),
            Err(error) => tell(Event::Doing(format!("(not understood: {error})"))),
        }
    }
    let namespaces = sandbox.namespaces();
    let ended = sandbox.finish();
    if let Some(failure) = ended.failure {
        let error = anyhow::anyhow!(failure);
        return Err(StartError::Failed(if ended.remains.is_empty() {
            error
        } else {
            error.context(Left(ended.remains))
        }));
    }
    let mut report = report
        .context("the sandbox ended without a report")
        .map_err(StartError::Failed)?;
    let outside = Proof {
        step: "outside".to_owned(),
        name: "no process, namespace, mount or interface is left on the machine".to_owned(),
        held: ended.remains.is_empty(),
        numbers: BTreeMap::from([
            ("namespaces_made".to_owned(), namespaces as u64),
            ("left".to_owned(), ended.remains.len() as u64),
        ]),
        detail: ended.remains.join("; "),
    };
    tell(Event::Proof(outside.clone()));
    report.push(outside);
    Ok(report)
}

fn inside(inside: Inside) -> Result<()> {
    let order: Order = serde_json::from_value(inside.input).context("the order is not understood")?;
    let scenario = Scenario::parse(&order.scenario)?;
    let reporter = inside.reporter;
    let nodes = order.nodes.unwrap_or(scenario.nodes);
    let setup = Setup {
        second_interface: scenario.second_interface,
        pool: scenario.pool,
        ..Setup::from(order.mode)
    };
    let mut setups = vec![setup; nodes];
    for nat in &scenario.behind_nat {
        let setup = setups.get_mut(nat.node - 1);
        setup
            .with_context(|| format!("there is no node {}", nat.node))?
            .nat = Some(nat.clone());
    }
    let mut arm = start_with(&setups, scenario.families.clone(), &order.binaries, reporter)?;
    let mut report = meshd_scenario::run(&scenario, &mut arm, &mut |p| reporter.send(&Event::from(p)));
    let begin = std::time::Instant::now();
    let proof = shut_down(arm, reporter);
    reporter.send(&Event::Proof(proof.clone()));
    report.push(proof);
    report.duration_us += u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
    reporter.send(&Event::Report(report));
    Ok(())
}

/// A cluster with the embedded API server, as an arm. Call it inside a sandbox.
pub fn start(nodes: usize, families: Families, binaries: &Binaries, reporter: Reporter) -> Result<NetnsArm> {
    start_with(&vec![Setup::default(); nodes], families, binaries, reporter)
}

/// The same, with a node for each of the set-ups.
pub fn start_with(
    setups: &[Setup],
    families: Families,
    binaries: &Binaries,
    reporter: Reporter,
) -> Result<NetnsArm> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start a tokio runtime")?;
    let runtime = Arc::new(runtime);
    let mut tell = |what| reporter.send(&Event::Doing(what));
    let up = Cluster::up_with(
        setups,
        families,
        binaries,
        Api::embedded(),
        None,
        reporter,
        &mut tell,
    );
    let cluster = runtime.block_on(up)?;
    Ok(NetnsArm::new(runtime, cluster))
}

fn shut_down(arm: NetnsArm, reporter: Reporter) -> Proof {
    let down = arm.shut_down(&mut |what| reporter.send(&Event::Doing(what)));
    let left = down.unwrap_or_else(|error| vec![format!("{error:#}")]);
    Proof {
        step: "shut-down".to_owned(),
        name:
            "after shutdown no interface, address, route, rule, table, namespace or lease is left on a node"
                .to_owned(),
        held: left.is_empty(),
        numbers: BTreeMap::from([("left".to_owned(), left.len() as u64)]),
        detail: left.join("; "),
    }
}
