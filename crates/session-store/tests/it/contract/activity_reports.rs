//! Reports of proxies, and decisions of idle timeouts.

use crate::common::{
    Draft, FAR, Store, activate, close, commit, commit_of_step, nobody, report, token, touch,
};
use session_core::machine::Observation;
use session_core::{Activity, Operation, Session, Status, Timestamp, TokenId, TokenUse, Totals, Use};
use session_store::{Commit, Error, Proxies, Report, ReportOutcome, ReportStart, UsageDelta};
use std::time::Duration;

const IDLE: Duration = Duration::from_secs(900);

async fn active(store: &Store) -> Session {
    let session = Draft::default().store(store).await;
    commit(store, activate(&session)).await
}

async fn activity(store: &Store, session: &Session) -> Activity {
    store
        .get_with_activity(&session.key())
        .await
        .unwrap()
        .unwrap()
        .activity
}

async fn used(store: &Store, session: &Session) -> Use {
    store.usage(std::slice::from_ref(session)).await.unwrap()[0]
}

fn quiet(at: Timestamp) -> Activity {
    Activity::Quiet { last_activity_at: at }
}

/// The decision of an idle timeout for an active session without activity.
fn idle(session: &Session, activity: Activity) -> Commit {
    let route = session.state.published_route().unwrap().clone();
    let far = session.active_at.unwrap().after(FAR - IDLE);
    let commit = commit_of_step(session, &Observation::Ready { route }, activity, far);
    assert_eq!(commit.session.status(), Status::Idle);
    commit
}

pub(crate) async fn a_session_is_busy_until_every_proxy_reports_the_end_of_its_calls(store: Store) {
    let session = active(&store).await;
    let key = session.key();
    assert_eq!(activity(&store, &session).await, quiet(Timestamp::ZERO));
    let nothing = used(&store, &session).await;
    assert_eq!(
        nothing,
        Use {
            at: nothing.at,
            ..Use::default()
        }
    );
    let before = store.now().await.unwrap();
    for (proxy, calls) in [("p1", 2), ("p1", 3), ("p2", 1)] {
        let taken = store.apply_report(&key, &report(proxy, calls)).await.unwrap();
        assert_eq!(taken, ReportOutcome::Live(Status::Active));
    }
    assert_eq!(activity(&store, &session).await, Activity::Busy);
    assert_eq!(used(&store, &session).await.open_calls, 4);
    let of_amounts_only = Report {
        open_calls: None,
        ..report("p2", 0)
    };
    store.apply_report(&key, &of_amounts_only).await.unwrap();
    store.apply_report(&key, &report("p1", 0)).await.unwrap();
    assert_eq!(activity(&store, &session).await, Activity::Busy, "p2's goes on");
    store.apply_report(&key, &report("p2", 0)).await.unwrap();
    let Activity::Quiet { last_activity_at } = activity(&store, &session).await else {
        panic!("every call ended");
    };
    assert!(last_activity_at >= before && last_activity_at <= store.now().await.unwrap());
    let again = store.get_with_activity(&key).await.unwrap().unwrap().session;
    assert_eq!(again, session, "no version");
    assert_eq!(store.events(&key).await.unwrap().len(), 2, "and no event");
}

pub(crate) async fn the_last_activity_only_rises_and_never_beyond_the_present(store: Store) {
    let session = active(&store).await;
    let key = session.key();
    let at = |at| Report {
        last_activity_at: Some(Timestamp::from_millis(at)),
        ..report("p", 0)
    };
    for (said, kept) in [(2000, 2000), (1000, 2000), (3000, 3000)] {
        store.apply_report(&key, &at(said)).await.unwrap();
        let expected = quiet(Timestamp::from_millis(kept));
        assert_eq!(activity(&store, &session).await, expected);
    }
    store.apply_report(&key, &report("p", 0)).await.unwrap();
    let Activity::Quiet { last_activity_at } = activity(&store, &session).await else {
        panic!("nothing is in flight");
    };
    assert_eq!(last_activity_at, Timestamp::from_millis(3000), "nothing was said");
    store.apply_report(&key, &at(1 << 52)).await.unwrap();
    let Activity::Quiet { last_activity_at } = activity(&store, &session).await else {
        panic!("nothing is in flight");
    };
    assert!(last_activity_at <= store.now().await.unwrap());
}

pub(crate) async fn calls_on_an_earlier_generation_keep_nothing_alive(store: Store) {
    let session = active(&store).await;
    let key = session.key();
    store.apply_report(&key, &report("p", 1)).await.unwrap();
    let gone = Observation::Missing;
    let lost = commit_of_step(&session, &gone, Activity::Busy, session.active_at.unwrap());
    let session = commit(&store, lost).await;
    assert_eq!(session.generation, 2);
    assert_ne!(activity(&store, &session).await, Activity::Busy, "it was lost");
    let last = used(&store, &session).await.last_activity_at;
    store.apply_report(&key, &report("p", 1)).await.unwrap();
    assert_ne!(
        activity(&store, &session).await,
        Activity::Busy,
        "it is still lost"
    );
    assert_eq!(used(&store, &session).await.last_activity_at, last);
    let newer = Report {
        generation: 2,
        ..report("p", 1)
    };
    store.apply_report(&key, &newer).await.unwrap();
    assert_eq!(activity(&store, &session).await, Activity::Busy);
}

