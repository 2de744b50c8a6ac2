//! Random sessions keep every invariant, and each documented transition occurs exactly
//! when it should.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use proptest::prelude::*;
use session_core::invariant::{check_idle, check_session, check_transition};
use session_core::machine::{
    self, Effect, Event, NewSession, Observation, RELEASE_GRACE, RESTART_BUDGET, RESTART_WINDOW, Refusal,
    Step, Transition, apply, step,
};
use session_core::{
    Activity, Actor, ChangeReason, Engine, EventRecord, IdlePolicy, Phase, Route, Session, SessionId,
    SessionPolicy, Status, Timestamp,
};
use std::time::Duration;

const START: Timestamp = Timestamp::from_millis(1_795_000_000_000);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn policy(on_idle: IdlePolicy, dedicated: bool, close_after_idle: Duration) -> SessionPolicy {
    SessionPolicy {
        idle_timeout: 15 * MINUTE,
        close_after_idle,
        max_lifetime: 24 * 60 * MINUTE,
        provisioning_deadline: 2 * MINUTE,
        on_idle,
        wake: Default::default(),
        dedicated,
    }
}

fn route() -> Route {
    Route {
        endpoint: "127.0.0.1:50051".to_owned(),
        tls_server_name: None,
        credential: None,
        engine: Engine::Sail,
        engine_version: "4.2.0".to_owned(),
        dedicated: true,
        host: None,
    }
}

fn ready() -> Observation {
    Observation::Ready { route: route() }
}

fn quiet(at: Timestamp) -> Activity {
    Activity::Quiet { last_activity_at: at }
}

fn created(policy: SessionPolicy) -> Transition {
    let change = machine::create(
        NewSession {
            id: SessionId::generate(START, 7),
            org: "acme".parse().unwrap(),
            owner: "sa|ada".parse().unwrap(),
            name: None,
            team: None,
            labels: std::collections::BTreeMap::default(),
            cluster: "local".parse().unwrap(),
            catalog: None,
            profile: None,
            policy,
        },
        START,
    );
    check_transition(None, &change).unwrap();
    change
}

/// A session whose changes are all checked.
struct Life {
    session: Session,
    now: Timestamp,
}

impl Life {
    fn new(policy: SessionPolicy) -> Self {
        Self {
            session: created(policy).session,
            now: START,
        }
    }

    fn release_policy() -> Self {
        Self::new(policy(IdlePolicy::Release, true, 60 * MINUTE))
    }

    fn pass(&mut self, delta: Duration) -> &mut Self {
        self.now = self.now.after(delta);
        self
    }

    fn step(&mut self, observation: Option<&Observation>, activity: Activity) -> Step {
        let step = step(&self.session, observation, activity, self.now);
        if let Some(change) = &step.transition {
            check_transition(Some(&self.session), change).unwrap();
            check_idle(change, activity).unwrap();
            self.session = change.session.clone();
        }
        step
    }

    fn apply(&mut self, event: &Event) -> Result<Option<Transition>, Refusal> {
        let change = apply(&self.session, event, &Actor::System, self.now)?;
        if let Some(change) = &change {
            check_transition(Some(&self.session), change).unwrap();
            self.session = change.session.clone();
        }
        Ok(change)
    }

    fn active(mut self) -> Self {
        self.step(Some(&ready()), Activity::Unknown);
        assert_eq!(self.session.status(), Status::Active);
        self
    }

    fn idle_released(mut self) -> Self {
        self.pass(15 * MINUTE).step(Some(&ready()), quiet(START));
        self.pass(RELEASE_GRACE).step(Some(&ready()), quiet(START));
        assert_eq!(self.session.state.phase(), Phase::Released);
        self
    }
}

#[test]
fn a_session_becomes_active_when_its_compute_is_ready() {
    let mut life = Life::release_policy();
    let waiting = life.step(Some(&Observation::Missing), Activity::Unknown);
    assert_eq!(waiting.effects, [Effect::Ensure { generation: 1 }]);
    life.step(Some(&ready()), Activity::Unknown);
    assert_eq!(life.session.status(), Status::Active);
    assert_eq!((life.session.version, life.session.generation), (2, 1));
}

