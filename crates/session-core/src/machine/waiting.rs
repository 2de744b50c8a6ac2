//! What pending compute waits for, as recorded with its session.
//!
//! A provider may report other causes many times a second. A cause is recorded if it
//! differs from the recorded one, and the less often the more of them were recorded:
//! causes that alternate must neither load the store nor displace the changes in the
//! session's history.

use super::{Cause, Observation};
use crate::session::{Session, State};
use crate::time::Timestamp;
use std::time::Duration;

/// Maximum length of a text, in bytes.
const MAX_TEXT_BYTES: usize = 512;
/// Time from the start of the creation, or from the last recorded cause, to the next
/// one. Compute that is ready earlier never causes a write.
pub const WAITING_INTERVAL: Duration = Duration::from_secs(1);
/// The same if only the detail differs, which may contain counters.
const DETAIL_INTERVAL: Duration = Duration::from_secs(10);
/// Recorded causes of one creation after which [`SLOW_INTERVAL`] applies.
const MAX_FAST_CAUSES: u32 = 10;
/// The longest provisioning deadline has 30 of them; with the first ones they fit the
/// 50 changes of a history.
const SLOW_INTERVAL: Duration = Duration::from_secs(30);

/// Decision about an observation of compute that is not ready.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    /// There is nothing to record.
    Recorded,
    /// The cause may be recorded at this time.
    Later(Timestamp),
    /// The cause is recorded now.
    Now(Cause),
}

impl Waiting {
    /// Decides whether the observed cause is recorded with a pending session.
    pub(super) fn decide(session: &Session, observation: Option<&Observation>, now: Timestamp) -> Self {
        let State::Pending { deadline, .. } = session.state else {
            return Self::Recorded;
        };
        let cause = match observation {
            Some(
                Observation::Starting { cause }
                | Observation::Failed {
                    cause,
                    permanent: false,
                },
            ) => bounded(cause),
            Some(Observation::Missing | Observation::Ready { .. } | Observation::Failed { .. }) | None => {
                return Self::Recorded;
            }
        };
        let same_text = cause.text == session.status_message;
        if cause.text.is_empty() || (same_text && cause.detail == session.status_detail) {
            return Self::Recorded;
        }
        let begun = deadline.before(session.policy.provisioning_deadline);
        let may_at = match session.waiting {
            None => begun.after(WAITING_INTERVAL),
            Some(last) if last.count >= MAX_FAST_CAUSES => last.at.after(SLOW_INTERVAL),
            Some(last) if same_text => last.at.after(DETAIL_INTERVAL),
            Some(last) => last.at.after(WAITING_INTERVAL),
        };
        if now < may_at {
            return Self::Later(may_at);
        }
        Self::Now(cause)
    }
}