pub(crate) async fn an_amount_is_added_once(store: Store) {
    let session = active(&store).await;
    let key = session.key();
    let more = |name, rpcs| Report {
        usage_delta: Some(UsageDelta {
            name,
            totals: Totals {
                rpcs,
                bytes_in: 10 * rpcs,
                bytes_out: 1 << 40,
                open_stream_millis: 1,
            },
        }),
        ..report("p", 1)
    };
    for (name, rpcs) in [(1, 1), (1, 1), (2, 2), (1, 1), (u64::MAX, 4), (2, 2)] {
        store.apply_report(&key, &more(name, rpcs)).await.unwrap();
    }
    let session = commit(&store, close(&session)).await;
    let taken = store.apply_report(&key, &more(3, 8)).await.unwrap();
    assert_eq!(taken, ReportOutcome::Ended);
    let seen = used(&store, &session).await;
    let expected = Totals {
        rpcs: 15,
        bytes_in: 150,
        bytes_out: 4 << 40,
        open_stream_millis: 4,
    };
    assert_eq!(seen.totals, expected);
    let unknown = store.apply_report(&nobody(), &more(4, 1)).await.unwrap();
    assert_eq!(unknown, ReportOutcome::Unknown);
}

pub(crate) async fn an_idle_clock_needs_silence_and_nothing_new(store: Store) {
    let session = active(&store).await;
    let key = session.key();
    let conflict = async |commit: Commit, last: Timestamp| {
        let outcome = store.commit_if_idle(commit, last).await;
        assert!(matches!(outcome, Err(Error::Conflict)), "{outcome:?}");
    };
    let decided = idle(&session, quiet(Timestamp::ZERO));
    store.apply_report(&key, &report("p", 1)).await.unwrap();
    let last = used(&store, &session).await.last_activity_at.unwrap();
    conflict(decided.clone(), Timestamp::ZERO).await;
    conflict(decided.clone(), last).await;
    store.apply_report(&key, &report("p", 0)).await.unwrap();
    conflict(decided.clone(), Timestamp::ZERO).await;
    let mut stale = decided.clone();
    stale.session.version += 1;
    conflict(stale, last).await;
    let mut absent = decided.clone();
    absent.session.id = nobody().id;
    let outcome = store.commit_if_idle(absent, last).await;
    assert!(matches!(outcome, Err(Error::NotFound)), "{outcome:?}");
    assert_eq!(store.get(&key).await.unwrap().unwrap(), session);

    store.commit_if_idle(decided.clone(), last).await.unwrap();
    let idled = store.get(&key).await.unwrap().unwrap();
    assert_eq!(idled, decided.session);
    assert_eq!(store.events(&key).await.unwrap().len(), 3);
    let taken = store.apply_report(&key, &report("p", 1)).await.unwrap();
    assert_eq!(
        taken,
        ReportOutcome::Live(Status::Idle),
        "the reporter learns of it"
    );
    store.commit(touch(&idled)).await.unwrap();
}

pub(crate) async fn a_report_and_an_idle_timeout_never_both_win(store: Store) {
    let (mut idled, mut kept) = (0, 0);
    for n in 0..60 {
        let session = active(&store).await;
        let key = session.key();
        let decided = idle(&session, quiet(Timestamp::ZERO));
        let reporting = tokio::spawn({
            let store = store.clone();
            async move { store.apply_report(&key, &report("p", 1)).await.unwrap() }
        });
        for _ in 0..n % 4 {
            tokio::time::sleep(Duration::from_micros(50)).await;
        }
        let outcome = store.commit_if_idle(decided, Timestamp::ZERO).await;
        match (outcome, reporting.await.unwrap()) {
            (Ok(()), ReportOutcome::Live(Status::Idle)) => idled += 1,
            (Err(Error::Conflict), ReportOutcome::Live(Status::Active)) => kept += 1,
            other => panic!("neither knows of the other: {other:?}"),
        }
    }
    assert_eq!(idled + kept, 60);
    assert!(kept > 0, "the report was never first");
}

