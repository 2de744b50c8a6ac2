//! The APIs: rejected input, repeated requests, and routes.

use crate::support;
use crate::support::{Manager, on, route, until};
use session_core::Reason;
use session_proto::error::reason_of;
use session_proto::internal as wire;
use session_proto::internal::watch_routes_response::Update;
use session_proto::v1::{self, SessionStatus};
use std::time::{Duration, Instant};
use tonic::{Code, Status};

async fn refused(manager: &Manager, request: v1::CreateSessionRequest) -> Status {
    manager.sessions("ada").create_session(request).await.unwrap_err()
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

#[tokio::test]
async fn bad_input_names_the_field_and_creates_nothing() {
    let manager = Manager::start().await;
    let label = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
    for (field, request) in [
        ("cluster", on("")),
        ("cluster", on("Not A Name")),
        (
            "catalog",
            v1::CreateSessionRequest {
                catalog: "UPPER".into(),
                ..on("c")
            },
        ),
        (
            "team",
            v1::CreateSessionRequest {
                team: "not-mine".into(),
                ..on("c")
            },
        ),
        (
            "name",
            v1::CreateSessionRequest {
                name: "x".repeat(129),
                ..on("c")
            },
        ),
        (
            "name",
            v1::CreateSessionRequest {
                name: "a\nb".into(),
                ..on("c")
            },
        ),
        (
            "request_id",
            v1::CreateSessionRequest {
                request_id: "x".repeat(129),
                ..on("c")
            },
        ),
        (
            "labels",
            v1::CreateSessionRequest {
                labels: label("", "x"),
                ..on("c")
            },
        ),
        (
            "labels",
            v1::CreateSessionRequest {
                labels: label("k", &"x".repeat(256)),
                ..on("c")
            },
        ),
        (
            "labels",
            v1::CreateSessionRequest {
                labels: (0..33).map(|i| (format!("k{i}"), String::new())).collect(),
                ..on("c")
            },
        ),
        (
            "idle_timeout",
            v1::CreateSessionRequest {
                idle_timeout: seconds(59),
                ..on("c")
            },
        ),
        (
            "idle_timeout",
            v1::CreateSessionRequest {
                idle_timeout: seconds(-1),
                ..on("c")
            },
        ),
        (
            "close_after_idle",
            v1::CreateSessionRequest {
                close_after_idle: seconds(25 * 3600),
                ..on("c")
            },
        ),
        (
            "max_lifetime",
            v1::CreateSessionRequest {
                max_lifetime: seconds(8 * 24 * 3600),
                ..on("c")
            },
        ),
    ] {
        let status = refused(&manager, request).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
        assert!(
            status.message().starts_with(field),
            "{field}: {}",
            status.message()
        );
    }
    assert_eq!(
        reason_of(&refused(&manager, on("gone")).await),
        Some(Reason::ClusterNotActive)
    );
    assert_eq!(
        reason_of(&refused(&manager, on("nowhere")).await),
        Some(Reason::NotAuthorized)
    );
    let listed = manager
        .sessions("ada")
        .list_sessions(v1::ListSessionsRequest::default())
        .await
        .unwrap();
    assert!(listed.into_inner().sessions.is_empty());
}

#[tokio::test]
async fn quotas_hold_under_concurrent_creates_and_errors_name_the_fix() {
    let manager = Manager::start_with("").await;
    let creates = (0..40).map(|_| {
        let mut sessions = manager.sessions("ada");
        async move { sessions.create_session(on("c")).await }
    });
    let outcomes = futures::future::join_all(creates).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 10);
    for status in outcomes.into_iter().filter_map(Result::err) {
        assert_eq!(
            (status.code(), reason_of(&status)),
            (Code::ResourceExhausted, Some(Reason::QuotaExceeded))
        );
        assert!(status.message().contains("berth close"), "{}", status.message());
    }
}

