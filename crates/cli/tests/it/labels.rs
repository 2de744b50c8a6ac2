//! `berth session update` while another account changes the labels, and the audit
//! trail of all of it.

use crate::support::grpc_between::forwarding;
use crate::support::{Berth, Stack};
use serde_json::json;
use session_proto::v1;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// Replaces the labels of a session, at any version.
async fn relabel(stack: &Stack, session: &str, labels: &[(&str, &str)]) {
    let labels = labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let request = v1::UpdateSessionRequest {
        session_id: session.to_owned(),
        labels: Some(v1::Labels {
            labels: labels.collect(),
        }),
        ..v1::UpdateSessionRequest::default()
    };
    let update = stack.asks("ada", request);
    stack.sessions().update_session(update).await.unwrap();
}

/// A stack whose first updates by the command come after one of another account, and
/// the number of the updates so far.
async fn contended(most: usize) -> (Arc<Stack>, String, [String; 2], Arc<AtomicUsize>) {
    let stack = Arc::new(Stack::start().await);
    let session = stack.active("ada").await;
    relabel(&stack, &session, &[("kept", "1"), ("removed", "1")]).await;
    let updates = Arc::new(AtomicUsize::new(0));
    let (others, id, counted) = (Arc::clone(&stack), session.clone(), Arc::clone(&updates));
    let between = forwarding(stack.manager, "/UpdateSession", move || {
        let (stack, id, number) = (Arc::clone(&others), id.clone(), counted.fetch_add(1, SeqCst));
        async move {
            if number < most {
                let theirs = number.to_string();
                relabel(
                    &stack,
                    &id,
                    &[("kept", "1"), ("removed", "1"), ("theirs", &theirs)],
                )
                .await;
            }
        }
    })
    .await;
    let addresses = [format!("http://{between}"), format!("http://{}", stack.issuer)];
    (stack, session, addresses, updates)
}

const UPDATE: [&str; 7] = [
    "session",
    "update",
    "--label",
    "mine=1",
    "--remove-label",
    "removed",
    "--output=json",
];

#[tokio::test]
async fn labels_that_change_meanwhile_are_kept() {
    let (stack, session, addresses, updates) = contended(2).await;
    let berth = Berth::new();
    let env = stack.env("ada", &addresses);
    let update = [&UPDATE[..], &[session.as_str()]].concat();
    let updated = berth.run(&update, &env).await.good();
    assert_eq!(
        updated.json()["labels"],
        json!({"kept": "1", "theirs": "1", "mine": "1"})
    );
    assert_eq!(updates.load(SeqCst), 3, "two conflicts, then the update");
    // A name alone does not depend on the labels.
    let named = ["session", "update", "--name", "etl", "--output", "json", &session];
    assert_eq!(berth.run(&named, &env).await.good().json()["name"], "etl");
}

#[tokio::test]
async fn labels_that_keep_changing_are_an_error_and_stay() {
    let (stack, session, addresses, updates) = contended(usize::MAX).await;
    let berth = Berth::new();
    let env = stack.env("ada", &addresses);
    let update = [&UPDATE[..], &[session.as_str()]].concat();
    let failed = berth.run(&update, &env).await;
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(failed.stderr.contains("it changed in the meantime"), "{failed:?}");
    assert_eq!(updates.load(SeqCst), 5);
    let shown = berth
        .run(&["session", "describe", &session, "--output", "json"], &env)
        .await;
    assert_eq!(
        shown.good().json()["labels"],
        json!({"kept": "1", "removed": "1", "theirs": "4"})
    );
}
