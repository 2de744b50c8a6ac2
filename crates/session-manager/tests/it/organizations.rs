//! Organizations: limits, and disabling of organizations and principals, on two
//! managers that share one store.

use crate::support;
use crate::support::{Manager, on, route, until};
use session_core::{Clock as _, Timestamp};
use session_core::{Disabled, Reason, SessionKey, SystemClock, TokenId};
use session_proto::error::reason_of;
use session_proto::internal as wire;
use session_proto::v1::{self, SessionStatus};
use session_store::prelude::*;
use session_store::{Kind, TokenRecord};
use std::time::Duration;
use tonic::{Code, Status};

const fn limits() -> v1::Limits {
    v1::Limits {
        live_sessions_per_owner: 2,
        live_sessions: 3,
        creates_per_minute: 30,
        labels: 1,
        tokens_per_session: 1,
    }
}

async fn set_limits(manager: &Manager, who: &str, org: &str, limits: v1::Limits) -> Result<v1::Org, Status> {
    let request = v1::SetLimitsRequest {
        name: org.to_owned(),
        limits: Some(limits),
    };
    let answer = manager.orgs(who).set_limits(request).await?;
    Ok(answer.into_inner().org.unwrap())
}

async fn describe(manager: &Manager, who: &str, org: &str) -> Result<v1::Org, Status> {
    let request = v1::DescribeOrgRequest { name: org.to_owned() };
    let answer = manager.orgs(who).describe_org(request).await?;
    Ok(answer.into_inner().org.unwrap())
}

async fn disable_org(manager: &Manager, who: &str, org: &str) -> Result<u32, Status> {
    let request = v1::DisableOrgRequest { name: org.to_owned() };
    let answer = manager.orgs(who).disable_org(request).await?.into_inner();
    assert!(answer.org.unwrap().disabled);
    Ok(answer.closed_sessions)
}

async fn disable(manager: &Manager, who: &str, principal: &str, disabled: bool) -> Result<u32, Status> {
    let request = v1::DisablePrincipalRequest {
        principal: principal.to_owned(),
        disabled,
        org: String::new(),
    };
    let answer = manager.orgs(who).disable_principal(request).await?;
    Ok(answer.into_inner().closed_sessions)
}

async fn list(manager: &Manager, who: &str) -> Result<usize, Status> {
    let request = v1::ListSessionsRequest::default();
    let answer = manager.sessions(who).list_sessions(request).await?;
    Ok(answer.into_inner().sessions.len())
}

async fn stored(manager: &Manager, key: &SessionKey) -> session_core::Session {
    manager.store.get(key).await.unwrap().unwrap()
}

