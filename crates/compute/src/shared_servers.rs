//! Single Spark sessions on servers that several sessions share.
//!
//! On dedicated compute nobody needs this: the engine is started with its
//! catalog and ends with its session. On a shared server each Spark session is
//! prepared by calls and given back by calls, in the name of its session,
//! because Spark finds a Spark session by user and id.

use crate::address::AddressError;
use crate::connector::Target;
use crate::probe::{self, Asker, CatalogQuestion, NotReady, Question, catalog_is_unknown};
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

/// Choosing a catalog takes no longer, connecting included.
pub const CHOOSE_LIMIT: Duration = Duration::from_secs(10);
/// One call that ends a Spark session takes no longer.
const END_LIMIT: Duration = Duration::from_secs(5);
/// Ending any number of them takes no longer.
const END_ALL_LIMIT: Duration = Duration::from_secs(20);
/// Trying a catalog takes no longer, connecting included.
const TRY_LIMIT: Duration = Duration::from_secs(40);
/// So many are ended at once.
const TOGETHER: usize = 8;

/// What a server made of the wish for a catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chosen {
    /// The catalog is current.
    Current,
    /// The server ended a Spark session of this id before and will have no
    /// other: whoever uses it will hear so from the server.
    Ended,
}

/// A provider whose servers are shared.
#[async_trait]
pub trait SharedCompute: ComputeProvider {
    /// The servers of a cluster, as `host:port`.
    fn servers(&self, cluster: &Cluster) -> Vec<String>;

    /// How to reach a server of this cluster.
    ///
    /// # Errors
    /// Why it cannot be, for two circles of readers.
    fn target_at(&self, cluster: &Cluster, server: &str) -> Result<Target, Cause>;

    /// The addresses of a server, all of them checked a moment ago at most.
    /// Others dial these and look up nothing. A provider that checks no names
    /// has none for them.
    ///
    /// # Errors
    /// Why it may not be dialled now.
    async fn addresses(&self, server: &str) -> Result<Arc<[SocketAddr]>, AddressError> {
        let address = server.parse();
        let address = address.map_err(|_| AddressError::Malformed(server.to_owned()))?;
        Ok(Arc::new([address]))
    }

    /// Makes the spec's catalog, and the database it names, current in a Spark
    /// session. Safe to call again.
    ///
    /// # Errors
    /// Why it cannot be, for two circles of readers.
    async fn choose_catalog(
        &self,
        spec: &ComputeSpec,
        server: &str,
        id: &SparkSessionId,
    ) -> Result<Chosen, Cause>;

    /// Ends Spark sessions, so that nothing of them stays and nobody gets into
    /// one again. Returns those that have ended, now or before.
    ///
    /// # Errors
    /// If the server cannot be asked at all.
    async fn end_spark_sessions(
        &self,
        spec: &ComputeSpec,
        server: &str,
        ids: &[SparkSessionId],
    ) -> Result<Vec<SparkSessionId>, Error>;
}

/// The name in which everything is said to a server on behalf of a session; the
/// proxy uses the same.
pub fn user_id(key: &SessionKey) -> String {
    key.id.to_string()
}

/// See [`SharedCompute::choose_catalog`].
///
/// # Errors
/// Why it cannot be, for two circles of readers.
pub async fn choose_catalog(
    target: &Target,
    spec: &ComputeSpec,
    id: &SparkSessionId,
) -> Result<Chosen, Cause> {
    let Some(catalog) = &spec.catalog else {
        return Ok(Chosen::Current);
    };
    let choose = async {
        let asker = Asker::connect(target, user_id(&spec.key), id.to_string())
            .await
            .map_err(NotReady::into_cause)?;
        match asker
            .choose(catalog.name.as_str(), catalog.default_database.as_deref())
            .await
        {
            Ok(()) => Ok(Chosen::Current),
            Err(status) if has_ended(&status) => Ok(Chosen::Ended),
            // Engines tell this each in its own way, not always for everybody.
            Err(status) if catalog_is_unknown(status.message()) => Err(user_message::cause(
                "the server has no such catalog or database",
                status.message(),
            )),
            Err(status) => Err(NotReady::from_status(&status).into_cause()),
        }
    };
    let outcome = timeout(CHOOSE_LIMIT, choose).await.unwrap_or_else(|_| {
        let seconds = CHOOSE_LIMIT.as_secs();
        Err(format!("it did not answer within {seconds} s").into())
    });
    outcome.map_err(|cause| user_message::masked(&cause, target.credential.as_slice()))
}

