//! Compute that is ready at once: what is measured is the life of sessions,
//! not an engine's start.

use async_trait::async_trait;
use compute::{Capabilities, ComputeChanged, ComputeProvider, ComputeSpec, Error, Found};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use parking_lot::{Mutex, MutexGuard};
use session_core::machine::Observation;
use session_core::{Engine, Route, SessionKey};
use std::collections::HashMap;

/// Every compute exists until it is given back.
#[derive(Debug, Default)]
pub(crate) struct InstantCompute {
    released: Mutex<HashMap<SessionKey, u64>>,
}

/// Where all of it answers: nowhere.
pub(crate) fn route() -> Route {
    Route {
        endpoint: "127.0.0.1:1".to_owned(),
        tls_server_name: None,
        credential: None,
        engine: Engine::Sail,
        engine_version: "0.0.0".to_owned(),
        dedicated: true,
        host: None,
    }
}

impl InstantCompute {
    fn released(&self) -> MutexGuard<'_, HashMap<SessionKey, u64>> {
        self.released.lock()
    }
}

#[async_trait]
impl ComputeProvider for InstantCompute {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            dies_with_manager: true,
            needs_leader: true,
        }
    }

    async fn ensure(&self, _spec: &ComputeSpec) -> Result<(), Error> {
        Ok(())
    }

    async fn observe(&self, spec: &ComputeSpec) -> Result<Observation, Error> {
        let gone = self
            .released()
            .get(&spec.key)
            .is_some_and(|up_to| spec.generation <= *up_to);
        Ok(if gone {
            Observation::Missing
        } else {
            Observation::Ready { route: route() }
        })
    }

    async fn release(&self, spec: &ComputeSpec) -> Result<(), Error> {
        self.released().insert(spec.key.clone(), spec.generation);
        Ok(())
    }

    async fn inventory(&self) -> Result<Vec<Found>, Error> {
        Err(Error::Unavailable(
            "it is nowhere, so nothing can be found".to_owned(),
        ))
    }

    fn watch(&self) -> BoxStream<'static, ComputeChanged> {
        futures::stream::pending().boxed()
    }
}
