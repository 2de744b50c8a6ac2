//! Conversions between wire types and session-core. Errors name the invalid field.

mod kubernetes;

use crate::error::Refused;
use crate::v1;
use session_core::catalog::PropertyValue;
use session_core::cluster::StaticEndpoint;
use session_core::policy::PolicyRange;
use session_core::{
    Activity, Actor, AuditRecord, Catalog, Cluster, ClusterStatus, Engine, EventRecord, IdlePolicy, Limits,
    Operation, Org, Principal, Provider, Session, SessionPolicy, Status, Timestamp, Use, WakePolicy,
};
use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

/// Encodes a timestamp.
pub fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    let millis = at.as_millis();
    prost_types::Timestamp {
        seconds: i64::try_from(millis / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(millis % 1000).unwrap_or(0) * 1_000_000,
    }
}

/// Decodes a timestamp; times before the epoch become the epoch.
pub fn from_timestamp(at: &prost_types::Timestamp) -> Timestamp {
    let seconds = u64::try_from(at.seconds).unwrap_or(0);
    let millis = u64::try_from(at.nanos).unwrap_or(0) / 1_000_000;
    Timestamp::from_millis(seconds.saturating_mul(1000).saturating_add(millis))
}

/// Encodes a duration.
pub fn duration(value: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(value.subsec_nanos()).unwrap_or(0),
    }
}

/// Decodes a duration.
///
/// # Errors
/// Names `field` when it is negative.
pub fn from_duration(field: &'static str, value: &prost_types::Duration) -> Result<Duration, Refused> {
    match (u64::try_from(value.seconds), u32::try_from(value.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Duration::new(seconds, nanos)),
        _ => Err(Refused::field(field, "must not be negative")),
    }
}

/// Decodes an optional duration.
///
/// # Errors
/// Names `field` when it is negative.
pub fn maybe_duration(
    field: &'static str,
    value: Option<&prost_types::Duration>,
) -> Result<Option<Duration>, Refused> {
    value.map(|value| from_duration(field, value)).transpose()
}

/// Parses a name or id.
///
/// # Errors
/// Names `field` and the accepted form.
pub fn parse<T: FromStr<Err: std::fmt::Display>>(field: &'static str, text: &str) -> Result<T, Refused> {
    text.parse()
        .map_err(|problem: T::Err| Refused::field(field, problem))
}

/// Empty means absent.
pub fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// Encodes a status.
pub const fn status(status: Status) -> v1::SessionStatus {
    match status {
        Status::Pending => v1::SessionStatus::Pending,
        Status::Active => v1::SessionStatus::Active,
        Status::Idle => v1::SessionStatus::Idle,
        Status::Closed => v1::SessionStatus::Closed,
        Status::Failed => v1::SessionStatus::Failed,
    }
}

/// Decodes a status.
///
/// # Errors
/// Names `field` when it is not a status.
pub fn from_status(field: &'static str, value: i32) -> Result<Status, Refused> {
    match v1::SessionStatus::try_from(value) {
        Ok(v1::SessionStatus::Pending) => Ok(Status::Pending),
        Ok(v1::SessionStatus::Active) => Ok(Status::Active),
        Ok(v1::SessionStatus::Idle) => Ok(Status::Idle),
        Ok(v1::SessionStatus::Closed) => Ok(Status::Closed),
        Ok(v1::SessionStatus::Failed) => Ok(Status::Failed),
        Ok(v1::SessionStatus::Unspecified) | Err(_) => Err(Refused::field(field, "is not a session status")),
    }
}

pub(crate) const fn idle_policy(policy: IdlePolicy) -> &'static str {
    match policy {
        IdlePolicy::Release => "release",
        IdlePolicy::Keep => "keep",
    }
}

fn policy(policy: &SessionPolicy) -> v1::SessionPolicy {
    v1::SessionPolicy {
        idle_timeout: Some(duration(policy.idle_timeout)),
        close_after_idle: Some(duration(policy.close_after_idle)),
        max_lifetime: Some(duration(policy.max_lifetime)),
        provisioning_deadline: Some(duration(policy.provisioning_deadline)),
        on_idle: idle_policy(policy.on_idle).to_owned(),
    }
}

