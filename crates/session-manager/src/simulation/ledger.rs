//! What the simulation itself wrote down: the changes that the store took, what
//! proxies were told was heard, and when silence was not to be trusted. The
//! checks judge by this, never by what the code under test says of itself.

use super::store::Run;
use super::world::{World, short};
use session_core::{EventRecord, Session, SessionKey, Timestamp};
use session_store::Create;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Debug, Default)]
pub(super) struct Ledger {
    records: BTreeMap<SessionKey, Kept>,
    words: BTreeMap<(String, SessionKey), Word>,
    /// When a report of each proxy was last taken in.
    spoke: BTreeMap<String, Duration>,
    /// From when on what was not heard says nothing: an outage ended, or the
    /// store's clock was set.
    pub(super) unsure: Vec<Duration>,
    /// Who has seen that nothing is left of an ended session's compute.
    seen_gone: BTreeSet<(String, SessionKey)>,
    /// The ends of each session's calls, on which generation.
    pub(super) ended: BTreeMap<SessionKey, Vec<Ended>>,
    pub(super) owed: Vec<Owed>,
    /// Since when compute has been there that no record wants.
    pub(super) unwanted: BTreeMap<(SessionKey, u64), Duration>,
}

#[derive(Debug)]
struct Kept {
    session: Session,
    history: Vec<EventRecord>,
}

/// What a proxy said last of a session, as far as that was taken in.
#[derive(Debug, Clone, Default)]
pub(super) struct Word {
    /// The last number under which anything was sent.
    sent: u64,
    pub(super) generation: u64,
    /// Calls in flight; none as soon as a report says so, heard or not.
    pub(super) open: u32,
    /// When the report with them was sent, by both clocks.
    pub(super) at: (Duration, Timestamp),
    pub(super) last: Option<Timestamp>,
}

/// What a report says of one session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Saying {
    pub(super) sequence: u64,
    pub(super) generation: u64,
    pub(super) open: u32,
    pub(super) last: Option<Timestamp>,
    pub(super) at: (Duration, Timestamp),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) generation: u64,
    pub(super) at: (Duration, Timestamp),
}

/// Compute that was made for a record that is no longer so. Whoever made it
/// learned of it in the same moment, and must give it back.
#[derive(Debug, Clone)]
pub(super) struct Owed {
    pub(super) run: Run,
    pub(super) key: SessionKey,
    pub(super) generation: u64,
    pub(super) made: usize,
    pub(super) at: Duration,
}

/// Does this record say that compute of this generation is to be there?
pub(super) fn wants(session: &Session, generation: u64) -> bool {
    let status = session.status() == session_core::Status::Pending;
    (session.state.has_compute() || status) && session.generation == generation
}

impl World {
    /// The session as the last change that the store took left it.
    pub(super) fn recorded(&self, key: &SessionKey) -> Option<Session> {
        self.state()
            .ledger
            .records
            .get(key)
            .map(|kept| kept.session.clone())
    }

    pub(super) fn history(&self, key: &SessionKey) -> Vec<EventRecord> {
        let state = self.state();
        let kept = state.ledger.records.get(key);
        kept.map(|kept| kept.history.clone()).unwrap_or_default()
    }

    pub(super) fn live_sessions(&self) -> Vec<Session> {
        let state = self.state();
        let all = state.ledger.records.values().map(|kept| &kept.session);
        all.filter(|session| !session.status().is_terminal())
            .cloned()
            .collect()
    }

    /// The store took a new session.
    pub(super) fn created(&self, create: &Create) {
        let key = create.session.key();
        let kept = Kept {
            session: create.session.clone(),
            history: vec![create.record.clone()],
        };
        self.count("lives");
        let before = self.state().ledger.records.insert(key.clone(), kept);
        if before.is_some() {
            self.broken(format!("{} was created twice", short(&key)));
        }
    }