#[tokio::test]
async fn only_the_owner_and_org_admins_get_tokens() {
    let manager = Manager::start().await;
    let key = manager.active("ada").await;
    let ask = |who: &'static str, id: String| {
        let mut ledger = manager.ledger(who);
        async move { ledger.record_token(support::a_token(&id, 1)).await }
    };
    for who in ["ada", "olga"] {
        let granted = ask(who, key.id.to_string()).await.unwrap().into_inner();
        assert_eq!((granted.subject, granted.token_epoch), (format!("sa|{who}"), 1));
    }
    let foreign = ask("bob", key.id.to_string()).await.unwrap_err();
    let absent = ask("bob", "s-00000000000000000000".to_owned()).await.unwrap_err();
    assert_eq!(
        (foreign.code(), foreign.message()),
        (absent.code(), absent.message())
    );
    assert_eq!(foreign.code(), Code::PermissionDenied);
    manager.close("ada", &key).await;
    let closed = ask("ada", key.id.to_string()).await.unwrap_err();
    assert_eq!(reason_of(&closed), Some(Reason::SessionClosed));
}

#[tokio::test]
async fn resolve_route_waits_for_readiness_and_at_most_as_long_as_requested() {
    let manager = Manager::start().await;
    let key = manager.create("ada").await;
    let begun = Instant::now();
    let pending = manager.resolve(&key, 1).await.unwrap();
    assert_eq!(pending.status(), wire::RouteStatus::Pending);
    assert!((Duration::from_millis(900)..Duration::from_secs(3)).contains(&begun.elapsed()));

    let waiting = (0..50).map(|_| manager.resolve(&key, 15));
    let ready = async {
        until("the compute to be requested", async || {
            manager.sim.made(&key, 1) == 1
        })
        .await;
        manager.sim.ready(&key, 1, route("127.0.0.1:4242"));
    };
    let (routes, ()) = tokio::join!(futures::future::join_all(waiting), ready);
    for resolved in routes {
        let resolved = resolved.unwrap();
        assert_eq!(
            (resolved.status(), resolved.generation),
            (wire::RouteStatus::Active, 1)
        );
        assert_eq!(resolved.backend.unwrap().endpoint, "127.0.0.1:4242");
    }
    assert_eq!(manager.sim.made(&key, 1), 1, "one provision however many wait");
}

#[tokio::test]
async fn resolve_route_requires_a_valid_token_and_returns_ends() {
    let manager = Manager::start().await;
    let key = manager.active("ada").await;
    let forged = wire::ResolveRouteRequest {
        session_token: "x.y.z".to_owned(),
        ..Default::default()
    };
    let status = manager.routes().resolve_route(forged).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::TokenMalformed));

    let session_id = key.id.to_string();
    manager
        .ledger("ada")
        .revoke_all(wire::RevokeAllRequest { session_id })
        .await
        .unwrap();
    let status = manager.resolve(&key, 0).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::TokenRevoked));

    let other = manager.active("ada").await;
    manager.close("ada", &other).await;
    assert_eq!(
        manager.resolve(&other, 0).await.unwrap().status(),
        wire::RouteStatus::Closed
    );
    let unknown = support::key("s-00000000000000000000");
    assert_eq!(
        manager.resolve(&unknown, 0).await.unwrap().status(),
        wire::RouteStatus::Closed
    );
}