pub(crate) async fn operations_are_listed_while_their_calls_are_open(store: Store) {
    let session = active(&store).await;
    let key = session.key();
    let operation = |n: u64| Operation {
        spark_session_id: "7d9c".to_owned(),
        operation_id: format!("op {n} \"é\""),
        method: "ExecutePlan".to_owned(),
        started_at: Timestamp::from_millis(n),
        user_id: String::new(),
    };
    let with = |proxy, operations: &[Operation]| Report {
        operations: operations.to_vec(),
        ..report(proxy, 1)
    };
    let (first, second) = (operation(1), operation(2));
    let both = [first.clone(), second.clone()];
    store.apply_report(&key, &with("p1", &both)).await.unwrap();
    store
        .apply_report(&key, &with("p2", &[operation(3)]))
        .await
        .unwrap();
    store
        .apply_report(&key, &with("p1", std::slice::from_ref(&second)))
        .await
        .unwrap();
    let told = store.operations(&key).await.unwrap();
    assert_eq!(told, [second, operation(3)]);
    store.apply_report(&key, &report("p2", 0)).await.unwrap();
    store.apply_report(&key, &report("p1", 0)).await.unwrap();
    assert!(store.operations(&key).await.unwrap().is_empty());
    assert!(store.operations(&nobody()).await.unwrap().is_empty());
}

pub(crate) async fn uses_come_in_the_order_they_are_asked_for(store: Store) {
    let mut sessions = Vec::new();
    for n in 1..=130 {
        let session = Draft::default().store(&store).await;
        store.apply_report(&session.key(), &report("p", n)).await.unwrap();
        sessions.push(session);
    }
    let uses = store.usage(&sessions).await.unwrap();
    let calls: Vec<u32> = uses.iter().map(|used| used.open_calls).collect();
    assert_eq!(calls, (1..=130).collect::<Vec<u32>>());
    assert!(store.usage(&[]).await.unwrap().is_empty());
}

pub(crate) async fn a_token_is_first_used_once(store: Store) {
    let session = active(&store).await;
    let key = session.key();
    let record = token(&store, &session, FAR).await;
    store.record_token(&key, record.clone(), 5).await.unwrap();
    let one = |id: &TokenId, first, last| TokenUse {
        id: id.clone(),
        first: Timestamp::from_millis(first),
        last: Timestamp::from_millis(last),
    };
    let unknown = TokenId::generate(Timestamp::ZERO, 5);
    for (first, last) in [(100, 200), (50, 150), (300, 400)] {
        let said = Report {
            token_uses: vec![one(&record.id, first, last), one(&unknown, 1, 2)],
            ..report("p", 0)
        };
        store.apply_report(&key, &said).await.unwrap();
    }
    let uses = store.token_uses(&key).await.unwrap();
    assert_eq!(
        uses.into_values().collect::<Vec<_>>(),
        [one(&record.id, 100, 400)]
    );
    assert!(store.token_uses(&nobody()).await.unwrap().is_empty());
}

pub(crate) async fn proxies_live_fall_silent_and_are_forgotten(store: Store) {
    let long = Duration::from_secs(60);
    let count = async |silent, gone| store.count_proxies(silent, gone).await.unwrap();
    assert_eq!(count(long, None).await, Proxies { known: 0, silent: 0 });
    for proxy in ["a", "b", "a"] {
        store
            .begin_proxy_report(&proxy.parse().unwrap(), 0)
            .await
            .unwrap();
    }
    assert_eq!(count(long, Some(long)).await, Proxies { known: 2, silent: 0 });
    assert_eq!(count(Duration::ZERO, None).await, Proxies { known: 2, silent: 2 });
    let nobody_left = count(long, Some(Duration::ZERO)).await;
    assert_eq!(nobody_left, Proxies { known: 0, silent: 0 });
}

pub(crate) async fn a_proxy_lives_by_what_is_written_of_its_report(store: Store) {
    let proxy = "p".parse().unwrap();
    let silent = async || {
        let proxies = store.count_proxies(Duration::ZERO, None).await.unwrap();
        proxies.silent
    };
    let began = store.begin_proxy_report(&proxy, 1).await.unwrap().at;
    assert_eq!(silent().await, 1);
    let later = began.after(FAR);
    store.mark_proxy_alive(&proxy, later).await.unwrap();
    assert_eq!(silent().await, 0);
    // The begin of a report and an old report change nothing.
    store.begin_proxy_report(&proxy, 2).await.unwrap();
    store.mark_proxy_alive(&proxy, began).await.unwrap();
    assert_eq!(silent().await, 0);
    store
        .mark_proxy_alive(&"q".parse().unwrap(), began)
        .await
        .unwrap();
    assert_eq!(silent().await, 1);
}

pub(crate) async fn a_repeated_report_is_detected_by_its_number(store: Store) {
    let proxy = "p".parse().unwrap();
    let before = store.now().await.unwrap();
    for (sequence, fresh) in [
        (1, true),
        (1, false),
        (0, true),
        (3, true),
        (2, false),
        (3, false),
    ] {
        let heard: ReportStart = store.begin_proxy_report(&proxy, sequence).await.unwrap();
        assert_eq!(heard.fresh, fresh, "{sequence}");
        assert!(heard.at >= before);
    }
    let another = "q".parse().unwrap();
    assert!(store.begin_proxy_report(&another, 1).await.unwrap().fresh);
}
