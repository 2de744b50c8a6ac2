//! The session token of a forwarder: renewed in the background by one task, before it expires and
//! when spark-proxy rejects it. Calls use the current token and wait only if it has expired or was
//! rejected.

use crate::client::{self, explain};
use crate::output;
use crate::settings::Target;
use anyhow::{Context as _, Result};
use http::HeaderValue;
use service_kit::backoff::Backoff;
use session_core::{Clock as _, Reason, SystemClock, Timestamp};
use session_proto::error::{Refused, reason_of};
use session_proto::{convert, v1};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tonic::{Code, Response, Status};

/// Share of its life after which a token is renewed, in percent.
const RENEW_AFTER_PERCENT: u32 = 75;
/// Minimum time between two tokens, however short their lives are.
const MIN_RENEWAL_INTERVAL: Duration = Duration::from_secs(5);
/// Time limit of one request to token-issuer, reading the credential included.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for which a call waits for a valid token.
const TOKEN_WAIT_TIMEOUT: Duration = Duration::from_secs(30);
/// Delays after a failed renewal: of an outage, and of a cause that a person must remove.
const MIN_RETRY_DELAY: Duration = Duration::from_millis(500);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(15);
const REJECTED_RETRY_DELAY: Duration = Duration::from_secs(30);

/// A session token.
pub(super) struct SessionToken {
    /// Value of `authorization`.
    pub(super) bearer: HeaderValue,
    /// Counts the tokens of this forwarder.
    serial: u64,
    life: Duration,
    /// When it was requested, by the monotonic clock, which stops while the machine sleeps, and by
    /// the clock of the day, which does not.
    requested: Instant,
    requested_at: Timestamp,
}

impl SessionToken {
    fn age(&self) -> Duration {
        let by_day = SystemClock.now().since(self.requested_at);
        self.requested.elapsed().max(by_day)
    }

    fn renewal_age(&self) -> Duration {
        self.life * RENEW_AFTER_PERCENT / 100
    }

    fn is_due(&self) -> bool {
        self.age() >= self.renewal_age()
    }

    fn is_expired(&self) -> bool {
        self.age() >= self.life
    }
}

/// Why there is no new token.
#[derive(Debug, Clone)]
struct Problem {
    /// What calls get while they have no valid token.
    refused: Refused,
    kind: ProblemKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProblemKind {
    /// An outage.
    Temporary,
    /// A person must do something, such as sign in again or restore a right to the session.
    Rejected,
    /// The session is over.
    Over,
}

/// Whether calls have a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readiness {
    Ready,
    /// The token has expired or was rejected, and the next one is on its way.
    Renewing,
    /// The same, and the last renewal failed.
    Failing,
    /// The session is over.
    Over,
}

struct State {
    token: Arc<SessionToken>,
    problem: Option<Problem>,
}

/// The tokens of one session.
pub(super) struct SessionTokens {
    target: Target,
    session: String,
    ttl: Option<Duration>,
    state: watch::Sender<State>,
    /// The newest token that spark-proxy has rejected.
    rejected: AtomicU64,
    /// The newest token whose renewal a call has requested.
    renewal_requested: AtomicU64,
    wake: Notify,
}

impl SessionTokens {
    /// Issues the first token; also returns spark-proxy's connection string.
    pub(super) async fn first(
        target: &Target,
        session: &str,
        ttl: Option<Duration>,
    ) -> Result<(Self, String)> {
        let (token, url) = issue(target, session, ttl, 1)
            .await
            .map_err(|error| match error {
                IssueError::Status(status) => explain(*status),
                IssueError::Local(error) => error,
            })?;
        let state = State {
            token: Arc::new(token),
            problem: None,
        };
        let tokens = Self {
            target: target.clone(),
            session: session.to_owned(),
            ttl,
            state: watch::Sender::new(state),
            rejected: AtomicU64::new(0),
            renewal_requested: AtomicU64::new(0),
            wake: Notify::new(),
        };
        Ok((tokens, url))
    }

    /// The current token; waits for another one if it has expired or was rejected.
    pub(super) async fn valid(&self) -> Result<Arc<SessionToken>, Refused> {
        if let Some(over) = self.over() {
            return Err(over);
        }
        let token = Arc::clone(&self.state.borrow().token);
        if self.is_usable(&token) {
            if token.is_due() {
                // The timer is late if the machine slept.
                self.wake.notify_one();
            }
            return Ok(token);
        }
        self.wait_for_newer(&token).await
    }

    fn is_usable(&self, token: &SessionToken) -> bool {
        !token.is_expired() && self.rejected.load(Ordering::Relaxed) < token.serial
    }

    /// spark-proxy has rejected this token: the next calls need another one.
    pub(super) fn reject(&self, token: &SessionToken) {
        self.rejected.fetch_max(token.serial, Ordering::Relaxed);
        self.request_renewal(token);
    }

