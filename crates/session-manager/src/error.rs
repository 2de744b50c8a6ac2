//! Errors of the store and of the status machine, as errors for callers.

use compute::Invalid;
use session_core::machine::Refusal;
use session_core::{OrgId, Quota, Reason, Session, Status};
use session_proto::error::Refused;
use session_store::{Error, OutageCause};

/// The error for members of a disabled organization.
pub(crate) fn org_disabled(org: &OrgId) -> Refused {
    Refused::new(
        Reason::OrgDisabled,
        format!("The organization {org} is disabled. Ask your platform team."),
    )
}

/// Fields that an error names for programs.
const MAX_NAMED_FIELDS: usize = 16;

/// The error for an invalid definition in the field `field`. The keys of all its
/// problems are in the metadata, one a line, in the order of the text.
pub(crate) fn invalid(field: &'static str, invalid: &Invalid) -> Refused {
    let keys = invalid.problems.iter().map(|problem| problem.key.as_str());
    let keys: Vec<_> = keys.take(MAX_NAMED_FIELDS).collect();
    Refused::field(field, invalid).with("fields", keys.join("\n"))
}

/// The error for a store error that has no special meaning in the call.
pub(crate) fn store(error: Error) -> Refused {
    match error {
        Error::Conflict => Refused::new(Reason::Conflict, "It was changed meanwhile. Try again."),
        Error::NotFound => Refused::not_authorized(),
        Error::Exists => Refused::new(Reason::AlreadyExists, "It exists already."),
        Error::RequestIdReused => Refused::new(
            Reason::RequestIdReused,
            "This request_id was used before with other fields. Use a new request_id for a new session.",
        ),
        Error::Quota {
            quota,
            limit,
            retry_after,
        } => quota_used_up(quota, limit, retry_after),
        Error::TokenRejected(_) => Refused::new(
            Reason::Conflict,
            "The session ended or its tokens were revoked while the token was made. Try again.",
        ),
        Error::BadPageToken => Refused::field("page_token", "is not one that this API returned"),
        Error::Unavailable(outage) => {
            tracing::warn!(cause = %outage.cause, detail = outage.detail, "state store unavailable");
            Refused::new(Reason::ControlPlaneUnavailable, outage_text(outage.cause))
        }
        Error::Full => {
            tracing::error!("state store out of memory: new sessions and definitions are rejected");
            Refused::new(
                Reason::QuotaExceeded,
                "Berth's state store is short of memory and takes nothing new. Close what is not needed, and tell your platform team.",
            )
            .with("quota", Quota::StoreMemory.as_str())
        }
        Error::Corrupt(cause) => {
            tracing::error!(cause, "decoding a stored record failed");
            Refused::new(
                Reason::Internal,
                "A stored record cannot be read. Tell your platform team.",
            )
        }
    }
}

/// What callers are told about an outage of the state store, and whether waiting helps.
const fn outage_text(cause: OutageCause) -> &'static str {
    match cause {
        OutageCause::Unreachable => {
            "Berth cannot reach its state at the moment. Running queries go on; try again shortly."
        }
        OutageCause::Moving => {
            "Berth's state is moving to another server at the moment. Running queries go on; try again shortly."
        }
        OutageCause::Overloaded => {
            "Berth has too many calls to its state at the moment. Running queries go on; try again shortly."
        }
        OutageCause::Disk => {
            "Berth's state store cannot write to its disk and accepts no changes. Running queries go on; try again later, and tell your platform team."
        }
        OutageCause::Replicas => {
            "Berth's state store has too few replicas and accepts no changes. Running queries go on; try again later, and tell your platform team."
        }
        OutageCause::Access => {
            "Berth's state store rejects the credentials or the rights of session-manager. Running queries go on; tell your platform team."
        }
        OutageCause::Eviction => {
            "Berth's state store could delete sessions when its memory is short, so it is not used. Running queries go on; tell your platform team."
        }
    }
}

