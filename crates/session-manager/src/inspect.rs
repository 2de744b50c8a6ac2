//! What the store holds of one session, in words: for people who look at
//! Redis in the middle of the night, where the record itself is compressed.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use session_core::SessionKey;
use session_store::SessionStore;

/// Members of the record whose value is a secret.
const SECRETS: [&str; 1] = ["credential"];

/// Everything that is kept of the session that `name`, `ORG/SESSION`, names.
///
/// # Errors
/// When there is no such session, or the store cannot be read.
pub async fn show(store: &dyn SessionStore, name: &str) -> Result<Value> {
    let (org, id) = name.split_once('/').context("a session is named ORG/SESSION")?;
    let key = SessionKey {
        org: org.parse()?,
        id: id.parse()?,
    };
    let session = store
        .get(&key)
        .await?
        .with_context(|| format!("there is no session {name}"))?;
    let mut record = serde_json::to_value(&session)?;
    hide(&mut record);
    let used = store.usage(std::slice::from_ref(&session)).await?;
    let used = used.first().copied().unwrap_or_default();
    let bindings = store.list_bindings(&key).await?;
    let bindings: Vec<_> = bindings
        .iter()
        .map(|binding| {
            json!({
                "spark_session": binding.spark.id, "server": binding.spark.server,
                "generation": binding.generation, "is": binding.state,
            })
        })
        .collect();
    Ok(json!({
        "record": record,
        "history": store.events(&key).await?,
        "tokens": store.live_tokens(&key).await?,
        "last_activity_at": used.last_activity_at,
        "open_calls": used.open_calls,
        "bindings": bindings,
    }))
}

fn hide(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                if SECRETS.contains(&name.as_str()) {
                    *member = json!("[secret]");
                } else {
                    hide(member);
                }
            }
        }
        Value::Array(members) => members.iter_mut().for_each(hide),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use session_core::machine::{self, NewSession, Observation};
    use session_core::route::Secret;
    use session_core::{
        Activity, Engine, IdlePolicy, Route, SessionId, SessionPolicy, SystemClock, Timestamp,
    };
    use session_store::Create;
    use session_store::memory::MemoryStore;
    use session_store::prelude::*;
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::Duration;

    #[tokio::test]
    async fn all_is_shown_but_the_credential() {
        let store = MemoryStore::new(Arc::new(SystemClock));
        let now = Timestamp::from_millis(1_800_000_000_000);
        let hour = Duration::from_secs(3600);
        let created = machine::create(
            NewSession {
                id: SessionId::generate(now, 1),
                org: "acme".parse().unwrap(),
                owner: "sa|bob".parse().unwrap(),
                name: Some("report".to_owned()),
                team: None,
                labels: BTreeMap::new(),
                cluster: "c".parse().unwrap(),
                catalog: None,
                policy: SessionPolicy {
                    idle_timeout: hour,
                    close_after_idle: hour,
                    max_lifetime: hour,
                    provisioning_deadline: hour,
                    on_idle: IdlePolicy::Release,
                    wake: Default::default(),
                    dedicated: true,
                },
            },
            now,
        );
        let ready = Observation::Ready {
            route: Route {
                endpoint: "127.0.0.1:1".to_owned(),
                tls_server_name: None,
                credential: Some(Secret::new("hunter2")),
                engine: Engine::Sail,
                engine_version: String::new(),
                dedicated: true,
                host: None,
            },
        };
        let active = machine::step(&created.session, Some(&ready), Activity::Unknown, now);
        let create = Create {
            session: active.transition.unwrap().session,
            record: created.record,
            due: now,
            request: None,
            limits: session_core::Limits::default(),
        };
        let session = store.create(create).await.unwrap().session;
        let text = show(&store, &format!("acme/{}", session.id))
            .await
            .unwrap()
            .to_string();
        for part in ["report", "sa|bob", "127.0.0.1:1", "[secret]", "CREATED"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("hunter2"), "{text}");
        for unknown in ["acme", "acme/s-1", "acme/s-00000000000000000000"] {
            assert!(show(&store, unknown).await.is_err(), "{unknown}");
        }
    }
}
