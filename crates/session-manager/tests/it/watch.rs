//! WatchSessions: every change, on every manager, to callers that may read it.

use crate::support::{Manager, on, until};
use session_core::Reason;
use session_proto::error::reason_of;
use session_proto::v1::watch_sessions_response::Update;
use session_proto::v1::{self, SessionStatus};
use std::time::{Duration, Instant};
use tonic::{Code, Status, Streaming};

type Stream = Streaming<v1::WatchSessionsResponse>;

async fn watch(manager: &Manager, who: &str, session_id: &str) -> Result<Stream, Status> {
    let request = v1::WatchSessionsRequest {
        session_id: session_id.to_owned(),
    };
    Ok(manager.sessions(who).watch_sessions(request).await?.into_inner())
}

async fn next(stream: &mut Stream) -> Option<v1::WatchSessionsResponse> {
    tokio::time::timeout(Duration::from_secs(15), stream.message())
        .await
        .expect("a message in time")
        .unwrap()
}

fn session(message: Option<v1::WatchSessionsResponse>) -> v1::Session {
    match message.unwrap().update {
        Some(Update::Session(session)) => session,
        other => panic!("no session but {other:?}"),
    }
}

async fn begins(stream: &mut Stream) {
    let first = next(stream).await.unwrap();
    assert!(matches!(first.update, Some(Update::Reset(_))), "{first:?}");
}

#[tokio::test]
async fn a_stream_begins_with_the_present_sessions_and_sends_every_change_on_both_managers() {
    let manager = Manager::start().await;
    let other = manager.another().await;
    let there = manager.active("ada").await;
    let gone = manager.active("ada").await;
    manager.close("ada", &gone).await;

    let (mut here, mut beyond) = (
        watch(&manager, "ada", "").await.unwrap(),
        watch(&other, "ada", "").await.unwrap(),
    );
    for stream in [&mut here, &mut beyond] {
        begins(stream).await;
        let message = next(stream).await;
        assert!(message.as_ref().unwrap().event.is_none());
        let message = session(message);
        assert_eq!(
            (message.id.as_str(), message.status()),
            (there.id.as_str(), SessionStatus::Active)
        );
    }
    let fresh = manager.active("ada").await;
    other.close("ada", &fresh).await;
    for stream in [&mut here, &mut beyond] {
        let mut versions = Vec::new();
        while versions.len() < 3 {
            let message = next(stream).await.unwrap();
            let event = message.event.clone().unwrap();
            let shown = session(Some(message));
            assert_eq!(shown.id, fresh.id.as_str());
            assert!(shown.version >= event.version, "as it is by then");
            versions.push((event.version, event.reason));
        }
        let reasons: Vec<_> = versions
            .iter()
            .map(|(version, reason)| (*version, reason.as_str()))
            .collect();
        assert_eq!(
            reasons,
            [(1, "CREATED"), (2, "COMPUTE_READY"), (3, "CLOSE_REQUESTED")]
        );
    }
    let begun = Instant::now();
    manager.stop().await;
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "it does not hold the end up"
    );
    assert!(
        next(&mut here).await.is_none(),
        "the stream ends with its manager"
    );
}

#[tokio::test]
async fn streams_contain_exactly_what_the_caller_may_read() {
    let manager = Manager::start().await;
    let mut streams = Vec::new();
    for who in ["ada", "bob", "olga", "tom", "eve", "pat"] {
        let mut stream = watch(&manager, who, "").await.unwrap();
        begins(&mut stream).await;
        streams.push((who, stream));
    }
    let of_team = v1::CreateSessionRequest {
        team: "data".to_owned(),
        ..on("c")
    };
    let teams = manager.create_as("ada", of_team).await;
    let bobs = manager.create("bob").await;
    // The last change that all readers of acme and no others receive.
    let eves = on("c");
    let eves = manager.sessions("eve").create_session(eves).await.unwrap();
    let eves = eves.into_inner().session.unwrap().id;
    let (teams, bobs) = (teams.id.to_string(), bobs.id.to_string());
    for (who, mut stream) in streams {
        let expected: &[&String] = match who {
            "ada" | "tom" => &[&teams],
            "bob" => &[&bobs],
            "olga" => &[&teams, &bobs],
            "eve" => &[&eves],
            _ => &[],
        };
        for id in expected {
            assert_eq!(session(next(&mut stream).await).id, **id, "{who}");
        }
        let more = tokio::time::timeout(Duration::from_millis(200), stream.message()).await;
        assert!(more.is_err(), "{who} received {more:?}");
    }
}

