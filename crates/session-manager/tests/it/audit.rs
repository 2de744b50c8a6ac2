//! Audit: every action is recorded with its actor, and each record is one line in
//! the log of one manager.

use crate::support;
use crate::support::{Manager, on, until};
use session_core::{Actor, AuditAction, AuditOutcome, AuditRecord, OrgId, SessionKey, TokenId};
use session_proto::internal as wire;
use session_proto::v1;
use session_store::prelude::*;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The log of this program.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// The lines of the target `audit` by the identity of their record, with their number.
    fn lines(&self) -> BTreeMap<String, usize> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let mut lines = BTreeMap::new();
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            if line["target"] == "audit" {
                *lines
                    .entry(name(|field| line[field].to_string().replace('"', "")))
                    .or_default() += 1;
            }
        }
        lines
    }
}

fn name(field: impl Fn(&str) -> String) -> String {
    [
        "at_ms", "action", "outcome", "reason", "actor", "address", "session", "token", "object", "version",
    ]
    .map(field)
    .join(" ")
}

fn name_of(record: &AuditRecord) -> String {
    let text = |value: Option<String>| value.unwrap_or_default();
    name(|field| match field {
        "at_ms" => record.at.as_millis().to_string(),
        "action" => record.action.to_string(),
        "outcome" => record.outcome.to_string(),
        "reason" => record.reason.clone(),
        "actor" => text(record.actor.as_ref().map(ToString::to_string)),
        "address" => record.address.clone(),
        "session" => text(record.session.as_ref().map(ToString::to_string)),
        "token" => text(record.token.as_ref().map(ToString::to_string)),
        "object" => record.object.clone(),
        "version" => record.version.unwrap_or_default().to_string(),
        _ => unreachable!(),
    })
}

async fn trail(manager: &Manager) -> Vec<AuditRecord> {
    let mut all = Vec::new();
    for partition in 0..OrgId::PARTITIONS {
        all.extend(manager.store.read_audit(partition, "", 100_000).await.unwrap());
    }
    all.into_iter().map(|audited| audited.record).collect()
}

fn find(trail: &[AuditRecord], action: AuditAction, outcome: AuditOutcome) -> &AuditRecord {
    let mut found = trail
        .iter()
        .filter(|record| record.action == action && record.outcome == outcome);
    found
        .next()
        .unwrap_or_else(|| panic!("no {action} {outcome} in {trail:#?}"))
}

fn by(who: &str) -> Option<Actor> {
    Some(Actor::Principal(format!("sa|{who}").parse().unwrap()))
}

/// A request with the client IP that token-issuer forwards.
fn from<T>(address: &'static str, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert(session_proto::CALLER_ADDRESS, address.parse().unwrap());
    request
}