/// The unmet condition of readiness, for operators.
pub(crate) const fn store_condition(error: &Error) -> &'static str {
    let Error::Unavailable(outage) = error else {
        return "an unexpected answer";
    };
    match outage.cause {
        OutageCause::Unreachable => "unreachable",
        OutageCause::Moving => "moving to another server, or loading its data",
        OutageCause::Overloaded => "too many calls in flight",
        OutageCause::Disk => "it cannot write to its disk",
        OutageCause::Replicas => "too few replicas",
        OutageCause::Access => "it rejects the credentials or the rights",
        OutageCause::Eviction => "it may evict keys",
    }
}

fn quota_used_up(quota: Quota, limit: u32, retry_after: Option<std::time::Duration>) -> Refused {
    let text = match quota {
        Quota::LiveSessionsPerOwner => {
            format!(
                "You have {limit} live sessions, the most you may have. Close one: `berth close <session>`."
            )
        }
        Quota::LiveSessions => {
            format!(
                "Your organization has {limit} live sessions, the most it may have. Close one that is not needed."
            )
        }
        Quota::CreatesPerMinute => {
            format!("You created {limit} sessions within a minute, the most you may. Wait a moment.")
        }
        Quota::TokensPerSession => format!(
            "The session has {limit} live tokens, the most it may have. Use one of them, or revoke one."
        ),
        Quota::Catalogs => format!(
            "Your organization has {limit} catalogs, the most it may have. Delete one that is not needed."
        ),
        Quota::CatalogBytes => format!(
            "The catalogs of your organization would have more than {limit} bytes together. Delete one that is not needed, or make one smaller."
        ),
        Quota::DisabledPrincipals | Quota::DisabledBytes => format!(
            "The organization has disabled as many principals as it may (quota {quota}, {limit}). Enable some whose accounts are gone."
        ),
        Quota::Watches | Quota::StoreMemory => format!("The quota {quota} of {limit} is used up."),
    };
    let reason = if quota == Quota::CreatesPerMinute {
        Reason::RateLimited
    } else {
        Reason::QuotaExceeded
    };
    let refused = Refused::new(reason, text)
        .with("quota", quota.as_str())
        .with("limit", limit.to_string());
    match retry_after {
        Some(delay) => refused.retry_after(delay),
        None => refused,
    }
}

/// The error for an event that the session's state does not allow.
pub(crate) fn machine(refusal: &Refusal, session: &Session) -> Refused {
    match refusal {
        Refusal::Terminal(_) => ended(session),
        Refusal::BackingOff { until } => Refused::new(
            Reason::SessionWarming,
            format!(
                "The last warm-up failed ({}); the next one may begin at {until}.",
                session.status_message
            ),
        ),
        Refusal::OutOfBounds { field, min, max } => {
            Refused::field(field, format!("must be after {min} and not after {max}"))
        }
    }
}

/// The error for a session that has ended, for callers of the API.
pub(crate) fn ended(session: &Session) -> Refused {
    ended_with(session, "Create a new one: `berth create`.")
}

/// The same for a Spark client. Its user must stop the Spark session first:
/// otherwise PySpark's `getOrCreate()` returns it again, even for another
/// connection string.
pub(crate) fn ended_for_spark(session: &Session) -> Refused {
    ended_with(
        session,
        "Call spark.stop(), then connect to a new one: `berth create`",
    )
}

fn ended_with(session: &Session, advice: &str) -> Refused {
    let id = &session.id;
    if session.status() == Status::Failed {
        let cause = &session.status_message;
        return Refused::new(
            Reason::SessionFailed,
            format!("Session {id} failed: {cause}. {advice}"),
        )
        .with("cause", cause.clone());
    }
    Refused::new(
        Reason::SessionClosed,
        format!("Session {id} is closed ({}). {advice}", session.reason),
    )
}
