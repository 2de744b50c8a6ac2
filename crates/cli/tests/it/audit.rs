//! `berth audit` and `berth usage` by role.

use crate::support::{Berth, Stack};
use serde_json::json;

#[tokio::test]
async fn admins_read_who_did_what() {
    let stack = Stack::start().await;
    let berth = Berth::new();
    let addresses = stack.addresses();
    let session = stack.active("ada").await;
    let token = stack.issue("ada", &session).await;
    stack.close("ada", &session).await;
    let pat = stack.env("pat", &addresses);
    let of_session = [
        "audit",
        "--session",
        &session,
        "--since",
        "1h",
        "--output",
        "json",
    ];
    let records = berth.run(&of_session, &pat).await.good().json();
    let records = records.as_array().unwrap();
    let actions: Vec<_> = records
        .iter()
        .map(|record| record["action"].as_str().unwrap())
        .collect();
    assert_eq!(
        actions.last(),
        Some(&"session.created"),
        "newest first: {actions:?}"
    );
    assert_eq!(records[0]["to"], "closed");
    let issued = records
        .iter()
        .find(|record| record["action"] == "token.issued")
        .unwrap();
    assert_eq!(
        (&issued["token_id"], &issued["actor"], &issued["org"]),
        (&json!(token.token_id), &json!("sa|ada"), &json!("acme"))
    );
    assert!(
        !records
            .iter()
            .any(|record| record.to_string().contains(&token.token))
    );
    let table = berth
        .run(
            &[
                "audit",
                "--action",
                "token.issued",
                "--principal",
                "sa|ada",
                "--limit",
                "1",
            ],
            &pat,
        )
        .await
        .good();
    let lines: Vec<_> = table.stdout.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("TIME"), "{table:?}");
    assert!(
        lines[1].contains(&session) && lines[1].contains("127.0.0.1"),
        "{table:?}"
    );
    assert!(table.stderr.contains("--limit"), "there are more: {table:?}");
    let future = ["audit", "--until", "2020-01-01T00:00:00Z", "--output", "json"];
    assert_eq!(berth.run(&future, &pat).await.good().json(), json!([]));
    let member = berth.run(&["audit"], &stack.env("ada", &addresses)).await;
    assert_eq!(member.code, Some(1));
    assert!(member.stderr.contains("no access"), "{member:?}");
    let wrong = berth.run(&["audit", "--action", "token.eaten"], &pat).await;
    assert!(
        wrong.stderr.contains("token.issued"),
        "the valid ones are named: {wrong:?}"
    );
}

#[tokio::test]
async fn usage_is_summed_by_owner_and_cluster() {
    let stack = Stack::start().await;
    let berth = Berth::new();
    let addresses = stack.addresses();
    stack.active("ada").await;
    stack.active("bob").await;
    let own = berth
        .run(&["usage", "--output", "json"], &stack.env("bob", &addresses))
        .await
        .good()
        .json();
    assert_eq!(own.as_array().unwrap().len(), 1, "a member sees its own: {own}");
    assert_eq!(
        (&own[0]["owner"], &own[0]["live_sessions"]),
        (&json!("sa|bob"), &json!(1))
    );
    let pat = stack.env("pat", &addresses);
    let table = berth.run(&["usage", "--org", "acme"], &pat).await.good();
    let lines: Vec<_> = table.stdout.lines().collect();
    assert!(lines.len() == 3 && lines[0].starts_with("OWNER"), "{table:?}");
    assert!(
        lines[1].starts_with("sa|ada") && lines[2].starts_with("sa|bob"),
        "{table:?}"
    );
    let filtered = [
        "usage",
        "--org",
        "acme",
        "--owner",
        "sa|bob",
        "--cluster",
        "c",
        "--output",
        "json",
    ];
    let filtered = berth.run(&filtered, &pat).await.good().json();
    assert_eq!(filtered.as_array().unwrap().len(), 1);
    let foreign = berth
        .run(&["usage", "--org", "umbrella"], &stack.env("bob", &addresses))
        .await;
    assert_eq!(foreign.code, Some(1), "{foreign:?}");
}