/// Printable and of limited length: the texts come from engines, registries and
/// Kubernetes.
fn bounded(cause: &Cause) -> Cause {
    let mut text = printable::escape(&cause.text).into_owned();
    text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
    let mut detail = printable::escape_lines(&cause.detail).into_owned();
    detail.drain(..detail.ceil_char_boundary(detail.len().saturating_sub(Cause::DETAIL_BYTES)));
    Cause { text, detail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activity::Activity;
    use crate::machine::{NewSession, create, step};
    use crate::policy::{IdlePolicy, SessionPolicy};
    use crate::reason::ChangeReason;
    use crate::{Engine, Route, SessionId};
    use std::collections::BTreeMap;

    const START: Timestamp = Timestamp::from_millis(1_795_000_000_000);
    const DEADLINE: Duration = Duration::from_secs(900);

    fn pending() -> Session {
        let new = NewSession {
            id: SessionId::generate(START, 1),
            org: "acme".parse().unwrap(),
            owner: "sa|ada".parse().unwrap(),
            name: None,
            team: None,
            labels: BTreeMap::default(),
            cluster: "c".parse().unwrap(),
            catalog: None,
            profile: None,
            policy: SessionPolicy {
                idle_timeout: DEADLINE,
                close_after_idle: DEADLINE,
                max_lifetime: 10 * DEADLINE,
                provisioning_deadline: DEADLINE,
                on_idle: IdlePolicy::Release,
                wake: Default::default(),
                dedicated: true,
            },
        };
        create(new, START).session
    }

    fn waits(text: &str, detail: &str) -> Observation {
        let (text, detail) = (text.to_owned(), detail.to_owned());
        Observation::Starting {
            cause: Cause { text, detail },
        }
    }

    fn at(millis: u64) -> Timestamp {
        START.after(Duration::from_millis(millis))
    }

    /// Steps at a time; returns the due time and whether the cause was recorded.
    fn look(session: &mut Session, seen: &Observation, millis: u64) -> (Option<Timestamp>, bool) {
        let step = step(session, Some(seen), Activity::Unknown, at(millis));
        let recorded = step.transition.map(|change| {
            assert_eq!(change.record.reason, ChangeReason::ComputeWaiting);
            *session = change.session;
        });
        (step.due, recorded.is_some())
    }

    #[test]
    fn a_cause_is_recorded_once_and_within_a_second() {
        let mut session = pending();
        let no_room = waits("no node has room", "0/1 nodes are available");
        assert_eq!(look(&mut session, &no_room, 400), (Some(at(1000)), false));
        assert!(look(&mut session, &no_room, 1000).1);
        assert_eq!(
            (
                session.status_message.as_str(),
                session.status_detail.as_str(),
                session.version
            ),
            ("no node has room", "0/1 nodes are available", 2)
        );
        for millis in [1001, 3000, 100_000] {
            assert!(!look(&mut session, &no_room, millis).1, "{millis}");
        }
        // Another cause is recorded at once, the next one a second later.
        assert!(look(&mut session, &waits("its image is being pulled", ""), 100_001).1);
        let starting = waits("sail is starting", "");
        assert_eq!(look(&mut session, &starting, 100_002), (Some(at(101_001)), false));
        assert!(look(&mut session, &starting, 101_001).1);
    }

    #[test]
    fn a_failure_that_is_tried_again_is_a_cause_too() {
        let mut session = pending();
        let failed = Observation::Failed {
            cause: "quota is used up".into(),
            permanent: false,
        };
        assert!(look(&mut session, &failed, 2000).1);
        let step = step(&session, Some(&failed), Activity::Unknown, at(2000));
        assert_eq!(
            (step.transition, step.effects.len()),
            (None, 1),
            "it is still ensured"
        );
    }

    #[test]
    fn compute_that_is_ready_clears_the_cause() {
        let mut session = pending();
        assert!(look(&mut session, &waits("no node has room", "words"), 2000).1);
        let ready = Observation::Ready {
            route: Route {
                endpoint: "127.0.0.1:1".to_owned(),
                tls_server_name: None,
                credential: None,
                engine: Engine::Sail,
                engine_version: "1".to_owned(),
                dedicated: true,
                host: None,
            },
        };
        let step = step(&session, Some(&ready), Activity::Unknown, at(2001));
        let active = step.transition.unwrap().session;
        assert_eq!(
            (
                active.status_message.as_str(),
                active.status_detail.as_str(),
                active.waiting
            ),
            ("", "", None)
        );
    }

    #[test]
    fn causes_that_alternate_do_not_fill_the_history() {
        let mut session = pending();
        let mut recorded = 0;
        for millis in (0..900_000).step_by(50) {
            let seen = waits(&format!("cause {}", millis % 4), &millis.to_string());
            recorded += usize::from(look(&mut session, &seen, millis).1);
        }
        assert!((30..45).contains(&recorded), "{recorded}");
    }

    #[test]
    fn a_detail_that_counts_is_recorded_seldom() {
        let mut session = pending();
        let recorded = (0..60_000).step_by(100).filter(|millis| {
            let seen = waits("its image cannot be pulled", &format!("back-off {millis}"));
            look(&mut session, &seen, *millis).1
        });
        assert_eq!(recorded.count(), 6);
    }

    #[test]
    fn what_others_wrote_is_printable_and_short() {
        let mut session = pending();
        let seen = waits(
            &"ä\u{1b}".repeat(1000),
            &format!("{}\nend\u{202e}", "y".repeat(5000)),
        );
        assert!(look(&mut session, &seen, 2000).1);
        assert!(session.status_message.len() <= MAX_TEXT_BYTES);
        assert!(session.status_detail.len() <= Cause::DETAIL_BYTES);
        assert!(session.status_detail.ends_with("\nend\\u{202e}"));
        assert!(printable::all_printable(&session.status_message));
        assert!(
            !look(&mut session, &seen, 60_000).1,
            "compared as it was recorded"
        );
    }
}