#[tokio::test]
async fn watch_routes_begins_with_a_reset_and_sends_every_change_in_order() {
    let manager = Manager::start().await;
    let mut watch = manager
        .routes()
        .watch_routes(wire::WatchRoutesRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(matches!(
        watch.message().await.unwrap().unwrap().update,
        Some(Update::Reset(_))
    ));
    let key = manager.active("ada").await;
    manager.close("ada", &key).await;
    let mut versions = Vec::new();
    while versions.len() < 3 {
        let update = tokio::time::timeout(Duration::from_secs(5), watch.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        if let Some(Update::Change(change)) = update.update {
            assert_eq!(change.session_id, key.id.as_str());
            versions.push((change.version, change.status()));
        }
    }
    use wire::RouteStatus::{Active, Closed, Pending};
    assert_eq!(versions, [(1, Pending), (2, Active), (3, Closed)]);
    let begun = Instant::now();
    manager.stop().await;
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "an open watch does not hold the end up"
    );
}

#[tokio::test]
async fn a_store_that_may_have_lost_writes_resets_proxies() {
    let manager = Manager::start().await;
    let key = manager.active("ada").await;
    let mut watch = manager
        .routes()
        .watch_routes(wire::WatchRoutesRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut next = async || {
        loop {
            let update = tokio::time::timeout(Duration::from_secs(5), watch.message());
            let update = update.await.unwrap().unwrap().unwrap().update.unwrap();
            if !matches!(update, Update::Heartbeat(_)) {
                return update;
            }
        }
    };
    let Update::Reset(first) = next().await else {
        panic!("it begins with a reset");
    };
    let before = manager.resolve(&key, 0).await.unwrap();
    assert_eq!(before.store_epoch, first.store_epoch);
    manager.store.fail_over();
    let Update::Reset(second) = next().await else {
        panic!("a reset is sent because writes may be lost");
    };
    assert!(second.store_epoch > first.store_epoch);
    let after = manager.resolve(&key, 0).await.unwrap();
    assert_eq!(after.store_epoch, second.store_epoch);
    manager.close("ada", &key).await;
    let Update::Change(change) = next().await else {
        panic!("changes continue");
    };
    assert_eq!(change.store_epoch, second.store_epoch);
}

#[tokio::test]
async fn waking_an_active_session_changes_nothing() {
    let manager = Manager::start().await;
    let key = manager.active("ada").await;
    let before = manager.show(&key).await;
    let request = v1::WarmSessionRequest {
        session_id: key.id.to_string(),
    };
    let warmed = manager
        .sessions("ada")
        .warm_session(request)
        .await
        .unwrap()
        .into_inner()
        .session
        .unwrap();
    assert_eq!(
        (warmed.version, warmed.status()),
        (before.version, SessionStatus::Active)
    );
}

#[tokio::test]
async fn sessions_can_be_renamed_extended_and_kept_alive_within_bounds() {
    let manager = Manager::start().await;
    let key = manager.active("ada").await;
    let id = key.id.to_string();
    let mut sessions = manager.sessions("ada");
    let request = v1::UpdateSessionRequest {
        session_id: id.clone(),
        name: Some("etl".into()),
        labels: None,
        version: 0,
    };
    assert_eq!(
        sessions
            .update_session(request)
            .await
            .unwrap()
            .into_inner()
            .session
            .unwrap()
            .name,
        "etl"
    );

    let version = manager.show(&key).await.version;
    let rename = |version, name: &str| v1::UpdateSessionRequest {
        session_id: id.clone(),
        name: Some(name.into()),
        labels: None,
        version,
    };
    let renamed = sessions.update_session(rename(version, "first")).await.unwrap();
    assert_eq!(renamed.into_inner().session.unwrap().name, "first");
    let late = sessions
        .update_session(rename(version, "second"))
        .await
        .unwrap_err();
    assert_eq!(reason_of(&late), Some(Reason::Conflict), "{late:?}");

    let expires = manager.show(&key).await.expires_at.unwrap();
    let later = prost_types::Timestamp {
        seconds: expires.seconds + 3600,
        nanos: 0,
    };
    let request = v1::ExtendSessionRequest {
        session_id: id.clone(),
        expires_at: Some(later),
    };
    let extended = sessions
        .extend_session(request)
        .await
        .unwrap()
        .into_inner()
        .session
        .unwrap();
    assert_eq!(extended.expires_at.unwrap().seconds, expires.seconds + 3600);
    let far = prost_types::Timestamp {
        seconds: expires.seconds + 30 * 24 * 3600,
        nanos: 0,
    };
    let request = v1::ExtendSessionRequest {
        session_id: id.clone(),
        expires_at: Some(far),
    };
    assert_eq!(
        sessions.extend_session(request).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let request = v1::KeepSessionAliveRequest {
        session_id: id.clone(),
        until: Some(far),
    };
    assert_eq!(
        sessions.keep_session_alive(request).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let request = v1::KeepSessionAliveRequest {
        session_id: id,
        until: Some(later),
    };
    assert!(sessions.keep_session_alive(request).await.is_ok());
}

#[tokio::test]
async fn deleting_a_catalog_does_not_affect_sessions_with_compute() {
    let manager = Manager::start().await;
    let mut catalogs = manager.catalogs("olga");
    let text = |text: &str| v1::PropertyValue {
        value: Some(v1::property_value::Value::Text(text.to_owned())),
    };
    let catalog = v1::Catalog {
        name: "lake".to_owned(),
        engine: v1::Engine::Sail.into(),
        properties: [("type".to_owned(), text("memory"))].into(),
        ..Default::default()
    };
    let request = v1::CreateCatalogRequest {
        catalog: Some(catalog),
    };
    catalogs.create_catalog(request).await.unwrap();

    let request = v1::CreateSessionRequest {
        catalog: "lake".to_owned(),
        ..on("c")
    };
    let key = manager.create_as("ada", request).await;
    manager.sim.ready(&key, 1, route("127.0.0.1:1"));
    manager.until_status(&key, SessionStatus::Active).await;

    catalogs
        .delete_catalog(v1::DeleteCatalogRequest {
            name: "lake".to_owned(),
            force: true,
        })
        .await
        .unwrap();
    // The event of a change triggers a reconciliation; then the compute is lost.
    manager.sim.ready(&key, 1, route("127.0.0.1:1"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let shown = manager.show(&key).await;
    assert_eq!(
        (shown.status(), shown.generation),
        (SessionStatus::Active, 1),
        "{}",
        shown.status_message
    );
    manager.sim.vanish(&key, 1);
    let failed = manager.until_status(&key, SessionStatus::Failed).await;
    assert!(
        failed.status_message.contains("catalog lake no longer exists"),
        "{}",
        failed.status_message
    );
}

/// 2.4 MB of labels in all.
#[tokio::test]
async fn a_page_of_large_sessions_is_a_short_one() {
    let manager = Manager::start().await;
    let limits = v1::Limits {
        live_sessions_per_owner: 300,
        live_sessions: 300,
        creates_per_minute: 300,
        labels: 32,
        tokens_per_session: 1,
    };
    let limits = v1::SetLimitsRequest {
        name: "acme".to_owned(),
        limits: Some(limits),
    };
    manager.orgs("pat").set_limits(limits).await.unwrap();
    for n in 0..300 {
        let create = v1::CreateSessionRequest {
            labels: (0..31).map(|key| (format!("k{key}"), "x".repeat(250))).collect(),
            request_id: format!("r{n}"),
            ..on("c")
        };
        manager.sessions("ada").create_session(create).await.unwrap();
    }
    let (mut sizes, mut ids, mut page_token) = (Vec::new(), std::collections::BTreeSet::new(), String::new());
    loop {
        let request = v1::ListSessionsRequest {
            page_size: 1000,
            page_token,
            ..Default::default()
        };
        let page = manager.sessions("ada").list_sessions(request).await;
        let page = page.unwrap().into_inner();
        sizes.push(page.sessions.len());
        ids.extend(page.sessions.into_iter().map(|session| session.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(ids.len(), 300);
    assert!(
        sizes.len() > 1 && sizes.iter().all(|size| *size <= 200),
        "{sizes:?}"
    );
    manager.stop().await;
}
