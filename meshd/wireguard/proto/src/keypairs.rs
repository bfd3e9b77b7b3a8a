//! The sessions of one peer, by what they are good for (whitepaper, section 6.1).

use crate::peers::Indices;
use crate::session::Session;
use meshd_model::Boot;

const RETIRED: usize = 3;

/// At most five sessions. A session is retired, not dropped, while messages under it may still be on their way.
#[derive(Default)]
pub(crate) struct Keypairs {
    /// The one to send with.
    current: Option<Box<Session>>,
    /// We answered, and have not heard yet that the answer arrived: not to be sent with until then.
    next: Option<Box<Session>>,
    /// To receive with only, the youngest first. When both sides initiate at once, each sends with the session that it
    /// initiated and receives with the other's; when both do so again, three are not the current one and may have
    /// messages on their way.
    retired: [Option<Box<Session>>; RETIRED],
}

impl Keypairs {
    pub(crate) fn current(&mut self) -> Option<&mut Session> {
        self.current.as_deref_mut()
    }

    pub(crate) fn by_index(&mut self, index: u32) -> Option<&mut Session> {
        [&mut self.current, &mut self.next]
            .into_iter()
            .chain(&mut self.retired)
            .filter_map(|s| s.as_deref_mut())
            .find(|s| s.local_index == index)
    }

    /// Our initiation was answered: the new session is confirmed, and takes over.
    pub(crate) fn install_as_initiator(&mut self, now: Boot, session: Session, indices: &mut Indices) {
        let old = self.current.replace(Box::new(session));
        self.retire(now, old, indices);
        let next = self.next.take();
        self.retire(now, next, indices);
    }

    /// We answered: the new session waits to be confirmed.
    pub(crate) fn install_as_responder(&mut self, session: Session, indices: &mut Indices) {
        if let Some(old) = self.next.replace(Box::new(session)) {
            indices.release(old.local_index);
        }
    }

    /// A message arrived under the session: if it was waiting, it takes over. Whether it did.
    pub(crate) fn confirm(&mut self, now: Boot, index: u32, indices: &mut Indices) -> bool {
        if self.next.as_ref().is_none_or(|s| s.local_index != index) {
            return false;
        }
        let old = std::mem::replace(&mut self.current, self.next.take());
        self.retire(now, old, indices);
        true
    }

    fn retire(&mut self, now: Boot, session: Option<Box<Session>>, indices: &mut Indices) {
        if session.is_none() {
            return;
        }
        let (kept, expired): (Vec<_>, Vec<_>) = std::iter::once(session)
            .chain(std::mem::take(&mut self.retired))
            .flatten()
            .partition(|s| !s.is_expired(now));
        let mut kept = kept.into_iter();
        self.retired = std::array::from_fn(|_| kept.next());
        for dropped in kept.chain(expired) {
            indices.release(dropped.local_index);
        }
    }

    /// Drops all.
    pub(crate) fn clear(&mut self, indices: &mut Indices) {
        let all = std::mem::take(self);
        for session in [all.current, all.next].into_iter().chain(all.retired).flatten() {
            indices.release(session.local_index);
        }
    }
}
