//! Steps about where a node is reached: its device, its addresses.

use crate::arm::ArmError;
use crate::engine::Run;
use crate::report::Proof;
use crate::time::micros;
use std::collections::BTreeSet;
use std::time::Duration;

/// Between two packets of a stream, so many of which that are lost are the time that was lost.
const INTERVAL: Duration = Duration::from_millis(10);
/// How long a stream runs before something happens.
const BEFORE: Duration = Duration::from_secs(1);
/// Between two looks at what is published.
const PAUSE: Duration = Duration::from_millis(10);

impl Run<'_> {
    /// The stream runs towards the node only: nothing is sent there that would make its new device begin a handshake.
    pub(crate) fn restart_device(
        &mut self,
        number: usize,
        within: Duration,
        after: Duration,
    ) -> Result<Proof, ArmError> {
        let node = self.node(number)?;
        let ((here, there), control) = self.stream_pairs(&node)?;
        // The agent knows of the sessions that it has looked at, like after a resync.
        let streams = [
            self.arm.start_stream(&there, &here, INTERVAL)?,
            self.arm.start_stream(&control.0, &control.1, INTERVAL)?,
        ];
        self.arm.wait(BEFORE);
        self.arm.status(&node)?;
        self.doing(format!("the device of {node} is killed and started again"));
        self.arm.restart_device(&node)?;
        self.arm.wait(after);
        let [event, control] = [
            self.arm.stop_stream(streams[0])?,
            self.arm.stop_stream(streams[1])?,
        ];
        let lost = event.sent - event.received.min(event.sent);
        let outage = INTERVAL.saturating_mul(u32::try_from(lost).unwrap_or(u32::MAX));
        let detail = if control.sent == 0 || control.received < control.sent {
            "void: the control stream, to which nothing happened, lost packets too".to_owned()
        } else if lost == 0 {
            "void: nothing was lost, so nothing has happened".to_owned()
        } else if outage > within {
            format!("nothing arrived for about {outage:?}")
        } else {
            String::new()
        };
        let numbers = [
            ("sent", event.sent),
            ("lost", lost),
            ("outage_microseconds", micros(outage)),
            ("control_lost", control.sent - control.received.min(control.sent)),
        ];
        let name = "a device that is killed and started again is reached again soon";
        Ok(self.proof(name, detail.is_empty(), &numbers, detail))
    }

    pub(crate) fn change_addresses(
        &mut self,
        number: usize,
        published: Duration,
        within: Duration,
    ) -> Result<Proof, ArmError> {
        let node = self.node(number)?;
        let before: BTreeSet<_> = self.arm.endpoints(&node)?.into_iter().collect();
        self.doing(format!("{node} is given other addresses"));
        let begin = self.arm.elapsed();
        self.arm.change_addresses(&node)?;
        let wanted: BTreeSet<_> = self.arm.node_addresses(&node).into_iter().collect();
        let took = loop {
            let there: BTreeSet<_> = self.arm.endpoints(&node)?.into_iter().collect();
            let took = self.arm.elapsed().saturating_sub(begin);
            if there == wanted || took > within {
                break took;
            }
            self.arm.wait(PAUSE);
        };
        let reached = self.reach(self.probes_to(&node), within)?;
        let all = micros(self.arm.elapsed().saturating_sub(begin));
        let detail = if wanted == before || wanted.is_empty() {
            "void: the addresses are what they were".to_owned()
        } else if took > published {
            format!("the new addresses were not published for {took:?}")
        } else if !reached.all() {
            reached
                .failed
                .clone()
                .unwrap_or_else(|| format!("there is no pod on {node} to try"))
        } else {
            String::new()
        };
        let numbers = [
            ("addresses", wanted.len() as u64),
            ("published_microseconds", micros(took)),
            ("reached_microseconds", all),
        ];
        let name = "a node whose addresses change publishes them and is reached again";
        Ok(self.proof(name, detail.is_empty(), &numbers, detail))
    }
}