/// Encodes a session, with the use that proxies have reported. While a call is in flight there is
/// no idle time. The status detail is left out unless `with_detail`: it may contain log lines of
/// the engine.
pub fn session(session: &Session, used: &Use, with_detail: bool) -> v1::Session {
    let route = session.state.published_route();
    let idle_at = match used.activity() {
        Activity::Quiet { last_activity_at } => session.idle_at(last_activity_at),
        Activity::Busy | Activity::Unknown => None,
    };
    v1::Session {
        id: session.id.to_string(),
        org: session.org.to_string(),
        owner: session.owner.to_string(),
        name: session.name.clone().unwrap_or_default(),
        team: session.team.clone().unwrap_or_default(),
        labels: session.labels.clone().into_iter().collect(),
        cluster: session.cluster.to_string(),
        catalog: session
            .catalog
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        status: status(session.status()).into(),
        phase: session.state.phase().as_str().to_owned(),
        reason: session.reason.as_str().to_owned(),
        status_message: session.status_message.clone(),
        version: session.version,
        generation: session.generation,
        token_epoch: session.token_epoch,
        created_at: Some(timestamp(session.created_at)),
        active_at: session.active_at.map(timestamp),
        last_activity_at: used.last_activity_at.map(timestamp),
        idle_since: session.idle_since.map(timestamp),
        closed_at: session.closed_at.map(timestamp),
        idle_at: idle_at.map(timestamp),
        closes_at: session.closes_at().map(timestamp),
        expires_at: Some(timestamp(session.expires_at)),
        keep_alive_until: session.keep_alive_until.map(timestamp),
        active_operations: used.open_calls,
        engine: route.map(|route| route.engine.to_string()).unwrap_or_default(),
        engine_version: route
            .map(|route| route.engine_version.clone())
            .unwrap_or_default(),
        usage: Some(v1::SessionUsage {
            rpcs: used.totals.rpcs,
            bytes_in: used.totals.bytes_in,
            bytes_out: used.totals.bytes_out,
            open_stream_seconds: used.totals.open_stream_millis / 1000,
            warm_seconds: session.warm(used.at).as_secs(),
        }),
        policy: Some(policy(&session.policy)),
        status_detail: if with_detail {
            session.status_detail.clone()
        } else {
            String::new()
        },
        profile: session
            .profile
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
    }
}

/// Encodes an operation.
pub fn operation(operation: Operation) -> v1::Operation {
    v1::Operation {
        operation_id: operation.operation_id,
        spark_session_id: operation.spark_session_id,
        method: operation.method,
        started_at: Some(timestamp(operation.started_at)),
    }
}

/// Encodes a session event.
pub fn event(record: &EventRecord) -> v1::SessionEvent {
    let actor = match &record.actor {
        Actor::System => "system".to_owned(),
        Actor::Principal(id) => id.to_string(),
    };
    v1::SessionEvent {
        version: record.version,
        at: Some(timestamp(record.at)),
        from: record.from.map_or(v1::SessionStatus::Unspecified, status).into(),
        to: status(record.to).into(),
        phase: record.phase.as_str().to_owned(),
        generation: record.generation,
        reason: record.reason.as_str().to_owned(),
        actor,
        message: record.message.clone(),
    }
}

fn text_of(value: Option<&impl ToString>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}

/// Encodes an audit record.
pub fn audit_record(record: &AuditRecord) -> v1::AuditRecord {
    let status_of = |value: Option<Status>| value.map_or(v1::SessionStatus::Unspecified, status).into();
    v1::AuditRecord {
        at: Some(timestamp(record.at)),
        action: record.action.as_str().to_owned(),
        outcome: record.outcome.as_str().to_owned(),
        reason: record.reason.clone(),
        actor: text_of(record.actor.as_ref()),
        address: record.address.clone(),
        org: text_of(record.org.as_ref()),
        session_id: text_of(record.session.as_ref()),
        token_id: text_of(record.token.as_ref()),
        object: record.object.clone(),
        from: status_of(record.from),
        to: status_of(record.to),
        version: record.version.unwrap_or_default(),
        unreplicated: record.unreplicated,
    }
}

pub(crate) const fn engine(engine: Engine) -> v1::Engine {
    match engine {
        Engine::Sail => v1::Engine::Sail,
        Engine::Spark => v1::Engine::Spark,
    }
}

fn from_engine(value: i32) -> Result<Engine, Refused> {
    match v1::Engine::try_from(value) {
        Ok(v1::Engine::Sail) => Ok(Engine::Sail),
        Ok(v1::Engine::Spark) => Ok(Engine::Spark),
        Ok(v1::Engine::Unspecified) | Err(_) => Err(Refused::field("engine", "must be SAIL or SPARK")),
    }
}