#[test]
fn the_first_provisioning_fails_at_its_deadline_with_the_cause() {
    let mut life = Life::release_policy();
    life.pass(2 * MINUTE);
    let starting = Observation::Starting {
        cause: "waiting for a slot".into(),
    };
    let done = life.step(Some(&starting), Activity::Unknown).transition.unwrap();
    assert_eq!(life.session.status(), Status::Failed);
    assert_eq!(life.session.reason, ChangeReason::ProvisioningTimeout);
    assert!(life.session.status_message.contains("waiting for a slot"));
    assert_eq!(done.effects, [Effect::Release { up_to: 1 }]);
}

#[test]
fn ready_compute_wins_over_a_deadline_seen_late() {
    let mut life = Life::release_policy();
    life.pass(5 * MINUTE).step(Some(&ready()), Activity::Unknown);
    assert_eq!(life.session.status(), Status::Active);
}

#[test]
fn idle_by_release_is_two_phased_and_a_late_report_wins() {
    let mut life = Life::release_policy().active();
    life.pass(15 * MINUTE).step(Some(&ready()), quiet(START));
    assert_eq!(life.session.state.phase(), Phase::Releasing);
    assert!(life.session.state.published_route().is_none());
    life.pass(SECOND).step(Some(&ready()), Activity::Busy);
    assert_eq!(
        (life.session.status(), life.session.generation),
        (Status::Active, 1)
    );

    life.pass(15 * MINUTE).step(Some(&ready()), quiet(START));
    let released = life
        .pass(RELEASE_GRACE)
        .step(Some(&ready()), quiet(START))
        .transition
        .unwrap();
    assert_eq!(released.effects, [Effect::Release { up_to: 1 }]);
    assert_eq!(life.session.state.phase(), Phase::Released);
}

#[test]
fn silence_that_is_not_known_idles_nothing() {
    for activity in [Activity::Unknown, Activity::Busy] {
        let mut life = Life::release_policy().active();
        life.pass(8 * 60 * MINUTE);
        assert!(life.step(Some(&ready()), activity).transition.is_none());
    }
}

#[test]
fn keep_alive_holds_the_idle_clock_and_lifetime_ends_it_all() {
    let mut life = Life::release_policy().active();
    let until = START.after(60 * MINUTE);
    life.apply(&Event::KeepAlive { until }).unwrap();
    assert!(
        life.pass(59 * MINUTE)
            .step(Some(&ready()), quiet(START))
            .transition
            .is_none()
    );
    life.pass(MINUTE).step(Some(&ready()), quiet(START));
    assert_eq!(life.session.status(), Status::Idle);
    life.pass(24 * 60 * MINUTE).step(Some(&ready()), Activity::Busy);
    assert_eq!(
        (life.session.status(), life.session.reason),
        (Status::Closed, ChangeReason::MaxLifetime)
    );
}

#[test]
fn advice_for_a_client_is_recorded_once_for_each_version() {
    let mut life = Life::release_policy().active();
    let advise = |life: &mut Life, version: &str| {
        let advice = Event::AdviseClient {
            version: version.to_owned(),
            advice: "client is newer ".repeat(20),
        };
        life.apply(&advice).unwrap()
    };
    let before = life.session.clone();
    let change = advise(&mut life, "4.3.0").unwrap();
    assert_eq!(change.record.reason, ChangeReason::ClientNewer);
    assert!(change.record.message.starts_with("client is newer"));
    assert_eq!(change.record.message.len(), EventRecord::MESSAGE_BYTES);
    assert_eq!(change.session.state, before.state);
    assert_eq!(
        advise(&mut life, "4.3.0"),
        None,
        "two proxies, or a repeated report"
    );
    for patch in 1..20 {
        advise(&mut life, &format!("4.3.{patch}"));
    }
    assert_eq!(life.session.advised_clients.len(), machine::MAX_ADVISED_CLIENTS);
    assert_eq!(
        life.session.version,
        before.version + machine::MAX_ADVISED_CLIENTS as u64
    );

    life.apply(&Event::Close {
        reason: ChangeReason::CloseRequested,
    })
    .unwrap();
    let late = Event::AdviseClient {
        version: "4.4.0".to_owned(),
        advice: String::new(),
    };
    assert!(matches!(life.apply(&late), Err(Refusal::Terminal(_))));
}

