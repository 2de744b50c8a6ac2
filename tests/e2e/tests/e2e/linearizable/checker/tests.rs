//! Histories without a fault pass; planted anomalies are found, each as what it is.

use super::super::history::{Call, Event, Fault, History, Life, Outcome, Record, Refusal};
use super::{Kind, SECOND, check};

/// Milliseconds.
const MS: u64 = 1000;

/// A history of session 1; each call takes 10 ms unless it says otherwise.
#[derive(Default)]
struct Plot(History);

fn record(version: u64, life: Life, name: &str) -> Record {
    Record {
        id: "s-1".to_owned(),
        version,
        generation: 1,
        epoch: 1,
        life,
        name: Some(name.to_owned()),
        revoked: None,
    }
}

fn route(version: u64, revoked: &[&str]) -> Outcome {
    Outcome::Record(Record {
        name: None,
        revoked: Some(revoked.iter().map(|&token| token.to_owned()).collect()),
        ..record(version, Life::Live, "")
    })
}

fn live(version: u64, name: &str) -> Outcome {
    Outcome::Record(record(version, Life::Live, name))
}

fn closed(version: u64, name: &str) -> Outcome {
    Outcome::Record(record(version, Life::Closed, name))
}

fn lost_answer() -> Outcome {
    Outcome::Unknown("no answer".to_owned())
}

fn create() -> Call {
    Call::Create { name: "a".to_owned() }
}

fn rename(name: &str) -> Call {
    Call::Rename {
        name: name.to_owned(),
    }
}

fn spark() -> Call {
    Call::Spark {
        proxy: 0,
        token: "t".to_owned(),
    }
}

fn revoke() -> Call {
    Call::Revoke {
        token: "t".to_owned(),
    }
}

fn issued(epoch: u64) -> Outcome {
    Outcome::Issued {
        token: "t".to_owned(),
        epoch,
    }
}

fn answered(generation: u64) -> Outcome {
    Outcome::Answered { generation }
}

impl Plot {
    /// A session that was created, with one token.
    fn begun() -> Self {
        Self::default()
            .call(0, create(), live(1, "a"))
            .call(20, Call::Issue, issued(1))
    }

    fn call(self, at: u64, call: Call, outcome: Outcome) -> Self {
        self.long(at, at + 10, call, outcome)
    }

    fn long(mut self, from: u64, to: u64, call: Call, outcome: Outcome) -> Self {
        self.0.events.push(Event {
            session: 1,
            client: 0,
            call,
            invoked: from * MS,
            returned: to * MS,
            outcome,
        });
        self
    }

    fn fault(mut self, from: u64, to: u64, loses: bool) -> Self {
        self.0.faults.push(Fault {
            what: "planted".to_owned(),
            begun: from * MS,
            ended: to * MS,
            loses,
        });
        self
    }

    fn kinds(&self) -> Vec<Kind> {
        let (anomalies, _) = check(&self.0);
        let mut kinds: Vec<Kind> = anomalies.into_iter().map(|anomaly| anomaly.kind).collect();
        kinds.dedup();
        kinds
    }

    #[track_caller]
    fn passes(self) {
        let (anomalies, _) = check(&self.0);
        assert!(anomalies.is_empty(), "{anomalies:#?}");
    }

    #[track_caller]
    fn is(self, kind: Kind) {
        assert_eq!(self.kinds(), [kind]);
    }
}

#[test]
fn a_whole_life_passes() {
    let plot = Plot::begun()
        .call(40, Call::Describe, live(2, "a"))
        .long(50, 90, rename("b"), live(3, "b"))
        // Beside the change: before or after it.
        .long(55, 70, Call::Describe, live(2, "a"))
        .long(60, 80, Call::Describe, live(3, "b"))
        .call(100, spark(), answered(1))
        .call(120, revoke(), Outcome::Done)
        .call(
            140,
            Call::Resolve {
                token: "u".to_owned(),
            },
            route(4, &["t"]),
        )
        .call(
            160,
            Call::Resolve {
                token: "t".to_owned(),
            },
            Outcome::Refused(Refusal::TokenRevoked),
        )
        .call(200, spark(), answered(1))
        .call(1300, spark(), Outcome::Refused(Refusal::TokenRevoked))
        .call(1400, Call::Close, closed(5, "b"))
        .call(1420, Call::Close, closed(5, "b"))
        .call(1440, rename("c"), Outcome::Refused(Refusal::Ended))
        .call(1460, spark(), Outcome::Refused(Refusal::Ended));
    let (anomalies, judged) = check(&plot.0);
    assert!(anomalies.is_empty(), "{anomalies:#?}");
    assert_eq!((judged.sessions, judged.calls, judged.calm), (1, 16, 3));
}

