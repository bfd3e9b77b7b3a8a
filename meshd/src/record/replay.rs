//! Runs the agent through a segment and compares every action with the recorded one.

use super::{ReadError, Record, Segment, Tail, read_segment, segments};
use meshd_core::{Action, Event, KernelEvent, NodeAgent};
use meshd_model::kernel::KernelState;
use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};

/// What a replay went through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayReport {
    /// Which segment.
    pub path: PathBuf,
    /// Version of the agent that was recorded.
    pub agent_version: String,
    /// Events that the agent was told.
    pub events: usize,
    /// Timers that came due.
    pub timeouts: usize,
    /// Actions, each the same as recorded.
    pub actions: usize,
    /// Records that were lost before this segment.
    pub lost_before: u64,
    /// How the segment ends.
    pub tail: Tail,
}

impl fmt::Display for ReplayReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path,
            agent_version,
            events,
            timeouts,
            actions,
            lost_before,
            tail,
        } = self;
        write!(
            f,
            "{}: same decisions: {events} events, {timeouts} timeouts, {actions} actions",
            path.display()
        )?;
        write!(f, " (recorded by agent version {agent_version}")?;
        if *lost_before > 0 {
            write!(f, "; {lost_before} records were lost before it")?;
        }
        match tail {
            Tail::Whole => {}
            Tail::Torn { offset } => write!(f, "; the daemon was killed while it wrote byte {offset}")?,
            Tail::Damaged { offset } => write!(f, "; damaged from byte {offset} on")?,
        }
        f.write_str(")")
    }
}

/// The agent wants something else than it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// Which segment.
    pub path: PathBuf,
    /// Version of the agent that was recorded.
    pub agent_version: String,
    /// Which record of the segment, from 0.
    pub record: usize,
    /// The event or timeout that the agent had been told last; none before the first.
    pub cause: Option<Record>,
    /// What was recorded; none if the recording goes on without an action here.
    pub recorded: Option<Action>,
    /// What the agent wants now; none if nothing.
    pub replayed: Option<Action>,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path,
            agent_version,
            record,
            cause,
            recorded,
            replayed,
        } = self;
        writeln!(
            f,
            "{}: the agent decides otherwise at record {record}",
            path.display()
        )?;
        writeln!(
            f,
            "  recorded by agent version {agent_version}, replayed by {}",
            env!("CARGO_PKG_VERSION")
        )?;
        match cause {
            Some(cause) => writeln!(f, "  after    {cause:?}")?,
            None => writeln!(f, "  at the beginning")?,
        }
        let action = |action: &Option<Action>| match action {
            Some(action) => format!("{action:?}"),
            None => "nothing".into(),
        };
        writeln!(f, "  recorded {}", action(recorded))?;
        write!(f, "  replayed {}", action(replayed))
    }
}

impl std::error::Error for Divergence {}

/// Why a recording did not replay.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// There is nothing to replay.
    #[error("{0} holds no segment of a recording")]
    Empty(PathBuf),
    /// The agent decides otherwise now.
    #[error(transparent)]
    Diverged(#[from] Box<Divergence>),
    /// Two segments of one run do not fit together: the replay ended elsewhere than the next begins.
    #[error("{0} begins with another agent than the replay of the segment before it ended with")]
    Discontinuous(PathBuf),
}

/// Replays one segment.
pub fn replay(segment: &Segment) -> Result<ReplayReport, Box<Divergence>> {
    run(segment).map(|(report, _)| report)
}