#[test]
fn that_a_clock_will_close_it_is_said_once_for_each_deadline() {
    let announced = |life: &mut Life| {
        let step = life.step(Some(&ready()), quiet(START));
        step.transition
            .filter(|change| change.record.reason == ChangeReason::ClosingSoon)
    };
    let mut life = Life::release_policy().active();
    life.apply(&Event::KeepAlive {
        until: START.after(24 * 60 * MINUTE),
    })
    .unwrap();
    life.now = START.after(24 * 60 * MINUTE - machine::CLOSING_SOON);
    let before = life.session.clone();
    life.now = life.now.before(SECOND);
    assert_eq!(announced(&mut life), None);
    assert_eq!(
        machine::next_due(&before, quiet(START), life.now),
        Some(life.now.after(SECOND)),
        "somebody looks when it is time"
    );
    life.pass(SECOND);
    let change = announced(&mut life).unwrap();
    assert_eq!(
        (change.record.from, change.record.to, &change.session.state),
        (Some(Status::Active), Status::Active, &before.state)
    );
    assert!(
        change.record.message.contains("2026"),
        "{:?}",
        change.record.message
    );
    assert_eq!(announced(&mut life), None, "once");

    // Another deadline is announced again.
    life.apply(&Event::Extend {
        expires_at: START.after(25 * 60 * MINUTE),
    })
    .unwrap();
    assert_eq!(announced(&mut life), None);
    life.now = START.after(25 * 60 * MINUTE).before(machine::CLOSING_SOON);
    life.apply(&Event::KeepAlive {
        until: START.after(25 * 60 * MINUTE),
    })
    .unwrap();
    assert!(announced(&mut life).is_some());
}

#[test]
fn closing_by_the_idle_clock_is_announced_unless_that_clock_is_too_short() {
    for (close_after_idle, said) in [(60 * MINUTE, true), (5 * MINUTE, false)] {
        for on_idle in [IdlePolicy::Keep, IdlePolicy::Release] {
            let mut life = Life::new(policy(on_idle, true, close_after_idle)).active();
            life.pass(15 * MINUTE).step(Some(&ready()), quiet(START));
            life.pass(close_after_idle.saturating_sub(machine::CLOSING_SOON).max(SECOND));
            if on_idle == IdlePolicy::Release {
                life.pass(RELEASE_GRACE).step(Some(&ready()), quiet(START));
                assert_eq!(life.session.state.phase(), Phase::Released);
            }
            // Also while a release is not confirmed or reports are missing.
            let step = life.step(Some(&ready()), Activity::Unknown);
            let reason = step.transition.map(|change| change.record.reason);
            assert_eq!(reason == Some(ChangeReason::ClosingSoon), said);
        }
    }
}

#[test]
fn activity_that_moves_the_moment_of_closing_allows_another_announcement() {
    let mut life = Life::new(policy(IdlePolicy::Keep, true, 60 * MINUTE)).active();
    for _ in 0..2 {
        let now = life.now;
        life.pass(15 * MINUTE).step(Some(&ready()), quiet(now));
        assert_eq!(life.session.state.phase(), Phase::Kept);
        life.pass(55 * MINUTE);
        let step = life.step(Some(&ready()), quiet(now));
        assert_eq!(step.transition.unwrap().record.reason, ChangeReason::ClosingSoon);
        life.apply(&Event::Wake).unwrap();
        assert_eq!(life.session.status(), Status::Active);
    }
}

#[test]
fn warm_time_counts_compute_that_answered_and_nothing_else() {
    let mut life = Life::release_policy();
    life.pass(MINUTE);
    assert_eq!(life.session.warm(life.now), Duration::ZERO, "it was being made");
    life.step(Some(&ready()), Activity::Unknown);
    life.pass(10 * MINUTE);
    assert_eq!(life.session.warm(life.now), 10 * MINUTE);
    life.step(Some(&Observation::Missing), Activity::Unknown);
    life.pass(MINUTE);
    assert_eq!(life.session.warm(life.now), 10 * MINUTE, "it was lost");
    life.step(Some(&ready()), Activity::Unknown);
    let begun = life.now;
    life.pass(15 * MINUTE).step(Some(&ready()), quiet(begun));
    life.pass(RELEASE_GRACE).step(Some(&ready()), quiet(begun));
    life.pass(MINUTE);
    let all = 25 * MINUTE + RELEASE_GRACE;
    assert_eq!(life.session.warm(life.now), all, "also while idle, until it goes");
    life.apply(&Event::Close {
        reason: ChangeReason::CloseRequested,
    })
    .unwrap();
    life.pass(MINUTE);
    assert_eq!(life.session.warm(life.now), all);
}