/// Encodes a cluster. The provider is left out unless `with_provider`: it names programs and
/// addresses.
pub fn cluster(cluster: &Cluster, with_provider: bool) -> v1::Cluster {
    let status = match cluster.status {
        ClusterStatus::Pending => v1::ClusterStatus::Pending,
        ClusterStatus::Active => v1::ClusterStatus::Active,
        ClusterStatus::Draining => v1::ClusterStatus::Draining,
        ClusterStatus::Destroyed => v1::ClusterStatus::Destroyed,
    };
    v1::Cluster {
        name: cluster.name.to_string(),
        status: status.into(),
        engine: engine(cluster.engine).into(),
        engine_version: cluster.engine_version.clone().unwrap_or_default(),
        client_versions: cluster.client_versions.clone(),
        granted_orgs: cluster.granted_orgs.iter().map(ToString::to_string).collect(),
        provider: with_provider.then(|| provider(&cluster.provider)),
        idle_policy: idle_policy(cluster.effective_idle_policy()).to_owned(),
        wake: cluster.wake.as_str().to_owned(),
        idle_timeout: cluster.policy.idle_timeout.map(duration),
        close_after_idle: cluster.policy.close_after_idle.map(duration),
        max_lifetime: cluster.policy.max_lifetime.map(duration),
        provisioning_deadline: cluster.policy.provisioning_deadline.map(duration),
        managed_by_config: cluster.managed_by_config,
        version: cluster.version,
        profiles: kubernetes::offered(cluster),
    }
}

pub(crate) fn provider(provider: &Provider) -> v1::cluster::Provider {
    match provider {
        Provider::Static {
            endpoints,
            allow_shared_untrusted,
        } => v1::cluster::Provider::Static(v1::StaticProvider {
            allow_shared_untrusted: *allow_shared_untrusted,
            endpoints: endpoints
                .iter()
                .map(|endpoint| v1::StaticEndpoint {
                    address: endpoint.address.clone(),
                    tls_server_name: endpoint.tls_server_name.clone().unwrap_or_default(),
                    token_env: endpoint.token_env.clone().unwrap_or_default(),
                })
                .collect(),
        }),
        Provider::Process {
            program,
            java_home,
            properties,
            python,
            driver_memory,
        } => v1::cluster::Provider::Process(v1::ProcessProvider {
            program: program.clone(),
            java_home: java_home.clone().unwrap_or_default(),
            properties: properties.clone().into_iter().collect(),
            python: python.clone().unwrap_or_default(),
            driver_memory: driver_memory.clone().unwrap_or_default(),
        }),
        Provider::Kubernetes(pods) => v1::cluster::Provider::Kubernetes(kubernetes::encode(pods)),
    }
}

fn from_provider(wire: Option<v1::cluster::Provider>) -> Result<Provider, Refused> {
    match wire {
        Some(v1::cluster::Provider::Static(spec)) => Ok(Provider::Static {
            allow_shared_untrusted: spec.allow_shared_untrusted,
            endpoints: spec
                .endpoints
                .into_iter()
                .map(|endpoint| StaticEndpoint {
                    address: endpoint.address,
                    tls_server_name: non_empty(endpoint.tls_server_name),
                    token_env: non_empty(endpoint.token_env),
                })
                .collect(),
        }),
        Some(v1::cluster::Provider::Process(spec)) => Ok(Provider::Process {
            program: spec.program,
            java_home: non_empty(spec.java_home),
            properties: spec.properties.into_iter().collect(),
            python: non_empty(spec.python),
            driver_memory: non_empty(spec.driver_memory),
        }),
        Some(v1::cluster::Provider::Kubernetes(spec)) => {
            Ok(Provider::Kubernetes(Box::new(kubernetes::decode(spec)?)))
        }
        None => Err(Refused::field(
            "provider",
            "is missing: give static, process or kubernetes",
        )),
    }
}

fn from_idle_policy(wire: &str) -> Result<Option<IdlePolicy>, Refused> {
    match wire {
        "" => Ok(None),
        "release" => Ok(Some(IdlePolicy::Release)),
        "keep" => Ok(Some(IdlePolicy::Keep)),
        _ => Err(Refused::field(
            "idle_policy",
            "must be \"release\", \"keep\" or empty",
        )),
    }
}

fn from_wake(wire: &str) -> Result<WakePolicy, Refused> {
    match wire {
        "" | "restore" => Ok(WakePolicy::Restore),
        "signal" => Ok(WakePolicy::Signal),
        _ => Err(Refused::field("wake", "must be \"restore\", \"signal\" or empty")),
    }
}

