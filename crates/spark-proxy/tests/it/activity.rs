//! Activity reports to session-manager, and limits of sessions and organizations.

use crate::common;
use crate::common::{Client, Rig, Rpc, within};
use prost::Message;
use session_core::{Reason, SessionId, Timestamp};
use session_proto::internal::{Route, RouteStatus, SessionActivity};
use session_proto::spark::execute_plan_request::RequestOption;
use session_proto::spark::execute_plan_request::request_option::RequestOption as Kind;
use session_proto::spark::{ExecutePlanRequest, ReattachExecuteRequest, ReattachOptions};
use std::time::Duration;
use test_support::fake_spark::{OPERATION, SPARK_SESSION, Shape, framed, request};
use tonic::Code;

fn of(rig: &Rig, open: u32) -> impl Fn(&SessionActivity) -> bool {
    let session = rig.session.to_string();
    move |activity| activity.session_id == session && activity.open_calls == open
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_reported_at_its_start_while_it_runs_and_at_its_end() {
    let rig = Rig::start().await;
    within(
        "an idle proxy sends empty reports",
        rig.routes.until_reported(|reports| !reports.is_empty()),
    )
    .await;
    // The use of its token is reported before the call counts as work.
    rig.routes.slow_answers(Duration::from_millis(200));
    let client = rig.client().await;
    let mut running = client.begin(&rig.rpc().shape(Shape::HangAfterOne)).await.unwrap();
    let plan = ExecutePlanRequest {
        session_id: SPARK_SESSION.to_owned(),
        operation_id: Some(OPERATION.to_owned()),
        request_options: vec![RequestOption {
            request_option: Some(Kind::ReattachOptions(ReattachOptions { reattachable: true })),
        }],
        ..ExecutePlanRequest::default()
    };
    let began = std::time::Instant::now();
    running.finish(framed(&plan.encode_to_vec()));
    let busy = of(&rig, 1);
    within(
        "it is reported immediately",
        rig.routes
            .until_reported(|reports| reports.iter().flat_map(|report| &report.sessions).any(&busy)),
    )
    .await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    within(
        "and again, with its operation",
        rig.routes.until_reported(|reports| {
            let said: Vec<_> = reports
                .iter()
                .flat_map(|report| &report.sessions)
                .filter(|activity| busy(activity))
                .collect();
            said.len() >= 2 && !said[said.len() - 1].operations.is_empty()
        }),
    )
    .await;
    let reports = rig.routes.reports();
    let last = reports
        .iter()
        .flat_map(|report| &report.sessions)
        .rfind(|activity| busy(activity))
        .unwrap();
    assert_eq!((last.org.as_str(), last.generation), ("acme", 1));
    assert_eq!(last.operations[0].operation_id, OPERATION);
    assert_eq!(last.operations[0].method, "ExecutePlan");
    drop(running);
    let quiet = of(&rig, 0);
    within(
        "the end is reported",
        rig.routes
            .until_reported(|reports| reports.iter().flat_map(|report| &report.sessions).any(&quiet)),
    )
    .await;
    let reports = rig.routes.reports();
    let all: Vec<_> = reports.iter().flat_map(|report| &report.sessions).collect();
    assert_eq!(
        all.iter()
            .map(|activity| activity.usage.unwrap().rpcs)
            .sum::<u64>(),
        1
    );
    assert_eq!(
        all.iter()
            .map(|activity| activity.token_uses.len())
            .sum::<usize>(),
        1
    );
    let numbers: Vec<u64> = reports.iter().map(|report| report.sequence).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    assert!(
        reports
            .iter()
            .all(|report| report.proxy_id == reports[0].proxy_id)
    );
}

/// Spark ends every stream after two minutes; its client continues with `ReattachExecute` on any
/// connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reattached_operation_keeps_its_report() {
    let rig = Rig::start().await;
    let client = rig.client().await;
    let message = ReattachExecuteRequest {
        session_id: SPARK_SESSION.to_owned(),
        operation_id: OPERATION.to_owned(),
        ..ReattachExecuteRequest::default()
    };
    let rpc = Rpc::spark("ReattachExecute")
        .bearer(&rig.token())
        .shape(Shape::HangAfterOne);
    let mut running = client.begin(&rpc).await.unwrap();
    running.finish(framed(&message.encode_to_vec()));
    let (upload, response) = within("headers", running.head()).await.unwrap();
    let busy = of(&rig, 1);
    let reported = |activity: &SessionActivity| busy(activity) && !activity.operations.is_empty();
    within(
        "it is reported immediately",
        rig.routes
            .until_reported(|reports| reports.iter().flat_map(|report| &report.sessions).any(reported)),
    )
    .await;
    let reports = rig.routes.reports();
    let said = reports
        .iter()
        .flat_map(|report| &report.sessions)
        .find(|activity| reported(activity))
        .unwrap();
    assert_eq!(said.operations.len(), 1);
    let operation = &said.operations[0];
    assert_eq!(operation.spark_session_id, SPARK_SESSION);
    assert_eq!(operation.operation_id, OPERATION);
    assert_eq!(operation.user_id, "sa|tester");
    assert_eq!(operation.method, "ReattachExecute");
    drop((upload, response, client));
    let quiet = of(&rig, 0);
    within(
        "its end is reported",
        rig.routes
            .until_reported(|reports| reports.iter().flat_map(|report| &report.sessions).any(&quiet)),
    )
    .await;
}