#[test]
fn a_call_that_the_decision_to_idle_did_not_know_of_wins_over_it() {
    for on_idle in [IdlePolicy::Keep, IdlePolicy::Release] {
        let mut life = Life::new(policy(on_idle, true, 60 * MINUTE)).active();
        life.pass(15 * MINUTE).step(Some(&ready()), quiet(START));
        assert_eq!(life.session.status(), Status::Idle);
        let known = life.pass(SECOND).step(Some(&ready()), quiet(START));
        assert!(known.transition.is_none(), "what was known changes nothing");
        // The call ended long before the session idled and was reported after it.
        life.step(Some(&ready()), quiet(START.after(SECOND)));
        assert_eq!(
            (
                life.session.status(),
                life.session.generation,
                life.session.reason
            ),
            (Status::Active, 1, ChangeReason::Activity)
        );
    }
}

#[test]
fn keeping_alive_takes_back_a_release_that_has_only_begun() {
    let mut life = Life::release_policy().active();
    life.pass(15 * MINUTE).step(Some(&ready()), quiet(START));
    let until = life.now.after(60 * MINUTE);
    life.apply(&Event::KeepAlive { until: life.now }).unwrap();
    assert_eq!(
        life.session.state.phase(),
        Phase::Releasing,
        "until now is no time"
    );
    life.apply(&Event::KeepAlive { until }).unwrap();
    assert_eq!(life.session.state.phase(), Phase::Ready);
    assert_eq!(life.session.idle_at(START), Some(until));
}

#[test]
fn idle_clocks_and_nothing_else_need_silence() {
    let mut life = Life::release_policy().active();
    let idled = life.pass(15 * MINUTE).step(Some(&ready()), quiet(START));
    let idled = idled.transition.unwrap();
    assert!(check_idle(&idled, quiet(START)).is_ok());
    for activity in [Activity::Busy, Activity::Unknown] {
        let broken = check_idle(&idled, activity).unwrap_err();
        assert_eq!(broken.name, "idle_timeouts_need_complete_reports");
    }
    let close = Event::Close {
        reason: ChangeReason::CloseRequested,
    };
    let closed = life.apply(&close).unwrap().unwrap();
    assert!(check_idle(&closed, Activity::Busy).is_ok());
}

#[test]
fn kept_compute_wakes_with_the_same_generation() {
    let mut life = Life::new(policy(IdlePolicy::Keep, true, 60 * MINUTE)).active();
    life.pass(15 * MINUTE).step(Some(&ready()), quiet(START));
    assert_eq!(life.session.state.phase(), Phase::Kept);
    life.apply(&Event::Wake).unwrap();
    assert_eq!(
        (life.session.status(), life.session.generation),
        (Status::Active, 1)
    );
}

#[test]
fn released_compute_is_warmed_once_under_a_new_generation() {
    let mut life = Life::release_policy().active().idle_released();
    let woken = life.apply(&Event::Wake).unwrap().unwrap();
    assert!(woken.effects.contains(&Effect::Ensure { generation: 2 }));
    assert_eq!(life.apply(&Event::Wake), Ok(None));
    life.step(Some(&ready()), Activity::Unknown);
    assert_eq!(
        (life.session.status(), life.session.generation),
        (Status::Active, 2)
    );
}

#[test]
fn a_session_is_not_woken_after_its_lifetime() {
    let mut life = Life::release_policy().active().idle_released();
    life.session.expires_at = START;
    let ended = life.apply(&Event::Wake).unwrap().unwrap();
    assert_eq!(ended.session.reason, ChangeReason::MaxLifetime);
    assert_eq!(ended.session.status(), Status::Closed);
    assert!(!ended.effects.contains(&Effect::Ensure { generation: 2 }));
}