/// Decodes a cluster; callers cannot set its status and manager.
///
/// # Errors
/// Names the first invalid field.
pub fn from_cluster(wire: v1::Cluster) -> Result<Cluster, Refused> {
    let provider = from_provider(wire.provider)?;
    let idle_policy = from_idle_policy(&wire.idle_policy)?;
    let wake = from_wake(&wire.wake)?;
    Ok(Cluster {
        name: parse("name", &wire.name)?,
        status: ClusterStatus::Active,
        engine: from_engine(wire.engine)?,
        engine_version: non_empty(wire.engine_version),
        client_versions: wire.client_versions,
        granted_orgs: wire
            .granted_orgs
            .iter()
            .map(|org| parse("granted_orgs", org))
            .collect::<Result<_, _>>()?,
        provider,
        idle_policy,
        wake,
        policy: PolicyRange {
            idle_timeout: maybe_duration("idle_timeout", wire.idle_timeout.as_ref())?,
            close_after_idle: maybe_duration("close_after_idle", wire.close_after_idle.as_ref())?,
            max_lifetime: maybe_duration("max_lifetime", wire.max_lifetime.as_ref())?,
            provisioning_deadline: maybe_duration(
                "provisioning_deadline",
                wire.provisioning_deadline.as_ref(),
            )?,
        },
        managed_by_config: false,
        version: wire.version,
    })
}

/// Encodes a catalog.
pub fn catalog(catalog: &Catalog) -> v1::Catalog {
    v1::Catalog {
        name: catalog.name.to_string(),
        org: catalog.org.to_string(),
        default_database: catalog.default_database.clone().unwrap_or_default(),
        engine: engine(catalog.engine).into(),
        properties: catalog
            .properties
            .iter()
            .map(|(key, value)| (key.clone(), property(value)))
            .collect(),
        allowed_teams: catalog.allowed_teams.iter().cloned().collect(),
        managed_by_config: catalog.managed_by_config,
        version: catalog.version,
    }
}

pub(crate) fn property(value: &PropertyValue) -> v1::PropertyValue {
    use v1::property_value::Value;
    let value = match value {
        PropertyValue::Text(text) => Value::Text(text.clone()),
        PropertyValue::List(items) => Value::List(v1::TextList { items: items.clone() }),
    };
    v1::PropertyValue { value: Some(value) }
}

/// Decodes a catalog.
///
/// # Errors
/// Names the first invalid field.
pub fn from_catalog(wire: v1::Catalog) -> Result<Catalog, Refused> {
    let mut properties = BTreeMap::new();
    for (key, value) in wire.properties {
        let value = match value.value {
            Some(v1::property_value::Value::Text(text)) => PropertyValue::Text(text),
            Some(v1::property_value::Value::List(list)) => PropertyValue::List(list.items),
            None => return Err(Refused::field("properties", format!("{key:?} has no value"))),
        };
        properties.insert(key, value);
    }
    Ok(Catalog {
        name: parse("name", &wire.name)?,
        org: parse("org", &wire.org)?,
        default_database: non_empty(wire.default_database),
        engine: from_engine(wire.engine)?,
        properties,
        allowed_teams: wire.allowed_teams.into_iter().collect(),
        managed_by_config: false,
        version: wire.version,
    })
}

/// Encodes an organization.
pub fn org(org: &Org, disabled: bool) -> v1::Org {
    v1::Org {
        name: org.id.to_string(),
        disabled,
        limits: Some(limits(&org.limits)),
        managed_by_config: org.managed_by_config,
        version: org.version,
        disabled_principals: Vec::new(),
    }
}

/// Encodes an authenticated caller.
pub fn caller(who: &Principal) -> v1::Caller {
    v1::Caller {
        principal: who.id.to_string(),
        org: who.org.to_string(),
        roles: who.roles.iter().map(|role| role.as_str().to_owned()).collect(),
        teams: who.teams.iter().cloned().collect(),
        team_admin_of: who.team_admin_of.iter().cloned().collect(),
    }
}

/// Encodes limits.
pub const fn limits(limits: &Limits) -> v1::Limits {
    v1::Limits {
        live_sessions_per_owner: limits.live_sessions_per_owner,
        live_sessions: limits.live_sessions,
        creates_per_minute: limits.creates_per_minute,
        labels: limits.labels,
        tokens_per_session: limits.tokens_per_session,
    }
}

/// Decodes limits.
///
/// # Errors
/// Names the first limit that is out of range.
pub fn from_limits(wire: &v1::Limits) -> Result<Limits, Refused> {
    let limits = Limits {
        live_sessions_per_owner: wire.live_sessions_per_owner,
        live_sessions: wire.live_sessions,
        creates_per_minute: wire.creates_per_minute,
        labels: wire.labels,
        tokens_per_session: wire.tokens_per_session,
    };
    limits
        .check()
        .map_err(|wrong| Refused::field(wrong.field, &wrong))?;
    Ok(limits)
}