async fn record_token(manager: &Manager, key: &SessionKey, id: &TokenId) {
    let request = wire::RecordTokenRequest {
        token_id: id.to_string(),
        ..support::a_token(key.id.as_str(), 1)
    };
    let request = from("203.0.113.7", request);
    manager.ledger("ada").record_token(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_action_is_recorded_and_logged_once_among_all_managers() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_writer(move || writer.clone())
        .init();
    let manager = Manager::start_with(
        "limits.failures_per_minute_per_address = 0\nlimits.calls_per_second_per_principal = 0",
    )
    .await;
    let other = manager.another().await;

    // Tokens: issued, denied, revoked.
    let key = manager.create("ada").await;
    let id = TokenId::generate(session_core::Timestamp::from_millis(1), 1);
    record_token(&manager, &key, &id).await;
    let theirs = wire::RecordTokenRequest {
        session_id: key.id.to_string(),
        ..Default::default()
    };
    manager
        .ledger("bob")
        .record_token(from("2001:db8::7", theirs))
        .await
        .unwrap_err();
    let revoke = wire::RevokeRequest {
        session_id: key.id.to_string(),
        token_id: id.to_string(),
    };
    manager
        .ledger("ada")
        .revoke(from("203.0.113.8", revoke))
        .await
        .unwrap();
    let revoke_all = wire::RevokeAllRequest {
        session_id: key.id.to_string(),
    };
    // A text that is not an address is ignored.
    let revoke_all = from("203.0.113.8, berth", revoke_all);
    manager.ledger("olga").revoke_all(revoke_all).await.unwrap();
    // Definitions.
    let cluster = v1::Cluster {
        name: "made".to_owned(),
        engine: v1::Engine::Sail.into(),
        provider: Some(v1::cluster::Provider::Process(v1::ProcessProvider {
            program: "/opt/sail".to_owned(),
            ..Default::default()
        })),
        ..Default::default()
    };
    let create = v1::CreateClusterRequest {
        cluster: Some(cluster),
    };
    // The public port ignores a forwarded address.
    let mut create = from("203.0.113.9", create);
    create
        .metadata_mut()
        .insert("x-forwarded-for", "203.0.113.9".parse().unwrap());
    manager.clusters("pat").create_cluster(create).await.unwrap();
    // Many calls without a valid credential.
    for _ in 0..300 {
        let request = v1::ListSessionsRequest::default();
        manager
            .sessions_with("berth_sa_wrong")
            .list_sessions(request)
            .await
            .unwrap_err();
    }
    manager.close("ada", &key).await;

    let trail = trail(&manager).await;
    let done = |action| find(&trail, action, AuditOutcome::Done);
    assert_eq!(done(AuditAction::SessionCreated).actor, by("ada"));
    let issued = done(AuditAction::TokenIssued);
    assert_eq!(
        (issued.token.as_ref(), issued.session.as_ref()),
        (Some(&id), Some(&key.id))
    );
    let denied = find(&trail, AuditAction::TokenIssued, AuditOutcome::Denied);
    assert_eq!(
        (denied.actor.clone(), denied.reason.as_str()),
        (by("bob"), "NOT_AUTHORIZED")
    );
    assert_eq!(done(AuditAction::TokenRevoked).token.as_ref(), Some(&id));
    assert_eq!(done(AuditAction::TokensRevoked).actor, by("olga"));
    let made = done(AuditAction::ClusterCreated);
    assert_eq!((made.actor.clone(), made.object.as_str()), (by("pat"), "made"));
    for (record, address) in [
        (done(AuditAction::SessionCreated), "127.0.0.1"),
        (issued, "203.0.113.7"),
        (denied, "2001:db8::7"),
        (done(AuditAction::TokenRevoked), "203.0.113.8"),
        (done(AuditAction::TokensRevoked), ""),
        (made, "127.0.0.1"),
        (
            find(&trail, AuditAction::CallerRefused, AuditOutcome::Denied),
            "127.0.0.1",
        ),
    ] {
        assert_eq!(record.address, address, "{record:?}");
    }
    let refused = trail
        .iter()
        .filter(|record| record.action == AuditAction::CallerRefused);
    let refused = refused.count();
    assert!((90..200).contains(&refused), "{refused}: at a bounded rate");
    let last = trail
        .iter()
        .rfind(|record| record.session.as_ref() == Some(&key.id))
        .unwrap();
    assert_eq!(
        (last.action, last.reason.as_str()),
        (AuditAction::SessionChanged, "CLOSE_REQUESTED")
    );
    assert_eq!(last.address, "127.0.0.1");
    // The records are not in the session's history.
    let history = manager.store.events(&key).await.unwrap();
    let kept = serde_json::to_string(&history).unwrap();
    assert!(history.len() > 2 && !kept.contains("127.0.0.1"), "{kept}");

    // The logs of both managers together contain each record once.
    let expected: BTreeMap<_, _> = trail.iter().map(|record| (name_of(record), 1)).collect();
    until("every record is in the log", async || {
        let lines = log.lines();
        expected.keys().all(|name| lines.contains_key(name))
    })
    .await;
    manager.stop().await;
    // The other manager continues the export.
    let key = other.create("ada").await;
    until("the other manager writes the log", async || {
        log.lines().keys().any(|name| name.contains(key.id.as_str()))
    })
    .await;
    let twice: Vec<_> = log
        .lines()
        .into_iter()
        .filter(|(name, count)| *count > 1 && !name.contains("caller.refused"))
        .collect();
    assert!(twice.is_empty(), "{twice:#?}");
}

/// A client may disconnect between the change and its record.
#[tokio::test]
async fn a_cancelled_call_is_recorded() {
    let manager = Manager::start().await;
    *manager.recording.audit_delay.lock().unwrap() = Duration::from_millis(200);
    let text = v1::PropertyValue {
        value: Some(v1::property_value::Value::Text("memory".to_owned())),
    };
    let catalog = v1::Catalog {
        name: "left".to_owned(),
        engine: v1::Engine::Sail.into(),
        properties: [("type".to_owned(), text)].into(),
        ..Default::default()
    };
    let mut created = manager.catalogs("olga");
    let request = v1::CreateCatalogRequest {
        catalog: Some(catalog),
    };
    let call = created.create_catalog(request);
    // The catalog exists, its record does not yet.
    tokio::select! {
        answer = call => panic!("answered before its record: {answer:?}"),
        () = until("the catalog", async || {
            let listed = manager.catalogs("olga").list_catalogs(v1::ListCatalogsRequest::default()).await;
            !listed.unwrap().into_inner().catalogs.is_empty()
        }) => {}
    }
    assert!(!trail(&manager).await.iter().any(|record| record.object == "left"));
    until("the record", async || {
        let records = trail(&manager).await;
        records.iter().any(|record| {
            record.action == AuditAction::CatalogCreated
                && record.object == "left"
                && record.actor == by("olga")
        })
    })
    .await;
    manager.stop().await;
}

/// A change in force is recorded even if the call fails afterwards.
#[tokio::test]
async fn a_cluster_that_is_only_drained_by_its_deletion_has_a_record() {
    let manager = Manager::start().await;
    let cluster = v1::Cluster {
        name: "lab".to_owned(),
        engine: v1::Engine::Sail.into(),
        provider: Some(v1::cluster::Provider::Process(v1::ProcessProvider {
            program: "/opt/sail".to_owned(),
            ..Default::default()
        })),
        granted_orgs: vec!["acme".to_owned()],
        ..Default::default()
    };
    let mut clusters = manager.clusters("pat");
    let request = v1::CreateClusterRequest {
        cluster: Some(cluster),
    };
    clusters.create_cluster(request).await.unwrap();
    let request = on("lab");
    manager.create_as("ada", request).await;
    let request = v1::DeleteClusterRequest {
        name: "lab".to_owned(),
        force: false,
    };
    clusters.delete_cluster(request).await.unwrap_err();
    let records = trail(&manager).await;
    let drained = find(&records, AuditAction::ClusterDrained, AuditOutcome::Done);
    assert_eq!((drained.object.as_str(), &drained.actor), ("lab", &by("pat")));
    manager.stop().await;
}