#[test]
fn a_repeated_release_does_not_delay_the_end_of_the_lifetime() {
    let mut life = Life::release_policy().active().idle_released();
    life.pass(MINUTE);
    life.session.expires_at = life.now.after(Duration::from_secs(5));
    let announced = life.step(None, quiet(START)).transition.unwrap();
    assert_eq!(announced.session.reason, ChangeReason::ClosingSoon);
    let repeated = life.step(None, quiet(START));
    assert_eq!(repeated.effects, [Effect::Release { up_to: 1 }]);
    assert_eq!(repeated.due, Some(life.session.expires_at));
}

#[test]
fn failed_warm_ups_back_off_and_the_fifth_fails_the_session() {
    let mut life = Life::release_policy().active().idle_released();
    for wait in [5, 15, 45, 120].map(Duration::from_secs) {
        life.apply(&Event::Wake).unwrap();
        life.pass(2 * MINUTE)
            .step(Some(&Observation::Missing), Activity::Unknown);
        assert_eq!(life.session.reason, ChangeReason::WarmFailed);
        let until = life.now.after(wait);
        assert_eq!(life.apply(&Event::Wake), Err(Refusal::BackingOff { until }));
        life.pass(wait);
    }
    life.apply(&Event::Wake).unwrap();
    life.pass(2 * MINUTE)
        .step(Some(&Observation::Missing), Activity::Unknown);
    assert_eq!(
        (life.session.status(), life.session.reason),
        (Status::Failed, ChangeReason::WarmBudgetSpent)
    );
}

#[test]
fn close_after_idle_zero_is_two_phased_and_a_late_report_wins() {
    for (on_idle, close_after_idle) in [
        (IdlePolicy::Release, Duration::ZERO),
        (IdlePolicy::Keep, Duration::ZERO),
        (IdlePolicy::Keep, 5 * SECOND),
    ] {
        let mut life = Life::new(policy(on_idle, true, close_after_idle)).active();
        life.pass(15 * MINUTE).step(Some(&ready()), quiet(START));
        assert!(life.session.state.published_route().is_none());
        life.pass(9 * SECOND).step(Some(&ready()), quiet(START));
        assert_eq!(life.session.status(), Status::Idle);
        life.step(Some(&ready()), Activity::Busy);
        assert_eq!(
            (life.session.status(), life.session.generation),
            (Status::Active, 1)
        );

        let due = life.pass(15 * MINUTE).step(Some(&ready()), quiet(START)).due;
        assert_eq!(due, Some(life.now.after(RELEASE_GRACE)));
        life.pass(RELEASE_GRACE).step(Some(&ready()), quiet(START));
        assert_eq!(
            (life.session.status(), life.session.reason),
            (Status::Closed, ChangeReason::IdleClose)
        );
    }
}

#[test]
fn idle_sessions_close_after_their_time() {
    let mut life = Life::release_policy().active().idle_released();
    life.pass(60 * MINUTE)
        .step(Some(&Observation::Missing), quiet(START));
    assert_eq!(
        (life.session.status(), life.session.reason),
        (Status::Closed, ChangeReason::IdleClose)
    );
}

#[test]
fn lost_dedicated_compute_is_replaced_within_the_budget() {
    let mut life = Life::release_policy().active();
    for lost in 1..=4_u64 {
        life.pass(SECOND)
            .step(Some(&Observation::Missing), Activity::Busy);
        if lost <= 3 {
            assert_eq!(
                (life.session.status(), life.session.generation),
                (Status::Pending, lost + 1)
            );
            life.pass(SECOND).step(Some(&ready()), Activity::Busy);
        }
    }
    assert_eq!(
        (life.session.status(), life.session.reason),
        (Status::Failed, ChangeReason::RestartBudgetSpent)
    );
}

#[test]
fn old_losses_are_forgotten() {
    let mut life = Life::release_policy().active();
    for _ in 0..10 {
        life.pass(RESTART_WINDOW / 3 + SECOND)
            .step(Some(&Observation::Missing), Activity::Busy);
        life.step(Some(&ready()), Activity::Busy);
    }
    assert_eq!(life.session.status(), Status::Active);
}

