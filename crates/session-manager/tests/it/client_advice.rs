//! Advice for clients that are newer than their engine: what routes contain, and the events of
//! reported clients.

use crate::support::{Manager, on, route, until};
use session_core::{ChangeReason, SessionKey};
use session_proto::internal as wire;
use session_proto::v1::SessionStatus;
use session_store::prelude::*;

const DECLARED: &str = "
[[clusters]]
name = \"declared\"
engine = \"sail\"
engine_version = \"0.7.2\"
client_versions = [\"3.5\", \"pyspark-client 4.0\", \"python 3.12\"]
process = { program = \"/opt/sail\" }
";

/// An active session whose compute stated Spark 4.1.
async fn active(manager: &Manager, cluster: &str) -> SessionKey {
    let key = manager.create_as("ada", on(cluster)).await;
    until("the compute to be requested", async || {
        manager.sim.made(&key, 1) == 1
    })
    .await;
    manager.sim.ready(&key, 1, route("127.0.0.1:1"));
    manager.until_status(&key, SessionStatus::Active).await;
    key
}

fn newer(version: &str) -> wire::NewerClient {
    wire::NewerClient {
        version: version.to_owned(),
        newest_client: "4.0".to_owned(),
        newest_client_declared: true,
    }
}

#[tokio::test]
async fn reported_clients_become_one_event_for_each_version() {
    let manager = Manager::start_with(DECLARED).await;
    let key = active(&manager, "declared").await;
    let backend = manager.route_of(&key).await.backend.unwrap();
    assert_eq!(
        (backend.newest_client.as_str(), backend.newest_client_declared),
        ("4.0", true)
    );
    let report = async |proxy: &str, sequence: u64, newer_clients: Vec<wire::NewerClient>| {
        let session = wire::SessionActivity {
            session_id: key.id.to_string(),
            org: key.org.to_string(),
            generation: 1,
            newer_clients,
            ..Default::default()
        };
        let request = wire::ReportActivityRequest {
            proxy_id: proxy.to_owned(),
            sessions: vec![session],
            sequence,
        };
        manager.routes().report_activity(request).await.unwrap();
    };
    report("one", 1, vec![newer("4.3.0")]).await;
    report("one", 1, vec![newer("4.3.0")]).await;
    report(
        "two",
        1,
        vec![newer("4.3.0"), newer("4.1.0\u{1b}[2J"), newer("4.0.1"), newer("")],
    )
    .await;
    report(
        "two",
        2,
        (0..20).map(|patch| newer(&format!("5.0.{patch}"))).collect(),
    )
    .await;
    let events = manager.store.events(&key).await.unwrap();
    let advice = events
        .iter()
        .filter(|event| event.reason == ChangeReason::ClientNewer);
    let texts: Vec<_> = advice.map(|event| event.message.as_str()).collect();
    assert_eq!(
        texts[..2],
        [
            "client 4.3.0 is newer than 4.0, the newest in the cluster's client_versions; what is new in 4.3 may fail",
            "client 4.1.0 is newer than 4.0, the newest in the cluster's client_versions; what is new in 4.1 may fail",
        ]
    );
    assert_eq!(texts.len(), 8, "{texts:?}");
    let shown = manager.show(&key).await;
    assert_eq!(shown.status(), SessionStatus::Active);
}
