//! What went wrong inside, as callers are told.

use session_core::machine::Refusal;
use session_core::{OrgId, Reason, Session, Status};
use session_proto::error::Refused;
use session_store::Error;

/// The error for members of a disabled organization.
pub(crate) fn org_disabled(org: &OrgId) -> Refused {
    Refused::new(
        Reason::OrgDisabled,
        format!("The organization {org} is disabled. Ask your platform team."),
    )
}

/// A store error that has no meaning of its own to the call.
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
        Error::Unavailable(cause) => {
            tracing::warn!(cause, "the state store is unavailable");
            Refused::new(
                Reason::ControlPlaneUnavailable,
                "Berth cannot reach its state at the moment. Running queries go on; try again shortly.",
            )
        }
        Error::Full => {
            tracing::error!("the state store is short of memory; nothing new is taken");
            Refused::new(
                Reason::QuotaExceeded,
                "Berth's state store is short of memory and takes nothing new. Close what is not needed, and tell your platform team.",
            )
            .with("quota", "store_memory")
        }
        Error::Corrupt(cause) => {
            tracing::error!(cause, "a stored record is broken");
            Refused::new(
                Reason::Internal,
                "A stored record cannot be read. Tell your platform team.",
            )
        }
    }
}

fn quota_used_up(quota: &'static str, limit: u32, retry_after: Option<std::time::Duration>) -> Refused {
    let text = match quota {
        "live_sessions_per_owner" => {
            format!(
                "You have {limit} live sessions, the most you may have. Close one: `berth close <session>`."
            )
        }
        "live_sessions" => {
            format!(
                "Your organization has {limit} live sessions, the most it may have. Close one that is not needed."
            )
        }
        "creates_per_minute" => {
            format!("You created {limit} sessions within a minute, the most you may. Wait a moment.")
        }
        "tokens_per_session" => format!(
            "The session has {limit} live tokens, the most it may have. Use one of them, or revoke one."
        ),
        "catalogs" => format!(
            "Your organization has {limit} catalogs, the most it may have. Delete one that is not needed."
        ),
        "catalog_bytes" => format!(
            "The catalogs of your organization would have more than {limit} bytes together. Delete one that is not needed, or make one smaller."
        ),
        "disabled_principals" | "disabled_bytes" => format!(
            "The organization has disabled as many principals as it may (quota {quota}, {limit}). Enable some whose accounts are gone."
        ),
        other => format!("The quota {other} of {limit} is used up."),
    };
    let reason = if quota == "creates_per_minute" {
        Reason::RateLimited
    } else {
        Reason::QuotaExceeded
    };
    let refused = Refused::new(reason, text)
        .with("quota", quota)
        .with("limit", limit.to_string());
    match retry_after {
        Some(delay) => refused.retry_after(delay),
        None => refused,
    }
}

/// A move that the session's state does not allow.
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

/// The session is over, for callers of the API.
pub(crate) fn ended(session: &Session) -> Refused {
    ended_with(session, "Create a new one: `berth create`.")
}

/// The session is over, for a Spark client. Its user has to stop the Spark session first: otherwise
/// PySpark's `getOrCreate()` returns it again, whatever the connection string says.
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