    /// The store took a change.
    pub(super) fn changed(&self, session: &Session, record: &EventRecord) {
        self.count("commits");
        let mut state = self.state();
        if let Some(kept) = state.ledger.records.get_mut(&session.key()) {
            kept.session = session.clone();
            kept.history.push(record.clone());
        }
    }

    /// What the store read out, in the same moment.
    pub(super) fn check_read(&self, key: &SessionKey, read: Option<&Session>) {
        let recorded = self.recorded(key);
        if recorded.as_ref() != read {
            self.broken(format!(
                "{} is version {:?}, and was read as {:?}",
                short(key),
                recorded.map(|session| session.version),
                read.map(|session| session.version)
            ));
        }
    }

    /// A report is on its way. That there are no calls any more counts at once.
    pub(super) fn sends(&self, proxy: &str, key: &SessionKey, saying: Saying) {
        let mut state = self.state();
        let word = state
            .ledger
            .words
            .entry((proxy.to_owned(), key.clone()))
            .or_default();
        word.sent = word.sent.max(saying.sequence);
        if saying.open == 0 {
            word.open = 0;
        }
    }

    /// A manager said that it had taken the report.
    pub(super) fn heard(&self, proxy: &str, sayings: &[(SessionKey, Saying)]) {
        let now = self.elapsed();
        let mut state = self.state();
        let spoke = state.ledger.spoke.entry(proxy.to_owned()).or_default();
        *spoke = now.max(*spoke);
        for (key, saying) in sayings {
            let word = state
                .ledger
                .words
                .entry((proxy.to_owned(), key.clone()))
                .or_default();
            if saying.sequence < word.sent {
                continue;
            }
            *word = Word {
                sent: word.sent,
                generation: saying.generation,
                open: saying.open,
                at: saying.at,
                last: saying.last,
            };
        }
    }

    pub(super) fn words_on(&self, key: &SessionKey) -> Vec<(String, Word)> {
        let state = self.state();
        let words = state.ledger.words.iter().filter(|((_, of), _)| of == key);
        words
            .map(|((proxy, _), word)| (proxy.clone(), word.clone()))
            .collect()
    }

    /// How long each proxy had said nothing at that moment.
    pub(super) fn silences(&self, at: Duration) -> Vec<(String, Duration)> {
        let state = self.state();
        let spoke = state.ledger.spoke.iter();
        spoke
            .map(|(proxy, spoke)| (proxy.clone(), at.saturating_sub(*spoke)))
            .collect()
    }

    /// What was heard before no longer holds leases: the clock was set.
    pub(super) fn forget_words(&self) {
        for word in self.state().ledger.words.values_mut() {
            word.open = 0;
        }
    }

    pub(super) fn saw_gone(&self, run: &Run, key: &SessionKey, generation: u64) {
        let over = self
            .recorded(key)
            .is_some_and(|session| session.status().is_terminal() && session.generation == generation);
        if over {
            let seen = (run.name.clone(), key.clone());
            self.state().ledger.seen_gone.insert(seen);
        }
    }

    pub(super) fn has_seen_gone(&self, run: &Run, key: &SessionKey) -> bool {
        let seen = (run.name.clone(), key.clone());
        self.state().ledger.seen_gone.contains(&seen)
    }

    /// A manager was told that compute is made. Is it wanted still?
    pub(super) fn told_made(&self, run: &Run, key: &SessionKey, generation: u64) {
        let stale = self
            .recorded(key)
            .is_some_and(|session| !wants(&session, generation));
        if stale && self.sim.live().contains(&(key.clone(), generation)) {
            let owed = Owed {
                run: run.clone(),
                key: key.clone(),
                generation,
                made: self.sim.made(key, generation),
                at: self.elapsed(),
            };
            self.count("stale compute");
            self.note(
                &run.name,
                format_args!("was told of stale compute of {} g{generation}", short(key)),
            );
            self.state().ledger.owed.push(owed);
        }
    }
}
