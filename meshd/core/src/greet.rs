//! Greeting peers after a loss. A device that was restarted or made again, and a peer that was taken away and given
//! again, have lost their sessions, but the other side has not: what it sends goes nowhere until it gives up its session,
//! which takes it up to 15 s (KEEPALIVE_TIMEOUT + REKEY_TIMEOUT, section 6 of the WireGuard paper). So this side sends
//! first, once, to each peer that it knows to hold a session, spread over a moment; the handshake replaces the session on
//! both sides.

use crate::TimerKind;
use crate::action::KernelOp;
use crate::agent::NodeAgent;
use crate::peers::SESSION_LIFE;
use crate::reconcile::Plan;
use meshd_model::kernel::{Peer, PeerState};
use meshd_model::{Boot, Now, PublicKey, Wall};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// A session was last seen at an observation, which may be as old as a resync; it may have been renewed since.
pub(crate) const SLACK: Duration = Duration::from_secs(120);
/// Greetings are spread over at least this, and over [`SPREAD_EACH`] for each of them if that is more: a device does not
/// make all of its handshakes in one moment.
const SPREAD_MIN: Duration = Duration::from_millis(250);
const SPREAD_EACH: Duration = Duration::from_millis(1);

/// A session that the device had.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Lost {
    /// Its last handshake that was seen.
    handshake: Wall,
    /// When to greet the peer; none before the peer is there again.
    at: Option<Boot>,
}

/// Sessions that the device had and has no more.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Greetings(BTreeMap<PublicKey, Lost>);

impl Greetings {
    /// The device was observed: what of `before` has no session now is lost, what has one now needs no greeting.
    pub(crate) fn observed(
        &mut self,
        before: &BTreeMap<PublicKey, PeerState>,
        now: &BTreeMap<PublicKey, PeerState>,
    ) {
        let has_session = |key: &PublicKey| now.get(key).is_some_and(|p| p.last_handshake.is_some());
        for (key, peer) in before.iter().filter(|(key, _)| !has_session(key)) {
            self.lost(*key, peer);
        }
        self.0.retain(|key, _| !has_session(key));
    }

    /// The device has lost this peer as it was.
    pub(crate) fn lost(&mut self, key: PublicKey, peer: &PeerState) {
        if let Some(handshake) = peer.last_handshake {
            self.0.insert(key, Lost { handshake, at: None });
        }
    }

    /// Drops those that no peer can hold any more.
    pub(crate) fn expire(&mut self, now: Wall) {
        self.0
            .retain(|_, lost| now.since(lost.handshake) < SESSION_LIFE + SLACK);
    }

    /// The peer was greeted.
    pub(crate) fn done(&mut self, key: &PublicKey) {
        self.0.remove(key);
    }
}

impl NodeAgent {
    /// A peer that is as desired may have to be greeted.
    pub(crate) fn plan_greeting(&mut self, now: Now, peer: &Peer) -> Plan {
        let key = peer.public_key;
        let count = u32::try_from(self.observed.greetings.0.len()).unwrap_or(u32::MAX);
        let Some(lost) = self.observed.greetings.0.get_mut(&key) else {
            return Plan::Settled;
        };
        let at = *lost.at.get_or_insert_with(|| {
            let spread = SPREAD_MIN.max(SPREAD_EACH.saturating_mul(count));
            now.boot + self.jitter.within(spread)
        });
        if now.boot < at {
            self.timers.set(TimerKind::Greet(key), at);
            return Plan::Settled;
        }
        self.timers.clear(&TimerKind::Greet(key));
        Plan::kernel(KernelOp::Greet {
            peer: key,
            keepalive: peer.keepalive,
        })
    }
}