/// Starts one call of each of this many sessions.
async fn use_sessions(rig: &Rig, count: u64) -> Vec<String> {
    let client = rig.client().await;
    let mut calls = tokio::task::JoinSet::new();
    let mut sessions = Vec::new();
    for number in 0..count {
        let mut claims = rig.claims();
        claims.sid = SessionId::generate(Timestamp::from_millis(5), number);
        rig.routes.set(Route {
            session_id: claims.sid.to_string(),
            ..rig.route()
        });
        sessions.push(claims.sid.to_string());
        let (client, rpc) = (client.clone(), Rpc::execute(&rig.sign(&claims)));
        calls.spawn(async move { client.call(rpc).await.code() });
    }
    while let Some(code) = calls.join_next().await {
        assert_eq!(code.expect("a call"), Code::Ok);
    }
    sessions
}

/// Waits until the call of each session was reported, none twice.
async fn until_each_is_reported_once(rig: &Rig, sessions: &[String]) {
    let calls = |reports: &[session_proto::internal::ReportActivityRequest], session: &String| {
        let of = reports.iter().flat_map(|report| &report.sessions);
        of.filter(|activity| activity.session_id == *session)
            .filter_map(|activity| Some(activity.usage?.rpcs))
            .sum::<u64>()
    };
    within(
        "all are reported",
        rig.routes
            .until_reported(|reports| sessions.iter().all(|session| calls(reports, session) > 0)),
    )
    .await;
    let reports = rig.routes.reports();
    assert!(sessions.iter().all(|session| calls(&reports, session) == 1));
    let numbers: Vec<u64> = reports.iter().map(|report| report.sequence).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalid_record_does_not_block_others() {
    let rig = Rig::start().await;
    let bad = SessionId::generate(Timestamp::from_millis(5), 7).to_string();
    rig.routes.refuse_reports_of(&bad);
    let mut sessions = use_sessions(&rig, 40).await;
    sessions.retain(|session| *session != bad);
    assert_eq!(sessions.len(), 39);
    until_each_is_reported_once(&rig, &sessions).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_beyond_the_limit_is_split() {
    let rig = Rig::start().await;
    rig.routes.limit_reports(3);
    let sessions = use_sessions(&rig, 40).await;
    until_each_is_reported_once(&rig, &sessions).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_are_not_work_are_no_activity() {
    let rig = Rig::start().await;
    for method in ["ReleaseExecute", "Interrupt", "ReleaseSession", "GetStatus"] {
        assert_eq!(
            rig.call(Rpc::spark(method).bearer(&rig.token())).await.code(),
            Code::Ok
        );
    }
    let calls = rig.spark.seen().requests.len();
    assert_eq!(calls, 4);
    within(
        "their tokens are reported",
        rig.routes.until_reported(|reports| {
            reports
                .iter()
                .flat_map(|report| &report.sessions)
                .any(|activity| !activity.token_uses.is_empty())
        }),
    )
    .await;
    for activity in rig.routes.reports().iter().flat_map(|report| &report.sessions) {
        assert_eq!(activity.open_calls, 0);
        assert_eq!(activity.last_activity_at, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_calls_of_a_session_are_limited() {
    let rig = Rig::with(|config| config.limits.calls_per_session = 2).await;
    let mut open = Vec::new();
    // On two connections, which may be served by two workers.
    for _ in 0..2 {
        let client = rig.client().await;
        let mut running = client.begin(&rig.rpc().shape(Shape::Hang)).await.unwrap();
        running.finish(request(b"go"));
        open.push((client, running));
    }
    within("both run", rig.spark.until(|seen| seen.requests.len() == 2)).await;
    let reply = rig.call(rig.rpc()).await;
    reply.refused(Reason::QuotaExceeded);
    assert!(tonic_types::StatusExt::get_details_retry_info(&reply.status()).is_some());
    let free = rig.call(Rpc::spark("ReleaseExecute").bearer(&rig.token())).await;
    assert_eq!(free.code(), Code::Ok);
    open.pop();
    within("there is room again", async {
        while rig.call(rig.rpc()).await.code() != Code::Ok {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rate_of_calls_of_an_organization_is_limited() {
    let rig = Rig::with(|config| config.limits.calls_per_second_per_org = 2).await;
    let client = rig.client().await;
    let mut limited = None;
    for _ in 0..10 {
        let reply = client.call(rig.rpc()).await;
        if reply.code() != Code::Ok {
            limited = Some(reply);
        }
    }
    limited.unwrap().refused(Reason::RateLimited);
    let free = client
        .call(Rpc::spark("ReleaseExecute").bearer(&rig.token()))
        .await;
    assert_eq!(free.code(), Code::Ok);
}

/// Calls with each of these tokens continuously, until dropped.
fn flood(client: &Client, tokens: &[String]) -> tokio::task::JoinSet<()> {
    let mut flood = tokio::task::JoinSet::new();
    for token in tokens {
        let (client, token) = (client.clone(), token.clone());
        flood.spawn(async move {
            loop {
                let reply = client.call(Rpc::execute(&token)).await;
                assert_ne!(reply.code(), Code::Ok);
            }
        });
    }
    flood
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejected_tokens_do_not_count_against_their_organization() {
    let rig = Rig::with(|config| config.limits.calls_per_second_per_org = 5).await;
    let good = rig.token();
    // Of an older epoch, revoked, of a closed session, and one that only session-manager rejects.
    let (mut old, mut revoked, mut closed) = (rig.claims(), rig.claims(), rig.claims());
    old.sid = SessionId::generate(Timestamp::from_millis(5), 1);
    revoked.sid = SessionId::generate(Timestamp::from_millis(5), 2);
    closed.sid = SessionId::generate(Timestamp::from_millis(5), 3);
    let mut denied = rig.claims();
    denied.sid = SessionId::generate(Timestamp::from_millis(5), 4);
    let of = |sid: &SessionId| Route {
        session_id: sid.to_string(),
        ..rig.route()
    };
    rig.routes.set(Route {
        token_epoch: 2,
        ..of(&old.sid)
    });
    rig.routes.set(Route {
        revoked_tokens: vec![session_proto::internal::RevokedToken {
            token_id: revoked.jti.to_string(),
            until: None,
        }],
        ..of(&revoked.sid)
    });
    rig.routes.set(Route {
        status: RouteStatus::Closed.into(),
        backend: None,
        ..of(&closed.sid)
    });
    let dead: Vec<String> = [&old, &revoked, &closed, &denied]
        .map(|claims| rig.sign(claims))
        .into();
    rig.routes.set(of(&denied.sid));
    let refused = session_proto::error::Refused::new(Reason::TokenRevoked, "shut out");
    rig.routes.refuse(&dead[3], refused.into_status());
    let client = rig.client().await;
    for (token, reason) in dead.iter().zip([
        Reason::TokenRevoked,
        Reason::TokenRevoked,
        Reason::SessionClosed,
        Reason::TokenRevoked,
    ]) {
        client.call(Rpc::execute(token)).await.refused(reason);
    }
    let flood = flood(&client, &dead);
    let other = rig.client().await;
    let asked = rig.routes.asked().len();
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let reply = other.call(Rpc::execute(&good)).await;
        assert_eq!(reply.code(), Code::Ok, "{reply:?}");
    }
    let opened = rig.metric("spark_proxy_calls_opened_total").await;
    assert!(opened > 1000.0, "it is a flood: {opened} calls");
    let asked = rig.routes.asked().len() - asked;
    assert!(asked < 400, "session-manager received {asked} requests in 3 s");
    drop(flood);
    // Some of the errors still have the actual reason.
    within("its true reason", async {
        loop {
            let status = client.call(Rpc::execute(&dead[0])).await.status();
            if session_proto::error::reason_of(&status) == Some(Reason::TokenRevoked) {
                return;
            }
        }
    })
    .await;
}

/// Route requests have their own connection: they cannot use up the streams of reports, bind requests
/// and the watch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hanging_route_requests_do_not_delay_reports() {
    const HANGING: u64 = 300;
    let rig = Rig::start().await;
    let client = rig.client().await;
    assert_eq!(client.call(rig.rpc()).await.code(), Code::Ok);
    let busy = of(&rig, 1);
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..HANGING {
        let mut claims = rig.claims();
        claims.sid = SessionId::generate(Timestamp::from_millis(5), number);
        rig.routes.hang(claims.sid.as_str());
        let (client, rpc) = (client.clone(), Rpc::execute(&rig.sign(&claims)));
        calls.spawn(async move { client.call(rpc).await.code() });
    }
    within("many route requests hang", rig.routes.until_asked(200)).await;
    let since = std::time::Instant::now();
    let mut running = client.begin(&rig.rpc().shape(Shape::HangAfterOne)).await.unwrap();
    running.finish(request(b"go"));
    within(
        "a report",
        rig.routes
            .until_reported(|reports| reports.iter().flat_map(|report| &report.sessions).any(&busy)),
    )
    .await;
    assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
    assert_eq!(rig.metric("spark_proxy_route_watch_connected").await, 1.0);
    calls.abort_all();
}

async fn hold(rig: &Rig, client: &Client, session: &SessionId) -> common::Running {
    let mut claims = rig.claims();
    claims.sid = session.clone();
    let mut running = client
        .begin(&Rpc::execute(&rig.sign(&claims)))
        .await
        .expect("it begins");
    running.finish(request(b"go"));
    running
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_calls_are_limited() {
    let rig = Rig::with(|config| {
        config.limits.held_calls_per_session = 2;
        config.limits.held_calls = 3;
    })
    .await;
    let sessions: Vec<SessionId> = (0..2)
        .map(|n| SessionId::generate(Timestamp::from_millis(5), n))
        .collect();
    for session in &sessions {
        rig.routes.set(Route {
            session_id: session.to_string(),
            status: RouteStatus::Pending.into(),
            backend: None,
            ..rig.route()
        });
    }
    let client = rig.client().await;
    let mut held = Vec::new();
    for count in 1..=2 {
        held.push(hold(&rig, &client, &sessions[0]).await);
        within(
            "it is held",
            rig.until_metric("spark_proxy_held_calls", |n| n == f64::from(count)),
        )
        .await;
    }
    let refused = hold(&rig, &client, &sessions[0]).await;
    let reply = within("the third of one session", common::Reply::read(refused.response))
        .await
        .unwrap();
    reply.refused(Reason::TooManyWaiting);
    held.push(hold(&rig, &client, &sessions[1]).await);
    within(
        "another session's is held",
        rig.until_metric("spark_proxy_held_calls", |n| n == 3.0),
    )
    .await;
    let refused = hold(&rig, &client, &sessions[1]).await;
    let reply = within("the fourth of all", common::Reply::read(refused.response))
        .await
        .unwrap();
    reply.refused(Reason::TooManyWaiting);
    // A disconnected caller releases its place.
    held.clear();
    within(
        "none waits",
        rig.until_metric("spark_proxy_held_calls", |n| n == 0.0),
    )
    .await;
}