/// Can the spec's catalog be used on a server, by a Spark session like that of a
/// new session? Leaves nothing behind. Returns the server's version.
///
/// # Errors
/// Why it cannot be, for two circles of readers.
pub async fn try_catalog(target: &Target, spec: &ComputeSpec) -> Result<String, Cause> {
    let question = Question {
        user_id: user_id(&spec.key),
        catalog: spec.catalog.as_ref().map(|catalog| CatalogQuestion {
            name: catalog.name.to_string(),
            database: catalog.default_database.clone(),
            select: true,
        }),
    };
    let asked = timeout(TRY_LIMIT, probe::ask(target, &question)).await;
    let version = match asked {
        Ok(answer) => answer.map_err(NotReady::into_cause),
        Err(_) => Err(format!("it did not answer within {} s", TRY_LIMIT.as_secs()).into()),
    };
    version.map_err(|cause| user_message::masked(&cause, target.credential.as_slice()))
}

/// See [`SharedCompute::end_spark_sessions`].
///
/// # Errors
/// If the server cannot be asked at all.
pub async fn end_spark_sessions(
    target: &Target,
    key: &SessionKey,
    ids: &[SparkSessionId],
) -> Result<Vec<SparkSessionId>, Error> {
    let asker = Asker::connect(target, user_id(key), String::new())
        .await
        .map_err(|why| Error::Unavailable(why.into_cause().text))?;
    let ends = futures::stream::iter(ids.to_vec()).map(|id| {
        let asker = asker.of(id.to_string());
        async move { end(&asker).await.then_some(id) }
    });
    let mut ends = std::pin::pin!(ends.buffer_unordered(TOGETHER));
    let mut ended = Vec::with_capacity(ids.len());
    let all = async {
        while let Some(end) = ends.next().await {
            ended.extend(end);
        }
    };
    // What is not ended by then is left to the next time.
    let _ = timeout(END_ALL_LIMIT, all).await;
    Ok(ended)
}

async fn end(asker: &Asker) -> bool {
    match release(asker).await {
        Released::Yes => true,
        Released::No => false,
        // Sail knows no such session and would make one for a call that is
        // still on its way: make it first and end it, so that none comes after.
        Released::Unknown => {
            let made = timeout(END_LIMIT, asker.version()).await;
            tracing::debug!(
                made = matches!(made, Ok(Ok(_))),
                "an unused Spark session is ended"
            );
            matches!(release(asker).await, Released::Yes)
        }
    }
}

enum Released {
    Yes,
    No,
    Unknown,
}

async fn release(asker: &Asker) -> Released {
    match timeout(END_LIMIT, asker.release()).await {
        Ok(Ok(())) => Released::Yes,
        Ok(Err(status)) if has_ended(&status) => Released::Yes,
        Ok(Err(status)) if status.message().contains("session not found") => Released::Unknown,
        // A server before Spark 4.0 cannot do it; it forgets by its own timer.
        Ok(Err(status)) if status.code() == Code::Unimplemented => Released::Yes,
        Ok(Err(status)) => {
            tracing::debug!(said = status.message(), "a Spark session is not ended yet");
            Released::No
        }
        Err(_) => Released::No,
    }
}

/// Does the server say that it ended this Spark session before?
pub(crate) fn has_ended(status: &Status) -> bool {
    let said = status.message();
    said.contains("INVALID_HANDLE.SESSION_CLOSED") || said.contains("is not running")
}