#[tokio::test]
async fn organizations_are_created_read_and_limited() {
    let manager = Manager::start().await;
    let request = v1::CreateOrgRequest {
        org: Some(v1::Org {
            name: "initech".to_owned(),
            ..Default::default()
        }),
    };
    let mut orgs = manager.orgs("pat");
    let created = orgs.create_org(request.clone()).await.unwrap().into_inner();
    let created = created.org.unwrap();
    assert_eq!((created.version, created.disabled), (1, false));
    assert_eq!(created.limits.unwrap().live_sessions_per_owner, 10, "the default");
    let again = orgs.create_org(request.clone()).await.unwrap_err();
    assert_eq!(reason_of(&again), Some(Reason::AlreadyExists));

    for who in ["ada", "olga"] {
        let refused = manager.orgs(who).create_org(request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{who}");
        let refused = set_limits(&manager, who, "acme", limits()).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{who}");
        let refused = disable_org(&manager, who, "acme").await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{who}");
        let refused = describe(&manager, who, "initech").await.unwrap_err();
        assert_eq!(reason_of(&refused), Some(Reason::NotAuthorized));
    }
    let changed = set_limits(&manager, "pat", "initech", limits()).await.unwrap();
    assert_eq!((changed.version, changed.limits), (2, Some(limits())));
    let listed = orgs.list_orgs(v1::ListOrgsRequest {}).await.unwrap().into_inner();
    let names: Vec<_> = listed.orgs.iter().map(|org| org.name.as_str()).collect();
    assert_eq!(names, ["initech"]);
    let own = manager
        .orgs("ada")
        .list_orgs(v1::ListOrgsRequest {})
        .await
        .unwrap();
    assert_eq!(own.into_inner().orgs[0].name, "acme", "every caller sees its own");
}

#[tokio::test]
async fn every_caller_can_ask_who_it_is() {
    let manager = Manager::start().await;
    let caller = async |who: &str| {
        let mut orgs = manager.orgs(who);
        let answer = orgs.describe_caller(v1::DescribeCallerRequest {}).await;
        answer.map(|answer| answer.into_inner().caller.unwrap())
    };
    let ada = caller("ada").await.unwrap();
    assert_eq!((ada.principal.as_str(), ada.org.as_str()), ("sa|ada", "acme"));
    assert!(ada.roles.iter().any(|role| role == "member"), "{ada:?}");
    let pat = caller("pat").await.unwrap();
    assert!(pat.roles.iter().any(|role| role == "platform-admin"), "{pat:?}");
}

#[tokio::test]
async fn bad_input_names_the_field() {
    let manager = Manager::start_with("[[orgs]]\nname = \"declared\"\n").await;
    for (field, wrong) in [
        (
            "limits.live_sessions_per_owner",
            v1::Limits {
                live_sessions_per_owner: 0,
                ..limits()
            },
        ),
        (
            "limits.live_sessions",
            v1::Limits {
                live_sessions: 1_000_001,
                ..limits()
            },
        ),
        (
            "limits.creates_per_minute",
            v1::Limits {
                creates_per_minute: 0,
                ..limits()
            },
        ),
        (
            "limits.labels",
            v1::Limits {
                labels: 65,
                ..limits()
            },
        ),
        (
            "limits.tokens_per_session",
            v1::Limits {
                tokens_per_session: 1001,
                ..limits()
            },
        ),
    ] {
        let refused = set_limits(&manager, "pat", "acme", wrong).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{field}");
        assert!(refused.message().starts_with(field), "{}", refused.message());
    }
    let refused = set_limits(&manager, "pat", "No Name", limits())
        .await
        .unwrap_err();
    assert!(refused.message().starts_with("name"), "{}", refused.message());
    let refused = set_limits(&manager, "pat", "declared", limits())
        .await
        .unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::ManagedByConfig));
    let refused = disable(&manager, "pat", "ada", true).await.unwrap_err();
    assert!(
        refused.message().starts_with("principal"),
        "{}",
        refused.message()
    );
    let disabled = v1::Org {
        name: "x".to_owned(),
        disabled: true,
        ..Default::default()
    };
    let request = v1::CreateOrgRequest { org: Some(disabled) };
    let refused = manager.orgs("pat").create_org(request).await.unwrap_err();
    assert!(
        refused.message().starts_with("org.disabled"),
        "{}",
        refused.message()
    );
}

/// Limits apply per organization and hold under concurrent creates.
#[tokio::test]
async fn limits_are_exact_on_two_managers() {
    let manager = Manager::start().await;
    let other = manager.another().await;
    set_limits(&manager, "pat", "acme", limits()).await.unwrap();
    let creates = (0..30).map(|n| {
        let who = ["ada", "bob"][n % 2];
        let mut sessions = if n % 3 == 0 { &manager } else { &other }.sessions(who);
        async move { (who, sessions.create_session(on("c")).await) }
    });
    let outcomes = futures::future::join_all(creates).await;
    let made = |who| {
        let of = outcomes.iter().filter(|(of, made)| *of == who && made.is_ok());
        of.count()
    };
    assert!(made("ada") <= 2 && made("bob") <= 2, "{outcomes:?}");
    assert_eq!(made("ada") + made("bob"), 3, "{outcomes:?}");
    let labelled = v1::CreateSessionRequest {
        labels: [("a".to_owned(), String::new()), ("b".to_owned(), String::new())].into(),
        ..on("c")
    };
    let refused = manager
        .sessions("olga")
        .create_session(labelled)
        .await
        .unwrap_err();
    assert!(refused.message().starts_with("labels"), "{}", refused.message());
    // Another organization has the defaults.
    for _ in 0..4 {
        manager.sessions("eve").create_session(on("c")).await.unwrap();
    }
}

