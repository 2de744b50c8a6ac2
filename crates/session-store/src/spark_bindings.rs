//! Bindings: assignments of Spark session ids on static servers to sessions.
//!
//! A binding assigns one Spark session id on one server to one session of any
//! organization: the first writer wins. It is created unready when the server must be
//! prepared first; only its preparer makes it ready, and the next caller takes over
//! from a preparer that is gone. A binding is marked for release before the server is
//! changed, so that any caller can finish the release.

use crate::Error;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use session_core::{SessionKey, SparkSessionId};
use std::time::Duration;

/// Duration of a seal: longer than any bind takes that read the session before the
/// seal.
pub const SEAL_DURATION: Duration = Duration::from_secs(3600);

/// A Spark session on a server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SparkSession {
    /// Address of the server, in lower case.
    pub server: String,
    /// Id of the Spark session on this server.
    pub id: SparkSessionId,
}

/// State of a binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BindingState {
    /// Preparation has started and has not finished.
    Unready,
    /// Ready for use.
    Ready,
    /// Release has started.
    Releasing,
}

/// Binding of one Spark session to a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The Spark session.
    pub spark: SparkSession,
    /// Generation of the session at the bind.
    pub generation: u64,
    /// Its state.
    pub state: BindingState,
    /// Distinguishes this binding from earlier and later ones of the same id.
    pub serial: String,
}

/// Request for a binding.
#[derive(Debug, Clone)]
pub struct Bind {
    /// The Spark session.
    pub spark: SparkSession,
    /// The session that requests it.
    pub holder: SessionKey,
    /// The holder's generation.
    pub generation: u64,
    /// A unique text: identifies the preparer, and the binding if this request creates
    /// it.
    pub ticket: String,
    /// Time limit of the preparation; `None` if nothing must be prepared.
    pub prepare: Option<Duration>,
    /// Maximum number of bindings of the holder.
    pub limit: usize,
}

/// Outcome of a [`Bind`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// Bound to the holder and ready; it is now the most recently bound one.
    Ready,
    /// Bound to the holder; the caller must prepare it.
    Prepare,
    /// Bound to the holder; another caller prepares it.
    Wait,
    /// Bound to another session.
    Taken,
    /// This binding must be released first: it is of an older generation, its release
    /// has started, or it is the least recently bound one at the limit. It is marked as
    /// releasing.
    Release(Box<Binding>),
    /// The holder's generation is sealed.
    Sealed,
}

/// Bindings of Spark session ids on static servers to sessions.
#[async_trait]
pub trait SparkBindings {
    /// Creates a binding, or returns the reason against it. In one step; can be
    /// repeated.
    async fn bind(&self, bind: &Bind) -> Result<Bound, Error>;

    /// Ends the preparation that `ticket` started: ready, or to be started again. False
    /// if another ticket has taken over.
    async fn finish_preparation(
        &self,
        holder: &SessionKey,
        spark: &SparkSession,
        ticket: &str,
        ready: bool,
    ) -> Result<bool, Error>;

    /// All bindings of `holder`, least recently bound first.
    async fn list_bindings(&self, holder: &SessionKey) -> Result<Vec<Binding>, Error>;

    /// Rejects new bindings of `holder` for this and all earlier generations, for
    /// [`SEAL_DURATION`], so that a caller that read the session before cannot add one
    /// after its bindings were listed for release.
    async fn seal_bindings(&self, holder: &SessionKey, generation: u64) -> Result<(), Error>;

    /// Deletes a binding if the stored one has the same serial. The id stays reserved
    /// for `keep`, so that no other session gets the state that the server may still
    /// have for it.
    async fn unbind(&self, holder: &SessionKey, binding: &Binding, keep: Duration) -> Result<(), Error>;
}