    /// Has this token renewed soon, which also shows whether the session is over.
    pub(super) fn request_renewal(&self, token: &SessionToken) {
        self.renewal_requested.fetch_max(token.serial, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// The error of all calls once the session is over.
    pub(super) fn over(&self) -> Option<Refused> {
        let state = self.state.borrow();
        let problem = state.problem.as_ref();
        problem
            .filter(|problem| problem.kind == ProblemKind::Over)
            .map(|problem| problem.refused.clone())
    }

    /// A token in place of one that spark-proxy has rejected; `None` if that one is too new to be
    /// replaced.
    pub(super) async fn in_place_of(
        &self,
        token: &SessionToken,
    ) -> Option<Result<Arc<SessionToken>, Refused>> {
        let is_current = self.state.borrow().token.serial == token.serial;
        if is_current && token.requested.elapsed() < MIN_RENEWAL_INTERVAL {
            return None;
        }
        Some(self.wait_for_newer(token).await)
    }

    async fn wait_for_newer(&self, old: &SessionToken) -> Result<Arc<SessionToken>, Refused> {
        self.reject(old);
        let mut state = self.state.subscribe();
        let decided = |state: &State| {
            let problem = state.problem.as_ref();
            state.token.serial > old.serial
                || problem.is_some_and(|problem| problem.kind != ProblemKind::Temporary)
        };
        let waited = tokio::time::timeout(TOKEN_WAIT_TIMEOUT, state.wait_for(decided)).await;
        drop(waited);
        let state = self.state.borrow();
        if state.token.serial > old.serial {
            return Ok(Arc::clone(&state.token));
        }
        Err(match &state.problem {
            Some(problem) => problem.refused.clone(),
            None => Refused::new(
                Reason::ControlPlaneUnavailable,
                format!(
                    "The session token has expired or was rejected, and token-issuer did not answer within {TOKEN_WAIT_TIMEOUT:?}."
                ),
            ),
        })
    }

    /// Whether calls have a token.
    pub(super) fn readiness(&self) -> Readiness {
        let state = self.state.borrow();
        match &state.problem {
            Some(problem) if problem.kind == ProblemKind::Over => Readiness::Over,
            _ if self.is_usable(&state.token) => Readiness::Ready,
            Some(_) => Readiness::Failing,
            None => Readiness::Renewing,
        }
    }

    /// Waits until token-issuer reports that the session is over; returns the reason.
    pub(super) async fn session_over(&self) -> String {
        let is_over = |state: &State| {
            let problem = state.problem.as_ref();
            problem.is_some_and(|problem| problem.kind == ProblemKind::Over)
        };
        let mut state = self.state.subscribe();
        match state.wait_for(is_over).await {
            Ok(state) => state
                .problem
                .as_ref()
                .map_or_else(String::new, |problem| problem.refused.message.clone()),
            // The sender lives as long as this value.
            Err(_) => std::future::pending().await,
        }
    }

    /// Renews the token until the session is over. One request at a time.
    pub(super) async fn keep_renewed(&self) {
        loop {
            let token = Arc::clone(&self.state.borrow().token);
            self.renewal_due(&token).await;
            if !self.renew(token.serial + 1).await {
                return;
            }
        }
    }

    async fn renewal_due(&self, token: &SessionToken) {
        let timer = tokio::time::sleep_until(token.requested + token.renewal_age());
        tokio::pin!(timer);
        loop {
            if token.is_due() || self.renewal_requested.load(Ordering::Relaxed) >= token.serial {
                break;
            }
            tokio::select! {
                () = &mut timer => break,
                () = self.wake.notified() => {}
            }
        }
        tokio::time::sleep_until(token.requested + MIN_RENEWAL_INTERVAL).await;
    }

    /// Tries until there is a new token; false if the session is over.
    async fn renew(&self, serial: u64) -> bool {
        let mut backoff = Backoff::new(MIN_RETRY_DELAY, MAX_RETRY_DELAY);
        loop {
            let problem = match issue(&self.target, &self.session, self.ttl, serial).await {
                Ok((token, _)) => {
                    self.state.send_replace(State {
                        token: Arc::new(token),
                        problem: None,
                    });
                    if backoff.failures() > 0 {
                        output::note("The session token is renewed again.");
                    }
                    return true;
                }
                Err(error) => problem_of(error),
            };
            let kind = problem.kind;
            if backoff.failures() == 0 {
                output::note(&format!(
                    "Renewing the session token failed: {}",
                    problem.refused.message
                ));
            }
            self.state.send_modify(|state| state.problem = Some(problem));
            let delay = backoff.next_delay();
            match kind {
                ProblemKind::Over => return false,
                ProblemKind::Temporary => tokio::time::sleep(delay).await,
                ProblemKind::Rejected => tokio::time::sleep(REJECTED_RETRY_DELAY).await,
            }
        }
    }
}

enum IssueError {
    Status(Box<Status>),
    /// No request was sent: the credential or the address is unusable.
    Local(anyhow::Error),
}

/// Issues a token; one time limit for reading the credential and for the call.
async fn issue(
    target: &Target,
    session: &str,
    ttl: Option<Duration>,
    serial: u64,
) -> Result<(SessionToken, String), IssueError> {
    let (requested, requested_at) = (Instant::now(), SystemClock.now());
    let issued = tokio::time::timeout(ISSUE_TIMEOUT, request(target, session, ttl)).await;
    let issued = issued.unwrap_or_else(|_| {
        let text = format!("no answer within {ISSUE_TIMEOUT:?}");
        Err(IssueError::Status(Box::new(Status::deadline_exceeded(text))))
    })?;
    let moment = |at: Option<prost_types::Timestamp>| at.as_ref().map(convert::from_timestamp);
    let life = match (moment(issued.issued_at), moment(issued.expires_at)) {
        (Some(from), Some(to)) => to.since(from),
        (_, _) => Duration::ZERO,
    };
    let bearer = HeaderValue::try_from(format!("Bearer {}", issued.token))
        .context("the token of token-issuer cannot be a header")
        .map_err(IssueError::Local)?;
    let mut token = SessionToken {
        bearer,
        serial,
        life,
        requested,
        requested_at,
    };
    token.bearer.set_sensitive(true);
    Ok((token, issued.connection_url))
}

async fn request(
    target: &Target,
    session: &str,
    ttl: Option<Duration>,
) -> Result<v1::IssueSessionTokenResponse, IssueError> {
    let request = v1::IssueSessionTokenRequest {
        session_id: session.to_owned(),
        ttl: ttl.map(convert::duration),
    };
    let target = target.clone();
    // A new client each time: the credential may have been renewed. It is made by a task of its own,
    // because a time limit that cut the renewal of a sign-in could lose its new refresh token.
    let client = tokio::spawn(async move { client::tokens(&target).await });
    let mut client = client
        .await
        .map_err(anyhow::Error::from)
        .flatten()
        .map_err(IssueError::Local)?;
    let issued = client.issue_session_token(request).await;
    issued
        .map(Response::into_inner)
        .map_err(|status| IssueError::Status(Box::new(status)))
}

fn problem_of(error: IssueError) -> Problem {
    let status = match error {
        IssueError::Local(error) => return rejected(format!("{error:#}")),
        IssueError::Status(status) => *status,
    };
    let reason = reason_of(&status);
    let kind = match (reason, status.code()) {
        (Some(Reason::SessionClosed | Reason::SessionFailed | Reason::OrgDisabled), _) => ProblemKind::Over,
        (_, Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument | Code::Unimplemented) => {
            ProblemKind::Rejected
        }
        (_, _) => ProblemKind::Temporary,
    };
    let text = format!("{:#}", explain(status));
    match (kind, reason) {
        (ProblemKind::Over, Some(reason)) => Problem {
            refused: Refused::new(reason, text),
            kind,
        },
        (ProblemKind::Rejected, _) => rejected(text),
        (_, _) => Problem {
            refused: Refused::new(
                Reason::ControlPlaneUnavailable,
                format!("The session token cannot be renewed at present: {text}"),
            ),
            kind: ProblemKind::Temporary,
        },
    }
}

/// The credential of the user is not accepted; the forwarder tries again after a while.
fn rejected(text: String) -> Problem {
    Problem {
        refused: Refused::new(
            Reason::CallerUnknown,
            format!("The session token cannot be renewed: {text}"),
        ),
        kind: ProblemKind::Rejected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(life: Duration, age_by_day: Duration) -> SessionToken {
        let now = SystemClock.now();
        SessionToken {
            bearer: HeaderValue::from_static("Bearer x"),
            serial: 1,
            life,
            requested: Instant::now(),
            requested_at: Timestamp::ZERO.after(now.since(Timestamp::ZERO).saturating_sub(age_by_day)),
        }
    }

    #[test]
    fn a_token_of_a_minute_is_renewed_after_45_s() {
        let life = Duration::from_secs(60);
        assert!(!token(life, Duration::from_secs(44)).is_due());
        assert!(token(life, Duration::from_secs(46)).is_due());
        assert!(!token(life, Duration::from_secs(46)).is_expired());
        // A machine that slept for a minute: the monotonic clock stood still.
        assert!(token(life, Duration::from_secs(61)).is_expired());
    }

    #[test]
    fn outages_pass_and_an_ended_session_does_not() {
        let kind = |status: Status| problem_of(IssueError::Status(Box::new(status))).kind;
        let of = |reason| kind(Refused::new(reason, "text").into_status());
        assert_eq!(of(Reason::SessionClosed), ProblemKind::Over);
        assert_eq!(of(Reason::SessionFailed), ProblemKind::Over);
        assert_eq!(of(Reason::NotAuthorized), ProblemKind::Rejected);
        assert_eq!(of(Reason::CallerUnknown), ProblemKind::Rejected);
        assert_eq!(of(Reason::ControlPlaneUnavailable), ProblemKind::Temporary);
        assert_eq!(of(Reason::RateLimited), ProblemKind::Temporary);
        assert_eq!(kind(Status::unavailable("refused")), ProblemKind::Temporary);
        assert_eq!(kind(Status::deadline_exceeded("slow")), ProblemKind::Temporary);
        let local = problem_of(IssueError::Local(anyhow::anyhow!("run `berth login`")));
        assert_eq!(local.kind, ProblemKind::Rejected);
        assert!(local.refused.message.contains("berth login"));
    }
}
