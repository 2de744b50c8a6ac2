//! Spark sessions on shared servers: selection of the catalog, and their end.
//!
//! Dedicated compute does not need this: the engine is started with its catalog and
//! ends with its session. On a shared server each Spark session is prepared and ended
//! by calls with the user id of its session, because Spark identifies a Spark session
//! by user and id.

use crate::address::AddressError;
use crate::connector::Target;
use crate::probe::{self, CatalogQuestion, NotReady, Question, SparkClient, catalog_is_unknown};
use crate::{ComputeProvider, ComputeSpec, Error, user_message};
use async_trait::async_trait;
use futures::StreamExt;
use session_core::machine::Cause;
use session_core::{Cluster, SessionKey, SparkSessionId};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tonic::{Code, Status};

/// Time limit for the selection of a catalog, including the connection.
pub const SELECT_CATALOG_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit of one call that ends a Spark session.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for the end of all of them.
const END_ALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Time limit for the test of a catalog, including the connection.
const TEST_CATALOG_TIMEOUT: Duration = Duration::from_secs(40);
/// Maximum number of concurrent calls.
const MAX_CONCURRENT: usize = 8;

/// Result of the selection of a catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatalogSelection {
    /// The catalog is current.
    Current,
    /// The server ended a Spark session with this id before and rejects the id; clients
    /// receive this error from the server.
    Ended,
}

/// A provider with shared servers.
#[async_trait]
pub trait SharedCompute: ComputeProvider {
    /// The servers of a cluster, as `host:port`.
    fn servers(&self, cluster: &Cluster) -> Vec<String>;

    /// Returns the connection parameters of a server of this cluster.
    ///
    /// # Errors
    /// The cause, with a user message and a detail.
    fn target_at(&self, cluster: &Cluster, server: &str) -> Result<Target, Cause>;

    /// Returns the addresses of a server, all checked within the last seconds. Callers
    /// connect to these and resolve no name. The default is for providers without
    /// names.
    ///
    /// # Errors
    /// The reason why no connection is allowed now.
    async fn addresses(&self, server: &str) -> Result<Arc<[SocketAddr]>, AddressError> {
        let address = server.parse();
        let address = address.map_err(|_| AddressError::Malformed(server.to_owned()))?;
        Ok(Arc::new([address]))
    }

    /// Makes the catalog of the spec, and its default database, current in a Spark
    /// session. Can be repeated.
    ///
    /// # Errors
    /// The cause, with a user message and a detail.
    async fn select_catalog(
        &self,
        spec: &ComputeSpec,
        server: &str,
        id: &SparkSessionId,
    ) -> Result<CatalogSelection, Cause>;

    /// Ends Spark sessions, so that no state remains and the ids cannot be used again.
    /// Returns those that have ended, now or before.
    ///
    /// # Errors
    /// If the server is unavailable.
    async fn end_spark_sessions(
        &self,
        spec: &ComputeSpec,
        server: &str,
        ids: &[SparkSessionId],
    ) -> Result<Vec<SparkSessionId>, Error>;
}

/// The user id of a session on a shared server; the proxy uses the same.
pub fn user_id(key: &SessionKey) -> String {
    key.id.to_string()
}

/// See [`SharedCompute::select_catalog`].
///
/// # Errors
/// The cause, with a user message and a detail.
pub async fn select_catalog(
    target: &Target,
    spec: &ComputeSpec,
    id: &SparkSessionId,
) -> Result<CatalogSelection, Cause> {
    let Some(catalog) = &spec.catalog else {
        return Ok(CatalogSelection::Current);
    };
    let select = async {
        let client = SparkClient::connect(target, user_id(&spec.key), id.to_string())
            .await
            .map_err(NotReady::into_cause)?;
        match client
            .select(catalog.name.as_str(), catalog.default_database.as_deref())
            .await
        {
            Ok(()) => Ok(CatalogSelection::Current),
            Err(status) if has_ended(&status) => Ok(CatalogSelection::Ended),
            // The reply differs by engine and can contain more than users may see.
            Err(status) if catalog_is_unknown(status.message()) => Err(user_message::cause(
                "the server has no such catalog or database",
                status.message(),
            )),
            Err(status) => Err(NotReady::from_status(&status).into_cause()),
        }
    };
    let outcome = timeout(SELECT_CATALOG_TIMEOUT, select).await.unwrap_or_else(|_| {
        let seconds = SELECT_CATALOG_TIMEOUT.as_secs();
        Err(format!("it did not answer within {seconds} s").into())
    });
    outcome.map_err(|cause| user_message::masked(&cause, target.credential.as_slice()))
}