#[test]
fn shared_compute_is_never_lost() {
    let mut life = Life::new(policy(IdlePolicy::Keep, false, 60 * MINUTE)).active();
    assert!(
        life.step(Some(&Observation::Missing), Activity::Busy)
            .transition
            .is_none()
    );
}

#[test]
fn closing_twice_is_fine_and_nothing_else_moves_the_closed() {
    let mut life = Life::release_policy().active();
    let close = Event::Close {
        reason: ChangeReason::CloseRequested,
    };
    assert!(life.apply(&close).unwrap().is_some());
    assert_eq!(life.apply(&close), Ok(None));
    assert_eq!(life.apply(&Event::Wake), Err(Refusal::Terminal(Status::Closed)));
    let release = life.step(Some(&ready()), Activity::Busy);
    assert_eq!(release.effects, [Effect::Release { up_to: 1 }]);
    let done = life.step(Some(&Observation::Missing), Activity::Busy);
    assert_eq!((done.effects.len(), done.due), (0, None));
}

#[test]
fn extending_stays_within_seven_days() {
    let mut life = Life::release_policy();
    let week = START.after(7 * 24 * 60 * MINUTE);
    assert!(life.apply(&Event::Extend { expires_at: week }).unwrap().is_some());
    let later = Event::Extend {
        expires_at: week.after(SECOND),
    };
    assert!(matches!(
        life.apply(&later),
        Err(Refusal::OutOfBounds {
            field: "expires_at",
            ..
        })
    ));
}

#[test]
fn revoking_too_many_single_tokens_revokes_them_all() {
    let mut life = Life::release_policy();
    for token in 0..=machine::MAX_REVOKED_TOKENS as u64 {
        let id = session_core::TokenId::generate(START, token);
        let until = START.after(60 * MINUTE);
        assert!(
            life.apply(&Event::RevokeToken {
                id: id.clone(),
                until
            })
            .unwrap()
            .is_some()
        );
        if token < machine::MAX_REVOKED_TOKENS as u64 {
            assert_eq!(
                life.apply(&Event::RevokeToken { id, until }),
                Ok(None),
                "revoked already"
            );
        }
    }
    assert_eq!(
        (life.session.token_epoch, life.session.revoked_tokens.len()),
        (2, 0)
    );
}

#[derive(Debug, Clone)]
enum Move {
    Ask(Event),
    Look {
        observation: Option<Observation>,
        activity: Use,
    },
    Pass(Duration),
}

#[derive(Debug, Clone, Copy)]
enum Use {
    Unknown,
    Busy,
    QuietFor(Duration),
}

fn moves() -> impl Strategy<Value = Move> {
    let span = prop_oneof![0..30_u64, 60..1200_u64, 3000..90_000_u64].prop_map(Duration::from_secs);
    let observation = prop_oneof![
        Just(None),
        Just(Some(Observation::Missing)),
        Just(Some(Observation::Starting {
            cause: "pulling".into()
        })),
        Just(Some(ready())),
        any::<bool>().prop_map(|permanent| Some(Observation::Failed {
            cause: "é".repeat(200).into(),
            permanent
        })),
    ];
    let activity = prop_oneof![
        Just(Use::Unknown),
        Just(Use::Busy),
        (0..4000_u64).prop_map(|secs| Use::QuietFor(Duration::from_secs(secs))),
    ];
    let ask = prop_oneof![
        4 => Just(Event::Wake),
        1 => Just(Event::Close { reason: ChangeReason::CloseRequested }),
        1 => Just(Event::RevokeTokens),
        1 => Just(Event::ReleaseSparkSession),
        1 => (0..20).prop_map(|minor| Event::AdviseClient {
            version: format!("5.{minor}.0"),
            advice: "é".repeat(200),
        }),
        1 => (0..900_000_u64).prop_map(|secs| Event::Extend { expires_at: START.after(Duration::from_secs(secs)) }),
        1 => (0..90_000_u64).prop_map(|secs| Event::KeepAlive { until: START.after(Duration::from_secs(secs)) }),
        1 => any::<bool>().prop_map(|set| Event::Update {
            name: Some(set.then(|| "nightly".to_owned())),
            labels: None,
        }),
    ];
    prop_oneof![
        1 => ask.prop_map(Move::Ask),
        3 => (observation, activity).prop_map(|(observation, activity)| Move::Look { observation, activity }),
        1 => span.prop_map(Move::Pass),
    ]
}