#[tokio::test]
async fn one_session_is_watched_to_its_end() {
    let manager = Manager::start().await;
    let key = manager.active("ada").await;
    let refused = watch(&manager, "bob", key.id.as_str()).await.unwrap_err();
    let absent = watch(&manager, "bob", "s-00000000000000000000")
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::PermissionDenied, absent.message())
    );
    let mut stream = watch(&manager, "ada", key.id.as_str()).await.unwrap();
    begins(&mut stream).await;
    assert_eq!(session(next(&mut stream).await).status(), SessionStatus::Active);
    manager.active("ada").await;
    manager.close("olga", &key).await;
    let last = next(&mut stream).await;
    assert_eq!(last.as_ref().unwrap().event.as_ref().unwrap().actor, "sa|olga");
    assert_eq!(session(last).status(), SessionStatus::Closed);
    assert!(next(&mut stream).await.is_none());

    let mut late = watch(&manager, "ada", key.id.as_str()).await.unwrap();
    begins(&mut late).await;
    assert_eq!(session(next(&mut late).await).status(), SessionStatus::Closed);
    assert!(next(&mut late).await.is_none());
}

#[tokio::test]
async fn one_caller_has_twenty_streams_at_most() {
    let manager = Manager::start().await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(watch(&manager, "ada", "").await.unwrap());
    }
    let refused = watch(&manager, "ada", "").await.unwrap_err();
    assert_eq!(
        (refused.code(), reason_of(&refused)),
        (Code::ResourceExhausted, Some(Reason::QuotaExceeded))
    );
    watch(&manager, "bob", "").await.unwrap();
    drop(streams.pop());
    until("room for one more", async || {
        watch(&manager, "ada", "").await.is_ok()
    })
    .await;
}

/// At most 400 streams of all its members together.
#[tokio::test]
async fn one_organization_has_400_streams_at_most() {
    let accounts: Vec<_> = (0..21).map(|_| service_kit::caller::generate_key()).collect();
    let declared = accounts.iter().enumerate().map(|(n, key)| {
        format!(
            "[[service_accounts]]\nname = \"w{n}\"\norg = \"acme\"\nroles = [\"member\"]\nkey_sha256 = \"{}\"\n",
            key.sha256
        )
    });
    let manager = Manager::start_with(&declared.collect::<String>()).await;
    let mut streams = Vec::new();
    for account in &accounts[..20] {
        let mut sessions = manager.sessions_with(&account.key);
        for _ in 0..20 {
            let request = v1::WatchSessionsRequest::default();
            streams.push(sessions.watch_sessions(request).await.unwrap());
        }
    }
    let request = v1::WatchSessionsRequest::default();
    let mut last = manager.sessions_with(&accounts[20].key);
    let refused = last.watch_sessions(request).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason_of(&refused)),
        (Code::ResourceExhausted, Some(Reason::QuotaExceeded))
    );
    assert!(refused.message().starts_with("Your organization"), "{refused}");
    watch(&manager, "eve", "").await.unwrap();
}

/// A watcher that does not read receives a reset.
#[tokio::test]
async fn a_slow_watcher_is_reset() {
    let manager = Manager::start().await;
    let key = manager.active("ada").await;
    let mut stream = watch(&manager, "ada", "").await.unwrap();
    begins(&mut stream).await;
    session(next(&mut stream).await);
    // More changes than the queue and the connection buffer: each contains these
    // labels.
    let labels: std::collections::HashMap<_, _> =
        (0..32).map(|n| (format!("label-{n}"), "x".repeat(240))).collect();
    let mut sessions = manager.sessions("ada");
    for n in 0..1500 {
        let request = v1::UpdateSessionRequest {
            session_id: key.id.to_string(),
            name: Some(format!("n-{n}")),
            labels: Some(v1::Labels {
                labels: labels.clone(),
            }),
            version: 0,
        };
        sessions.update_session(request).await.unwrap();
    }
    loop {
        let message = next(&mut stream).await.unwrap();
        if matches!(message.update, Some(Update::Reset(_))) {
            break;
        }
    }
    let shown = session(next(&mut stream).await);
    assert_eq!(shown.name, "n-1499", "as it is now");
}

/// The credential is verified again while a stream is open.
#[tokio::test]
async fn a_stream_ends_when_its_caller_is_no_longer_authenticated() {
    let manager = Manager::start().await;
    let mut stream = watch(&manager, "ada", "").await.unwrap();
    begins(&mut stream).await;
    let request = v1::DisablePrincipalRequest {
        principal: "sa|ada".to_owned(),
        disabled: true,
        org: String::new(),
    };
    manager.orgs("olga").disable_principal(request).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(30), stream.message()).await;
    let refused = ended.expect("within 10 s and a little").unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::CallerUnknown));
}