/// A change without an answer may have happened, late too, or not.
#[test]
fn unknown_outcomes_are_both() {
    let renamed = || Plot::begun().call(40, rename("b"), lost_answer());
    renamed().call(100, Call::Describe, live(2, "b")).passes();
    renamed().call(100, Call::Describe, live(2, "a")).passes();
    renamed()
        .call(100, Call::Describe, live(2, "a"))
        .call(5000, Call::Describe, live(3, "b"))
        .passes();
    renamed()
        .call(100, Call::Describe, live(3, "b"))
        .call(200, Call::Describe, live(4, "a"))
        .is(Kind::NotLinearizable);
    renamed()
        .call(100, Call::Describe, live(2, "c"))
        .is(Kind::NotLinearizable);
    // Much too late.
    renamed()
        .call(70_000, Call::Describe, live(2, "a"))
        .call(80_000, Call::Describe, live(3, "b"))
        .is(Kind::NotLinearizable);
}

#[test]
fn a_lost_create_is_found() {
    let plot = || {
        Plot::default().call(0, create(), live(1, "a")).call(
            5000,
            Call::Describe,
            Outcome::Refused(Refusal::Absent),
        )
    };
    plot().is(Kind::NotLinearizable);
    // Acknowledged during a fail-over, before a replica had it.
    plot().fault(5, 3000, true).passes();
    // Another fault loses nothing.
    plot().fault(5, 3000, false).is(Kind::NotLinearizable);
    // What was acknowledged before is on the replicas.
    plot().fault(50, 3000, true).is(Kind::NotLinearizable);
}

#[test]
fn a_lost_change_is_found() {
    Plot::begun()
        .call(40, rename("b"), live(2, "b"))
        .call(100, Call::Describe, live(3, "a"))
        .is(Kind::NotLinearizable);
}

#[test]
fn a_read_of_the_past_is_found() {
    Plot::begun()
        .call(40, Call::Describe, live(3, "a"))
        .call(60, Call::Describe, live(2, "a"))
        .is(Kind::NotLinearizable);
}

#[test]
fn two_sessions_of_one_request_are_found() {
    let other = Record {
        id: "s-2".to_owned(),
        ..record(1, Life::Live, "a")
    };
    Plot::default()
        .call(0, create(), lost_answer())
        .call(20, create(), live(1, "a"))
        .call(40, create(), Outcome::Record(other))
        .call(60, Call::Describe, live(2, "a"))
        .kinds()
        .contains(&Kind::NotLinearizable)
        .then_some(())
        .expect("two sessions");
}

#[test]
fn a_session_that_comes_back_is_found() {
    let plot = || {
        Plot::begun()
            .call(40, Call::Close, closed(2, "a"))
            .call(60_000, Call::Describe, live(3, "a"))
    };
    assert!(plot().kinds().contains(&Kind::NotLinearizable));
    // A fail-over may lose the end, but its writer repeats it.
    assert!(
        plot()
            .fault(30, 5000, true)
            .kinds()
            .contains(&Kind::NotLinearizable)
    );
    Plot::begun()
        .call(40, Call::Close, closed(2, "a"))
        .call(5500, Call::Describe, live(1, "a"))
        .call(20_000, Call::Describe, closed(2, "a"))
        .fault(30, 5000, true)
        .passes();
}

/// Until everybody follows the new primary, some are answered by the former one.
#[test]
fn two_primaries_are_allowed_in_a_fail_over_only() {
    let plot = || {
        Plot::begun()
            .call(100, rename("b"), live(2, "b"))
            .call(200, Call::Describe, live(1, "a"))
            .call(220, Call::Describe, live(2, "b"))
            .call(240, Call::Close, closed(3, "b"))
            .call(260, Call::Describe, live(1, "a"))
    };
    plot()
        .call(9000, Call::Describe, closed(3, "a"))
        .fault(30, 5000, true)
        .passes();
    assert!(plot().kinds().contains(&Kind::NotLinearizable));
    let late = plot()
        .fault(30, 5000, true)
        .call(5100, Call::Describe, live(1, "a"));
    late.call(5200, Call::Describe, live(2, "b"))
        .is(Kind::NotLinearizable);
}

