//! The session: its record, its status machine and its access rules.
//!
//! Pure data and pure functions: no I/O, no async, no clock, no transport
//! types. Time and randomness are parameters. [`machine`] makes all decisions
//! about a session's state, [`access`] all decisions about permissions.

pub mod access;
pub mod activity;
pub mod audit;
pub mod catalog;
pub mod cluster;
pub mod id;
pub mod invariant;
pub mod machine;
pub mod org;
mod pod_template;
pub mod policy;
pub mod principal;
pub mod profile;
mod quota;
pub mod reason;
mod resolve_policy;
pub mod route;
pub mod session;
pub mod spark_version;
mod string_enum;
pub mod time;

pub use activity::{Activity, Operation, ProxyId, TokenUse, Totals, Use};
pub use audit::{AuditAction, AuditOutcome, AuditRecord};
pub use catalog::Catalog;
pub use cluster::{
    Cluster, ClusterStatus, Engine, KubernetesPods, KubernetesWorkers, Profile, Provider, ProviderKind,
};
pub use id::{CatalogName, ClusterName, OrgId, ProfileName, SessionId, SessionKey, SparkSessionId, TokenId};
pub use org::{Disabled, Limits, Org};
pub use pod_template::PodTemplate;
pub use policy::{IdlePolicy, SessionPolicy, WakePolicy};
pub use principal::{Actor, Principal, PrincipalId, Role};
pub use quota::Quota;
pub use reason::{ChangeReason, Reason};
pub use route::Route;
pub use session::{EventRecord, Phase, Session, State, Status};
pub use spark_version::{NewestClient, SparkVersion};
pub use time::{Clock, SystemClock, Timestamp};
