//! What sessions have on servers that they share: a place on one server, and
//! the Spark sessions that are theirs there.
//!
//! A binding says that one Spark session id on one server belongs to one
//! session, whatever organization it is of: the first writer wins. It is made
//! unready when something must be prepared at the server first, and only its
//! preparer makes it ready; when that one is gone, the next one takes over. A
//! binding that is to go is marked before anything is done to the server, so
//! that whoever finds it can finish the work.

use crate::Error;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use session_core::{SessionKey, SparkSessionId};
use std::time::Duration;

/// How long a seal lasts: longer than any bind may take that read the session
/// before it.
pub const SEAL_MEMORY: Duration = Duration::from_secs(3600);

/// A Spark session and the server that has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SparkSession {
    /// The server's address, in lower case.
    pub server: String,
    /// Its id there.
    pub id: SparkSessionId,
}

/// How far a binding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BindingState {
    /// It is being prepared, or nobody finished that.
    Unready,
    /// It may be used.
    Ready,
    /// It is being given back.
    Releasing,
}

/// One Spark session of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// Which.
    pub spark: SparkSession,
    /// The session's generation that bound it.
    pub generation: u64,
    /// How far it is.
    pub state: BindingState,
    /// Tells this binding from any other of the same id, before and after.
    pub serial: String,
}

/// A binding to be made.
#[derive(Debug, Clone)]
pub struct Bind {
    /// Of what.
    pub spark: SparkSession,
    /// For whom.
    pub holder: SessionKey,
    /// The holder's generation.
    pub generation: u64,
    /// A text that nobody else gives: it names the preparer, and the binding
    /// if this makes it.
    pub ticket: String,
    /// How long the caller has to prepare it; none if there is nothing to do.
    pub prepare: Option<Duration>,
    /// At most so many bindings for the holder.
    pub limit: usize,
}

/// What became of a [`Bind`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// It is the holder's and may be used. It counts as bound last.
    Ready,
    /// It is the holder's, and the caller must prepare it.
    Prepare,
    /// It is the holder's, and somebody else is preparing it.
    Wait,
    /// It is another session's.
    Taken,
    /// This one must be given back first: it is of an older generation, or it
    /// is being given back already, or it is the least recently bound one of
    /// as many as there may be. It is marked so.
    Release(Box<Binding>),
    /// The holder's generation takes no more bindings.
    Sealed,
}

/// Bindings: which session each Spark session id of a shared server belongs to.
#[async_trait]
pub trait SparkBindings {
    /// Makes a binding, or says why not. All in one step; safe to call again.
    async fn bind(&self, bind: &Bind) -> Result<Bound, Error>;

    /// Ends the preparation that `ticket` began: `ready` or to be begun anew.
    /// False if it is not that ticket's any more.
    async fn finish_preparation(
        &self,
        holder: &SessionKey,
        spark: &SparkSession,
        ticket: &str,
        ready: bool,
    ) -> Result<bool, Error>;

    /// All bindings of `holder`, the least recently bound first.
    async fn list_bindings(&self, holder: &SessionKey) -> Result<Vec<Binding>, Error>;

    /// From now on `holder` gets no binding for this generation or any before
    /// it. Held for [`SEAL_MEMORY`], so nobody who read the session before can
    /// add one after its bindings were listed to be given back.
    async fn seal_bindings(&self, holder: &SessionKey, generation: u64) -> Result<(), Error>;

    /// Gives a binding back, if this very one (by its serial) is still
    /// `holder`'s. For `keep` the id stays with nobody, so that no other
    /// session gets what the server may still have under it.
    async fn unbind(&self, holder: &SessionKey, binding: &Binding, keep: Duration) -> Result<(), Error>;
}