#[test]
fn a_close_that_no_client_requested_is_found() {
    Plot::begun()
        .call(40, Call::Describe, closed(2, "a"))
        .is(Kind::NotLinearizable);
    Plot::begun()
        .call(40, spark(), Outcome::Refused(Refusal::Ended))
        .is(Kind::RefusedWithoutCause);
    Plot::begun()
        .call(40, spark(), Outcome::Refused(Refusal::TokenRevoked))
        .is(Kind::RefusedWithoutCause);
}

#[test]
fn a_stale_route_after_the_end_is_found() {
    let plot = |at: u64| {
        Plot::begun()
            .call(40, Call::Close, closed(2, "a"))
            .call(at, spark(), answered(1))
    };
    plot(1900).passes();
    plot(2100).is(Kind::StaleAfterEnd);
    plot(25_000).fault(1000, 24_000, false).passes();
    plot(31_000).fault(1000, 30_500, false).is(Kind::StaleAfterEnd);
    // Long after the fault.
    plot(25_000).fault(1000, 2000, false).passes();
    plot(31_000).fault(1000, 2000, false).is(Kind::StaleAfterEnd);
}

#[test]
fn a_revoked_token_that_is_accepted_is_found() {
    let plot = |at: u64| {
        Plot::begun()
            .call(40, revoke(), Outcome::Done)
            .call(at, spark(), answered(1))
    };
    plot(1900).passes();
    plot(2100).is(Kind::StaleToken);
    let plot = |at: u64| {
        Plot::begun()
            .call(40, Call::RevokeAll, Outcome::AllRevoked { epoch: 2 })
            .call(at, spark(), answered(1))
    };
    plot(1900).passes();
    plot(2100).is(Kind::StaleToken);
    Plot::begun()
        .call(40, revoke(), Outcome::Done)
        .call(
            60,
            Call::Resolve {
                token: "t".to_owned(),
            },
            route(2, &["t"]),
        )
        .is(Kind::NotLinearizable);
}

#[test]
fn a_token_of_an_old_epoch_is_found() {
    Plot::begun()
        .call(40, Call::RevokeAll, Outcome::AllRevoked { epoch: 2 })
        .call(60, Call::Issue, issued(1))
        .is(Kind::NotLinearizable);
    Plot::begun()
        .call(40, Call::Close, closed(2, "a"))
        .call(60, Call::Issue, issued(1))
        .is(Kind::NotLinearizable);
}

#[test]
fn two_generations_at_once_are_found() {
    let plot = |at: u64| {
        Plot::begun()
            .call(40, spark(), answered(2))
            .call(at, spark(), answered(1))
    };
    plot(1900).passes();
    plot(2100).is(Kind::StaleGeneration);
    let shown = |generation, version| {
        Outcome::Record(Record {
            generation,
            ..record(version, Life::Live, "a")
        })
    };
    let kinds = Plot::begun()
        .call(40, Call::Describe, shown(2, 3))
        .call(60, Call::Describe, shown(3, 3))
        .kinds();
    assert_eq!(kinds, [Kind::SplitVersion]);
    let kinds = Plot::begun()
        .call(40, Call::Describe, shown(3, 3))
        .call(60, Call::Describe, shown(2, 4))
        .kinds();
    assert!(kinds.contains(&Kind::NotLinearizable), "{kinds:?}");
}

/// Many concurrent calls, several without an answer, are decided.
#[test]
fn a_crowd_is_decided() {
    let mut plot = Plot::begun();
    for n in 0..40_u64 {
        let name = format!("n{n}");
        plot = match n % 4 {
            0 => plot.long(100 + n, 400 + n, rename(&name), lost_answer()),
            _ => plot.long(100 + n, 300 + n, Call::Describe, live(2, "a")),
        };
    }
    plot = plot.call(SECOND / MS, Call::Describe, live(9, "n8"));
    plot.passes();
}

#[test]
fn a_history_is_read_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kept/history.jsonl");
    let plot = Plot::begun()
        .fault(1, 2, true)
        .call(90, Call::Close, lost_answer());
    plot.0.write(&path).unwrap();
    assert_eq!(History::read(&path).unwrap(), plot.0);
}