#[tokio::test]
async fn a_disabled_organization_is_rejected_everywhere_until_enabled() {
    let manager = Manager::start_with("[[orgs]]\nname = \"acme\"\n").await;
    let other = manager.another_with("[[orgs]]\nname = \"acme\"\n").await;
    let (first, second) = (manager.active("ada").await, other.active("bob").await);
    let foreign = manager.sessions("eve").create_session(on("c")).await.unwrap();
    let foreign = foreign.into_inner().session.unwrap();

    assert_eq!(disable_org(&manager, "pat", "acme").await.unwrap(), 2);
    for key in [&first, &second] {
        let session = stored(&manager, key).await;
        assert_eq!(
            (session.status(), session.reason.as_str()),
            (session_core::Status::Closed, "ORG_DISABLED")
        );
    }
    for at in [&manager, &other] {
        let refused = list(at, "ada").await.unwrap_err();
        assert_eq!(
            (refused.code(), reason_of(&refused)),
            (Code::PermissionDenied, Some(Reason::OrgDisabled))
        );
        let refused = at.sessions("olga").create_session(on("c")).await.unwrap_err();
        assert_eq!(reason_of(&refused), Some(Reason::OrgDisabled));
        let request = wire::RecordTokenRequest {
            session_id: first.id.to_string(),
            ..Default::default()
        };
        let refused = at.ledger("ada").record_token(request).await.unwrap_err();
        assert_eq!(reason_of(&refused), Some(Reason::OrgDisabled));
        assert!(at.route_of(&first).await.org_disabled);
    }
    until("the compute to be released", async || {
        let live = manager.sim.live();
        live.iter().all(|(key, _)| key.org.as_str() == "umbrella")
    })
    .await;
    assert_eq!(list(&manager, "eve").await.unwrap(), 1);
    let request = v1::DescribeSessionRequest {
        session_id: foreign.id,
        wait_ready: None,
    };
    let untouched = manager.sessions("eve").describe_session(request).await.unwrap();
    assert_eq!(
        untouched.into_inner().session.unwrap().status(),
        SessionStatus::Pending
    );

    // Its platform admin may call, but cannot create sessions either.
    let shown = describe(&other, "pat", "acme").await.unwrap();
    assert!(shown.disabled && shown.managed_by_config);
    assert_eq!(
        disable_org(&other, "pat", "acme").await.unwrap(),
        0,
        "safe to repeat"
    );
    let request = v1::EnableOrgRequest {
        name: "acme".to_owned(),
    };
    for _ in 0..2 {
        let enabled = other.orgs("pat").enable_org(request.clone()).await.unwrap();
        assert!(!enabled.into_inner().org.unwrap().disabled);
    }
    assert_eq!(list(&manager, "olga").await.unwrap(), 2, "closed ones are listed");
    manager.active("ada").await;
}

/// An organization may be disabled between its read and the commit of a create.
#[tokio::test]
async fn a_concurrent_create_is_closed() {
    let manager = Manager::start().await;
    let other = manager.another().await;
    for round in 0..10 {
        let creates: Vec<_> = (0..4)
            .map(|n| {
                let at = if n % 2 == 0 { &manager } else { &other };
                let (mut sessions, who) = (at.sessions(["ada", "olga"][n % 2]), n);
                tokio::spawn(async move { (who, sessions.create_session(on("c")).await) })
            })
            .collect();
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        disable_org(&manager, "pat", "acme").await.unwrap();
        for created in creates {
            if let (_, Ok(created)) = created.await.unwrap() {
                let key = support::key(&created.into_inner().session.unwrap().id);
                until("the session to be closed", async || {
                    stored(&manager, &key).await.status().is_terminal()
                })
                .await;
            }
        }
        let request = v1::EnableOrgRequest {
            name: "acme".to_owned(),
        };
        manager.orgs("pat").enable_org(request).await.unwrap();
    }
    until("all compute to be gone", async || manager.sim.live().is_empty()).await;
}

/// Another manager closes the sessions if the first one crashed after disabling.
#[tokio::test]
async fn an_incomplete_pass_is_repeated() {
    let manager = Manager::start().await;
    let key = manager.active("ada").await;
    let disabled = Disabled {
        org: "acme".parse().unwrap(),
        principal: None,
        by: "sa|pat".parse().unwrap(),
        by_platform: true,
        at: Timestamp::ZERO,
        settled: false,
        version: 0,
    };
    let json = serde_json::to_string(&disabled).unwrap();
    manager
        .store
        .put_definition(Kind::Disabled, "acme", 0, &json)
        .await
        .unwrap();
    until("the session to be closed", async || {
        stored(&manager, &key).await.status().is_terminal()
    })
    .await;
    assert_eq!(stored(&manager, &key).await.reason.as_str(), "ORG_DISABLED");
    until("the pass to be settled", async || {
        let stored = manager
            .store
            .get_definition(Kind::Disabled, "acme")
            .await
            .unwrap();
        stored.unwrap().json.contains("\"settled\":true")
    })
    .await;
}