/// Tests the catalog of the spec on a server, in a Spark session like that of a new
/// session, which is released afterwards. Returns the version of the server.
///
/// # Errors
/// The cause, with a user message and a detail.
pub async fn try_catalog(target: &Target, spec: &ComputeSpec) -> Result<String, Cause> {
    let question = Question {
        user_id: user_id(&spec.key),
        catalog: spec.catalog.as_ref().map(|catalog| CatalogQuestion {
            name: catalog.name.to_string(),
            database: catalog.default_database.clone(),
            select: true,
        }),
    };
    let reply = timeout(TEST_CATALOG_TIMEOUT, probe::ask(target, &question)).await;
    let version = match reply {
        Ok(answer) => answer.map_err(NotReady::into_cause),
        Err(_) => Err(format!("it did not answer within {} s", TEST_CATALOG_TIMEOUT.as_secs()).into()),
    };
    version.map_err(|cause| user_message::masked(&cause, target.credential.as_slice()))
}

/// See [`SharedCompute::end_spark_sessions`].
///
/// # Errors
/// If the server is unavailable.
pub async fn end_spark_sessions(
    target: &Target,
    key: &SessionKey,
    ids: &[SparkSessionId],
) -> Result<Vec<SparkSessionId>, Error> {
    let client = SparkClient::connect(target, user_id(key), String::new())
        .await
        .map_err(|why| Error::Unavailable(why.into_cause().text))?;
    let ends = futures::stream::iter(ids.to_vec()).map(|id| {
        let client = client.of(id.to_string());
        async move { end(&client).await.then_some(id) }
    });
    let mut ends = std::pin::pin!(ends.buffer_unordered(MAX_CONCURRENT));
    let mut ended = Vec::with_capacity(ids.len());
    let all = async {
        while let Some(end) = ends.next().await {
            ended.extend(end);
        }
    };
    // The rest is left to the next call.
    let _ = timeout(END_ALL_TIMEOUT, all).await;
    Ok(ended)
}

async fn end(client: &SparkClient) -> bool {
    match release(client).await {
        ReleaseOutcome::Yes => true,
        ReleaseOutcome::No => false,
        // Sail has no such session and would create one for a call that is still in
        // transit: create it first and end it, so that none is created later.
        ReleaseOutcome::Unknown => {
            let created = timeout(END_TIMEOUT, client.version()).await;
            tracing::debug!(
                created = matches!(created, Ok(Ok(_))),
                "ending an unused Spark session"
            );
            matches!(release(client).await, ReleaseOutcome::Yes)
        }
    }
}

enum ReleaseOutcome {
    Yes,
    No,
    Unknown,
}

async fn release(client: &SparkClient) -> ReleaseOutcome {
    match timeout(END_TIMEOUT, client.release()).await {
        Ok(Ok(())) => ReleaseOutcome::Yes,
        Ok(Err(status)) if has_ended(&status) => ReleaseOutcome::Yes,
        Ok(Err(status)) if status.message().contains("session not found") => ReleaseOutcome::Unknown,
        // Not supported before Spark 4.0; the server's own timer ends the session.
        Ok(Err(status)) if status.code() == Code::Unimplemented => ReleaseOutcome::Yes,
        Ok(Err(status)) => {
            tracing::debug!(error = status.message(), "ending a Spark session failed");
            ReleaseOutcome::No
        }
        Err(_) => ReleaseOutcome::No,
    }
}

/// Returns whether the server reports that it ended this Spark session before.
pub(crate) fn has_ended(status: &Status) -> bool {
    let message = status.message();
    message.contains("INVALID_HANDLE.SESSION_CLOSED") || message.contains("is not running")
}
