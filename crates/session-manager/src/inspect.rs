//! The stored state of one session as JSON, for operators: in Redis itself the
//! record is compressed.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use session_core::SessionKey;
use session_store::SessionStore;

/// Members of the record with a secret value.
const SECRETS: [&str; 1] = ["credential"];

/// The stored state of the session `name` (`ORG/SESSION`), without secrets.
///
/// # Errors
/// If there is no such session, or reading the store fails.
pub async fn inspect(store: &dyn SessionStore, name: &str) -> Result<Value> {
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
    use crate::fixtures::{self, NOW};
    use session_core::machine::{self, NewSession, Observation};
    use session_core::route::Secret;
    use session_core::{Activity, Route, SystemClock};
    use session_store::Create;
    use session_store::memory::MemoryStore;
    use session_store::prelude::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn everything_but_the_credential_is_printed() {
        let store = MemoryStore::new(Arc::new(SystemClock));
        let new = NewSession {
            name: Some("report".to_owned()),
            ..fixtures::new_session(1, &fixtures::cluster(), NOW)
        };
        let created = machine::create(new, NOW);
        let ready = Observation::Ready {
            route: Route {
                credential: Some(Secret::new("hunter2")),
                ..fixtures::route()
            },
        };
        let active = machine::step(&created.session, Some(&ready), Activity::Unknown, NOW);
        let create = Create {
            session: active.transition.unwrap().session,
            record: created.record,
            due: NOW,
            request: None,
            limits: session_core::Limits::default(),
        };
        let session = store.create(create).await.unwrap().session;
        let text = inspect(&store, &format!("acme/{}", session.id))
            .await
            .unwrap()
            .to_string();
        for part in ["report", "sa|ada", "127.0.0.1:1", "[secret]", "CREATED"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("hunter2"), "{text}");
        for unknown in ["acme", "acme/s-1", "acme/s-00000000000000000000"] {
            assert!(inspect(&store, unknown).await.is_err(), "{unknown}");
        }
    }
}