#[tokio::test]
async fn a_disabled_principal_gets_the_error_of_an_unknown_one_and_loses_sessions_and_tokens() {
    let manager = Manager::start().await;
    let other = manager.another().await;
    let (own, foreign) = (manager.active("olga").await, manager.active("ada").await);
    // A token of olga's, an org admin, for ada's session.
    let now = SystemClock.now();
    let id = TokenId::generate(now, 4);
    let token = TokenRecord {
        id: id.clone(),
        key_id: "k".to_owned(),
        subject: "sa|olga".parse().unwrap(),
        epoch: 1,
        issued_at: now,
        expires_at: now.after(Duration::from_secs(600)),
        address: String::new(),
    };
    let expired = TokenRecord {
        id: TokenId::generate(now, 5),
        issued_at: now.before(Duration::from_secs(3600)),
        expires_at: now.before(Duration::from_secs(60)),
        ..token.clone()
    };
    let lost = expired.id.clone();
    manager.store.record_token(&foreign, expired, 100).await.unwrap();
    manager.store.record_token(&foreign, token, 100).await.unwrap();

    let refused = disable(&manager, "ada", "sa|bob", true).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::NotAuthorized));
    let refused = disable(&manager, "pat", "sa|pat", true).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::InvalidArgument), "not oneself");

    assert_eq!(disable(&manager, "pat", "sa|olga", true).await.unwrap(), 1);
    let closed = stored(&manager, &own).await;
    assert_eq!(
        (closed.status(), closed.reason.as_str()),
        (session_core::Status::Closed, "OWNER_DISABLED")
    );
    let kept = stored(&manager, &foreign).await;
    assert_eq!(kept.status(), session_core::Status::Active);
    assert!(kept.revoked_tokens.contains_key(&id));
    // Operations that it started may be reattached during its grace.
    assert!(kept.revoked_tokens.contains_key(&lost), "one that has expired");

    let refused = list(&other, "olga").await.unwrap_err();
    assert_eq!(
        (refused.code(), reason_of(&refused)),
        (Code::Unauthenticated, Some(Reason::CallerUnknown))
    );
    assert_eq!(
        refused.message(),
        "the service-account key is not known. Ask your platform team for a new one."
    );
    let request = wire::RecordTokenRequest {
        session_id: foreign.id.to_string(),
        ..Default::default()
    };
    let refused = other.ledger("olga").record_token(request).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::CallerUnknown));
    assert!(list(&other, "ada").await.is_ok(), "no other principal is");
    let shown = describe(&other, "pat", "acme").await.unwrap();
    assert_eq!(shown.disabled_principals, ["sa|olga"]);
    assert!(
        describe(&other, "ada", "acme")
            .await
            .unwrap()
            .disabled_principals
            .is_empty(),
        "not for members"
    );

    assert_eq!(disable(&other, "pat", "sa|olga", false).await.unwrap(), 0);
    assert!(list(&manager, "olga").await.is_ok());
    manager.active("olga").await;
}

#[tokio::test]
async fn org_admins_disable_their_own_principals_and_enable_only_those() {
    let manager = Manager::start().await;
    let key = manager.create("bob").await;
    manager.sim.ready(&key, 1, route("127.0.0.1:1"));
    assert_eq!(disable(&manager, "olga", "sa|bob", true).await.unwrap(), 1);
    assert!(list(&manager, "bob").await.is_err());
    // A token that bob still has is rejected.
    let elsewhere = v1::DisablePrincipalRequest {
        principal: "sa|eve".to_owned(),
        disabled: true,
        org: "umbrella".to_owned(),
    };
    let refused = manager
        .orgs("olga")
        .disable_principal(elsewhere.clone())
        .await
        .unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::NotAuthorized));
    manager.orgs("pat").disable_principal(elsewhere).await.unwrap();
    assert!(list(&manager, "eve").await.is_err());

    // An org admin cannot disable a platform admin.
    disable(&manager, "olga", "sa|pat", true).await.unwrap();
    assert!(list(&manager, "pat").await.is_ok());

    disable(&manager, "pat", "sa|bob", true).await.unwrap();
    let refused = disable(&manager, "olga", "sa|bob", false).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::NotAuthorized));
    disable(&manager, "pat", "sa|bob", false).await.unwrap();
    assert!(list(&manager, "bob").await.is_ok());
}

/// The principal is disabled while a proxy resolves a route.
#[tokio::test]
async fn tokens_of_a_disabled_principal_are_rejected() {
    let manager = Manager::start().await;
    let key = manager.active("bob").await;
    // ada has a token for bob's session, as an org admin may.
    let resolve = || {
        let request = wire::ResolveRouteRequest {
            session_token: manager.token(&key),
            ..Default::default()
        };
        let mut routes = manager.routes();
        async move { routes.resolve_route(request).await }
    };
    resolve().await.unwrap();
    disable(&manager, "pat", "sa|ada", true).await.unwrap();
    let refused = resolve().await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::TokenRevoked), "{refused}");
    assert_eq!(
        stored(&manager, &key).await.status(),
        session_core::Status::Active,
        "bob's session continues"
    );
}