/// Replays a segment, or every segment of a folder. Where two follow each other in one run without loss, the
/// second's snapshot must be what the first's replay ended with.
pub fn replay_path(path: &Path) -> Result<Vec<ReplayReport>, ReplayError> {
    let paths: Vec<PathBuf> = if path.is_dir() {
        let found = segments(path).map_err(|error| ReadError::Io {
            path: path.to_owned(),
            error,
        })?;
        found.into_iter().map(|(_, path)| path).collect()
    } else {
        vec![path.to_owned()]
    };
    let mut reports = Vec::new();
    let mut before: Option<(Segment, NodeAgent)> = None;
    for path in paths {
        let segment = read_segment(&path)?;
        if let Some((previous, ended)) = &before
            && previous.header.run == segment.header.run
            && previous.tail == Tail::Whole
            && segment.header.lost_before == 0
            && snapshot(ended) != snapshot(&segment.agent)
        {
            return Err(ReplayError::Discontinuous(path));
        }
        let (report, ended) = run(&segment)?;
        reports.push(report);
        before = Some((segment, ended));
    }
    if reports.is_empty() {
        return Err(ReplayError::Empty(path.to_owned()));
    }
    Ok(reports)
}

/// The agent as bytes, to compare; its maps are ordered, so equal agents have equal bytes.
fn snapshot(agent: &NodeAgent) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A failure leaves a prefix, the same for equal agents.
    let _ = ciborium::into_writer(agent, &mut bytes);
    bytes
}

fn run(segment: &Segment) -> Result<(ReplayReport, NodeAgent), Box<Divergence>> {
    let mut replay = Replay {
        segment,
        kernel: KernelState::default(),
        agent: segment.agent.clone(),
        pending: VecDeque::new(),
        cause: None,
    };
    let mut report = ReplayReport {
        path: segment.path.clone(),
        agent_version: segment.header.agent_version.clone(),
        events: 0,
        timeouts: 0,
        actions: 0,
        lost_before: segment.header.lost_before,
        tail: segment.tail.clone(),
    };
    replay.poll();
    for (index, record) in segment.records.iter().enumerate() {
        match record {
            Record::Action(recorded) => {
                replay.compare(index, recorded)?;
                report.actions += 1;
                continue;
            }
            Record::Event { now, event } => {
                replay.expect_nothing(index)?;
                replay.agent.handle_event(*now, event.clone());
                report.events += 1;
            }
            Record::Observed { now, delta } => {
                replay.expect_nothing(index)?;
                delta.apply(&mut replay.kernel);
                let event = KernelEvent::Observed(Box::new(replay.kernel.clone()));
                replay.agent.handle_event(*now, Event::Kernel(event));
                report.events += 1;
            }
            Record::Timeout { now } => {
                replay.expect_nothing(index)?;
                replay.agent.handle_timeout(*now);
                report.timeouts += 1;
            }
        }
        replay.cause = Some(record);
        replay.poll();
    }
    // Actions left over are no divergence: the daemon was killed, or lost records, before it recorded them.
    Ok((report, replay.agent))
}

struct Replay<'a> {
    segment: &'a Segment,
    /// As it was observed last.
    kernel: KernelState,
    agent: NodeAgent,
    /// What the agent wants and was not compared yet.
    pending: VecDeque<Action>,
    cause: Option<&'a Record>,
}

impl Replay<'_> {
    fn poll(&mut self) {
        while let Some(action) = self.agent.poll_action() {
            self.pending.push_back(action);
        }
    }

    fn compare(&mut self, index: usize, recorded: &Action) -> Result<(), Box<Divergence>> {
        match self.pending.pop_front() {
            Some(replayed) if replayed == *recorded => Ok(()),
            replayed => Err(self.divergence(index, Some(recorded.clone()), replayed)),
        }
    }

    fn expect_nothing(&mut self, index: usize) -> Result<(), Box<Divergence>> {
        match self.pending.pop_front() {
            None => Ok(()),
            replayed => Err(self.divergence(index, None, replayed)),
        }
    }

    fn divergence(
        &self,
        record: usize,
        recorded: Option<Action>,
        replayed: Option<Action>,
    ) -> Box<Divergence> {
        Box::new(Divergence {
            path: self.segment.path.clone(),
            agent_version: self.segment.header.agent_version.clone(),
            record,
            cause: self.cause.cloned(),
            recorded,
            replayed,
        })
    }
}