fn policies() -> impl Strategy<Value = SessionPolicy> {
    (any::<bool>(), any::<bool>(), prop_oneof![Just(0), 60..7200_u64]).prop_map(|(keep, dedicated, close)| {
        let on_idle = if keep {
            IdlePolicy::Keep
        } else {
            IdlePolicy::Release
        };
        policy(on_idle, dedicated, Duration::from_secs(close))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn random_lives_keep_every_invariant(policy in policies(), moves in prop::collection::vec(moves(), 1..80)) {
        let mut life = Life::new(policy);
        let mut losses: Vec<Timestamp> = Vec::new();
        for one in moves {
            let before = life.session.clone();
            match one {
                Move::Pass(span) => { life.pass(span); }
                Move::Ask(event) => {
                    let asked = life.apply(&event);
                    if before.status().is_terminal() {
                        prop_assert!(!matches!(asked, Ok(Some(_))), "the ended never change");
                    }
                }
                Move::Look { observation, activity } => {
                    let activity = match activity {
                        Use::Unknown => Activity::Unknown,
                        Use::Busy => Activity::Busy,
                        Use::QuietFor(span) => quiet(life.now.before(span)),
                    };
                    let looked = life.step(observation.as_ref(), activity);
                    let after = &life.session;
                    if activity == Activity::Busy && before.state.published_route().is_some() {
                        prop_assert!(after.status() != Status::Idle, "idled with a call in flight");
                    }
                    if let Some(change) = &looked.transition {
                        if change.session.reason == ChangeReason::ComputeLost && after.status() == Status::Pending {
                            losses.push(life.now);
                        }
                        prop_assert!(change.record.message.len() <= 128);
                    }
                    prop_assert!(after.status().is_terminal() || looked.due.is_some(), "the living are always due");
                    let again = step(after, observation.as_ref(), activity, life.now);
                    let said = |step: &Step| step.transition.as_ref().is_some_and(|c| c.record.reason == ChangeReason::ClosingSoon);
                    prop_assert!(!(said(&looked) && said(&again)), "one deadline was announced twice");
                    let twice = again.transition.as_ref().filter(|_| !said(&again)).map(|change| change.session.status());
                    prop_assert!(
                        twice.is_none() || matches!(observation, Some(Observation::Missing | Observation::Failed { .. })),
                        "looking again with the same eyes changes nothing more: {twice:?}"
                    );
                }
            }
            check_session(&life.session).map_err(|broken| TestCaseError::fail(broken.to_string()))?;
        }
        for at in &losses {
            let window = losses.iter().filter(|other| *other >= at && other.since(*at) < RESTART_WINDOW).count();
            prop_assert!(window <= RESTART_BUDGET, "{window} restarts within ten minutes");
        }
    }

    /// Whatever its compute does, a session that is reconciled when due is active, or
    /// ended by its deadline plus one recheck.
    #[test]
    fn every_create_ends_in_time(never_ready in any::<bool>(), ready_after in 0..400_u64) {
        let mut life = Life::release_policy();
        let deadline = START.after(2 * MINUTE + machine::RECHECK);
        let ready_at = START.after(Duration::from_secs(ready_after));
        let mut looks = 0;
        while life.session.status() == Status::Pending {
            let observation = if !never_ready && life.now >= ready_at { ready() } else { Observation::Missing };
            let looked = life.step(Some(&observation), Activity::Unknown);
            prop_assert!(life.now <= deadline);
            if let Some(due) = looked.due { life.now = life.now.max(due); }
            looks += 1;
            prop_assert!(looks < 200);
        }
    }

    #[test]
    fn records_survive_storage(policy in policies()) {
        let session = created(policy).session;
        let json = serde_json::to_string(&session).unwrap();
        prop_assert_eq!(serde_json::from_str::<Session>(&json).unwrap(), session);
    }
}
